"""Named arrays as one file that can't run code when it is read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """A reader sees the old file or the new one, whole, also after a power cut."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    plain: dict[str, Any] = {name: np.asarray(values) for name, values in arrays.items()}
    with part.open("wb") as file:
        np.savez(file, **plain)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """OSError or ValueError for what is no such file."""
    with np.load(path, allow_pickle=False) as found:
        return {name: found[name] for name in found.files}
