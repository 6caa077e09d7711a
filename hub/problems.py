"""Errors as RFC 9457 problems: the one place where the hub's own errors get a status of HTTP."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from hub.embedding_commands import EmbeddingInUse
from hub.head_rack import HeadsUnavailable
from hub.registration import BodyTooLarge, RegistrationBusy
from hub.webhook import NotSigned
from policies.artefacts import ArtefactsUnavailable
from policies.errors import (
    BundleRefused,
    ContentConflict,
    HubError,
    InvalidInput,
    LedgerCorrupt,
    UnknownEntity,
    WriterUnavailable,
)

STATUS_OF = {InvalidInput: 422, ContentConflict: 422, UnknownEntity: 404, BundleRefused: 422, WriterUnavailable: 503,
             LedgerCorrupt: 503, BodyTooLarge: 413, RegistrationBusy: 503, ArtefactsUnavailable: 503,
             HeadsUnavailable: 503, NotSigned: 401, EmbeddingInUse: 409}


def problem(status_code: int, code: str, detail: str, **more: Any) -> Response:
    """An RFC 9457 problem; `more` holds field, legal range and value where there are any."""
    title = {401: "Unauthorized", 403: "Forbidden", 404: "Not found", 409: "In use", 413: "Too large",
             422: "Refused", 503: "Unavailable"}.get(status_code, "Error")
    body = {"type": f"urn:learner-hub:{code}", "title": title, "status": status_code, "code": code, "detail": detail}
    headers = {"WWW-Authenticate": "Bearer"} if status_code == 401 else None
    return Response(orjson.dumps({**body, **more}, default=str), status_code, headers=headers,
                    media_type="application/problem+json")


def map_errors(app: FastAPI) -> None:
    @app.exception_handler(HubError)
    async def hub_error(_: Request, error: HubError) -> Response:
        status_code = next((STATUS_OF[kind] for kind in type(error).__mro__ if kind in STATUS_OF), 500)
        more: dict[str, Any] = {}
        if isinstance(error, InvalidInput):
            more = {"field": error.field, "legal": error.legal, "value": error.value}
        if isinstance(error, BodyTooLarge):
            more = {"field": "body", "legal": f"at most {error.most_bytes} bytes", "value": "more"}
        if isinstance(error, EmbeddingInUse):
            more = {"heads": error.heads}
        return problem(status_code, error.code, str(error), **more)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        errors = [{"field": ".".join(str(part) for part in found["loc"] if part != "body") or "body",
                   "legal": found["msg"], "value": repr(found.get("input"))[:200]} for found in error.errors()]
        first = errors[0]
        return problem(422, "invalid_input", f"{first['field']}: {first['legal']}, got {first['value']}",
                       **first, errors=errors)

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> Response:
        if error.status_code == 400:  # FastAPI's, for bytes in which its parser finds no JSON at all
            legal = "JSON in UTF-8, of moderate depth, with numbers of moderate length"
            return problem(422, "invalid_input", f"body: must be {legal}", field="body", legal=legal, value=None)
        code = {401: "unauthorized", 403: "forbidden", 404: "no_such_route", 405: "method_not_allowed"}
        return problem(error.status_code, code.get(error.status_code, "http_error"), str(error.detail))
