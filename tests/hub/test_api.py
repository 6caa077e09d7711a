"""The HTTP edge: who may call what, how bad input is refused, and that nothing of it reaches the ledger."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from array_heads import array_bundle
from encoder_bundles import encoder_bundle
from fastapi.routing import APIRoute
from plain_hub import TOKENS, PlainHub, llm_view, momentum_bundle, onnx_bundle, rows_of
from prometheus_client.parser import text_string_to_metric_families

from hub.api import SECURITY_HEADERS
from hub.embedding_use import embedders_of
from policies.bundle import pack_bundle
from policies.clock import LiveClock
from policies.embedder import load_embedder
from policies.ensemble import make_ensemble

BOT, OPS, EITHER, OPEN = ("bot",), ("ops",), ("bot", "ops"), ("bot", "ops", "nobody")
SIGNED = ()  # no token opens it

SCOPES = {
    ("POST", "/v1/decisions"): BOT, ("POST", "/v1/outcomes"): BOT, ("POST", "/v1/sentiment"): BOT,
    ("GET", "/v1/policies"): EITHER, ("GET", "/v1/policies/{name}"): EITHER,
    ("POST", "/v1/policies"): OPS, ("POST", "/v1/policies/{name}/{command}"): OPS, ("POST", "/v1/embedding"): OPS,
    ("POST", "/v1/webhooks/policy"): SIGNED,
    ("GET", "/v1/status"): EITHER, ("GET", "/v1/allocation"): EITHER, ("GET", "/v1/params/{strategy}"): EITHER,
    ("GET", "/v1/params"): EITHER, ("POST", "/v1/params/start"): OPS, ("POST", "/v1/rl"): OPS,
    ("GET", "/v1/memory/knn"): EITHER, ("GET", "/v1/audit"): OPS, ("GET", "/v1/openapi.json"): EITHER,
    ("GET", "/healthz"): OPEN, ("GET", "/readyz"): OPEN, ("GET", "/metrics"): OPEN,
    ("GET", "/ops"): OPEN, ("GET", "/ops/ops.js"): OPEN, ("GET", "/ops/ops.css"): OPEN,
}
SCORE = {"source": "reddit", "symbol": "BTC", "score": 0.4, "confidence": 0.9}
SECRETS = (*TOKENS.values(), "/root", "Traceback", "site-packages")


@pytest.fixture
async def client(hub: PlainHub) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(hub) as opened:
        yield opened


def client_of(hub: PlainHub) -> httpx.AsyncClient:
    # An exception that the application did not answer fails the test.
    return httpx.AsyncClient(transport=httpx.ASGITransport(hub.api()), base_url="http://hub")


def bearer(scope: str) -> dict[str, str]:
    return {"Content-Type": "application/json",
            **({"Authorization": f"Bearer {TOKENS[scope]}"} if scope in TOKENS else {})}


def url_of(path: str) -> str:
    return path.format(name="momentum_v1", command="pause", strategy="momentum")


def body_of(hub: PlainHub, path: str) -> dict[str, Any] | None:
    return {"/v1/decisions": hub.request(), "/v1/policies/{name}/{command}": {"reason": "a test"},
            "/v1/sentiment": SCORE, "/v1/embedding": {"version": "a", "revert": True}}.get(path)


def assert_problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem.keys() >= {"type", "title", "status", "code", "detail"}
    assert (problem["status"], problem["type"]) == (status, f"urn:learner-hub:{problem['code']}")
    assert not [secret for secret in SECRETS if secret in answer.text]
    return dict(problem)


# -- who may call what ------------------------------------------------------------------------------------------------


def test_every_route_has_a_scope_here(hub: PlainHub) -> None:
    found = set()
    for route in hub.api().routes:
        assert isinstance(route, APIRoute), route
        found |= {(method, route.path) for method in route.methods or ()}
    assert found == SCOPES.keys()


@pytest.mark.parametrize(("method", "path"), SCOPES)
async def test_a_route_answers_its_scopes_and_no_other(
        hub: PlainHub, client: httpx.AsyncClient, method: str, path: str) -> None:
    for scope in OPEN:
        answer = await client.request(method, url_of(path), headers=bearer(scope), json=body_of(hub, path))
        if scope in SCOPES[method, path]:
            assert answer.status_code not in (401, 403), answer.text
        else:
            unknown = scope == "nobody" or SCOPES[method, path] is SIGNED
            refused = assert_problem(answer, 401 if unknown else 403)
            assert refused["code"] in (("unauthorized", "not_signed") if unknown else ("forbidden",))


@pytest.mark.parametrize("given", [
    "", "Bearer", "Bearer ", "Bearer wrong", f"Basic {TOKENS['bot']}", TOKENS["bot"], f"Bearer {TOKENS['bot']}x",
    f"Bearer {TOKENS['bot'][:-1]}", f"Bearer {TOKENS['bot']} {TOKENS['bot']}", "Bearer gar\xe7on"])
async def test_what_is_not_a_token_of_the_hub_is_nobodys(hub: PlainHub, client: httpx.AsyncClient, given: str) -> None:
    answer = await client.post("/v1/decisions", headers={b"Authorization": given.encode("latin-1")}, json=hub.request())
    assert_problem(answer, 401)
    assert answer.headers["www-authenticate"] == "Bearer"


async def test_routes_and_methods_that_there_are_not_are_problems_too(client: httpx.AsyncClient) -> None:
    assert assert_problem(await client.get("/v2/nothing"), 404)["code"] == "no_such_route"
    assert assert_problem(await client.delete("/v1/decisions"), 405)["code"] == "method_not_allowed"
    for path in ("/openapi.json", "/docs", "/redoc"):
        assert_problem(await client.get(path), 404)


# -- ages of features --------------------------------------------------------------------------------------------------


async def test_a_feed_that_has_died_is_seen_by_its_age(hub: PlainHub, client: httpx.AsyncClient) -> None:
    await hub.decide_later()
    hub.features.event_time_ms = {"depth": hub.time_ms - 15_001}
    told = (await client.get("/v1/status", headers=bearer("ops"))).json()["features"]
    assert {entry["symbol"] for entry in told} == {"BTC", "ETH", "SOL", "HYPE"}
    assert {entry["group"]: entry["age_ms"] for entry in told if not entry["fresh"]} == {"depth": 15_001}
    metrics = (await client.get("/metrics")).text
    assert 'hub_feature_age_seconds{group="depth",symbol="SOL"} 15.001' in metrics
    assert "hub_features_readable 1.0" in metrics
    hub.features.failed = "Redis is away"
    unread = (await client.get("/v1/status", headers=bearer("ops"))).json()["features"]
    assert [(entry["group"], entry["age_ms"], entry["fresh"]) for entry in unread] == [("bars", None, False)] * 4
    assert "hub_features_readable 0.0" in (await client.get("/metrics")).text


# -- sentiment ---------------------------------------------------------------------------------------------------------


async def test_a_score_is_recorded_once_and_another_one_under_its_key_is_refused(
        hub: PlainHub, client: httpx.AsyncClient) -> None:
    score = {**SCORE, "time_ms": hub.time_ms}
    told = [(await client.post("/v1/sentiment", headers=bearer("bot"), json=score)).json() for _ in range(2)]
    assert [answer["accepted"] for answer in told] == ["recorded", "duplicate"]
    assert told[0]["position"] == told[1]["position"]
    row = hub.reader.get("observation", f"sentiment/reddit/BTC/{hub.time_ms}")
    assert row is not None
    assert (row.body["what"], row.body["figure"], row.body["detail"]) == ("sentiment", 0.4, score)
    other = await client.post("/v1/sentiment", headers=bearer("bot"), json={**score, "score": -0.4})
    assert assert_problem(other, 422)["code"] == "content_conflict"


@pytest.mark.parametrize(("field", "value"), [
    ("source", "telegram"), ("symbol", "DOGE"), ("score", 1.01), ("score", "0.4"), ("score", None),
    ("confidence", -0.01), ("confidence", True), ("time_ms", 4_000_000_000_000), ("time_ms", 1.5), ("mood", "good")])
async def test_a_score_that_makes_no_sense_is_refused_by_its_field(
        hub: PlainHub, client: httpx.AsyncClient, field: str, value: Any) -> None:
    before = hub.reader.head()
    answer = await client.post("/v1/sentiment", headers=bearer("bot"), json={**SCORE, field: value})
    problem = assert_problem(answer, 422)
    assert problem["field"] == field
    assert hub.reader.head() == before


# -- what is refused --------------------------------------------------------------------------------------------------


def raw(hub: PlainHub, name: str, literal: str, path: str = "/v1/decisions") -> bytes:
    """A request's JSON with one value replaced by a literal as it stands. name: dotted, of an object that is there."""
    whole = hub.request(llm=llm_view()) if path == "/v1/decisions" else hub.outcome(
        {"decision_id": "d0", "action": {"direction": "long", "size_fraction": 0.02, "leverage": 5.0},
         "time_ms": hub.time_ms}, 0.001)
    place = whole
    *outer, last = name.split(".")
    for part in outer:
        place = place[part]
    place[last] = "@here@"
    return json.dumps(whole).replace('"@here@"', literal).encode()


