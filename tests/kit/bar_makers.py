"""Bars by seed for tests of the market engine, and the steps of its definition over them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from policies.bars import Bars
from policies.engine.account import Account, Order
from policies.engine.position import Part
from policies.engine.rules import Book, bar_at

MINUTE = 60_000


def jumpy_bars(seed: int, n: int = 400, volatility: float = 0.004) -> Bars:
    """A jumpy walk: bars open away from the close before, some by several percent; some prices repeat; funding."""
    rng = np.random.default_rng(seed)
    steps = rng.normal(0, volatility, n) * rng.choice([0.0, 1.0, 5.0], n, p=[0.1, 0.8, 0.1])
    gaps = rng.normal(0, volatility, n) * rng.choice([0.0, 1.0, 10.0], n, p=[0.6, 0.35, 0.05])
    close = 100 * np.exp(np.cumsum(steps + gaps))
    open_ = close / np.exp(steps)
    high = np.maximum(open_, close) * np.exp(np.abs(rng.normal(0, volatility / 2, n)))
    low = np.minimum(open_, close) * np.exp(-np.abs(rng.normal(0, volatility / 2, n)))
    funding = np.where(rng.random(n) < 0.1, rng.normal(0, 2e-3, n), 0.0)
    return Bars("X", MINUTE, np.arange(n, dtype=np.int64) * MINUTE, open_, high, low, close, np.ones(n), funding)


def gapless_bars(seed: int, quiet: NDArray[np.bool_], volatility: float = 0.001) -> Bars:
    """Bars that open at the close before; in the quiet ones the price stands still. No funding."""
    n, rng = len(quiet), np.random.default_rng(seed)
    steps = np.where(quiet, 0.0, rng.normal(0, volatility, n))
    close = 100 * np.exp(np.cumsum(steps))
    open_ = np.concatenate([[close[0]], close[:-1]])
    open_[quiet] = close[quiet]
    wick = np.where(quiet, 0.0, volatility / 2)
    high = np.maximum(open_, close) * np.exp(wick * np.abs(rng.normal(size=n)))
    low = np.minimum(open_, close) * np.exp(-wick * np.abs(rng.normal(size=n)))
    return Bars("X", MINUTE, np.arange(n, dtype=np.int64) * MINUTE, open_, high, low, close, np.ones(n))


def stepped(account: Account, bars: Bars, orders: Sequence[Order | None],
            books: Sequence[Book] | None = None) -> tuple[NDArray[np.float64], list[Part]]:
    """Equity at every close and what was closed, bar by bar."""
    equity, parts = [], []
    for place, order in enumerate(orders):
        parts += account.step(bar_at(bars, place), order, books[place] if books else None)
        equity.append(account.equity)
    return np.array(equity), parts
