"""What the figures of a benchmark were taken on, and whether it did something else meanwhile."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("ray", "fastapi", "uvicorn", "pydantic", "numpy", "apsw", "redis", "hiredis", "uvloop", "feast", "duckdb",
            "onnxruntime", "numba", "vectorbt", "backtesting", "gymnasium", "stable-baselines3", "torch")


def machine() -> dict[str, Any]:
    memory_gib = round(psutil.virtual_memory().total / 2**30)
    return {"processor": _processor(), "cores": os.cpu_count(), "memory_gib": memory_gib,
            "system": platform.platform(), "python": platform.python_version()}


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def busy_percent(window_s: float) -> float:
    """Of all cores, by whoever else works on this machine while the caller waits."""
    return psutil.cpu_percent(window_s)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
