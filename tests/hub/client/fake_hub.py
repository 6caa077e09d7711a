"""A hub that answers as a test tells it to, and every way in which one can misbehave."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from policies.types import Action, Direction, LlmView, Outcome

VIEW = LlmView(Action(Direction.SHORT, 0.02, 3.0, 0.01, 0.006), 0.6, {"momentum": 1.0})


def answer_to(request: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A full answer of the hub's wire to this request."""
    action = {"direction": "long", "size_fraction": 0.05, "leverage": 5, "tp_pct": 0.012, "sl_pct": 0.008,
              "limit_offset_pct": 0.0, "min_conf": 0.55}
    return {"decision_id": "d1", "request_id": request["request_id"], "time_ms": request["time_ms"] or 1,
            "policy_id": "ab" * 32, "policy": "tabnet_v1", "role": "production", "acts": True, "propensity": 0.9,
            "role_probability": 0.7, "action": action, "confidence": 0.61, "horizon_s": 900,
            "weights": {"momentum": 0.8}, "learning_memory": [{"symbol": "BTC", "net_return": 0.001}], "shielded": [],
            "degraded": [{"part": "memory", "reason": "late"}], "proposals": {}, "versions": {"epoch": 3}} | changes


Respond = Callable[["FakeHub", BaseHTTPRequestHandler, dict[str, Any]], None]


class FakeHub:
    """An HTTP server whose behaviour is one function; it remembers what it was sent."""

    def __init__(self) -> None:
        self.respond: Respond = decides()
        self.bodies: list[dict[str, Any]] = []  # {} for what is no JSON
        self.raw: list[bytes] = []
        self.authorizations: list[str | None] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                hub.raw.append(raw)
                body = json.loads(raw) if self.headers["Content-Type"] == "application/json" else {}
                hub.bodies.append(body)
                hub.authorizations.append(self.headers["Authorization"])
                with suppress(OSError):  # the client hung up: that is what some tests are about
                    hub.respond(hub, self, body)

            def log_message(self, *_: Any) -> None:
                """Quiet."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, *_: Any) -> None:
                """A client that hung up is no news."""

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def send(handler: BaseHTTPRequestHandler, status: int, content: Any, kind: str = "application/json") -> None:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    handler.send_response(status)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def decides(**changes: Any) -> Respond:
    return lambda hub, handler, body: send(handler, 200, answer_to(body, **changes))


def sends(status: int, content: Any) -> Respond:
    return lambda hub, handler, body: send(handler, status, content)


def problem(status: int, code: str, detail: str) -> Respond:
    content = {"type": "about:blank", "title": code, "status": status, "code": code, "detail": detail}
    return lambda hub, handler, body: send(handler, status, content, "application/problem+json")


def acknowledges(**changes: Any) -> Respond:
    return lambda hub, handler, body: send(handler, 200, {
        "accepted": "recorded", "decision_id": body["decision_id"], "part": 0, "revision": 0, "position": 9,
        "verdicts": []} | changes)


def trickles(hub: FakeHub, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    """One byte each 20 ms: no single read is ever late, the whole would take a minute."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for byte in b"X-Slow: " + b"a" * 3_000:
        handler.wfile.write(bytes([byte]))
        time.sleep(0.02)


def hangs_up(hub: FakeHub, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


def stalls(hub: FakeHub, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    time.sleep(1.0)


def cuts_the_body(hub: FakeHub, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    handler.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"decision_id": ')
    hangs_up(hub, handler, body)


def with_action(**changes: Any) -> Respond:
    def respond(hub: FakeHub, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        answer = answer_to(body)
        send(handler, 200, answer | {"action": answer["action"] | changes})

    return respond


def outcome(decision_id: str = "d1", **changes: Any) -> Outcome:
    values = {"decision_id": decision_id, "part": 0, "revision": 0, "entry_time_ms": 60_000, "exit_time_ms": 120_000,
              "entry_price": 100.0, "exit_price": 101.0, "size": 1.0, "pnl": 1.0, "fees": 0.09, "funding": 0.0,
              "exit_reason": "target", "equity": 10_000.9}
    return Outcome(**values | changes)