BAD_DECISIONS = [
    ("symbol", '"DOGE"', "one of BTC, ETH, SOL, HYPE"), ("symbol", '"' + "B" * 21 + '"', "pattern"),
    ("symbol", "7", "string"), ("symbol", r'"\ud800"', "string"), ("strategy", '"yolo"', "momentum"),
    ("request_id", '"a b"', "pattern"), ("request_id", '""', "pattern"), ("request_id", "null", "string"),
    ("time_ms", "1.5", "integer"), ("time_ms", '"1"', "integer"), ("time_ms", "NaN", "integer"),
    ("time_ms", "-1", "greater"), ("time_ms", "1", ">="), ("time_ms", "9" * 30, "less"), ("time_ms", "true", "integer"),
    ("portfolio", "null", "dictionary"), ("portfolio", "{}", "required"), ("portfolio.equity", "0", "greater than 0"),
    ("portfolio.equity", "NaN", "finite"), ("portfolio.equity", "Infinity", "finite"),
    ("portfolio.equity", "-Infinity", "finite"), ("portfolio.equity", "1e999", "finite"),
    ("portfolio.equity", '"10000"', "number"), ("portfolio.equity", "true", "number"),
    ("portfolio.equity", "1e13", "less"), ("portfolio.equity", "null", "number"),
    ("portfolio.unrealised_pnl", "1e999", "finite"), ("portfolio.current_leverage", "-0.1", "greater"),
    ("portfolio.unknown", "1", "not permitted"), ("unknown", "1", "not permitted"), ("llm.direction", '"up"', "long"),
    ("llm.confidence", "1.01", "less"), ("llm.confidence", '"0.5"', "number"), ("llm.tp_pct", '"0.01"', "number"),
    ("llm.confidence", "NaN", "finite"), ("llm.leverage", "0.5", "greater"),
    ("llm.sl_pct", "0", "greater"), ("llm.size_fraction", "-0.0001", "greater"), ("llm.leverage", "1e999", "finite"),
    ("llm.strategy_weights", '{"yolo": 1}', "momentum"), ("llm.strategy_weights", r'{"\ud800": 1}', "unicode"),
    ("llm.strategy_weights", '{"momentum": -1}', "greater"), ("llm.strategy_weights", '{"momentum": NaN}', "finite"),
    ("parent_decision_id", '"d-none"', "which is free"), ("parent_decision_id", '"a b"', "pattern"),
]


