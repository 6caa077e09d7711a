"""One nightly at a time on a home, and nothing left of one that was killed."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from policies.errors import HubError
from train.leftovers import end_marked, marked

MARK = "NIGHTLY_OF"  # every process of a nightly's own cluster carries it, with the home
LEAVES_BY_ITSELF_S, LOOK_EVERY_S = 10.0, 0.2


class NightlyRuns(HubError):
    """Another nightly of this home is under way."""

    code = "nightly_runs"


@contextmanager
def only_one(home: Path) -> Iterator[None]:
    """Hold the home's nights; NightlyRuns if another process does. The system lets go of a killed process's lock."""
    folder = home / "nightly"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise NightlyRuns(f"a nightly of {home} is under way already (process {file.read().strip()})") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
        file.truncate(0)


def end_what_was_left(home: Path) -> int:
    """End what a killed nightly of this home has left; how many processes it had to end.

    Its cluster notices by itself and ends within seconds; steps of two nightlies at once must not be.
    """
    deadline = time.monotonic() + LEAVES_BY_ITSELF_S
    while marked(MARK, str(home)) and time.monotonic() < deadline:
        time.sleep(LOOK_EVERY_S)
    return end_marked(MARK, str(home))
