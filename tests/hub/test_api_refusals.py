"""The HTTP edge: how bad input is refused, and that nothing of it reaches the ledger."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from http_door import assert_problem, bearer, client_of, raw
from plain_bundles import onnx_bundle
from plain_hub import PlainHub

from policies.bundle import pack_bundle
from policies.clock import LiveClock

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