@pytest.mark.parametrize(("name", "literal", "legal"), BAD_DECISIONS)
async def test_a_bad_value_of_a_request_is_refused_with_its_name_the_legal_range_and_the_value(
        hub: PlainHub, client: httpx.AsyncClient, name: str, literal: str, legal: str) -> None:
    before = hub.reader.head()
    answer = await client.post("/v1/decisions", content=raw(hub, name, literal), headers=bearer("bot"))
    problem = assert_problem(answer, 422)
    assert problem["field"].startswith(name)
    assert legal in problem["legal"]
    assert isinstance(problem["value"], str | None)
    assert hub.reader.head() == before


BAD_OUTCOMES = [
    ("entry_price", "0", "greater"), ("exit_price", "NaN", "finite"), ("size", "-1", "greater"),
    ("pnl", "Infinity", "finite"), ("fees", "-0.01", "greater"), ("exit_reason", '"bored"', "target"),
    ("drawdown_proxy", "2", "less"), ("part", "-1", "greater"), ("revision", "1.0", "integer"),
    ("exit_time_ms", "null", "integer"), ("origin", '"somebody"', "hub"), ("unknown", "1", "not permitted"),
    ("final", '"yes"', "boolean"), ("final", "1", "boolean"), ("size", '"1"', "number"), ("pnl", "true", "number"),
    ("equity", "1e999", "finite"), ("decision_id", '"../../etc"', "pattern"), ("final", '"perhaps"', "boolean"),
]


