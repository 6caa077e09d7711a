"""The message to the hub: signed as the hub demands, repeated until it is answered, and never under two ids."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from plain_bundles import momentum_bundle
from plain_hub import WEBHOOK_SECRET

from ci.pipeline import verify, webhook
from ci.pipeline.publish import outbox_of, sent, store_of
from ci.pipeline.settings import PipelineSettings
from ci.pipeline.step import AWAY, FAILED, REFUSED, ended, read_note
from hub.webhook import NotSigned
from hub.webhook import verify as signed_by
from policies.free_ports import free_port


class HubDoor:
    """Answers webhooks by a script of statuses, then well, and /v1/status by `heads`; checks every signature."""

    def __init__(self) -> None:
        self.script: list[tuple[int, dict[str, Any]]] = []
        self.heads: list[list[dict[str, Any]]] = []
        self.messages: list[tuple[str, bytes]] = []
        door = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                try:
                    door.messages.append((signed_by(WEBHOOK_SECRET, headers, body, time.time()), body))
                except NotSigned as error:
                    self._answer(401, {"code": "not_signed", "detail": str(error)})
                    return
                self._answer(*(door.script.pop(0) if door.script else (200, {"position": 7})))

            def do_GET(self) -> None:
                heads = door.heads.pop(0) if len(door.heads) > 1 else door.heads[0]
                known = self.headers["Authorization"] == "Bearer bot-token"
                self._answer(200 if known else 401, {"heads": heads})

            def log_message(self, *_: Any) -> None:
                pass

            def _answer(self, status: int, content: dict[str, Any]) -> None:
                raw = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)


@pytest.fixture
def door() -> Iterator[HubDoor]:
    opened = HubDoor()
    yield opened
    opened.close()


@pytest.fixture
def settings(tmp_path: Path, door: HubDoor) -> PipelineSettings:
    (tmp_path / "webhook_secret").write_text(WEBHOOK_SECRET + "\n")
    (tmp_path / "tokens.json").write_text(json.dumps({"bot": "bot-token", "ops": "ops-token"}))
    return PipelineSettings(tmp_path, hub_url=door.url, patience_s=0.0)


def published(settings: PipelineSettings, *aliases: str) -> None:
    for number, alias in enumerate(aliases):
        sent(outbox_of(settings), outbox_of(settings).put(momentum_bundle(alias), number), store_of(settings))


def run(settings: PipelineSettings, step: Any = webhook) -> tuple[int, str]:
    return ended(step.run, settings, lambda text: None)


def test_the_hub_is_told_what_was_published_and_the_outbox_is_empty_then(
        settings: PipelineSettings, door: HubDoor) -> None:
    published(settings, "first", "second")
    code, said = run(settings)
    assert code == 0, said
    ids = [momentum_bundle(alias).policy_id for alias in ("first", "second")]
    assert [json.loads(body) for _, body in door.messages] == [
        {"type": "policy.published", "data": {"url": store_of(settings).url_of(i), "policy_id": i}} for i in ids]
    assert outbox_of(settings).entries() == []
    assert read_note(settings.home, "announced", "webhook")["policy_id"] == ids[1]
    assert run(settings) == (0, "nothing is waiting to be told")


def test_what_was_not_published_yet_is_not_told(settings: PipelineSettings, door: HubDoor) -> None:
    outbox_of(settings).put(momentum_bundle(), 0)
    assert run(settings)[0] == 0
    assert door.messages == []
    assert len(outbox_of(settings).entries()) == 1


def test_a_repetition_carries_the_same_id_and_body(settings: PipelineSettings, door: HubDoor) -> None:
    published(settings, "first")
    door.script = [(503, {"code": "artefacts_unavailable", "detail": "S3 is away"}), (404, {"code": "no_such_route"})]
    for _ in range(2):
        assert run(settings)[0] == AWAY
        assert len(outbox_of(settings).entries()) == 1
    assert run(settings)[0] == 0
    assert len(door.messages) == 3
    assert len(set(door.messages)) == 1


def test_a_hub_that_is_away_loses_nothing(settings: PipelineSettings, door: HubDoor) -> None:
    published(settings, "first")
    code, said = run(replace(settings, hub_url=f"http://127.0.0.1:{free_port()}"))
    assert (code, "are kept in the outbox" in said) == (AWAY, True)
    assert run(settings)[0] == 0


def test_a_bundle_that_the_store_has_lost_is_published_again(settings: PipelineSettings, door: HubDoor) -> None:
    published(settings, "first")
    store = store_of(settings)
    for path in (settings.home / "artefacts").rglob("*.*"):
        path.unlink()
    door.script = [(404, {"code": "unknown", "detail": "unknown artefact"})]
    assert run(settings)[0] == 0
    assert store.fetch(momentum_bundle("first").policy_id) == momentum_bundle("first")


def test_a_refusal_ends_the_step_keeps_the_bundle_aside_and_stops_no_other(
        settings: PipelineSettings, door: HubDoor) -> None:
    published(settings, "first", "second")
    door.script = [(422, {"code": "bundle_refused", "detail": "weights are not finite"})]
    code, said = run(settings)
    assert (code, "first: weights are not finite" in said) == (REFUSED, True)
    assert len(door.messages) == 2
    assert outbox_of(settings).entries() == []
    assert len(list((settings.home / "outbox" / "refused").glob("*.pt"))) == 1


def test_a_wrong_secret_is_said_and_loses_nothing(
        settings: PipelineSettings, door: HubDoor, monkeypatch: pytest.MonkeyPatch) -> None:
    published(settings, "first")
    monkeypatch.setenv("HUB_WEBHOOK_SECRET", "whsec_" + "b3RoZXI" * 4)
    code, said = run(settings)
    assert (code, "HUB_WEBHOOK_SECRET" in said) == (FAILED, True)
    assert len(outbox_of(settings).entries()) == 1
    monkeypatch.setenv("HUB_WEBHOOK_SECRET", WEBHOOK_SECRET)
    assert run(settings)[0] == 0


def test_without_a_secret_the_command_that_prints_it_is_named(settings: PipelineSettings, door: HubDoor) -> None:
    (settings.home / "webhook_secret").unlink()
    assert "hub webhook-secret --show" in run(settings)[1].replace("\n", " ")
    assert run(settings)[0] == FAILED


def test_it_is_verified_when_the_hub_shows_it_as_challenger(settings: PipelineSettings, door: HubDoor) -> None:
    published(settings, "first")
    assert run(settings)[0] == 0
    head = {"policy_id": momentum_bundle("first").policy_id, "alias": "first", "role": "shadow", "share": 0.0}
    door.heads = [[]]
    code, said = run(settings, verify)
    assert (code, "does not know" in said) == (AWAY, True)
    door.heads = [[head]]
    code, said = run(settings, verify)
    assert (code, "is shadow with 0%" in said) == (AWAY, True)
    door.heads = [[head], [head | {"role": "challenger", "share": 0.1}]]
    code, said = run(replace(settings, patience_s=20.0), verify)
    assert (code, "as challenger with 10%" in said) == (0, True)


def test_a_token_of_another_hub_is_said(
        settings: PipelineSettings, door: HubDoor, monkeypatch: pytest.MonkeyPatch) -> None:
    published(settings, "first")
    assert run(settings)[0] == 0
    door.heads = [[]]
    monkeypatch.setenv("HUB_TOKEN", "another")
    code, said = run(settings, verify)
    assert (code, "HUB_TOKEN" in said) == (FAILED, True)
