"""The whole hub as its users meet it: HTTP, the command line, kill -9, an intruder on the machine."""

from __future__ import annotations

import itertools
import json
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import redis
from plain_bundles import momentum_bundle
from running_hub import RunningHub

from feature_repo.features import DECISION_V1, MINUTE_MS
from feature_repo.generated import GeneratedMarket
from feature_repo.transforms import compute_features
from hub.client import HubClient
from hub.engine import sockets_folder
from hub.home import Home
from hub.llm_stub import LlmStub, LlmStubSettings
from hub.paper_bot import BotReport, PaperBot
from hub.state import folded
from policies.bundle import pack_bundle
from sentry.ledger import LedgerReader

ANSWER_FIELDS = {
    "decision_id", "request_id", "time_ms", "policy_id", "policy", "role", "acts", "propensity", "role_probability",
    "action", "confidence", "horizon_s", "weights", "learning_memory", "shielded", "degraded", "proposals", "versions"}
_numbers = itertools.count()


def asked(symbol: str = "BTC", **more: Any) -> dict[str, Any]:
    return {"request_id": f"e2e-{next(_numbers)}", "symbol": symbol, "strategy": "momentum",
            "portfolio": {"equity": 10_000.0}, **more}


def trade(hub: RunningHub, bars: int) -> BotReport:
    """Let the paper bot trade the next bars of the hub's own market."""
    market = GeneratedMarket(7, 1.0, ("BTC", "ETH"), 4_000)
    start = hub.get("/v1/status")["hub"]["now_ms"] + MINUTE_MS
    with HubClient(hub.url, hub.bot_token, hub.home.parent / "outbox.sqlite", timeout_s=5.0) as client:
        bot = PaperBot(client, {symbol: market.bars(symbol) for symbol in ("BTC", "ETH")}, ["momentum", "scalping"],
                       LlmStub(1, LlmStubSettings(flat_below=0.0, leverage=20.0)), run_id=f"run{start}")
        return bot.run(start, start + bars * MINUTE_MS)


def told(hub: RunningHub) -> dict[str, Any]:
    """What the hub has learnt, without what only a process knows."""
    status = hub.get("/v1/status")
    return {"heads": status["heads"], "book": status["book"], "allocation": status["allocation"],
            "decisions": status["hub"]["decisions"], "outcomes": status["hub"]["outcomes"],
            "params": hub.get("/v1/params/momentum?symbol=BTC"), "memory": hub.get("/v1/memory/knn?symbol=BTC&k=8")}


