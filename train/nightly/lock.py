"""One nightly at a time on a home, and nothing left of one that was killed."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from pathlib import Path

from train.leftovers import end_marked, marked
from train.locked import locked

MARK = "NIGHTLY_OF"  # every process of a nightly's own cluster carries it, with the home
LEAVES_BY_ITSELF_S, LOOK_EVERY_S = 10.0, 0.2


def only_one(home: Path) -> AbstractContextManager[None]:
    """Hold the home's nights; UnderWay if another process does."""
    return locked(home / "nightly" / "lock", f"a nightly of {home}")


def end_what_was_left(home: Path) -> int:
    """End what a killed nightly of this home has left; how many processes it had to end.

    Its cluster notices by itself and ends within seconds; steps of two nightlies at once must not be.
    """
    deadline = time.monotonic() + LEAVES_BY_ITSELF_S
    while marked(MARK, str(home)) and time.monotonic() < deadline:
        time.sleep(LOOK_EVERY_S)
    return end_marked(MARK, str(home))
