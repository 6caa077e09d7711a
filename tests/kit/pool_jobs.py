"""Jobs of tests; in a module, so that workers of a cluster can import them."""

from __future__ import annotations

import os
import threading
from pathlib import Path


def squared(number: int) -> int:
    return number**2


def fails(reason: str) -> None:
    raise ValueError(reason)


def dies() -> None:
    """As for want of memory: nobody hears why."""
    os._exit(1)


def marks(folder: Path, number: int) -> None:
    """Says that it has begun, and a minute later that it has ended."""
    part = folder / f"part_{number}"
    part.write_text(str(os.getpid()))
    part.rename(folder / f"begun_{number}")
    threading.Event().wait(60)
    (folder / f"ended_{number}").touch()


def asks_another(number: int) -> int:
    import ray

    return int(ray.get(ray.remote(num_cpus=1)(squared).remote(number)))