@pytest.mark.parametrize(("name", "literal", "legal"), BAD_OUTCOMES)
async def test_a_bad_value_of_an_outcome_is_refused_with_its_name_the_legal_range_and_the_value(
        hub: PlainHub, client: httpx.AsyncClient, name: str, literal: str, legal: str) -> None:
    before = hub.reader.head()
    answer = await client.post("/v1/outcomes", content=raw(hub, name, literal, "/v1/outcomes"), headers=bearer("bot"))
    problem = assert_problem(answer, 422)
    assert problem["field"] == name
    assert legal in problem["legal"]
    assert hub.reader.head() == before


@pytest.mark.parametrize("field", ["equity", "request_id", "symbol", "strategy", "portfolio"])
async def test_what_is_missing_is_named(hub: PlainHub, client: httpx.AsyncClient, field: str) -> None:
    request = hub.request()
    del (request["portfolio"] if field == "equity" else request)[field]
    problem = assert_problem(await client.post("/v1/decisions", json=request, headers=bearer("bot")), 422)
    assert (problem["field"].split(".")[-1], problem["legal"]) == (field, "Field required")


NOT_JSON = {"nothing": b"", "half": b'{"request_id": "r1"', "a list": b"[]", "a number": b"7",
            "no utf-8": b'{"a": "\xff"}', "too long a number": b'{"request_id": ' + b"9" * 5_000 + b"}",
            "null bytes": b"\0" * 50, "a key that is no text": rb'{"\ud800": 1}',
            "a long key": b'{"' + b"k" * 60_000 + b'": 1}',
            "too deep": b"[" * 60_000, "too deep and closed": b"[" * 30_000 + b"]" * 30_000}


@pytest.mark.parametrize("what", NOT_JSON)
@pytest.mark.parametrize("path", ["/v1/decisions", "/v1/outcomes", "/v1/policies/momentum_v1/pause"])
async def test_a_body_that_is_no_object_is_refused(
        hub: PlainHub, client: httpx.AsyncClient, path: str, what: str) -> None:
    before = hub.reader.head()
    scope = "ops" if "policies" in path else "bot"
    problem = assert_problem(await client.post(path, content=NOT_JSON[what], headers=bearer(scope)), 422)
    assert problem.keys() >= {"field", "legal", "value"}
    assert hub.reader.head() == before


@pytest.mark.parametrize("depth", [10, 300, 600, 800, 900, 950, 980, 1_000, 1_500])
async def test_json_of_any_depth_is_refused_and_never_an_error_of_the_server(
        hub: PlainHub, client: httpx.AsyncClient, depth: int) -> None:
    for deep in ("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth):
        answer = await client.post("/v1/decisions", content=raw(hub, "unknown", deep), headers=bearer("bot"))
        assert_problem(answer, 422)


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "chunked"])
async def test_a_body_over_the_limit_is_refused_before_it_is_read_to_its_end(
        hub: PlainHub, client: httpx.AsyncClient, declared: bool) -> None:
    limit, sent = hub.config.server.max_body_bytes, 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1_000):
            sent += 16_384
            yield b" " * 16_384

    content = b" " * (limit + 1) if declared else chunks()
    problem = assert_problem(await client.post("/v1/decisions", content=content, headers=bearer("bot")), 413)
    assert problem["legal"] == f"at most {limit} bytes"
    assert sent <= limit + 2 * 16_384
    fits = json.dumps(hub.request()).encode()
    answer = await client.post("/v1/decisions", content=fits + b" " * (limit - len(fits)), headers=bearer("bot"))
    assert answer.status_code == 200


async def test_a_bundle_may_be_larger_than_a_body_and_not_without_end(open_hub: Any) -> None:
    hub = open_hub({"server": {"max_body_bytes": 1_024, "max_bundle_bytes": 50_000}})
    async with client_of(hub) as client:
        packed = pack_bundle(onnx_bundle())
        assert len(packed) > 1_024
        assert (await client.post("/v1/policies", content=packed, headers=bearer("ops"))).status_code == 200
        assert_problem(await client.post("/v1/policies", content=b" " * 50_001, headers=bearer("ops")), 413)


