"""The material of one search on disk: examples and bars, written once and mapped by every worker."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies.bars import Bars
from train.examples import Examples
from train.steps import Steps, arrays_in

BAR_COLUMNS = ("open_time_ms", "open", "high", "low", "close", "volume", "funding_rate")
ROW_COLUMNS = ("symbol", "event_time_ms", "known_ms", "values", "classes", "returns")


@dataclass(frozen=True)
class Material:
    """Labelled rows, and the bars that trades are filled on."""

    examples: Examples
    bars: Mapping[str, Bars]


def digests_of(bars: Mapping[str, Bars]) -> dict[str, str]:
    """{symbol: SHA-256 in hex of all columns of its bars}."""
    return {symbol: _digest(run) for symbol, run in bars.items()}


def _digest(bars: Bars) -> str:
    whole = hashlib.sha256()
    for column in BAR_COLUMNS:
        values = getattr(bars, column)
        whole.update(b"-" if values is None else np.ascontiguousarray(values).tobytes())
    return whole.hexdigest()


def keep_material(steps: Steps, name: str, material: Material) -> None:
    """As a step; what the arrays are called is the business of `load_material`."""
    arrays: dict[str, NDArray[Any]] = {column: getattr(material.examples, column) for column in ROW_COLUMNS}
    for symbol, run in material.bars.items():
        arrays |= {f"{symbol}.{column}": getattr(run, column) for column in BAR_COLUMNS
                   if getattr(run, column) is not None}
    described = {f.name: getattr(material.examples, f.name) for f in fields(Examples) if f.name not in ROW_COLUMNS}
    steps.keep(name, {**described, "interval_ms": {symbol: run.interval_ms for symbol, run in material.bars.items()}},
               arrays)


@lru_cache(2)
def load_material(folder: Path, name: str) -> Material:
    """What was kept under this name of the steps in `folder`. Rows are mapped, bars are read."""
    steps = Steps(folder)
    described, arrays = steps.result(name), arrays_in(folder / name)
    examples = Examples(**{column: arrays[column] for column in ROW_COLUMNS},
                        features=tuple(described["features"]), optional=tuple(described["optional"]),
                        embedding=described["embedding"], window_bars=described["window_bars"])
    bars = {symbol: Bars(symbol, interval_ms, **{column: np.array(arrays[f"{symbol}.{column}"])
                                                 for column in BAR_COLUMNS if f"{symbol}.{column}" in arrays})
            for symbol, interval_ms in described["interval_ms"].items()}
    return Material(examples, bars)
