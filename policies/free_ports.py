"""Ports for servers that start later.

Between asking for a free port and listening on it lie seconds. A port that the kernel chooses can go in that time to
any connection that leaves the machine, or to the next one who asks. So ports come from below the range which Linux
gives to connections, and each is kept for the process that asked.
"""

from __future__ import annotations

import random
import socket

FIRST, LAST = 20_000, 32_767  # above the ports of Ray's workers, below Linux's range for connections

_kept: list[socket.socket] = []


class NoFreePort(OSError):
    """All are taken."""


def free_port() -> int:
    """A port of 127.0.0.1 on which nothing listens, and which nobody else is given here while this process lives."""
    for port in random.SystemRandom().sample(range(FIRST, LAST + 1), LAST + 1 - FIRST):
        if _keep(port):
            return port
    raise NoFreePort(f"no port from {FIRST} to {LAST} of 127.0.0.1 is free")


def _keep(port: int) -> bool:
    # An abstract name has one owner in a network namespace, as a port has, and ends with its process.
    mark = socket.socket(socket.AF_UNIX)
    try:
        mark.bind(f"\0learner-hub-port-{port}")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
    except OSError:
        mark.close()
        return False
    _kept.append(mark)
    return True
