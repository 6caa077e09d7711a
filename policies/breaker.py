"""When to leave a server alone that fails: a breaker for calls that must not wait, a backoff for those that can."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable


class Breaker:
    """Closed: every request may go. After n failures in a row it opens, and lets one probe through per open_s."""

    def __init__(self, failures_to_open: int, open_s: float, now_s: Callable[[], float] = time.monotonic) -> None:
        self._failures_to_open, self._open_s, self._now_s = failures_to_open, open_s, now_s
        self._lock = threading.Lock()
        self._failures = 0
        self._next_probe_s = -math.inf

    def allows(self) -> bool:
        with self._lock:
            if self._failures < self._failures_to_open:
                return True
            if self._now_s() < self._next_probe_s:
                return False
            self._next_probe_s = self._now_s() + self._open_s  # this caller probes, the others wait for its finding
            return True

    def succeeded(self) -> None:
        with self._lock:
            self._failures = 0

    def failed(self) -> None:
        with self._lock:
            self._failures += 1
            self._next_probe_s = self._now_s() + self._open_s


class Backoff:
    """How long to wait before the next delivery: nothing after a success, doubling after each failure."""

    def __init__(self, first_s: float, longest_s: float, now_s: Callable[[], float] = time.monotonic) -> None:
        self._first_s, self._longest_s, self._now_s = first_s, longest_s, now_s
        self._step_s, self._until_s = 0.0, -math.inf

    def failed(self) -> None:
        self._step_s = min(max(self._first_s, 2 * self._step_s), self._longest_s)
        self._until_s = self._now_s() + self._step_s

    def succeeded(self) -> None:
        self._step_s, self._until_s = 0.0, -math.inf

    def wait_s(self) -> float:
        return max(0.0, self._until_s - self._now_s())

    def over(self) -> bool:
        return self.wait_s() == 0.0