def until(true: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + 20.0
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def outcome_rows(hub: RunningHub) -> list[str]:
    reader = LedgerReader(hub.home / "hub.sqlite")
    try:
        return [row.key for row in reader.rows(kinds={"outcome"})]
    finally:
        reader.close()


def test_decision_answers_with_every_field(running_hub: RunningHub) -> None:
    answer = running_hub.post("/v1/decisions", **asked())
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body.keys() == ANSWER_FIELDS
    assert body["role"] in ("production", "challenger")
    assert body["degraded"] == []
    assert len(body["proposals"]) == 2
    assert body["versions"]["position"] > body["versions"]["as_of"]


def test_bot_trades_and_its_outcomes_are_learnt(running_hub: RunningHub) -> None:
    before = told(running_hub)
    report = trade(running_hub, 60)
    after = told(running_hub)
    assert report.refused == report.undelivered == 0
    assert after["decisions"] - before["decisions"] == report.decisions
    assert after["outcomes"] - before["outcomes"] == report.trades + report.not_filled > 0
    assert after["memory"]["episodes"] == after["outcomes"]
    assert report.degraded == {}


def test_no_decision_reads_a_feature_from_its_future(running_hub: RunningHub) -> None:
    trade(running_hub, 5)
    market = GeneratedMarket(7, 1.0, ("BTC", "ETH"), 4_000)
    frames = {symbol: compute_features(market.bars(symbol)) for symbol in ("BTC", "ETH")}
    reader = LedgerReader(running_hub.home / "hub.sqlite")
    seen = 0
    for row in reader.rows(kinds={"decision"}):
        request, features = row.body["request"], row.body["features"]
        assert all(event_ms <= request["time_ms"] for event_ms in features["event_time_ms"].values())
        frame = frames[request["symbol"]]
        newest = int(np.searchsorted(frame.event_time_ms, request["time_ms"], "right")) - 1
        assert features["event_time_ms"]["bars"] == frame.event_time_ms[newest]
        given = [np.nan if value is None else value for value in features["values"]]
        np.testing.assert_array_equal(given, frame.values[newest])
        seen += 1
    reader.close()
    assert seen > 0


def test_a_score_that_was_acknowledged_is_seen_by_the_next_decision_and_by_training_sets(
        running_hub: RunningHub) -> None:
    now_ms = running_hub.get("/v1/status")["hub"]["now_ms"]
    score = {"source": "twitter", "symbol": "ETH", "score": -0.25, "confidence": 0.75}
    assert running_hub.post("/v1/sentiment", **score).json()["accepted"] == "recorded"
    decided = running_hub.post("/v1/decisions", **asked("ETH")).json()
    reader = LedgerReader(running_hub.home / "hub.sqlite")
    row = reader.get("decision", decided["decision_id"])
    reader.close()
    assert row is not None
    seen = dict(zip(DECISION_V1.names, row.body["features"]["values"], strict=True))
    assert (seen["twitter_score"], seen["twitter_confidence"], seen["twitter_missing"]) == (-0.25, 0.75, 0.0)
    assert row.body["features"]["event_time_ms"]["twitter"] == now_ms
    kept = running_hub.home / "features" / "generated_seed_7_signal_1" / "twitter" / "ETH"
    until(lambda: kept.exists() and list(kept.glob("*.parquet")), "the score is in the offline store")


def test_a_redis_that_lost_everything_is_filled_again_and_decisions_say_what_was_missing(
        running_hub: RunningHub) -> None:
    server = redis.Redis(port=running_hub.ports["redis"])
    server.flushall()
    answer = running_hub.post("/v1/decisions", **asked()).json()
    assert answer["role"] == "llm_only", "asked at the same moment, when nothing has filled it yet"
    assert {entry["part"] for entry in answer["degraded"]} == {"features bars"}
    now_ms = running_hub.get("/v1/status")["hub"]["now_ms"] + MINUTE_MS
    recovered = running_hub.post("/v1/decisions", **asked(time_ms=now_ms)).json()
    assert recovered["role"] in ("production", "challenger")
    assert recovered["degraded"] == []


def test_replay_in_another_process_makes_every_decision_again(running_hub: RunningHub) -> None:
    found = running_hub.hub("replay")
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.startswith("all equal:")


def test_pause_by_the_command_line_is_obeyed_by_the_next_decision_and_resume_lifts_it(running_hub: RunningHub) -> None:
    production = next(head["alias"] for head in running_hub.get("/v1/status")["heads"] if head["role"] == "production")
    paused = running_hub.hub("pause", production, "--reason", "a test")
    assert paused.returncode == 0, paused.stderr
    answers = [running_hub.post("/v1/decisions", **asked()).json() for _ in range(40)]
    assert production not in {answer["policy"] for answer in answers}
    assert {len(answer["proposals"]) for answer in answers} == {1}
    assert running_hub.hub("resume", production).returncode == 0
    answers = [running_hub.post("/v1/decisions", **asked()).json() for _ in range(40)]
    assert production in {answer["policy"] for answer in answers}
    audit = running_hub.get("/v1/audit?limit=10")
    assert audit["verified"]
    assert {"pause: a test", "resume: by the command line"} <= {row["summary"] for row in audit["rows"]}


def test_sentry_killed_means_the_llm_alone_until_it_has_replayed(running_hub: RunningHub) -> None:
    before = told(running_hub)
    for process in running_hub.named("ray::SentryShell"):
        process.kill()
    answers, deadline = [], time.monotonic() + 60
    while time.monotonic() < deadline:
        answer = running_hub.post("/v1/decisions", **asked())
        assert answer.status_code == 200, answer.text
        answers.append(answer.json())
        if len(answers) > 1 and answers[-1]["decision_id"] is not None:
            break
    safe = [answer for answer in answers if answer["decision_id"] is None]
    assert {answer["policy"] for answer in safe} <= {"llm_only"}
    assert all(answer["degraded"][0]["part"] == "sentry" and not answer["acts"] for answer in safe)
    assert answers[-1]["policy"] != "llm_only"
    assert {**told(running_hub), "decisions": 0, "heads": 0} == {**before, "decisions": 0, "heads": 0} or safe


def test_killed_hub_resumes_with_the_state_it_had_and_every_acknowledged_outcome(running_hub: RunningHub) -> None:
    report = trade(running_hub, 30)
    assert report.undelivered == 0
    before, acknowledged = told(running_hub), outcome_rows(running_hub)
    running_hub.kill()
    deadline = time.monotonic() + 10
    while running_hub.processes() and time.monotonic() < deadline:
        time.sleep(0.1)
    running_hub.start()
    assert outcome_rows(running_hub) == acknowledged
    assert told(running_hub) == before
    reader = LedgerReader(running_hub.home / "hub.sqlite")
    state, last = folded(reader), next(iter(reader.rows(kinds={"outcome"}))).body["outcome"]
    reader.close()
    assert state.outcomes == before["outcomes"]
    again = running_hub.post("/v1/outcomes", **last)
    assert again.json()["accepted"] == "duplicate"
    assert told(running_hub)["outcomes"] == before["outcomes"]


@pytest.mark.parametrize(("change", "field"), [
    ({"symbol": "DOGE"}, "symbol"), ({"strategy": "martingale"}, "strategy"), ({"leverage": 3}, "leverage"),
    ({"portfolio": {"equity": -1.0}}, "portfolio.equity"), ({"portfolio": {}}, "portfolio.equity"),
    ({"time_ms": 1}, "time_ms"),
])
def test_bad_request_names_the_field_and_writes_nothing(
        running_hub: RunningHub, change: dict[str, Any], field: str) -> None:
    before = running_hub.get("/v1/status")["hub"]["position"]
    answer = running_hub.post("/v1/decisions", **{**asked(), **change})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["field"] == field
    assert problem["legal"]
    assert running_hub.get("/v1/status")["hub"]["position"] == before


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_number_that_is_none_is_refused(running_hub: RunningHub, literal: str) -> None:
    raw = json.dumps(asked()).replace("10000.0", literal)
    headers = {"Authorization": f"Bearer {running_hub.bot_token}", "Content-Type": "application/json"}
    answer = httpx.post(f"{running_hub.url}/v1/decisions", content=raw, timeout=10.0, headers=headers)
    assert answer.status_code == 422
    assert "equity" in answer.json()["field"]


def test_token_is_needed_and_has_a_scope(running_hub: RunningHub) -> None:
    body = asked()
    assert httpx.post(f"{running_hub.url}/v1/decisions", json=body, timeout=10.0).status_code == 401
    assert running_hub.post("/v1/decisions", scope="ops", **body).status_code == 403
    assert running_hub.post("/v1/policies/momentum_v1/pause", scope="bot", reason="x").status_code == 403


def test_oversized_body_is_refused(running_hub: RunningHub) -> None:
    answer = running_hub.post("/v1/decisions", **asked(), padding="x" * 70_000)
    assert answer.status_code == 413


def test_pickled_candidate_is_refused_and_nothing_changes(running_hub: RunningHub, tmp_path: Path) -> None:
    before = running_hub.get("/v1/policies")
    candidate = tmp_path / "candidate.pt"
    candidate.write_bytes(b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94")
    found = running_hub.hub("register", "--path", str(candidate))
    assert found.returncode != 0
    assert "make retrain_sup" in found.stderr
    answer = httpx.post(f"{running_hub.url}/v1/policies", content=candidate.read_bytes(), timeout=10.0,
                        headers={"Authorization": f"Bearer {running_hub.ops_token}"})
    assert answer.status_code == 422
    assert running_hub.get("/v1/policies") == before


def test_candidate_registered_by_the_command_line_is_known_and_asked_at_once(
        running_hub: RunningHub, tmp_path: Path) -> None:
    candidate = tmp_path / "candidate.pt"
    candidate.write_bytes(pack_bundle(momentum_bundle("momentum_v2", 0.7)))
    found = running_hub.hub("register", "--path", str(candidate))
    assert found.returncode == 0, found.stderr
    assert "momentum_v2" in found.stdout
    assert "momentum_v2" in running_hub.hub("status").stdout
    answer = running_hub.post("/v1/decisions", **asked()).json()
    assert "momentum_v2" in {proposal["alias"] for proposal in answer["proposals"].values()}


def test_metrics_ops_page_dashboard_and_mlflow_answer(running_hub: RunningHub) -> None:
    assert "hub_ledger_position" in httpx.get(f"{running_hub.url}/metrics", timeout=10.0).text
    assert "Content-Security-Policy" in httpx.get(f"{running_hub.url}/ops", timeout=10.0).headers
    assert httpx.get(f"http://127.0.0.1:{running_hub.ports['dashboard']}/", timeout=10.0).status_code == 200
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"http://127.0.0.1:{running_hub.ports['mlflow']}/health", timeout=5.0).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.5)
    raise AssertionError("MLflow did not answer")


