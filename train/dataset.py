"""What a supervised head learns from: feature rows, and what a long and a short bracket entered after each would earn.

Labels are fills of the market engine itself, costs included, so a head is taught exactly what it is paid for later.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pandas as pd
from annotated_types import Ge, Gt, Le
from numpy.typing import NDArray

from policies.bars import Bars
from policies.errors import InvalidInput
from policies.fills import Costs, simulate_brackets

SHORT, FLAT, LONG = 0, 1, 2  # places in policies.heads.CLASSES


@dataclass(frozen=True)
class Brackets:
    """The trade that is labelled and that the head proposes, in the words of `policies.types.Action`."""

    leverage: Annotated[float, Ge(1), Le(50)] = 5.0
    tp_pct: Annotated[float, Gt(0), Le(0.5)] = 0.012
    sl_pct: Annotated[float, Gt(0), Le(0.5)] = 0.008
    horizon_bars: Annotated[int, Ge(1), Le(10_000)] = 15


@dataclass(frozen=True)
class FeatureRows:
    """Rows of one symbol. event_time_ms: int64 (N,), rising. values: float64 (N, F)."""

    event_time_ms: NDArray[np.int64]
    values: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.event_time_ms)

    @property
    def digest(self) -> str:
        """SHA-256 in hex of times and values."""
        whole = hashlib.sha256(np.ascontiguousarray(self.event_time_ms, "<i8").tobytes())
        whole.update(np.ascontiguousarray(self.values, "<f8").tobytes())
        return whole.hexdigest()


@dataclass(frozen=True)
class Dataset:
    """Labelled rows in the order of (time, symbol).

    symbol: (N,) names. event_time_ms: int64 (N,), when the row was known. values: float64 (N, F).
    known_ms: int64 (N,), when both trades of the label were over, later than event_time_ms.
    classes: int8 (N,), SHORT, FLAT or LONG. long_return, short_return: float64 (N,), net return on margin, >= -1.
    """

    symbol: NDArray[np.str_]
    event_time_ms: NDArray[np.int64]
    values: NDArray[np.float64]
    known_ms: NDArray[np.int64]
    classes: NDArray[np.int8]
    long_return: NDArray[np.float64]
    short_return: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.classes)

    def take(self, places: NDArray[np.bool_] | NDArray[np.int64]) -> Dataset:
        return Dataset(*(getattr(self, name)[places] for name in Dataset.__annotations__))


def rows_by_symbol(frame: pd.DataFrame, names: Sequence[str]) -> dict[str, FeatureRows]:
    """The rows of a training frame with the columns symbol, event_timestamp and the named features."""
    rows = {}
    for symbol, part in frame.sort_values(["symbol", "event_timestamp"]).groupby("symbol"):
        stamps = part["event_timestamp"].dt.tz_convert("UTC").dt.tz_localize(None).to_numpy()
        rows[str(symbol)] = FeatureRows(stamps.astype("datetime64[ms]").astype(np.int64),
                                        part[list(names)].to_numpy(dtype=np.float64))
    return rows


def label_rows(bars: Bars, rows: FeatureRows, brackets: Brackets, costs: Costs) -> Dataset:
    """Rows that can be labelled, with their labels.

    A row known at t enters at the open of the bar that opens at t. Rows are left out if there is no such bar, or if
    their trades are not over within horizon_bars of t (the bars end, or have a gap).
    """
    if len(rows.values) != len(rows.event_time_ms):
        raise InvalidInput("rows", "as many values as event times", (rows.values.shape, rows.event_time_ms.shape))
    entry = np.searchsorted(bars.open_time_ms, rows.event_time_ms)
    usable = entry < len(bars)
    usable[usable] = bars.open_time_ms[entry[usable]] == rows.event_time_ms[usable]
    entry, decided_ms = entry[usable], rows.event_time_ms[usable]
    over, known_ms = np.ones(len(entry), dtype=bool), decided_ms.copy()
    returns = []
    for sign in (1, -1):
        fills = simulate_brackets(bars, entry, sign, brackets.leverage, brackets.tp_pct, brackets.sl_pct,
                                  brackets.horizon_bars, costs)
        over &= fills.finished
        exit_ms = bars.close_time_ms[fills.exit_index]
        over &= exit_ms - decided_ms <= brackets.horizon_bars * bars.interval_ms
        known_ms = np.maximum(known_ms, exit_ms)
        returns.append(fills.net_return_on_margin)
    long, short = returns[0][over], returns[1][over]
    return Dataset(np.full(len(long), bars.symbol), decided_ms[over], rows.values[usable][over], known_ms[over],
                   classes_of(long, short), long, short)


def classes_of(long_return: NDArray[np.float64], short_return: NDArray[np.float64]) -> NDArray[np.int8]:
    """(N,) the direction that earned more, FLAT where neither earned anything."""
    better = np.where(long_return >= short_return, LONG, SHORT)
    return np.where(np.maximum(long_return, short_return) <= 0, FLAT, better).astype(np.int8)


def build_dataset(bars: Mapping[str, Bars], rows: Mapping[str, FeatureRows], required: NDArray[np.bool_],
                  brackets: Brackets, costs: Costs) -> Dataset:
    """The labelled rows of all symbols. required: bool (F,), features without which a row is left out."""
    parts = [label_rows(bars[symbol], rows[symbol], brackets, costs) for symbol in sorted(rows)]
    if not any(map(len, parts)):
        raise InvalidInput("rows", "at least one row that can be labelled", {s: len(r.values) for s, r in rows.items()})
    whole = Dataset(*(np.concatenate([getattr(part, name) for part in parts]) for name in Dataset.__annotations__))
    complete = np.flatnonzero(np.isfinite(whole.values[:, required]).all(axis=1))
    whole = whole.take(complete)
    return whole.take(np.lexsort((whole.symbol, whole.event_time_ms)))


def split_by_time(dataset: Dataset, shares: Sequence[float], embargo_ms: int) -> list[Dataset]:
    """Consecutive slices of the time range, by share; the first is the earliest.

    A row belongs to a slice only if the slice goes on for embargo_ms after it. With an embargo of at least the horizon,
    no label of a slice looks into the next one. The last slice has no end, so nothing is left out there.
    """
    if not shares or not np.isclose(sum(shares), 1.0) or not all(share > 0 for share in shares):
        raise InvalidInput("shares", "positive, with the sum 1", shares)
    if not embargo_ms >= 0:
        raise InvalidInput("embargo_ms", ">= 0", embargo_ms)
    time_ms = dataset.event_time_ms
    first, last = int(time_ms.min()), int(time_ms.max())
    edges = [first + round(share * (last - first)) for share in np.cumsum(shares)[:-1]]
    starts, ends = [first, *edges], [*edges, last + embargo_ms]
    return [dataset.take((time_ms >= start) & (time_ms + embargo_ms <= end))
            for start, end in zip(starts, ends, strict=True)]
