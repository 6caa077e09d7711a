"""The hub's one clock, UTC, in integer milliseconds. Configured once; every age, cadence and horizon uses it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

from policies.errors import InvalidInput

LIVE_TOLERANCE_MS = 2_000


class Clock(Protocol):
    mode: str

    def now_ms(self) -> int: ...

    def check(self, time_ms: int | None) -> int:
        """The time of a request on this clock, or InvalidInput if the clock cannot accept it. Moves nothing."""
        ...

    def admit(self, time_ms: int | None) -> int:
        """`check`, after which a replay clock shows this time."""
        ...


class LiveClock:
    """Wall time. A request whose own time is off by more than 2 s is refused; one without a time gets now."""

    mode = "live"

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def check(self, time_ms: int | None) -> int:
        now = self.now_ms()
        if time_ms is not None and abs(time_ms - now) > LIVE_TOLERANCE_MS:
            raise InvalidInput("time_ms", f"within {LIVE_TOLERANCE_MS} ms of the hub's clock ({now})", time_ms)
        return now

    def admit(self, time_ms: int | None) -> int:
        return self.check(time_ms)


class ReplayClock:
    """The time of the latest request's bar. It never goes back, so recorded bars can be replayed honestly.

    A request without a time is asked at the time that the clock shows. stop_ms: the close of the last bar there is.
    """

    mode = "replay"

    def __init__(self, start_ms: int = 0, stop_ms: int = 2**53) -> None:
        self._now_ms, self._stop_ms = start_ms, stop_ms

    def now_ms(self) -> int:
        return self._now_ms

    def check(self, time_ms: int | None) -> int:
        if time_ms is None:
            return self._now_ms
        if time_ms < self._now_ms:
            raise InvalidInput("time_ms", f">= {self._now_ms}: the replay clock never goes back", time_ms)
        if time_ms > self._stop_ms:
            raise InvalidInput("time_ms", f"<= {self._stop_ms}, where the recorded bars end", time_ms)
        return time_ms

    def admit(self, time_ms: int | None) -> int:
        self._now_ms = self.check(time_ms)
        return self._now_ms


@dataclass(frozen=True)
class ClockChoice:
    """mode: live or replay. start_ms, stop_ms: where a replay clock begins and ends."""

    mode: str
    start_ms: int
    stop_ms: int

    def make(self, latest_ms: int) -> Clock:
        """latest_ms: of the ledger; a replay that goes on does so where it was."""
        return LiveClock() if self.mode == "live" else ReplayClock(max(self.start_ms, latest_ms), self.stop_ms)
