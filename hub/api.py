"""HTTP: routes, tokens, body limits, errors as problem+json. Translates, calls the service, translates back."""

from __future__ import annotations

import hmac
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import orjson
from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi import Path as UrlPath
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hub import status
from hub.config import ServerConfig
from hub.metrics import exposition
from hub.schemas import CommandBody, DecisionRequest, OutcomeReport, ScoreBody, Strategy
from hub.service import HubService
from policies.errors import (
    BundleRefused,
    ContentConflict,
    HubError,
    InvalidInput,
    LedgerCorrupt,
    UnknownEntity,
    WriterUnavailable,
)

OPS_PAGE = Path(__file__).with_name("ops")
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
                               "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store",
}
STATUS_OF = {InvalidInput: 422, ContentConflict: 422, UnknownEntity: 404, BundleRefused: 422, WriterUnavailable: 503,
             LedgerCorrupt: 503}

Scope_ = Literal["bot", "ops"]
PolicyName = Annotated[str, UrlPath(pattern=r"^[A-Za-z0-9_.:\-]{1,80}$")]


class Extras(Protocol):
    """What the API asks of the other deployments: their own folds answer, not the ingress."""

    async def params(self, strategy: str, symbol: str | None) -> dict[str, Any]: ...

    async def knn(self, symbol: str, k: int) -> dict[str, Any]: ...

    async def store_bundle(self, content: bytes) -> dict[str, Any]: ...


def build_api(service: HubService, extras: Extras, tokens: dict[str, str], settings: ServerConfig,
              market: str) -> FastAPI:
    """tokens: by scope. market: the one line that says where bars come from."""
    app = FastAPI(title="Learner hub", version="1", openapi_url=None)
    app.add_middleware(BodyLimit, most_bytes=settings.max_body_bytes, most_bundle_bytes=settings.max_bundle_bytes,
                       ops_token=tokens["ops"])
    _map_errors(app)
    bot, ops, either = (_require(tokens, *scopes) for scopes in (("bot",), ("ops",), ("bot", "ops")))
    _decision_routes(app, service, bot)
    _policy_routes(app, service, extras, ops, either)
    _question_routes(app, service, extras, either, ops, market)
    _open_routes(app, service)
    return app


def _decision_routes(app: FastAPI, service: HubService, bot: Any) -> None:
    @app.post("/v1/decisions", dependencies=[bot])
    async def decide(asked: DecisionRequest) -> Response:
        return _json(await service.decide(asked.model_dump()))

    @app.post("/v1/outcomes", dependencies=[bot])
    async def learn(report: OutcomeReport) -> Response:
        return _json(await service.learn(report.model_dump()))


    @app.post("/v1/sentiment", dependencies=[bot])
    async def sentiment(score: ScoreBody) -> Response:
        return _json(await service.push_score(score.model_dump()))


def _policy_routes(app: FastAPI, service: HubService, extras: Extras, ops: Any, either: Any) -> None:
    @app.get("/v1/policies", dependencies=[either])
    async def policies() -> Response:
        service.catch_up()
        return _json({"policies": status.policies(service.state)})

    @app.get("/v1/policies/{name}", dependencies=[either])
    async def policy(name: PolicyName) -> Response:
        service.catch_up()
        return _json(status.policy(service.state, service.policy_id_of(name)))

    @app.post("/v1/policies", dependencies=[ops])
    async def register(request: Request) -> Response:
        stored = await extras.store_bundle(await request.body())
        return _json(await service.register(stored["policy_id"], stored["alias"], stored["manifest"]))

    @app.post("/v1/policies/{name}/{command}", dependencies=[ops])
    async def command(name: PolicyName, command: Literal["pause", "resume", "promote", "demote"],
                      body: CommandBody) -> Response:
        command_id = body.command_id or uuid.uuid4().hex
        return _json(await service.command(command, name, body.reason, command_id))


def _question_routes(app: FastAPI, service: HubService, extras: Extras, either: Any, ops: Any, market: str) -> None:
    @app.get("/v1/status", dependencies=[either])
    async def hub_status() -> Response:
        service.catch_up()
        return _json(status.status(service, market, await service.feature_ages()))

    @app.get("/v1/allocation", dependencies=[either])
    async def allocation() -> Response:
        service.catch_up()
        return _json(status.allocation(service.state))

    @app.get("/v1/params/{strategy}", dependencies=[either])
    async def params(strategy: Strategy, symbol: str | None = None) -> Response:
        if symbol is not None:
            service.require_symbol(symbol)
        return _json(await extras.params(strategy, symbol))

    @app.get("/v1/memory/knn", dependencies=[either])
    async def knn(symbol: str, k: Annotated[int, Query(ge=1, le=64)] = 8) -> Response:
        service.require_symbol(symbol)
        return _json(await extras.knn(symbol, k))

    @app.get("/v1/openapi.json", dependencies=[either], include_in_schema=False)
    async def schema() -> Response:
        return _json(app.openapi())

    @app.get("/v1/audit", dependencies=[ops])
    async def audit(limit: Annotated[int, Query(ge=1, le=1_000)] = 50) -> Response:
        return _json(await service.writer.audit(limit))


