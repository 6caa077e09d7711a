"""The load against a small server: it sends when a request is due, and one in ten names the next minute."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from ci.chaos.load import REQUESTS_A_MINUTE, Load
from ci.chaos.target import until
from feature_repo.features import MINUTE_MS
from policies.errors import InvalidInput
from policies.free_ports import free_port


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(asked)  # type: ignore[attr-defined]
        if asked["request_id"] == "chaos-0":
            self.server.may_answer.wait(10)  # type: ignore[attr-defined]
        content = json.dumps({"role": "production", "degraded": []}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def loaded() -> Iterator[tuple[Load, Any]]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.may_answer = [], threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    load = Load(f"http://127.0.0.1:{server.server_port}", "token", ("BTC", "ETH"), MINUTE_MS)
    load.start()
    try:
        yield load, server
    finally:
        server.may_answer.set()
        load.stop()
        server.shutdown()
        server.server_close()


def test_requests_are_sent_when_they_are_due_though_an_earlier_one_hangs() -> None:
    with loaded() as (load, server):
        until(lambda: len(load.answers) >= 2 * REQUESTS_A_MINUTE, "answers to the later ones", 10)
        assert not any(one.moves for one in load.answers), "no minute overtakes the one that hangs"
        waited_s = time.monotonic()
        server.may_answer.set()
        until(lambda: any(one.sent_s < load.answers[0].sent_s for one in load.answers), "the one that hung", 10)
        hung = min(load.answers, key=lambda one: one.sent_s)
    assert hung.done_s >= waited_s, "its latency holds the whole wait"
    assert hung.moves
    assert hung.latency_ms == pytest.approx((hung.done_s - hung.sent_s) * 1_000)


def test_one_request_in_ten_names_the_next_minute_and_a_jump_lies_ahead() -> None:
    with loaded() as (load, server):
        server.may_answer.set()
        until(lambda: len(load.answers) > REQUESTS_A_MINUTE, "answers", 10)
        with pytest.raises(InvalidInput):
            load.jump(load.clock_ms)
        load.jump(50 * MINUTE_MS)
        until(lambda: load.clock_ms >= 50 * MINUTE_MS, "the jump", 10)
        load.hold()
        until(lambda: load.under_way == 0, "the last answer", 10)
    asked = sorted(server.asked, key=lambda one: int(one["request_id"].removeprefix("chaos-")))
    named = {place: one["time_ms"] for place, one in enumerate(asked) if "time_ms" in one}
    assert [named.pop(0), named.pop(REQUESTS_A_MINUTE)] == [2 * MINUTE_MS, 3 * MINUTE_MS]
    assert 50 * MINUTE_MS in named.values()
    assert {one["symbol"] for one in asked} == {"BTC", "ETH"}


def test_a_request_without_an_answer_is_told_with_its_reason() -> None:
    load = Load(f"http://127.0.0.1:{free_port()}", "token", ("BTC",), MINUTE_MS)
    load.start()
    try:
        until(lambda: load.answers, "a refusal", 10)
    finally:
        load.stop()
    assert load.answers[0].status == 0
    assert "ConnectError" in load.answers[0].error
