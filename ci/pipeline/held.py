"""Processes that end when whoever started them ends, however that was: they hold on to a pipe.

The child writes a note when it is ready, then reads its standard input; the pipe closes with the parent, even with one
that is killed, and the child ends what it had started.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ci.pipeline.step import FAILED, Stopped, write_whole

READY_S, END_S, POLL_S = 240.0, 60.0, 0.05


@contextmanager
def held(module: str, arguments: Sequence[str], ready: Path, log: Path,
         environment: Mapping[str, str] | None = None) -> Iterator[dict[str, Any]]:
    """`python -m MODULE` for the length of the block; yields the note that it has left in `ready`."""
    process = started(module, arguments, ready, log, subprocess.PIPE, environment)
    try:
        yield when_ready(process, ready, log)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        waited_for(process)
        ready.unlink(missing_ok=True)


def started(module: str, arguments: Sequence[str], ready: Path, log: Path, stdin: int,
            environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """In a session of its own: Ctrl-C at the terminal is ours, and what was started ends after us."""
    for folder in (ready.parent, log.parent):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    ready.unlink(missing_ok=True)
    with log.open("ab") as file:
        return subprocess.Popen([sys.executable, "-W", "ignore", "-m", module, *arguments], stdin=stdin, stdout=file,
                                stderr=file, start_new_session=True, env={**os.environ, **(environment or {})})


def when_ready(process: subprocess.Popen[bytes], ready: Path, log: Path) -> dict[str, Any]:
    """The note of a process that was started. Stopped if it ends or stays silent."""
    deadline = time.monotonic() + READY_S
    while not ready.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            said = log.read_text(errors="replace")[-1_500:]
            how = "was not ready in time" if process.poll() is None else f"ended with {process.returncode}"
            waited_for(process)
            raise Stopped(FAILED, f"what was to leave {ready.name} {how}; {log} says: {said}")
        time.sleep(POLL_S)
    found: dict[str, Any] = json.loads(ready.read_bytes())
    return found


def waited_for(process: subprocess.Popen[bytes]) -> None:
    """Wait for it to clear up; then end it."""
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def until_let_go(ready: Path, note: Mapping[str, Any], seconds: float | None = None) -> None:
    """For the child: say that it is ready, and wait for the pipe's end, or for so many seconds without a pipe."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        write_whole(ready, json.dumps(dict(note)).encode())
        if seconds is None:
            sys.stdin.buffer.read()
        else:
            time.sleep(seconds)
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # from here on nothing may interrupt the clearing up
