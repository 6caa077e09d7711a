"""What a track of trades earned by block of time, and how sure that is: intervals bootstrapped over blocks.

Trades of several symbols at once win and lose together, and neighbours overlap. So what is drawn anew is never a trade
but a run of whole blocks of time, all symbols together: the stationary bootstrap (Politis and Romano 1994).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt, Le, Lt
from numpy.typing import NDArray

from policies.errors import InvalidInput

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class BlockGrid:
    """Blocks of block_ms from start_ms on; a last part of a block that would end after stop_ms belongs to the last."""

    start_ms: int
    stop_ms: int
    block_ms: int

    def __post_init__(self) -> None:
        if not (self.block_ms > 0 and self.stop_ms - self.start_ms >= 2 * self.block_ms):
            raise InvalidInput("grid", "at least 2 blocks long", (self.start_ms, self.stop_ms, self.block_ms))

    def __len__(self) -> int:
        return (self.stop_ms - self.start_ms) // self.block_ms

    def block_of(self, times_ms: NDArray[np.int64]) -> NDArray[np.int64]:
        """(N,) places of blocks. InvalidInput for a time outside the grid."""
        if not ((times_ms >= self.start_ms) & (times_ms < self.stop_ms)).all():
            raise InvalidInput("times_ms", f"{self.start_ms} to {self.stop_ms}", times_ms)
        return np.minimum((times_ms - self.start_ms) // self.block_ms, len(self) - 1)


@dataclass(frozen=True)
class Track:
    """A head's trades on a grid. block: int64 (N,), the block in which each trade was entered. net_return: float64
    (N,), net PnL over equity. Both in the order in which the trades ended, as far as their blocks allow it.
    """

    grid: BlockGrid
    block: NDArray[np.int64]
    net_return: Floats

    @property
    def trades(self) -> int:
        return len(self.net_return)

    @cached_property
    def counts(self) -> Floats:
        return self._summed(np.ones(self.trades))

    @cached_property
    def gains(self) -> Floats:
        return self._summed(self.net_return.clip(min=0))

    @cached_property
    def losses(self) -> Floats:
        """>= 0."""
        return self._summed(-self.net_return.clip(max=0))

    @property
    def returns(self) -> Floats:
        """(T,) summed net return of the trades of each block."""
        return self.gains - self.losses

    @property
    def profit_factor(self) -> float:
        """Sum of gains / sum of losses; infinite with gains and no loss, NaN with neither."""
        return _ratio(float(self.gains.sum()), float(self.losses.sum()))

    @property
    def expectancy(self) -> float:
        """Mean net return of a trade; NaN without one."""
        return float(self.net_return.mean()) if self.trades else math.nan

    @cached_property
    def max_drawdown_percent(self) -> float:
        """Largest fall of the summed returns from their peak (at least 0), in percent of equity; no compounding."""
        sums = np.concatenate([[0.0], np.cumsum(self.net_return)])
        return 100.0 * float((np.maximum.accumulate(sums) - sums).max())

    def _summed(self, weights: Floats) -> Floats:
        return np.bincount(self.block, weights, minlength=len(self.grid)).astype(np.float64)


def track_of(grid: BlockGrid, entry_time_ms: NDArray[np.int64], net_return: Floats) -> Track:
    """entry_time_ms: int64 (N,), net_return: float64 (N,), finite; both in the order in which the trades ended."""
    if entry_time_ms.shape != net_return.shape or not np.isfinite(net_return).all():
        raise InvalidInput("net_return", "a finite one for each entry time", net_return)
    block = grid.block_of(entry_time_ms)
    order = np.argsort(block, kind="stable")
    return Track(grid, block[order], np.asarray(net_return, dtype=np.float64)[order])


@dataclass(frozen=True)
class Interval:
    """low..high holds the true figure with probability `level`."""

    low: float
    high: float
    level: float


@dataclass(frozen=True)
class BootstrapSettings:
    """mean_blocks: of a run of neighbouring blocks that is drawn together; 1 takes blocks as independent."""

    resamples: Annotated[int, Ge(100), Le(100_000)] = 2_000
    mean_blocks: Annotated[float, Ge(1), Le(1_000)] = 1.0
    level: Annotated[float, Gt(0.5), Lt(1)] = 0.9


def drawn_blocks(blocks: int, settings: BootstrapSettings, rng: np.random.Generator) -> NDArray[np.int64]:
    """(resamples, blocks) places: runs that start anywhere, of a geometric length with the mean mean_blocks, and go on
    from the last block to the first.
    """
    shape = settings.resamples, blocks
    places = rng.integers(0, blocks, shape)
    if settings.mean_blocks == 1:
        return places
    starts = rng.random(shape) < 1 / settings.mean_blocks
    starts[:, 0] = True
    column = np.arange(blocks)
    begun = np.maximum.accumulate(np.where(starts, column, 0), axis=1)
    return (np.take_along_axis(places, begun, axis=1) + column - begun) % blocks


def times_drawn(places: NDArray[np.int64]) -> Floats:
    """(resamples, T) how often each resample holds each block."""
    resamples, blocks = places.shape
    flat = (places + blocks * np.arange(resamples)[:, None]).ravel()
    return np.bincount(flat, minlength=resamples * blocks).reshape(resamples, blocks).astype(np.float64)


def ratio_and_error(sums: Floats, log: bool) -> tuple[Floats, Floats]:
    """(R,) ratio and its standard error up to a common factor, from (R, 5) sums of a, b, a^2, ab, b^2 over blocks.

    The influence of a block on the ratio r = a / b is (a - r b) / mean(b), on its logarithm a / mean(a) - b / mean(b).
    """
    a, b, aa, ab, bb = sums.T
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = a / b
        variance = aa / b**2 - 2 * ratio * ab / b**2 + ratio**2 * bb / b**2
        error = np.sqrt(np.maximum(variance, 0.0))
        return (np.log(ratio), error / ratio) if log else (ratio, error)


def ratio_interval(above: Floats, below: Floats, drawn: Floats, level: float, log: bool = False) -> Interval:
    """For sum(above) / sum(below) over blocks, both (T,): bootstrap-t of the ratio, or of its logarithm if `log`.

    Each resample is held against its own standard error (of the linearised ratio), which keeps the level with few
    blocks and heavy tails where plain percentiles are too narrow. Resamples without an error or a ratio widen the
    interval at both ends. NaN to NaN if the ratio itself has no error.
    """
    sums = np.column_stack([above, below, above**2, above * below, below**2])
    point, error = (float(part[0]) for part in ratio_and_error(sums.sum(axis=0, keepdims=True), log))
    if not (math.isfinite(point) and error > 0):
        return Interval(math.nan, math.nan, level)
    points, errors = ratio_and_error(drawn @ sums, log)
    with np.errstate(invalid="ignore", divide="ignore"):
        distances = (points - point) / errors
    tail = (1 - level) / 2
    known = np.isfinite(distances)
    steep = float(np.quantile(np.where(known, distances, math.inf), 1 - tail, method="higher"))
    flat = float(np.quantile(np.where(known, distances, -math.inf), tail, method="lower"))
    low, high = point - steep * error, point - flat * error
    with np.errstate(over="ignore"):
        return Interval(float(np.exp(low)), float(np.exp(high)), level) if log else Interval(low, high, level)


def profit_factor_interval(track: Track, drawn: Floats, level: float) -> Interval:
    """0 to infinity at worst. drawn: (resamples, T) of `times_drawn`."""
    return ratio_interval(track.gains, track.losses, drawn, level, log=True)


def expectancy_interval(track: Track, drawn: Floats, level: float) -> Interval:
    """Of the mean net return of a trade."""
    return ratio_interval(track.returns, track.counts, drawn, level)


def mean_interval(block_values: Floats, drawn: Floats, level: float) -> Interval:
    """Of the mean of (T,) values per block, such as the paired difference of two heads' returns."""
    return ratio_interval(block_values, np.ones(len(block_values)), drawn, level)


