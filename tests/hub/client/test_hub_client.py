"""The bot's client against a hub that misbehaves in every way it can."""

from __future__ import annotations

import json
import math
import os
import socket
import sqlite3
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from fake_hub import (
    VIEW,
    FakeHub,
    Respond,
    acknowledges,
    cuts_the_body,
    decides,
    hangs_up,
    outcome,
    problem,
    sends,
    stalls,
    trickles,
    with_action,
)

from hub.client import HubClient, Limits, OwnTrade, Registration, candidate_bytes, put_learning_memory
from policies.types import Action, Direction

ROOT = Path(__file__).parents[3]


# -- deciding ----------------------------------------------------------------------------------------------------------


def test_good_answer_becomes_typed_advice(hub: FakeHub, client: HubClient) -> None:
    advice = client.decide("BTC", "momentum", 10_000.0, VIEW, time_ms=60_000, request_id="r1", unrealised_pnl=-3.0)
    assert advice.acts
    assert not advice.llm_only
    assert advice.action == Action(Direction.LONG, 0.05, 5, 0.012, 0.008, 0.0, 0.55)
    assert (advice.decision_id, advice.policy, advice.role, advice.horizon_s) == ("d1", "tabnet_v1", "production", 900)
    assert [(d.part, d.reason) for d in advice.degraded] == [("memory", "late")]
    assert hub.authorizations == ["Bearer secret"]
    assert hub.bodies == [{
        "request_id": "r1", "symbol": "BTC", "strategy": "momentum", "time_ms": 60_000, "parent_decision_id": None,
        "portfolio": {"equity": 10_000.0, "current_leverage": 0.0, "unrealised_pnl": -3.0},
        "llm": {"direction": "short", "size_fraction": 0.02, "leverage": 3.0, "tp_pct": 0.01, "sl_pct": 0.006,
                "limit_offset_pct": 0.0, "min_conf": 0.5, "confidence": 0.6, "strategy_weights": {"momentum": 1.0}}}]


def test_without_acts_the_action_is_the_llms_own_and_the_decision_id_stays(hub: FakeHub, client: HubClient) -> None:
    hub.respond = decides(acts=False, policy_id="llm_only", policy="llm_only", role="llm_only", confidence=None)
    advice = client.decide("BTC", "momentum", 10_000.0, VIEW)
    assert advice.llm_only
    assert advice.action == VIEW.action
    assert advice.decision_id == "d1"


def test_decision_that_the_hub_could_not_record_has_no_id(hub: FakeHub, client: HubClient) -> None:
    hub.respond = decides(acts=False, decision_id=None, policy_id="llm_only", policy="llm_only", role="llm_only",
                          degraded=[{"part": "sentry", "reason": "away"}])
    advice = client.decide("BTC", "momentum", 10_000.0, VIEW)
    assert (advice.decision_id, advice.action) == (None, VIEW.action)
    assert advice.degraded[0].part == "sentry"


def test_every_request_without_an_id_gets_its_own(hub: FakeHub, client: HubClient) -> None:
    client.decide("BTC", "momentum", 10_000.0)
    client.decide("BTC", "momentum", 10_000.0)
    assert len({body["request_id"] for body in hub.bodies}) == 2


@pytest.mark.parametrize(("respond", "reason"), [
    (stalls, "no answer within 250 ms"),
    (trickles, "no answer within 250 ms"),
    (hangs_up, "RemoteProtocolError"),
    (cuts_the_body, "RemoteProtocolError"),
    (sends(404, b"no route"), "HTTP 404"),
    (sends(503, {"code": "writer_unavailable", "detail": "the writer is away"}), "the writer is away"),
    (sends(500, b"oops"), "HTTP 500"),
    (sends(302, b""), "HTTP 302"),
    (sends(200, b"<html>"), "malformed answer"),
    (sends(200, b"[]"), "not a JSON object"),
    (sends(200, b'{"acts": true, "propensity": NaN}'), "NaN is not a number"),
    (sends(200, {"acts": True}), "request_id"),
    (decides(request_id="another"), "answers another request"),
    (decides(acts="yes"), "acts"),
    (decides(decision_id=7), "decision_id"),
    (decides(propensity=1.5), "propensity"),
    (decides(propensity=True), "propensity"),
    (decides(horizon_s=0), "horizon_s"),
    (decides(weights={"momentum": "much"}), "momentum"),
    (decides(learning_memory={}), "learning_memory"),
    (decides(action=None), "action"),
    (with_action(direction="up"), "direction"),
    (with_action(leverage=25.1), "leverage must lie between 1 and 25"),
    (with_action(leverage=0), "leverage"),
    (with_action(size_fraction=1.01), "size_fraction"),
    (with_action(size_fraction=1e999), "Infinity"),
    (with_action(sl_pct=0.0), "sl_pct"),
    (with_action(tp_pct=None), "tp_pct"),
])
def test_any_failure_gives_llm_only_in_time_with_the_reason(hub: FakeHub, client: HubClient, respond: Respond,
                                                            reason: str) -> None:
    hub.respond = respond
    advice = client.decide("BTC", "momentum", 10_000.0, VIEW, request_id="r")
    assert advice.llm_only
    assert not advice.acts
    assert advice.action == VIEW.action
    assert advice.decision_id is None
    assert [d.part for d in advice.degraded] == ["hub"]
    assert reason in advice.degraded[0].reason


