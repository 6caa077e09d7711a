"""A limit on how much more memory this process may ask for."""

from __future__ import annotations

import resource
from pathlib import Path


def limit_growth(more_bytes: int) -> None:
    """What goes beyond fails here, as MemoryError or in its library, before the machine runs out. It cannot be lifted.

    Of address space, most of which is never used: so what is there already does not count, and be generous.
    """
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + more_bytes
    hardest = resource.getrlimit(resource.RLIMIT_AS)[1]
    if hardest != resource.RLIM_INFINITY:
        limit = min(limit, hardest)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