def _open_routes(app: FastAPI, service: HubService) -> None:
    """Without a token: nothing here changes anything. /metrics tells sums and shares, no trade and no id of one."""

    @app.get("/healthz")
    async def healthz() -> Response:
        return _json({"alive": True})

    @app.get("/readyz")
    async def readyz() -> Response:
        found = await service.readiness()
        return _json(found, 200 if found["ready"] else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        service.catch_up()
        content, kind = exposition(service, await service.feature_ages())
        return Response(content, media_type=kind)

    for route, name, kind in (("/ops", "index.html", "text/html"), ("/ops/ops.js", "ops.js", "text/javascript"),
                              ("/ops/ops.css", "ops.css", "text/css")):
        app.add_api_route(route, _page(OPS_PAGE / name, kind), methods=["GET"], include_in_schema=False)


def _page(path: Path, kind: str) -> Callable[[], Awaitable[Response]]:
    content = path.read_bytes()

    async def page() -> Response:
        return Response(content, media_type=kind, headers=SECURITY_HEADERS)

    return page


def _require(tokens: dict[str, str], *scopes: Scope_) -> Any:
    accepted = [tokens[scope].encode() for scope in scopes]
    known = [token.encode() for token in tokens.values()]

    async def check(request: Request) -> None:
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        given_bytes = given.strip().encode()
        # Every token is compared, so that the time tells nothing about which one was near.
        allowed = [hmac.compare_digest(given_bytes, token) for token in accepted]
        other = [hmac.compare_digest(given_bytes, token) for token in known]
        if kind.lower() != "bearer" or not any(other):
            raise HTTPException(401, "a bearer token is required; see tokens.json in the hub's home")
        if not any(allowed):
            raise HTTPException(403, f"this route needs a token of scope {' or '.join(scopes)}")

    return Depends(check)


def _json(content: Any, status_code: int = 200) -> Response:
    return Response(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), status_code,
                    media_type="application/json")


def problem(status_code: int, code: str, detail: str, **more: Any) -> Response:
    """An RFC 9457 problem; `more` holds field, legal range and value where there are any."""
    title = {401: "Unauthorized", 403: "Forbidden", 404: "Not found", 413: "Too large", 422: "Refused",
             503: "Unavailable"}.get(status_code, "Error")
    body = {"type": f"urn:learner-hub:{code}", "title": title, "status": status_code, "code": code, "detail": detail}
    headers = {"WWW-Authenticate": "Bearer"} if status_code == 401 else None
    return Response(orjson.dumps({**body, **more}, default=str), status_code, headers=headers,
                    media_type="application/problem+json")


def _map_errors(app: FastAPI) -> None:
    @app.exception_handler(HubError)
    async def hub_error(_: Request, error: HubError) -> Response:
        status_code = next((STATUS_OF[kind] for kind in type(error).__mro__ if kind in STATUS_OF), 500)
        more = {"field": error.field, "legal": error.legal, "value": error.value} \
            if isinstance(error, InvalidInput) else {}
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


class BodyLimit:
    """Refuses a body over the limit, whether or not its length was declared, before any of it is parsed.

    Only who holds the ops token may send as much as a bundle: a stranger must not fill the memory.
    """

    def __init__(self, app: ASGIApp, most_bytes: int, most_bundle_bytes: int, ops_token: str) -> None:
        self._app, self._most, self._most_bundle = app, most_bytes, most_bundle_bytes
        self._ops_token = ops_token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")[2].strip()
        registers = scope["path"] == "/v1/policies" and hmac.compare_digest(given, self._ops_token)
        most = self._most_bundle if registers else self._most
        chunks, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            more = message.get("more_body", False)
            if size > most:
                refusal = problem(413, "body_too_large", f"body: must be at most {most} bytes", field="body",
                                  legal=f"at most {most} bytes", value=f"{size} bytes or more")
                await refusal(scope, receive, send)
                return
        whole: Message = {"type": "http.request", "body": b"".join(chunks), "more_body": False}
        handed_over = False

        async def replay() -> Message:
            nonlocal handed_over
            if handed_over:
                return await receive()
            handed_over = True
            return whole

        await self._app(scope, replay, send)