def test_refused_connection_gives_llm_only(outbox: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        with HubClient(f"http://127.0.0.1:{taken.getsockname()[1]}", "secret", outbox) as client:
            advice = client.decide("BTC", "momentum", 10_000.0, VIEW)
    assert advice.llm_only
    assert "ConnectError" in advice.degraded[0].reason


@pytest.mark.parametrize(("status", "code"), [(401, "unauthorised"), (422, "invalid_input"), (409, "content_conflict")])
def test_the_callers_mistake_gives_llm_only_and_a_warning_with_the_problem(
        hub: FakeHub, client: HubClient, caplog: pytest.LogCaptureFixture, status: int, code: str) -> None:
    hub.respond = problem(status, code, "portfolio.equity: must be > 0, got -1")
    advice = client.decide("BTC", "momentum", -1.0, VIEW)
    assert advice.llm_only
    assert advice.degraded[0].part == "client"
    assert "portfolio.equity: must be > 0" in advice.degraded[0].reason
    assert "portfolio.equity: must be > 0" in caplog.text


def test_nan_equity_is_not_even_asked(hub: FakeHub, client: HubClient) -> None:
    assert client.decide("BTC", "momentum", math.nan, VIEW).llm_only
    assert hub.bodies == []


def test_limits_of_the_bot_are_its_own(hub: FakeHub, outbox: Path) -> None:
    with HubClient(hub.url, "secret", outbox, limits=Limits(max_leverage=4.0)) as client:
        assert "between 1 and 4" in client.decide("BTC", "momentum", 1e4, VIEW).degraded[0].reason


def test_a_deadline_frees_its_connection_for_the_next_request(hub: FakeHub, client: HubClient) -> None:
    hub.respond = trickles
    assert client.decide("BTC", "momentum", 1e4, VIEW).llm_only
    hub.respond = decides()
    assert client.decide("BTC", "momentum", 1e4, VIEW).acts


def test_closed_client_answers_llm_only(hub: FakeHub, outbox: Path) -> None:
    client = HubClient(hub.url, "secret", outbox)
    client.close()
    client.close()
    assert client.decide("BTC", "momentum", 1e4, VIEW).llm_only


def test_a_score_is_sent_as_it_is(hub: FakeHub, client: HubClient) -> None:
    hub.respond = sends(200, {"accepted": "recorded"})
    assert client.push_score("reddit", "BTC", -0.4, 0.9, time_ms=60_000) == ""
    assert hub.bodies == [{"source": "reddit", "symbol": "BTC", "score": -0.4, "confidence": 0.9, "time_ms": 60_000}]


@pytest.mark.parametrize(("respond", "reason"), [
    (problem(422, "invalid_input", "score: must be <= 1"), "score: must be <= 1"), (sends(503, {}), "503"),
    (stalls, "250 ms"), (hangs_up, "")])
def test_a_score_that_is_not_recorded_says_why_and_never_raises(hub: FakeHub, client: HubClient, respond: Respond,
                                                                reason: str) -> None:
    hub.respond = respond
    told = client.push_score("reddit", "BTC", 0.4, 0.9)
    assert told != ""
    assert reason in told
    assert "JSON" in client.push_score("reddit", "BTC", math.nan, 0.9)


def test_learning_memory_is_put_into_the_market_context(client: HubClient) -> None:
    context: dict[str, Any] = {"price": 1.0}
    put_learning_memory(context, client.decide("BTC", "momentum", 1e4))
    assert context == {"price": 1.0, "learning_memory": [{"symbol": "BTC", "net_return": 0.001}]}


def test_threads_get_their_own_answers(hub: FakeHub, outbox: Path) -> None:
    with HubClient(hub.url, "secret", outbox, timeout_s=10.0) as client, ThreadPoolExecutor(16) as pool:
        asked = [f"r{n}" for n in range(48)]
        advices = list(pool.map(lambda name: client.decide("BTC", "momentum", 1e4, request_id=name), asked))
    assert [advice.request_id for advice in advices] == asked
    assert all(advice.acts for advice in advices)
    assert sorted(body["request_id"] for body in hub.bodies) == sorted(asked)


def test_outcomes_reported_by_many_threads_arrive_once_each(hub: FakeHub, outbox: Path) -> None:
    hub.respond = acknowledges()
    with HubClient(hub.url, "secret", outbox) as client, ThreadPoolExecutor(8) as pool:
        deliveries = list(pool.map(lambda n: client.report(outcome(f"d{n}")), range(40)))
    assert sum(delivery.delivered for delivery in deliveries) == 40
    assert sorted(body["decision_id"] for body in hub.bodies) == sorted(f"d{n}" for n in range(40))


# -- the breaker -------------------------------------------------------------------------------------------------------


def test_after_failures_in_a_row_the_hub_is_left_alone_and_then_probed(hub: FakeHub, outbox: Path) -> None:
    hub.respond = sends(503, b"")
    with HubClient(hub.url, "secret", outbox, failures_to_open=3, open_s=0.2) as client:
        for _ in range(6):
            last = client.decide("BTC", "momentum", 1e4, VIEW)
        assert len(hub.bodies) == 3
        assert last.llm_only
        assert "not asked" in last.degraded[0].reason
        hub.respond = decides()
        time.sleep(0.25)
        assert client.decide("BTC", "momentum", 1e4, VIEW).acts
        assert client.decide("BTC", "momentum", 1e4, VIEW).acts


# -- reporting ---------------------------------------------------------------------------------------------------------


def test_outcome_is_delivered_and_its_verdicts_come_back(hub: FakeHub, client: HubClient) -> None:
    verdict = {"policy_id": "p", "judgement": "halt", "rule": "drawdown", "figure": 4.2, "limit": 4.0}
    hub.respond = acknowledges(verdicts=[verdict])
    delivery = client.report(outcome())
    assert (delivery.delivered, delivery.pending, delivery.verdicts) == (1, 0, (verdict,))
    assert hub.bodies == [outcome().to_dict()]


def test_the_bots_own_trade_says_what_it_was(hub: FakeHub, client: HubClient) -> None:
    hub.respond = acknowledges()
    client.report(outcome("own-1"), OwnTrade("BTC", "momentum", Direction.SHORT))
    assert hub.bodies[0] == outcome("own-1").to_dict() | {
        "origin": "bot", "symbol": "BTC", "strategy": "momentum", "direction": "short"}


@pytest.mark.parametrize("respond", [sends(503, b""), sends(404, b""), hangs_up, sends(200, b"{}"),
                                     problem(401, "unauthorised", "no such token"), problem(429, "busy", "later")])
def test_outcome_waits_until_the_hub_is_back_and_keeps_its_place(hub: FakeHub, client: HubClient,
                                                                 respond: Respond) -> None:
    hub.respond = respond
    for n in range(3):
        client.report(outcome(f"d{n}"))
    assert client.flush().pending == 3
    hub.respond = acknowledges()
    hub.bodies.clear()
    delivery = client.flush(within_s=2.0)
    assert (delivery.delivered, delivery.pending) == (3, 0)
    assert [body["decision_id"] for body in hub.bodies] == ["d0", "d1", "d2"]


@pytest.mark.parametrize("respond", [problem(422, "invalid_input", "pnl: must agree"),
                                     problem(409, "content_conflict", "pnl: must agree"),
                                     problem(404, "unknown", "pnl: must agree")])
def test_refused_outcome_is_parked_with_the_reason_and_blocks_nothing(hub: FakeHub, client: HubClient,
                                                                      respond: Respond) -> None:
    def refuses_one(hub: FakeHub, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        (respond if body["decision_id"] == "bad" else acknowledges())(hub, handler, body)

    hub.respond = sends(503, b"")
    client.report(outcome("bad"))
    client.report(outcome("good"))
    hub.respond = refuses_one
    delivery = client.flush()
    assert (delivery.delivered, delivery.refused, delivery.pending) == (1, 1, 0)
    [(body, reason)] = client.refused_outcomes()
    assert json.loads(body) == outcome("bad").to_dict()
    assert "pnl: must agree" in reason


def test_outcome_with_a_nan_is_parked_not_lost(hub: FakeHub, client: HubClient) -> None:
    assert client.report(outcome(pnl=math.nan)).refused == 1
    assert hub.bodies == []
    assert "nan" in client.refused_outcomes()[0][0]


def test_reports_during_a_backoff_do_not_knock(hub: FakeHub, outbox: Path) -> None:
    hub.respond = sends(503, b"")
    with HubClient(hub.url, "secret", outbox, first_backoff_s=60.0) as client:
        for n in range(5):
            pending = client.report(outcome(f"d{n}")).pending
    assert pending == 5
    assert len(hub.bodies) == 1


def test_next_client_delivers_what_the_last_one_left(hub: FakeHub, outbox: Path) -> None:
    hub.respond = sends(503, b"")
    with HubClient(hub.url, "secret", outbox) as client:
        client.report(outcome())
    hub.respond = acknowledges()
    with HubClient(hub.url, "secret", outbox) as client:
        assert client.flush().delivered == 1


def test_every_reported_outcome_survives_a_kill(outbox: Path) -> None:
    code = """
import sys; from pathlib import Path
from hub.client import HubClient
from policies.types import Outcome
client = HubClient("http://127.0.0.1:9", "t", Path(sys.argv[1]), first_backoff_s=60.0)
for n in range(10_000):
    client.report(Outcome(f"d{n}", 0, 0, 1, 2, 100.0, 101.0, 1.0, 1.0, 0.0, 0.0, "target"))
    print(n, flush=True)
"""
    command = [sys.executable, "-c", code, str(outbox)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as bot:
        assert bot.stdout is not None
        reported = [int(bot.stdout.readline()) for _ in range(20)]
        bot.kill()
        reported += [int(line) for line in bot.stdout.read().split()]
    with sqlite3.connect(outbox) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        kept = {json.loads(body)["decision_id"] for (body,) in db.execute("SELECT body FROM waiting")}
    assert kept >= {f"d{n}" for n in reported}


# -- registering -------------------------------------------------------------------------------------------------------


def accepts(hub: FakeHub, handler: BaseHTTPRequestHandler, body: Any) -> None:
    sends(200, {"policy_id": "ab" * 32, "alias": "tabnet_v1", "position": 7, "accepted": "recorded"})(
        hub, handler, body)


def test_a_file_is_sent_as_it_is_and_a_folder_as_one_zip_file(
        hub: FakeHub, client: HubClient, tmp_path: Path) -> None:
    hub.respond = accepts
    folder = tmp_path / "candidate"
    folder.mkdir()
    (folder / "manifest.json").write_text('{"kind": "rule"}')
    (folder / "model.onnx").write_bytes(b"\0" * 5_000)
    file = tmp_path / "candidate.pt"
    file.write_bytes(candidate_bytes(folder))
    link = tmp_path / "latest.pt"
    link.symlink_to(file)
    for path in (file, link, folder):
        assert client.register(path) == Registration("ab" * 32, "tabnet_v1", 7)
    assert hub.raw[0] == hub.raw[1] == hub.raw[2] == file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {
            "manifest.json": b'{"kind": "rule"}', "model.onnx": b"\0" * 5_000}


@pytest.mark.parametrize(("respond", "reason", "refused"), [
    (problem(422, "bundle_refused", "a pickle"), "422 bundle_refused: a pickle", True),
    (problem(403, "forbidden", "needs ops"), "403 forbidden: needs ops", True),
    (problem(503, "registration_busy", "come again"), "503 registration_busy: come again", False),
    (sends(200, {"policy_id": 3}), "an answer without policy_id, alias and position: ['policy_id']", False),
    (sends(200, b"<html>"), "malformed answer: Expecting value: line 1 column 1 (char 0)", False)])
def test_what_the_hub_says_against_a_candidate_is_told(
        hub: FakeHub, client: HubClient, tmp_path: Path, respond: Respond, reason: str, refused: bool) -> None:
    hub.respond = respond
    (tmp_path / "candidate.pt").write_bytes(b"\x80\x04")
    assert client.register(tmp_path / "candidate.pt") == Registration(reason=reason, refused=refused)


def test_what_cannot_be_sent_is_told_and_not_sent(hub: FakeHub, client: HubClient, tmp_path: Path) -> None:
    folder = tmp_path / "candidate"
    (folder / "inner").mkdir(parents=True)
    os.mkfifo(tmp_path / "pipe")
    large = tmp_path / "large.pt"
    with large.open("wb") as file:
        file.truncate(66 * 2**20)
    for path, reason in ((folder, "not a plain file"), (tmp_path / "pipe", "not a plain file"),
                         (tmp_path / "nothing.pt", "No such file"), (large, "larger than the 65 MiB")):
        told = client.register(path)
        assert (told.policy_id, told.refused) == ("", True)
        assert reason in told.reason
    (folder / "inner").rmdir()
    (folder / "link").symlink_to("/etc/passwd")
    assert "not a plain file" in client.register(folder).reason
    assert hub.raw == []