async def test_an_outcome_of_a_decision_that_is_not_recorded_is_not_found(
        hub: PlainHub, client: httpx.AsyncClient) -> None:
    before = hub.reader.head()
    answer = await client.post("/v1/outcomes", content=raw(hub, "fees", "0", "/v1/outcomes"), headers=bearer("bot"))
    assert assert_problem(answer, 404)["code"] == "unknown"
    assert hub.reader.head() == before


async def test_a_live_hub_refuses_a_time_that_is_off(open_hub: Any) -> None:
    hub = open_hub(clock=LiveClock())
    async with client_of(hub) as client:
        before = hub.reader.head()
        for off_ms in (-60_000, 60_000):
            request = hub.request(time_ms=hub.time_ms + off_ms)
            problem = assert_problem(await client.post("/v1/decisions", json=request, headers=bearer("bot")), 422)
            assert (problem["field"], problem["value"]) == ("time_ms", str(request["time_ms"]))
            assert "within 2000 ms" in problem["legal"]
        assert hub.reader.head() == before
        assert (await client.post("/v1/decisions", json=hub.request(), headers=bearer("bot"))).status_code == 200


@pytest.mark.parametrize("url", ["/v1/memory/knn", "/v1/memory/knn?symbol=DOGE", "/v1/memory/knn?symbol=BTC&k=0",
                                 "/v1/memory/knn?symbol=BTC&k=65", "/v1/params/yolo", "/v1/params/momentum?symbol=DOGE",
                                 "/v1/policies/a%20b", "/v1/policies/" + "x" * 81])
async def test_bad_questions_are_refused_by_name(client: httpx.AsyncClient, url: str) -> None:
    assert assert_problem(await client.get(url, headers=bearer("bot")), 422).keys() >= {"field", "legal", "value"}


@pytest.mark.parametrize(("url", "body", "status"), [
    ("/v1/policies/nobody/pause", {}, 404), ("/v1/policies/momentum_v1/fire", {}, 422),
    ("/v1/policies/book/promote", {}, 422), ("/v1/policies/momentum_v1/pause", {"reason": ""}, 422),
    ("/v1/policies/momentum_v1/pause", {"reason": "x" * 501}, 422),
    ("/v1/policies/momentum_v1/pause", {"why": "x"}, 422),
    ("/v1/policies/momentum_v1/pause", {"reason": "\ud800"}, 422),
    ("/v1/policies/momentum_v1/pause", {"command_id": "a/b"}, 422)])
async def test_a_bad_command_is_refused_and_changes_nothing(
        hub: PlainHub, client: httpx.AsyncClient, url: str, body: dict[str, Any], status: int) -> None:
    before = hub.reader.head()
    assert_problem(await client.post(url, content=json.dumps(body), headers=bearer("ops")), status)
    assert hub.reader.head() == before


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06" + b"\0" * 18, b"\x80\x04\x95"],
                         ids=["nothing", "empty zip", "pickle"])
async def test_what_is_no_bundle_is_refused_with_the_reason(
        hub: PlainHub, client: httpx.AsyncClient, content: bytes) -> None:
    before = hub.reader.head()
    answer = await client.post("/v1/policies", content=content, headers=bearer("ops"))
    assert assert_problem(answer, 422)["code"] == "bundle_refused"
    assert [row.body["what"] for row in hub.reader.rows(after=before)] == ["registration_refused"]


@pytest.mark.parametrize("body", [{}, {"url": ""}, {"url": "s3://elsewhere/x.pt"}, {"url": "/etc/passwd"},
                                  {"path": "x"}, {"url": 3}, {"url": "file:///x/latest.json", "policy_id": "ab"}])
