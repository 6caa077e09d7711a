"""The signals of every strategy with their buckets, kept on disk once, and what levels earn on some of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from policies.bars import Bars
from policies.errors import InvalidInput
from policies.fills import Costs
from policies.slots import simulate_slots
from router.param_start import BUCKETS
from router.params import ParamBandit, market_settings
from train.bo.rules import RULES
from train.kept_bars import arrays_of_bars, bars_of_arrays, intervals_of
from train.steps import Steps, arrays_in

if TYPE_CHECKING:
    from train.dataset import FeatureRows  # it loads pandas, which the workers of a search do without

MOST_REWARD = 5.0  # risk units, as the hub clips it

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SymbolSignals:
    """Rows of one symbol in the order of time. time_ms: int64 (N,). bucket: int8 (N,), places in BUCKETS.
    directions: by strategy, int8 (N,)."""

    bars: Bars
    time_ms: NDArray[np.int64]
    bucket: NDArray[np.int8]
    directions: Mapping[str, NDArray[np.int8]]

    def entries(self, strategy: str, bucket: str, from_ms: int, until_ms: int) -> tuple[NDArray[np.int64], Any]:
        """(time_ms, direction) of the strategy's signals in this bucket, of rows known in [from_ms, until_ms)."""
        own = (self.bucket == BUCKETS.index(bucket)) & (self.directions[strategy] != 0)
        own &= (self.time_ms >= from_ms) & (self.time_ms < until_ms)
        return self.time_ms[own], self.directions[strategy][own]


def signals_of(bars: Bars, rows: FeatureRows, names: tuple[str, ...]) -> SymbolSignals:
    """names: of the features in rows."""
    bandit = ParamBandit(settings=market_settings(names))
    bucket = np.array([BUCKETS.index(bandit.bucket(values)) for values in rows.values.tolist()], np.int8)
    columns = {name: rows.values[:, place] for place, name in enumerate(names)}
    return SymbolSignals(bars, rows.event_time_ms, bucket,
                         {strategy: rule.directions(columns) for strategy, rule in RULES.items()})


def keep_signals(steps: Steps, name: str, signals: Mapping[str, SymbolSignals]) -> None:
    """As a step; what the arrays are called is the business of `load_signals`."""
    bars = {symbol: one.bars for symbol, one in signals.items()}
    arrays: dict[str, NDArray[Any]] = arrays_of_bars(bars)
    for symbol, one in signals.items():
        arrays |= {f"{symbol}.time_ms": one.time_ms, f"{symbol}.bucket": one.bucket}
        arrays |= {f"{symbol}.to.{strategy}": sides for strategy, sides in one.directions.items()}
    steps.keep(name, {"interval_ms": intervals_of(bars)}, arrays)


@lru_cache(2)
def load_signals(folder: Path, name: str) -> dict[str, SymbolSignals]:
    """By symbol, what was kept under this name of the steps in `folder`."""
    arrays, found = arrays_in(folder / name), {}
    for symbol, bars in bars_of_arrays(arrays, Steps(folder).result(name)["interval_ms"]).items():
        own = {key.removeprefix(f"{symbol}."): np.array(value) for key, value in arrays.items()
               if key.startswith((f"{symbol}.time_ms", f"{symbol}.bucket", f"{symbol}.to."))}
        found[symbol] = SymbolSignals(bars, own["time_ms"], own["bucket"], {
            key.removeprefix("to."): value for key, value in own.items() if key.startswith("to.")})
    return found


@dataclass(frozen=True)
class Earned:
    """Trades of P points. point: int64 (M,). entry_ms: int64 (M,), decision times. reward: (M,), net of all costs, in
    risk units: 1 is what a stop without costs would lose. Clipped to +-MOST_REWARD."""

    points: int
    point: NDArray[np.int64]
    entry_ms: NDArray[np.int64]
    reward: Floats

    def of(self, place: int) -> Earned:
        """The trades of one point, in the order of time."""
        own = np.flatnonzero(self.point == place)
        own = own[np.argsort(self.entry_ms[own], kind="stable")]
        return Earned(1, np.zeros(len(own), np.int64), self.entry_ms[own], self.reward[own])

    @property
    def figures(self) -> tuple[Floats, Floats, Floats]:
        """(P,) trades, mean reward (NaN without trades), and its standard deviation (NaN with fewer than 2)."""
        count = np.bincount(self.point, minlength=self.points).astype(float)
        total = np.bincount(self.point, self.reward, minlength=self.points)
        square = np.bincount(self.point, self.reward**2, minlength=self.points)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = total / count
            variance = np.where(count > 1, (square - count * mean**2) / (count - 1), np.nan)
        return count, mean, np.sqrt(np.maximum(variance, 0.0))


def earned(signals: Mapping[str, SymbolSignals], strategy: str, bucket: str, span_ms: tuple[int, int],
           points: ArrayLike, horizon_bars: int, leverage: float, costs: Costs) -> Earned:
    """What P points earn on the signals of a bucket, one slot per symbol and point, all points at once.

    span_ms: signals known in [from, until) whose trades are over by then. points: (P, 3) tp_pct, sl_pct,
    limit_offset_pct. A slot sees the signals of this bucket only.
    """
    wanted = np.atleast_2d(np.asarray(points, dtype=np.float64))
    if wanted.shape[1:] != (3,):
        raise InvalidInput("points", "of shape (P, 3)", wanted.shape)
    parts: list[tuple[NDArray[Any], ...]] = []
    tp, sl, offset = (wanted[:, [column]] for column in range(3))
    for one in signals.values():
        time_ms, direction = one.entries(strategy, bucket, span_ms[0], span_ms[1] - horizon_bars * one.bars.interval_ms)
        taken = simulate_slots(one.bars, time_ms, np.broadcast_to(direction, (len(wanted), len(time_ms))), leverage, tp,
                               sl, horizon_bars, costs, offset)
        fills = taken.fills
        reward = (fills.gross - fills.fees - fills.funding) / sl[taken.slot, 0]
        parts.append((taken.slot, time_ms[taken.place], np.clip(reward, -MOST_REWARD, MOST_REWARD)))
    point, entry_ms, rewards = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Earned(len(wanted), point, entry_ms, rewards)
