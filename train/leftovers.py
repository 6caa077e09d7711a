"""Processes that carry a mark in their environment, so that what a killed job left can be told from anyone else's."""

from __future__ import annotations

import os
from contextlib import suppress

import psutil


def marked(name: str, value: str) -> list[psutil.Process]:
    """Every process that was started with this variable and value, without this one and those above it."""
    mine = {os.getpid(), *(process.pid for process in psutil.Process().parents())}
    return [process for process in psutil.process_iter() if process.pid not in mine and _carries(process, name, value)]


def end_marked(name: str, value: str, grace_s: float = 2.0) -> int:
    """Ask them to end, then kill what is still there; how many there were. Looks again for what they have started."""
    seen: set[int] = set()
    while alive := marked(name, value):
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.kill() if process.pid in seen else process.terminate()
        seen |= {process.pid for process in alive}
        psutil.wait_procs(alive, timeout=grace_s)
    return len(seen)


def _carries(process: psutil.Process, name: str, value: str) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(name) == value
    except (psutil.Error, OSError):
        return False
