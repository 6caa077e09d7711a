"""The rows of one job on disk: bars and raw features, written once, read by whoever makes an environment of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies.bars import Bars
from policies.errors import InvalidInput
from train.dataset import FeatureRows
from train.kept_bars import arrays_of_bars, bars_of_arrays, intervals_of
from train.rl.market_rows import MarketRows, Standard, TimeRange
from train.steps import Steps, arrays_in

ROWS = "rows"


@dataclass(frozen=True)
class Ranges:
    """Where is learnt, where a checkpoint is chosen, and where it is judged, one after another."""

    training: TimeRange
    validation: TimeRange
    test: TimeRange


def ranges_of(bars: Mapping[str, Bars], validation_share: float, test_share: float, embargo_bars: int) -> Ranges:
    """By shares of the time that all symbols have in common, embargo_bars left out between two ranges."""
    start_ms = max(int(run.open_time_ms[0]) for run in bars.values())
    stop_ms = min(int(run.close_time_ms[-1]) for run in bars.values())
    gap_ms = embargo_bars * next(iter(bars.values())).interval_ms
    length_ms = stop_ms - start_ms
    test_ms = stop_ms - round(test_share * length_ms)
    validation_ms = test_ms - round(validation_share * length_ms)
    if not start_ms < validation_ms < test_ms - gap_ms < stop_ms - 2 * gap_ms:
        raise InvalidInput("LOOKBACK", "more bars, so that each range has some", length_ms)
    return Ranges(TimeRange(start_ms, validation_ms - gap_ms), TimeRange(validation_ms, test_ms - gap_ms),
                  TimeRange(test_ms, stop_ms))


@dataclass(frozen=True)
class JobRows:
    """bars and rows by symbol, raw. standard: fitted on the training range, or brought by what is gone on with."""

    bars: Mapping[str, Bars]
    rows: Mapping[str, FeatureRows]
    ranges: Ranges
    standard: Standard

    @property
    def market(self) -> list[MarketRows]:
        """Of the symbols in the order of their names."""
        return [MarketRows.made(self.bars[name], self.rows[name], self.standard) for name in sorted(self.bars)]


def keep_rows(steps: Steps, rows: JobRows) -> None:
    """As the step ROWS."""
    arrays: dict[str, NDArray[Any]] = {"mean": rows.standard.mean, "scale": rows.standard.scale,
                                       **arrays_of_bars(rows.bars)}
    for symbol, known in rows.rows.items():
        arrays |= {f"{symbol}.times": known.event_time_ms, f"{symbol}.values": known.values.astype(np.float32)}
    ranges = {name: [part.start_ms, part.stop_ms] for name, part in vars(rows.ranges).items()}
    steps.keep(ROWS, {"ranges": ranges, "interval_ms": intervals_of(rows.bars)}, arrays)


@lru_cache(2)
def load_rows(folder: Path) -> JobRows:
    """What was kept in the steps under `folder`."""
    told, arrays = Steps(folder).result(ROWS), {name: np.array(one) for name, one in arrays_in(folder / ROWS).items()}
    bars = bars_of_arrays(arrays, told["interval_ms"])
    rows = {symbol: FeatureRows(arrays[f"{symbol}.times"], arrays[f"{symbol}.values"].astype(np.float64))
            for symbol in bars}
    ranges = Ranges(**{name: TimeRange(*edges) for name, edges in told["ranges"].items()})
    return JobRows(bars, rows, ranges, Standard(arrays["mean"], arrays["scale"]))