def drawdown_interval(track: Track, places: NDArray[np.int64], level: float) -> Interval:
    """Percent. Where `level` of the drawdowns lie that tracks of this length show if blocks like these come in another
    order and number: what to expect of the next such track, not an interval for a parameter.
    """
    total, lowest, highest, own = _block_paths(track)
    path, peak, worst = (np.zeros(len(places)) for _ in range(3))
    for column in places.T:
        worst = np.maximum(worst, np.maximum(own[column], peak - path - lowest[column]))
        peak = np.maximum(peak, path + highest[column])
        path += total[column]
    low, high = np.quantile(100.0 * worst, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), level)


def _block_paths(track: Track) -> tuple[Floats, Floats, Floats, Floats]:
    """(T,) of the running sum of each block's trades from 0: its end, lowest point, highest point, own drawdown."""
    found = np.zeros((4, len(track.grid)))
    for block in np.unique(track.block):
        sums = np.concatenate([[0.0], np.cumsum(track.net_return[track.block == block])])
        found[:, block] = sums[-1], sums.min(), sums.max(), (np.maximum.accumulate(sums) - sums).max()
    total, lowest, highest, own = found
    return total, lowest, highest, own


def _ratio(gain: float, loss: float) -> float:
    if loss > 0:
        return gain / loss
    return math.inf if gain > 0 else math.nan
