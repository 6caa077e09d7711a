"""The hash of the code that decides, recorded with every decision."""

from __future__ import annotations

import hashlib
from pathlib import Path

ROOMS = ("policies", "router", "sentry", "feature_repo", "hub")


def code_hash() -> str:
    """SHA-256 over the names and contents of every Python file of the deciding rooms, in the order of their names."""
    top = Path(__file__).resolve().parent.parent
    total = hashlib.sha256()
    for path in sorted(path for room in ROOMS for path in (top / room).rglob("*.py")):
        total.update(path.relative_to(top).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()