async def test_a_url_that_is_not_of_the_hubs_store_is_refused_by_its_field(
        hub: PlainHub, client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    before = hub.reader.head()
    problem = assert_problem(await client.post("/v1/policies", json=body, headers=bearer("ops")), 422)
    assert problem["field"] in ("url", "path", "policy_id")
    understood = body.get("url") in ("s3://elsewhere/x.pt", "/etc/passwd")
    assert [row.body["what"] for row in hub.reader.rows(after=before)] == ["registration_refused"] * understood


async def test_an_embedding_is_stored_used_reverted_and_each_choice_is_audited(
        hub: PlainHub, client: httpx.AsyncClient) -> None:
    async def choose(**body: Any) -> httpx.Response:
        return await client.post("/v1/embedding", json=body, headers=bearer("ops"))

    assert assert_problem(await choose(version="mae-unknown"), 404)["code"] == "unknown"
    assert assert_problem(await choose(revert=True), 422)["field"] == "revert"
    stored = await client.post("/v1/policies", content=pack_bundle(encoder_bundle()), headers=bearer("ops"))
    version = stored.json()["embedding_version"]
    used = (await choose(version=version, reason="trained", command_id="c1")).json()
    assert (used["version"], used["earlier"], used["accepted"]) == (version, "none", "recorded")
    assert (await choose(version=version, reason="trained", command_id="c1")).json()["accepted"] == "duplicate"
    assert (await client.get("/v1/status", headers=bearer("bot"))).json()["embedding"]["version"] == version
    assert (await choose(revert=True, reason="odd")).json()["version"] == "none"
    audit = (await client.get("/v1/audit", headers=bearer("ops"))).json()
    assert [(row["actor"], row["summary"]) for row in audit["rows"] if row["rule"] == "embedding"] == [
        ("ops", "revert_embedding: none: odd"), ("ops", f"use_embedding: {version}: trained")]
    assert audit["verified"]


async def test_the_answer_shows_the_signal_of_each_member_of_an_ensemble(
        hub: PlainHub, client: httpx.AsyncClient) -> None:
    ensemble = make_ensemble("both_v1", [momentum_bundle("a", 0.2), onnx_bundle("b", 4)], [1.0, 2.0])
    answer = await client.post("/v1/policies", content=pack_bundle(ensemble), headers=bearer("ops"))
    assert answer.status_code == 200, answer.text
    told = (await client.post("/v1/decisions", json=hub.request(), headers=bearer("bot"))).json()["proposals"]
    members = {proposal["alias"]: proposal.get("members") for proposal in told.values()}
    assert members["both_v1"].keys() == {"a", "b"}
    assert members["both_v1"]["a"].keys() >= {"direction", "confidence", "weight"}
    assert members["momentum_v1"] is None


async def test_an_embedding_that_production_needs_is_not_changed_without_force(
        hub: PlainHub, client: httpx.AsyncClient) -> None:
    version = embedders_of(hub.home).add(pack_bundle(encoder_bundle()), load_embedder)
    await hub.service.embeddings.use(version, "")
    await hub.register(array_bundle("embedded_v1", {"market_embedding": 4}, version))
    await hub.command("promote", "embedded_v1")
    before = hub.reader.head()
    answer = await client.post("/v1/embedding", json={"version": "none"}, headers=bearer("ops"))
    problem = assert_problem(answer, 409)
    assert (problem["code"], problem["heads"]) == ("embedding_in_use", ["embedded_v1"])
    assert hub.reader.head() == before
    forced = await client.post("/v1/embedding", json={"version": "none", "force": True}, headers=bearer("ops"))
    assert (forced.status_code, forced.json()["version"]) == (200, "none")


@pytest.mark.parametrize("body", [{}, {"version": "a", "revert": True}, {"revert": False}, {"version": "a b"},
                                  {"version": "a", "reason": ""}, {"revert": "yes"}, {"version": "a", "force": 1}])
async def test_a_bad_choice_of_an_embedding_is_refused(
        hub: PlainHub, client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    before = hub.reader.head()
    assert_problem(await client.post("/v1/embedding", json=body, headers=bearer("ops")), 422)
    assert hub.reader.head() == before


async def test_while_the_writer_is_away_writes_are_unavailable_and_decisions_are_safe(
        hub: PlainHub, client: httpx.AsyncClient) -> None:
    trade = await hub.trade()
    hub.writer.away = True
    refused = await client.post("/v1/outcomes", json=hub.outcome(trade, 0.001), headers=bearer("bot"))
    assert assert_problem(refused, 503)["code"] == "writer_unavailable"
    assert_problem(await client.get("/v1/audit", headers=bearer("ops")), 503)
    assert (await client.get("/readyz")).status_code == 503
    assert (await client.get("/healthz")).status_code == 200
    answer = await client.post("/v1/decisions", json=hub.request(), headers=bearer("bot"))
    assert (answer.status_code, answer.json()["decision_id"]) == (200, None)


async def test_the_same_request_id_with_another_body_is_refused(hub: PlainHub, client: httpx.AsyncClient) -> None:
    request = hub.request()
    first = await client.post("/v1/decisions", json=request, headers=bearer("bot"))
    assert (await client.post("/v1/decisions", json=request, headers=bearer("bot"))).json() == first.json()
    other = await client.post("/v1/decisions", json={**request, "strategy": "breakout"}, headers=bearer("bot"))
    assert assert_problem(other, 422)["code"] == "content_conflict"


# -- what is answered -------------------------------------------------------------------------------------------------


async def test_a_whole_day_over_http(open_hub: Any) -> None:
    hub = open_hub()
    async with client_of(hub) as client:
        for bundle in (momentum_bundle(), onnx_bundle()):
            answer = await client.post("/v1/policies", content=pack_bundle(bundle), headers=bearer("ops"))
            assert answer.json()["policy_id"] == bundle.policy_id
        trade = await hub.trade()
        learnt = await client.post("/v1/outcomes", json=hub.outcome(trade, 0.001), headers=bearer("bot"))
        assert (learnt.json()["accepted"], learnt.json()["verdicts"]) == ("recorded", [])
        paused = await client.post("/v1/policies/linear_v1/pause", json={"reason": "a look"}, headers=bearer("ops"))
        assert paused.json()["policy_id"] == onnx_bundle().policy_id
        shown = (await client.get("/v1/policies/linear_v1", headers=bearer("bot"))).json()
        assert (shown["role"], shown["paused"], shown["manifest"]["alias"]) == ("paused", True, "linear_v1")
        found = (await client.get("/v1/status", headers=bearer("bot"))).json()
        assert [head["alias"] for head in found["heads"]] == ["momentum_v1", "linear_v1"]
        assert sum(head["share"] for head in found["heads"]) + found["llm_only_share"] == pytest.approx(1.0)
        assert sum(found["allocation"].values()) == pytest.approx(1.0)
        audit = (await client.get("/v1/audit", headers=bearer("ops"))).json()
        assert audit["verified"]
        assert {"command", "policy", "genesis"} <= {row["kind"] for row in audit["rows"]}
        schema = (await client.get("/v1/openapi.json", headers=bearer("bot"))).json()
        assert "/v1/decisions" in schema["paths"]


async def test_no_answer_holds_a_token(hub: PlainHub, client: httpx.AsyncClient) -> None:
    for method, path in SCOPES:
        answer = await client.request(method, url_of(path), headers=bearer("ops"), json=body_of(hub, path))
        assert not [token for token in TOKENS.values() if token in answer.text]


@pytest.mark.parametrize("path", ["/ops", "/ops/ops.js", "/ops/ops.css"])
async def test_the_ops_page_may_load_nothing_from_elsewhere_and_be_framed_by_nobody(
        client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    assert answer.status_code == 200
    assert {name: answer.headers[name] for name in SECURITY_HEADERS} == SECURITY_HEADERS
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert not re.search(r"unsafe|\*|https?:", answer.headers["content-security-policy"])
    if path == "/ops":
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|style=|https?://", answer.text)


async def test_metrics_parse_and_their_labels_are_bounded(hub: PlainHub, client: httpx.AsyncClient) -> None:
    hub.service.seen.latencies_ms = deque(maxlen=3)
    for minute in range(12):
        hub.features.age_ms = -minute * 60_000
        await hub.decide_later()
    hub.features.age_ms = 0
    hub.heads.latency_ms = 3.0
    await hub.report(await hub.trade(), 0.001)
    answer = await client.get("/metrics")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    labels = {(family.name, name): {sample.labels[name] for sample in family.samples if name in sample.labels}
              for family in families.values() for name in ("role", "effect", "part", "policy_id", "alias")}
    assert labels["hub_degraded", "part"] == {"features"}
    assert labels["hub_decisions", "role"] <= {"production", "challenger", "llm_only"}
    assert labels["hub_head_share", "alias"] == {"momentum_v1", "linear_v1"}
    assert {name for sample in (s for f in families.values() for s in f.samples) for name in sample.labels} <= {
        "role", "effect", "part", "policy_id", "alias", "symbol", "group", "version"}
    figures = {sample.name: sample.value for family in families.values() for sample in family.samples}
    decisions = len(rows_of(hub, "decision"))
    assert sum(sample.value for sample in families["hub_decisions"].samples) == decisions
    assert figures["hub_decision_latency_ms_count"] == decisions > 3
    assert figures["hub_outcomes_total"] == 1
    assert figures["hub_ledger_position"] == hub.reader.head()
