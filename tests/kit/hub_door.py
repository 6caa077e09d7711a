"""Something on loopback that answers like a hub and remembers what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from policies.bundle import read_bundle
from policies.embedder import version_of

TOKEN = "ops-secret"


@dataclass
class FakeHub:
    """answers: by path, (status, body) instead of the ordinary ones. asked: (path, body) of every POST."""

    home: Path
    now_ms: int
    answers: dict[str, tuple[int, dict[str, Any]]] = field(default_factory=dict)
    asked: list[tuple[str, bytes]] = field(default_factory=list)
    url: str = ""

    def answer(self, path: str, token: str | None, body: bytes) -> tuple[int, dict[str, Any]]:
        if token != f"Bearer {TOKEN}":
            return 401, {"code": "unauthorized"}
        if path == "/v1/status":
            return 200, {"hub": {"now_ms": self.now_ms}}
        self.asked.append((path, body))
        if path in self.answers:
            return self.answers[path]
        if path == "/v1/policies":
            bundle = read_bundle(body)
            encodes = bundle.manifest.kind == "window_encoder"
            return 200, {"policy_id": bundle.policy_id, **(
                {"embedding_version": version_of(bundle.policy_id)} if encodes else {})}
        return 200, {}


@contextmanager
def fake_hub(home: Path, now_ms: int = 0) -> Iterator[FakeHub]:
    """Its home gets the tokens that open it."""
    home.mkdir(parents=True, exist_ok=True)
    (home / "tokens.json").write_text(json.dumps({"ops": TOKEN, "bot": "bot-secret"}))
    hub = FakeHub(home, now_ms)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(b"")

        def do_POST(self) -> None:
            self._answer(self.rfile.read(int(self.headers["Content-Length"])))

        def log_message(self, *_: Any) -> None:
            pass

        def _answer(self, body: bytes) -> None:
            status, answer = hub.answer(self.path, self.headers.get("Authorization"), body)
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
