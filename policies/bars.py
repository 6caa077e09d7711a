"""Bars of one symbol as aligned numpy arrays, stamped with their open time as exchanges do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies.errors import InvalidInput


@dataclass(frozen=True)
class Bars:
    """One contiguous or gappy run of bars, sorted, without duplicates.

    open_time_ms: int64 (N,). open, high, low, close: float64 (N,), USD, > 0. volume: float64 (N,), base units, >= 0.
    All finite. funding_rate: float64 (N,) or None: the rate settled within the bar (paid by longs if positive), 0 where
    none was.
    """

    symbol: str
    interval_ms: int
    open_time_ms: NDArray[np.int64]
    open: NDArray[np.float64]
    high: NDArray[np.float64]
    low: NDArray[np.float64]
    close: NDArray[np.float64]
    volume: NDArray[np.float64]
    funding_rate: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.open_time_ms)

    @property
    def close_time_ms(self) -> NDArray[np.int64]:
        """A bar's event time: open time + interval. Nothing of the bar is known before."""
        return self.open_time_ms + self.interval_ms

    def slice(self, start: int, stop: int) -> Bars:
        part = slice(start, stop)
        funding = None if self.funding_rate is None else self.funding_rate[part]
        return Bars(self.symbol, self.interval_ms, self.open_time_ms[part], self.open[part], self.high[part],
                    self.low[part], self.close[part], self.volume[part], funding)

    def followed_by(self, later: Bars) -> Bars:
        """These bars and later ones of the same symbol; both have funding rates or neither."""
        funding = None
        if self.funding_rate is not None and later.funding_rate is not None:
            funding = np.concatenate([self.funding_rate, later.funding_rate])
        def joined(name: str) -> NDArray[Any]:
            return np.concatenate([getattr(self, name), getattr(later, name)])

        return Bars(self.symbol, self.interval_ms, joined("open_time_ms"), joined("open"), joined("high"),
                    joined("low"), joined("close"), joined("volume"), funding)

    def between(self, start_ms: int, stop_ms: int) -> Bars:
        """Bars whose open time lies in [start_ms, stop_ms)."""
        low, high = np.searchsorted(self.open_time_ms, [start_ms, stop_ms])
        return self.slice(int(low), int(high))

    def check(self) -> Bars:
        """The same bars, or InvalidInput naming the first one that breaks the promise of this class."""
        prices = np.vstack([self.open, self.high, self.low, self.close])
        fine = np.isfinite(prices).all(axis=0) & (prices > 0).all(axis=0)
        fine &= (self.high >= prices.max(axis=0)) & (self.low <= prices.min(axis=0))
        fine &= (self.volume >= 0) & np.isfinite(self.volume)
        if not fine.all():
            bad = int(np.argmin(fine))
            raise InvalidInput(f"bars.{self.symbol}[{bad}]", "finite, low <= open, close <= high, volume >= 0",
                               f"{[*prices[:, bad].tolist(), float(self.volume[bad])]} at "
                               f"{int(self.open_time_ms[bad])}")
        if not (np.diff(self.open_time_ms) > 0).all():
            bad = int(np.argmin(np.diff(self.open_time_ms) > 0)) + 1
            raise InvalidInput(f"bars.{self.symbol}[{bad}].open_time_ms", "later than the bar before",
                               int(self.open_time_ms[bad]))
        return self
