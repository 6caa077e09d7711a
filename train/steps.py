"""Steps of a long job that may be interrupted: what each one made is kept on disk, and is not made again.

A step is a folder with `result.json` and whatever files and arrays it made, put in place by one rename: it is there
whole or not at all. The job's own folder is named by everything that its results depend on.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESULT, ARRAY = "result.json", ".npy"


def key_of(*parts: Any) -> str:
    """16 hex digits that name everything given: plain JSON values, in any nesting."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, allow_nan=False).encode()).hexdigest()[:16]


def arrays_in(folder: Path) -> dict[str, NDArray[Any]]:
    """Every array of a finished step, by name."""
    return {path.name.removesuffix(ARRAY): np.load(path, mmap_mode="r", allow_pickle=False)
            for path in sorted(folder.glob(f"*{ARRAY}"))}


class Steps:
    """The finished steps of one job under `folder`. Steps of different names may be kept at the same time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def has(self, name: str) -> bool:
        return (self.folder / name).is_dir()

    def result(self, name: str) -> dict[str, Any]:
        """What the step found, as plain JSON."""
        found: dict[str, Any] = json.loads((self.folder / name / RESULT).read_bytes())
        return found

    def arrays(self, name: str) -> dict[str, NDArray[Any]]:
        """The step's arrays, read-only and mapped from disk: several that read them share one copy in memory."""
        return arrays_in(self.folder / name)

    def file(self, name: str, file: str) -> bytes:
        return (self.folder / name / file).read_bytes()

    def scratch(self, name: str) -> Path:
        """Where a step under way keeps what lets it go on after an interruption; removed when it is kept."""
        path = self.under_way(name)
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        return path

    def under_way(self, name: str) -> Path:
        """The same folder, which need not be there."""
        return self.folder / f".{name}.under_way"

    def keep(self, name: str, result: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]] | None = None,
             files: Mapping[str, bytes] | None = None) -> None:
        """Keep a finished step; if it is there already, nothing changes."""
        beside = self.folder / f".{name}.{os.getpid()}.new"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(mode=0o700)
        (beside / RESULT).write_text(json.dumps(result, allow_nan=False))
        for key, values in (arrays or {}).items():
            np.save(beside / f"{key}{ARRAY}", values, allow_pickle=False)
        for file, content in (files or {}).items():
            (beside / file).write_bytes(content)
        for path in (*beside.iterdir(), beside):  # a rename that outlives a power cut must not be of empty files
            _sync(path)
        if not self.has(name):
            beside.rename(self.folder / name)
            _sync(self.folder)
        shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(self.folder / f".{name}.under_way", ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
