"""The material of one search on disk: examples and bars, written once and mapped by every worker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from policies.bars import Bars
from train.examples import Examples
from train.kept_bars import arrays_of_bars, bars_of_arrays, intervals_of
from train.steps import Steps, arrays_in

ROW_COLUMNS = ("symbol", "event_time_ms", "known_ms", "values", "classes", "returns")


@dataclass(frozen=True)
class Material:
    """Labelled rows, and the bars that trades are filled on."""

    examples: Examples
    bars: Mapping[str, Bars]


def keep_material(steps: Steps, name: str, material: Material) -> None:
    """As a step; what the arrays are called is the business of `load_material`."""
    arrays: dict[str, NDArray[Any]] = {column: getattr(material.examples, column) for column in ROW_COLUMNS}
    arrays |= arrays_of_bars(material.bars)
    described = {f.name: getattr(material.examples, f.name) for f in fields(Examples) if f.name not in ROW_COLUMNS}
    steps.keep(name, {**described, "interval_ms": intervals_of(material.bars)}, arrays)


@lru_cache(2)
def load_material(folder: Path, name: str) -> Material:
    """What was kept under this name of the steps in `folder`. Rows are mapped, bars are read."""
    steps = Steps(folder)
    described, arrays = steps.result(name), arrays_in(folder / name)
    examples = Examples(**{column: arrays[column] for column in ROW_COLUMNS},
                        features=tuple(described["features"]), optional=tuple(described["optional"]),
                        embedding=described["embedding"], window_bars=described["window_bars"])
    return Material(examples, bars_of_arrays(arrays, described["interval_ms"]))
