"""The HTTP edge: who may call what, and what is answered."""

from __future__ import annotations

import re
from collections import deque
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute
from http_door import assert_problem, bearer, client_of
from plain_bundles import momentum_bundle, onnx_bundle
from plain_hub import TOKENS, PlainHub, rows_of
from prometheus_client.parser import text_string_to_metric_families

from hub.api import SECURITY_HEADERS
from policies.bundle import pack_bundle
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


def url_of(path: str) -> str:
    return path.format(name="momentum_v1", command="pause", strategy="momentum")


def body_of(hub: PlainHub, path: str) -> dict[str, Any] | None:
    return {"/v1/decisions": hub.request(), "/v1/policies/{name}/{command}": {"reason": "a test"},
            "/v1/sentiment": SCORE, "/v1/embedding": {"version": "a", "revert": True}}.get(path)


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
