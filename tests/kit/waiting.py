"""Waiting on a condition rather than for a time."""

from __future__ import annotations

import threading
from collections.abc import Callable


def eventually(condition: Callable[[], bool], what: str, deadline_s: float = 10.0, every_s: float = 0.005) -> None:
    """Look until the condition holds; AssertionError with `what` after the deadline."""
    waiting = threading.Event()
    for _ in range(int(deadline_s / every_s)):
        if condition():
            return
        waiting.wait(every_s)
    raise AssertionError(f"not within {deadline_s:g} s: {what}")
