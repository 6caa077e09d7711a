"""Processes that carry a mark in their environment, so that what a killed job left can be told from anyone else's."""

from __future__ import annotations

import os

import psutil


def marked(name: str, value: str) -> list[psutil.Process]:
    """Every process that was started with this variable and value, without this one and those above it."""
    mine = {os.getpid(), *(process.pid for process in psutil.Process().parents())}
    return [process for process in psutil.process_iter() if process.pid not in mine and _carries(process, name, value)]


def end_marked(name: str, value: str, grace_s: float = 2.0) -> int:
    """Ask them to end, then kill what is still there; how many there were. Looks again for what they have started.

    One that may not be ended, as it has become another user's, is left alone.
    """
    seen: set[int] = set()
    beyond: set[int] = set()
    while alive := [process for process in marked(name, value) if process.pid not in beyond]:
        for process in alive:
            try:
                process.kill() if process.pid in seen else process.terminate()
            except psutil.NoSuchProcess:
                pass
            except psutil.AccessDenied:
                beyond.add(process.pid)
        seen |= {process.pid for process in alive}
        psutil.wait_procs(alive, timeout=grace_s)
    return len(seen - beyond)


def _carries(process: psutil.Process, name: str, value: str) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(name) == value
    except (psutil.Error, OSError):
        return False
