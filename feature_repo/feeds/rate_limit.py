"""How much may be asked of a venue that counts weights per minute: a bucket that fills steadily."""

from __future__ import annotations

import threading
from collections.abc import Callable

from policies.errors import InvalidInput


class TokenBucket:
    """Never more than `limit` in any `window_s`, spread over all threads that share the bucket.

    A full bucket holds half of the limit and the other half flows in over a window, so that what is taken in any
    window stays within the limit: limit / 2 at once + limit / 2 while it lasts. What a taker learns only afterwards is
    charged and may leave the level below zero; the window may then be exceeded by that much.

    monotonic_s: a clock in seconds that never goes back. sleep: waits that many seconds.
    """

    def __init__(self, limit: float, window_s: float, monotonic_s: Callable[[], float],
                 sleep: Callable[[float], None]) -> None:
        if not (limit > 0 and window_s > 0):
            raise InvalidInput("rate_limit", "limit > 0 and window_s > 0", (limit, window_s))
        self.capacity, self._per_s = limit / 2, limit / 2 / window_s
        self._level, self._level_s = self.capacity, monotonic_s()
        self._closed_until_s = self._level_s
        self._monotonic_s, self._sleep, self._lock = monotonic_s, sleep, threading.Lock()

    def take(self, weight: float, longest_wait_s: float) -> bool:
        """Wait until `weight` may be spent, and spend it. False, at once and unspent, if that takes longer.

        A weight over the capacity is taken from a full bucket.
        """
        with self._lock:
            now_s = self._monotonic_s()
            self._fill(now_s)
            missing = min(weight, self.capacity) - self._level
            wait_s = max(0.0, missing / self._per_s, self._closed_until_s - now_s)
            if wait_s > longest_wait_s:
                return False
            self._level -= weight  # taken before the wait: who comes next waits behind
        if wait_s > 0:
            self._sleep(wait_s)
        return True

    def charge(self, weight: float) -> None:
        """Spend what an answer turned out to weigh beyond what was taken for it; less than zero gives back."""
        with self._lock:
            self._fill(self._monotonic_s())
            self._level = min(self.capacity, self._level - weight)

    def close_for(self, pause_s: float) -> None:
        """Nothing is given out before pause_s are over: the venue itself said that it is enough."""
        with self._lock:
            self._closed_until_s = max(self._closed_until_s, self._monotonic_s() + pause_s)

    def _fill(self, now_s: float) -> None:
        self._level = min(self.capacity, self._level + (now_s - self._level_s) * self._per_s)
        self._level_s = now_s