def test_http_answers_on_loopback_only_and_replicas_talk_only_to_who_holds_the_key(running_hub: RunningHub) -> None:
    open_to_all = [(process, connection.laddr.port) for process in running_hub.processes()
                   for connection in process.net_connections("tcp")
                   if connection.status == psutil.CONN_LISTEN and connection.laddr.ip in ("0.0.0.0", "::")]
    assert not [port for _, port in open_to_all if port == running_hub.ports["http"]]
    assert not [process for process, _ in open_to_all if "haproxy" in process.name()]
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # here a missing client certificate fails the handshake itself
    replicas = [(process, port) for process, port in open_to_all if "ServeReplica" in " ".join(process.cmdline())]
    assert replicas
    for _, port in replicas:
        with (socket.create_connection(("127.0.0.1", port), 5.0) as plain, pytest.raises((ssl.SSLError, OSError))):
            context.wrap_socket(plain).recv(1)


def test_second_hub_on_the_same_home_is_refused_and_touches_nothing_of_the_first(running_hub: RunningHub) -> None:
    folder = sockets_folder(Home(running_hub.home))
    sockets, logs = sorted(path.name for path in folder.iterdir()), (running_hub.home / "logs/ray").stat().st_ino
    found = running_hub.hub("up")
    assert found.returncode != 0
    assert "runs on" in found.stderr
    assert sorted(path.name for path in folder.iterdir()) == sockets
    assert (running_hub.home / "logs/ray").stat().st_ino == logs
    assert running_hub.get("/v1/status")["hub"]["position"] > 0


def test_wrong_configuration_key_is_named_before_anything_starts(running_hub: RunningHub, tmp_path: Path) -> None:
    config = tmp_path / "hub.yaml"
    config.write_text("learning: {allocation_mod: hybrid}\n")
    environment = {**running_hub.environment, "HUB_CONFIG": str(config), "HUB_HOME": str(tmp_path / "other")}
    hub = Path(sys.executable).with_name("hub")
    found = subprocess.run([str(hub), "up"], env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert "learning.allocation_mod" in found.stderr
    assert "did you mean allocation_mode?" in found.stderr


def test_interrupted_hub_leaves_no_process_and_no_listener(running_hub: RunningHub) -> None:
    """The last of this file: it ends the hub."""
    assert running_hub.interrupt() == 0
    assert running_hub.processes() == []
    for port in running_hub.ports.values():
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0
