"""Registration on a whole hub: broken candidates while decisions are asked, webhooks, URLs, the mirror in MLflow."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from hostile_files import Hostile, executed, hostile_files
from plain_bundles import momentum_bundle
from running_hub import RunningHub
from standardwebhooks import Webhook

from feature_repo.features import DECISION_V1
from hub.client import HubClient
from hub.mlflow_mirror import MODEL
from policies.artefacts import open_store
from policies.bundle import pack_bundle

_numbers = itertools.count()


@contextmanager
def load(hub: RunningHub, pause_s: float) -> Iterator[list[tuple[int, float, dict[str, Any]]]]:
    """Two clients ask for decisions, with pauses, as long as the block lasts: (status, seconds, answer) of each."""
    answers: list[tuple[int, float, dict[str, Any]]] = []
    ended = threading.Event()

    def ask() -> None:
        token = {"Authorization": f"Bearer {hub.bot_token}"}
        with httpx.Client(base_url=hub.url, headers=token, timeout=30.0) as client:
            while not ended.is_set():
                body = {"request_id": f"registering-{next(_numbers)}", "symbol": "BTC", "strategy": "momentum",
                        "portfolio": {"equity": 10_000.0}}
                started = time.monotonic()
                answer = client.post("/v1/decisions", json=body)
                answers.append((answer.status_code, time.monotonic() - started, answer.json()))
                ended.wait(pause_s)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        ended.set()
        for thread in threads:
            thread.join(60.0)


def post(hub: RunningHub, content: bytes) -> httpx.Response:
    return httpx.post(f"{hub.url}/v1/policies", content=content, timeout=60.0,
                      headers={"Authorization": f"Bearer {hub.ops_token}"})


def refused(hub: RunningHub) -> list[dict[str, Any]]:
    audit = hub.get("/v1/audit?limit=1000")
    assert audit["verified"], audit["findings"]
    return [row for row in audit["rows"] if row["rule"] == "registration_refused"]


def heads(hub: RunningHub) -> dict[str, tuple[str, float]]:
    return {head["policy_id"]: (head["role"], head["share"]) for head in hub.get("/v1/status")["heads"]}


def until(true: Any, what: str, deadline_s: float = 90.0) -> None:
    deadline = time.monotonic() + deadline_s
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Hostile]]:
    """One file of every two refusals. What is said of each file there is, the tests of the loader show."""
    folder = tmp_path_factory.mktemp("hostile")
    found = {one.says: one for one in hostile_files(folder, DECISION_V1.names) if one.uploadable}
    return folder, list(found.values())[::2]


def test_hostile_candidates_under_load_leave_production_as_it_was_and_one_audit_row_each(
        running_hub: RunningHub, hostile: tuple[Path, list[Hostile]]) -> None:
    folder, files = hostile
    assert len(files) >= 40
    before, rows, stored = heads(running_hub), len(refused(running_hub)), set((running_hub.home / "policies").iterdir())
    production = [policy_id for policy_id, (role, _) in before.items() if role == "production"]
    with load(running_hub, 0.2) as answers, ThreadPoolExecutor(2) as two:
        told = list(two.map(lambda one: post(running_hub, one.path.read_bytes()), files))
    for one, answer in zip(files, told, strict=True):
        assert answer.status_code == 422, (one.name, answer.text)
        # The hub stores encoders, which a head's loader refuses as such; this one is no sound encoder either.
        assert one.says in answer.json()["detail"] or one.name == "encoder_as_policy", (one.name, answer.text)
    assert {status for status, _, _ in answers} == {200}
    assert len(answers) > len(files)
    assert {answer["policy_id"] for _, _, answer in answers} <= {*before, "llm_only"}
    after = heads(running_hub)
    assert after.keys() == before.keys()
    assert [policy_id for policy_id, (role, _) in after.items() if role == "production"] == production
    assert all(after[policy_id] == before[policy_id] for policy_id in production)
    assert len(refused(running_hub)) == rows + len(files)
    assert not executed(folder)
    kept = {path for path in (running_hub.home / "policies").iterdir() if not path.name.startswith(".")}
    assert kept <= stored


def test_a_file_of_the_largest_size_is_judged_while_decisions_go_on(running_hub: RunningHub, tmp_path: Path) -> None:
    size = 64 * 2**20
    (tmp_path / "large.pt").write_bytes(bytes(size))
    (tmp_path / "too_large.pt").write_bytes(bytes(size + 1))
    rows = len(refused(running_hub))
    with load(running_hub, 0.05) as answers:
        until(lambda: len(answers) > 50, "decisions")
        alone = sorted(seconds for _, seconds, _ in answers)
        # From a process of its own: one that sends 64 MiB asks no question meanwhile.
        assert "neither a folder nor a zip file" in running_hub.hub(
            "register", "--path", str(tmp_path / "large.pt")).stderr
        beside = sorted(seconds for _, seconds, _ in answers[len(alone):])
    assert {status for status, _, _ in answers} == {200}
    assert len(refused(running_hub)) == rows + 1
    for name, seconds in (("alone", alone), ("beside an upload of 64 MiB", beside)):
        print(f"{name}: p50 {seconds[len(seconds) // 2] * 1_000:.1f} ms, worst {seconds[-1] * 1_000:.1f} ms "
              f"of {len(seconds)} decisions")
    assert "413: body: must be at most" in running_hub.hub("register", "--path", str(tmp_path / "too_large.pt")).stderr


def test_a_candidate_is_registered_by_the_python_call_and_known_when_it_returns(
        running_hub: RunningHub, tmp_path: Path) -> None:
    (tmp_path / "candidate.pt").write_bytes(pack_bundle(momentum_bundle("by_the_client", 0.31)))
    with HubClient(running_hub.url, running_hub.ops_token, tmp_path / "outbox.sqlite", timeout_s=5.0) as client:
        told = client.register(tmp_path / "candidate.pt")
        assert (told.alias, told.reason) == ("by_the_client", "")
        assert told.policy_id in heads(running_hub)
        (tmp_path / "broken.pt").write_bytes(b"\x80\x04")
        assert "make retrain_sup" in client.register(tmp_path / "broken.pt").reason


def test_a_published_bundle_is_registered_by_url_and_by_a_webhook_that_is_replayed(running_hub: RunningHub) -> None:
    store = open_store(str(running_hub.home / "artefacts"))
    store.publish(momentum_bundle("by_url", 0.32))
    found = running_hub.hub("register", "--from-url", f"{store.url}/aliases/by_url.json")
    assert found.returncode == 0, found.stderr
    assert momentum_bundle("by_url", 0.32).policy_id in heads(running_hub)

    bundle = momentum_bundle("by_webhook", 0.33)
    store.publish(bundle)
    body = json.dumps({"type": "policy.published", "data": {
        "url": store.url_of(bundle.policy_id), "policy_id": bundle.policy_id}})
    secret = running_hub.hub("webhook-secret", "--show").stdout.strip()
    now = datetime.now(UTC)
    headers = {"webhook-id": "msg_e2e", "webhook-timestamp": str(int(now.timestamp())),
               "webhook-signature": Webhook(secret).sign("msg_e2e", now, body)}
    with httpx.Client(base_url=running_hub.url, timeout=60.0) as client:
        forged = client.post("/v1/webhooks/policy", content=body, headers={**headers, "webhook-id": "msg_other"})
        assert forged.status_code == 401
        assert bundle.policy_id not in heads(running_hub)
        with ThreadPoolExecutor(16) as many:
            answers = list(many.map(lambda _: client.post("/v1/webhooks/policy", content=body, headers=headers),
                                    range(100)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1
    assert bundle.policy_id in heads(running_hub)
    audit = running_hub.get("/v1/audit?limit=1000")["rows"]
    assert [row["actor"] for row in audit if row["policy_id"] == bundle.policy_id and row["kind"] == "policy"] == [
        "webhook"]


def test_the_registry_of_mlflow_shows_what_the_ledger_says(running_hub: RunningHub) -> None:
    def shown() -> dict[str, str]:
        try:
            answer = httpx.get(f"http://127.0.0.1:{running_hub.ports['mlflow']}/api/2.0/mlflow/registered-models/get",
                               params={"name": MODEL}, timeout=10.0)
            versions = {alias["alias"]: alias["version"] for alias in answer.json()["registered_model"]["aliases"]}
            asked = {alias: httpx.get(f"http://127.0.0.1:{running_hub.ports['mlflow']}/api/2.0/mlflow/model-versions/get",
                                      params={"name": MODEL, "version": version}, timeout=10.0).json()
                     for alias, version in versions.items()}
            return {alias: next(tag["value"] for tag in found["model_version"]["tags"] if tag["key"] == "policy_id")
                    for alias, found in asked.items()}
        except (httpx.HTTPError, KeyError, StopIteration):
            return {}

    def said() -> dict[str, str]:
        return {role: policy_id for policy_id, (role, _) in heads(running_hub).items()
                if role in ("production", "challenger")}

    until(lambda: shown() == said() != {}, f"the aliases are {shown()}, the roles {said()}; "
          f"{(running_hub.home / 'logs' / 'mlflow_mirror.log').read_text()[-2_000:]}")
