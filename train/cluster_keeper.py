"""Keeps a Ray of this machine for as long as whoever asked for it lives.

    python -m train.cluster_keeper FOLDER ray start --head --block ...

Ray's head does not end with its starter. This process does: its standard input is a pipe from the starter, which the
system closes even if the starter is killed. Then everything that carries the cluster's mark is ended, jobs included,
and FOLDER is removed: within 5 s, or with a head that hangs 10 s. It ends by itself if the head does, with the head's
exit code.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from train.leftovers import end_marked

MARK = "TRAIN_RAY_FOLDER"
LOOK_EVERY_S = 0.2


def keep(folder: Path, command: Sequence[str]) -> int:
    """Until the standard input closes or the command ends; returns the exit code."""
    with (folder / "head.log").open("ab") as log:
        head = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                                env={**os.environ, MARK: str(folder)})
    while head.poll() is None and not _let_go():
        pass
    ended_by_itself = head.poll()
    end_marked(MARK, str(folder))
    head.wait()
    if ended_by_itself is None:
        shutil.rmtree(folder, ignore_errors=True)
    return ended_by_itself or 0


def _let_go() -> bool:
    """Whether the pipe has closed; waits a moment for it."""
    readable, _, _ = select.select([sys.stdin], [], [], LOOK_EVERY_S)
    return bool(readable) and not os.read(sys.stdin.fileno(), 1)


if __name__ == "__main__":
    for signal_number in (signal.SIGINT, signal.SIGTERM):  # the pipe says when it is over, nothing else
        signal.signal(signal_number, lambda *_: None)  # not SIG_IGN, which every job would inherit
    sys.exit(keep(Path(sys.argv[1]), sys.argv[2:]))
