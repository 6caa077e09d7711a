"""A hub as its users have it: `hub up` in processes of its own, on a home and on ports of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import psutil

from hub.engine import MARKER
from policies.bundle import Bundle, pack_bundle
from policies.free_ports import free_port

SYMBOLS = ("BTC", "ETH")
START_TIMEOUT_S = 180.0


class RunningHub:
    """Starts, asks, kills and starts again. Settings are the HUB_ variables that a user would export."""

    def __init__(self, home: Path, mlflow: bool = False, **settings: Any) -> None:
        self.home, self._mlflow, self._settings = home, mlflow, settings
        self.ports = {name: free_port() for name in ("http", "redis", "dashboard", "mlflow")}
        self.url = f"http://127.0.0.1:{self.ports['http']}"
        self.log = home.parent / "hub.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def environment(self) -> dict[str, str]:
        settings = {"HOME": self.home, "MARKET__KIND": "generated", "MARKET__SYMBOLS": json.dumps(SYMBOLS),
                    "MARKET__GENERATED_BARS": 4_000, "ROLLOUT__MODE": "full", "LEDGER__SEED": 3,
                    # Deadlines have tests of their own; here a busy machine must not change what is decided.
                    "SERVER__HEAD_DEADLINE_MS": 10_000, "FEATURES__DEADLINE_MS": 10_000,
                    "SERVER__COMMIT_DEADLINE_MS": 10_000, "SENTRY__REDUCE_LATENCY_P95_MS": 10_000,
                    "SERVER__PORT": self.ports["http"], "STORAGE__REDIS_PORT": self.ports["redis"],
                    "STORAGE__DASHBOARD_PORT": self.ports["dashboard"], "STORAGE__MLFLOW_PORT": self.ports["mlflow"],
                    **self._settings}
        others = {name: value for name, value in os.environ.items() if not name.startswith("HUB_")}
        return {**others, **{f"HUB_{name}": str(value) for name, value in settings.items()}}

    def start(self) -> RunningHub:
        command = [str(Path(sys.executable).with_name("hub")), "up", "--no-training",
                   "--mlflow" if self._mlflow else "--no-mlflow"]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the hub did not start:\n{self.log.read_text()[-4_000:]}")
            time.sleep(0.2)
        return self

    def interrupt(self) -> int:
        """Ctrl-C; returns the exit code."""
        assert self._process is not None
        assert self._process.poll() is None, "it had ended by itself"
        self._process.send_signal(signal.SIGINT)
        return self._process.wait(60)

    def kill(self) -> None:
        """kill -9 of the supervisor and of every process it has started, all at once."""
        assert self._process is not None
        for process in [psutil.Process(self._process.pid), *self.processes()]:
            process.kill()
        self._process.wait(30)

    def processes(self) -> list[psutil.Process]:
        """All that carry this home's marker: whatever `hub up` has started, directly or not."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARKER) == str(self.home):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def named(self, part: str) -> list[psutil.Process]:
        """Processes of this hub whose title holds `part`, such as ray::SentryShell."""
        return [process for process in self.processes() if part in " ".join(process.cmdline())]

    @property
    def tokens(self) -> dict[str, str]:
        return dict(json.loads((self.home / "tokens.json").read_text()))

    @property
    def bot_token(self) -> str:
        return self.tokens["bot"]

    @property
    def ops_token(self) -> str:
        return self.tokens["ops"]

    def get(self, path: str) -> dict[str, Any]:
        return dict(self._request("GET", path, self.ops_token).json())

    def post(self, path: str, scope: str = "bot", **body: Any) -> httpx.Response:
        return self._request("POST", path, self.tokens[scope], json=body)

    def register(self, bundle: Bundle) -> str:
        answer = self._request("POST", "/v1/policies", self.ops_token, content=pack_bundle(bundle))
        assert answer.status_code == 200, answer.text
        return str(answer.json()["policy_id"])

    def hub(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The command line against this hub."""
        command = [str(Path(sys.executable).with_name("hub")), *arguments]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)

    def _request(self, method: str, path: str, token: str, **more: Any) -> httpx.Response:
        return httpx.request(method, self.url + path, timeout=30.0, headers={"Authorization": f"Bearer {token}"},
                             **more)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5.0).status_code == 200
        except httpx.HTTPError:
            return False
