"""The hub under test: `hub up` in a process of its own, on a home and ports of its own, and ways to hurt its parts."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import psutil
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from ci.chaos.recording import SYMBOLS
from feature_repo.features import DECISION_V1
from hub.engine import MARKER, end
from hub.home import Home
from policies.bundle import Bundle, Manifest, make_bundle, pack_bundle
from policies.errors import HubError
from policies.free_ports import free_port

START_S, END_S = 180.0, 45.0
POLL_S = 0.02
RESTORED = re.compile(r"rebuilt from the offline store in ([0-9.]+) s")
FEEDER = "ray::FeederShell"


class NotRun(HubError):
    """A part did not come to the state that the run needs, so there is nothing to measure."""

    code = "not_run"


class ChaosHub:
    """more: HUB_ settings beside those of every run, such as a guard that is to be off. Ends with the block."""

    def __init__(self, home: Home, data_dir: Path, more: Mapping[str, str]) -> None:
        self.home, self._data_dir, self._more = home, data_dir, dict(more)
        self.ports = {name: free_port() for name in ("SERVER__PORT", "STORAGE__REDIS_PORT", "STORAGE__DASHBOARD_PORT",
                                                     "STORAGE__MLFLOW_PORT")}
        self.url = f"http://127.0.0.1:{self.ports['SERVER__PORT']}"
        self.redis_url = f"redis://127.0.0.1:{self.ports['STORAGE__REDIS_PORT']}/0"
        self.log = home.logs / "hub.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ChaosHub:
        try:
            return self._started()
        except BaseException:
            self._end()
            raise

    def __exit__(self, *_: object) -> None:
        self._end()

    @property
    def tokens(self) -> dict[str, str]:
        return self.home.tokens()

    def redis(self, timeout_s: float = 5.0) -> redis.Redis:
        """Asks once: the library's own retries would hide how long nobody answers."""
        return redis.Redis(port=self.ports["STORAGE__REDIS_PORT"], socket_timeout=timeout_s,
                           retry=Retry(NoBackoff(), 0))

    def redis_process(self) -> psutil.Process:
        """The embedded server; NotRun if who answers on its port is not of this hub."""
        with self.redis() as client:
            process = psutil.Process(int(client.info("server")["process_id"]))
        if process.environ().get(MARKER) != str(self.home.root):
            raise NotRun(f"the server on port {self.ports['STORAGE__REDIS_PORT']} is not of this hub")
        return process

    def feeders(self) -> list[psutil.Process]:
        """Of the feeder actor, as Ray names it while the actor is alive."""
        return [process for process in self._own() if FEEDER in " ".join(_quiet(process.cmdline) or ())]

    def restore_seconds(self) -> list[float]:
        """What the feeder has said of each time it rebuilt the online store."""
        logs = {path.resolve() for path in (self.home.logs / "ray").glob("session_*/logs/worker-*.out")}
        return [float(found) for path in sorted(logs) for found in RESTORED.findall(path.read_text(errors="replace"))]

    def register(self, bundle: Bundle) -> None:
        answer = self._post("/v1/policies", "ops", content=pack_bundle(bundle))
        if answer.status_code != 200:
            raise NotRun(f"the hub refused {bundle.manifest.alias}: {answer.text}")

    def push_score(self, symbol: str) -> None:
        score = {"source": "twitter", "symbol": symbol, "score": 0.25, "confidence": 0.75}
        answer = self._post("/v1/sentiment", "bot", json=score)
        if answer.status_code != 200:
            raise NotRun(f"the hub refused a score: {answer.text}")

    def now_ms(self) -> int:
        headers = {"Authorization": f"Bearer {self.tokens['bot']}"}
        answer = httpx.get(f"{self.url}/v1/status", headers=headers, timeout=30.0).raise_for_status()
        return int(answer.json()["hub"]["now_ms"])

    def _started(self) -> ChaosHub:
        command = [str(Path(sys.executable).with_name("hub")), "up", "--no-training", "--no-mlflow"]
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C at the terminal is ours, and we end the hub.
            self._process = subprocess.Popen(command, env=self._environment(), stdin=subprocess.DEVNULL, stdout=log,
                                             stderr=log, start_new_session=True)
        until(lambda: self._answers() or self._process.poll() is not None,  # type: ignore[union-attr]
              "the hub to be ready", START_S)
        if self._process.poll() is not None:
            raise NotRun(f"the hub did not start: {self.log.read_text()[-2_000:]}")
        return self

    def _environment(self) -> dict[str, str]:
        settings = {"HUB_HOME": str(self.home.root), "HUB_DATA_DIR": str(self._data_dir), "HUB_ROLLOUT__MODE": "full",
                    # A gate of its own: heads that answer late on a busy machine must not lose their traffic here.
                    "HUB_SENTRY__REDUCE_LATENCY_P95_MS": "10000", "HUB_MARKET__KIND": "files",
                    "HUB_MARKET__SYMBOLS": json.dumps(SYMBOLS), "HUB_LEDGER__SEED": "7",
                    **{f"HUB_{name}": str(port) for name, port in self.ports.items()}, **self._more}
        others = {name: value for name, value in os.environ.items() if not name.startswith("HUB_")}
        return {**others, **settings}

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5.0).status_code == 200
        except httpx.HTTPError:
            return False

    def _post(self, path: str, scope: str, **more: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.tokens[scope]}"}
        return httpx.post(self.url + path, headers=headers, timeout=30.0, **more)

    def _own(self) -> list[psutil.Process]:
        """Every process that carries the marker of this home."""
        return [process for process in psutil.process_iter()
                if (_quiet(process.environ) or {}).get(MARKER) == str(self.home.root)]

    def _end(self) -> None:
        """Ctrl-C first, as an operator would; then whatever is left."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(END_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        end(self._own())


def heads() -> list[Bundle]:
    """Two heads that need no training: what they propose does not matter here, only from which features."""
    served: dict[str, Any] = {
        "features": DECISION_V1.names, "required_groups": DECISION_V1.required_groups,
        "optional_groups": DECISION_V1.optional_groups, "optional_features": DECISION_V1.may_be_missing}
    return [make_bundle(Manifest(kind="momentum_rule", alias=alias, inputs={"momentum": momentum},
                                 parameters={"threshold": 0.2}, **served), {})
            for alias, momentum in (("momentum_15", "ret_15"), ("momentum_60", "ret_60"))]


def until(true: Callable[[], Any], what: str, timeout_s: float = 60.0) -> float:
    """Wait for a condition; returns the seconds it took. NotRun if it does not come."""
    started = time.monotonic()
    while not true():
        if time.monotonic() - started > timeout_s:
            raise NotRun(f"waited {timeout_s:g} s for {what}")
        time.sleep(POLL_S)
    return time.monotonic() - started


def _quiet(ask: Callable[[], Any]) -> Any:
    """None for a process that has ended or is not ours to look at."""
    try:
        return ask()
    except (psutil.Error, OSError):
        return None
