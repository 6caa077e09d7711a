"""HTTP: routes, tokens, body limits. Translates, calls the service, translates back."""

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
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hub import status
from hub.config import ServerConfig
from hub.metrics import exposition
from hub.problems import map_errors, problem
from hub.registration import Registrar, Upload
from hub.schemas import (
    ArtefactUrl,
    CommandBody,
    DecisionRequest,
    EmbeddingBody,
    OutcomeReport,
    ParamStartBody,
    RlBody,
    ScoreBody,
    Strategy,
)
from hub.service import HubService
from hub.webhook import PolicyWebhook

OPS_PAGE = Path(__file__).with_name("ops")
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
                               "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store",
}
MOST_JSON_BYTES = 65_536  # of a registration by URL

Scope_ = Literal["bot", "ops"]
PolicyName = Annotated[str, UrlPath(pattern=r"^[A-Za-z0-9_.:\-]{1,80}$")]


class Extras(Protocol):
    """What the API asks of the other deployments: their own folds answer, not the ingress."""

    async def params(self, strategy: str, symbol: str | None) -> dict[str, Any]: ...

    async def knn(self, symbol: str, k: int) -> dict[str, Any]: ...


def build_api(service: HubService, extras: Extras, tokens: dict[str, str], settings: ServerConfig, market: str,
              registrar: Registrar, webhook: PolicyWebhook) -> FastAPI:
    """tokens: by scope. market: the one line that says where bars come from."""
    app = FastAPI(title="Learner hub", version="1", openapi_url=None)
    app.add_middleware(BodyLimit, most_bytes=settings.max_body_bytes, ops_token=tokens["ops"])
    map_errors(app)
    bot, ops, either = (_require(tokens, *scopes) for scopes in (("bot",), ("ops",), ("bot", "ops")))
    _decision_routes(app, service, bot)
    _policy_routes(app, service, ops, either)
    _registration_routes(app, service, registrar, webhook, ops)
    _learning_routes(app, service, ops, either)
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


def _policy_routes(app: FastAPI, service: HubService, ops: Any, either: Any) -> None:
    @app.get("/v1/policies", dependencies=[either])
    async def policies() -> Response:
        service.catch_up()
        return _json({"policies": status.policies(service.state)})

    @app.get("/v1/policies/{name}", dependencies=[either])
    async def policy(name: PolicyName) -> Response:
        service.catch_up()
        return _json(status.policy(service.state, service.policy_id_of(name)))

    @app.post("/v1/policies/{name}/{command}", dependencies=[ops])
    async def command(name: PolicyName, command: Literal["pause", "resume", "promote", "demote"],
                      body: CommandBody) -> Response:
        command_id = body.command_id or uuid.uuid4().hex
        return _json(await service.command(command, name, body.reason, command_id))


def _registration_routes(app: FastAPI, service: HubService, registrar: Registrar, webhook: PolicyWebhook,
                         ops: Any) -> None:
    @app.post("/v1/policies", dependencies=[ops])
    async def register(request: Request) -> Response:
        """The body: a bundle as one file, or {"url"} of one in the hub's artefact store."""
        with registrar.entered() as place:
            upload = await registrar.received(request.stream(), "ops")
            if _is_json(upload):
                with upload.file:
                    asked = _artefact_url(upload.begins)
                return _json(await registrar.register_url(asked.url, "ops", asked.policy_id, asked.sha256,
                                                          place=place))
            return _json(await registrar.register_upload(upload, "ops", place=place))

    @app.post("/v1/webhooks/policy")
    async def published(request: Request) -> Response:
        """Signed instead of a token: see `hub.webhook`."""
        return _json(await webhook.receive(request.headers, await request.body()))

    @app.post("/v1/embedding", dependencies=[ops])
    async def embedding(body: EmbeddingBody) -> Response:
        """Which embedding decisions are made with from now on."""
        if body.version is None:
            return _json(await service.embeddings.revert(body.reason, body.command_id))
        return _json(await service.embeddings.use(body.version, body.reason, body.command_id, body.force))


def _learning_routes(app: FastAPI, service: HubService, ops: Any, either: Any) -> None:
    @app.get("/v1/params", dependencies=[either])
    async def params_start() -> Response:
        """What the parameter learners start from."""
        service.catch_up()
        return _json(service.params.shown())

    @app.post("/v1/params/start", dependencies=[ops])
    async def begin_from(body: ParamStartBody) -> Response:
        return _json(await service.params.begin_from(body.start, body.reason))

    @app.post("/v1/rl", dependencies=[ops])
    async def rl(body: RlBody) -> Response:
        """Which registered actor has a say in sizes."""
        return _json(await service.rl.use(body.policy, body.path, body.reason))


def _artefact_url(raw: bytes) -> ArtefactUrl:
    try:
        return ArtefactUrl.model_validate_json(raw)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None


def _is_json(upload: Upload) -> bool:
    """A bundle is a zip file, whose first byte is another one."""
    return upload.size_bytes <= MOST_JSON_BYTES and upload.begins.lstrip()[:1] == b"{"


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


class BodyLimit:
    """Refuses a body over the limit, whether or not its length was declared, before any of it is parsed.

    The body of a registration goes through as it comes, to whoever holds the ops token: its route counts it, and
    writes it to disk. A stranger must fill neither memory nor disk.
    """

    def __init__(self, app: ASGIApp, most_bytes: int, ops_token: str) -> None:
        self._app, self._most = app, most_bytes
        self._ops_token = ops_token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")[2].strip()
        if scope["path"] == "/v1/policies" and hmac.compare_digest(given, self._ops_token):
            await self._app(scope, receive, send)
            return
        most = self._most
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
