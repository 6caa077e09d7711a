"""Seconds that pass only where somebody sleeps."""

from __future__ import annotations


class FakeTime:
    """monotonic_s and sleep for what takes them as arguments; pauses: what was slept, in order."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.pauses: list[float] = []

    def monotonic_s(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now_s += seconds
