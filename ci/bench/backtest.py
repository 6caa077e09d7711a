"""Backtests of many parameter sets: the market engine against vectorbt and backtesting.py, and against one pass.

100 columns of signals over 100,000 generated bars, from prepared arrays to the equity of every column at every close.
All is compiled by a run before the clock starts, on every side. The peers' rules differ from ours where bars leave the
order of events open, so the signals fall into bars in which the price stands still, and bars open at the close before:
there all engines must agree, to 1e-9 of the equity, or nothing is measured.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ci.bench.load import NotMeasured
from policies.bars import Bars
from policies.engine.columns import Orders, simulate_accounts
from policies.engine.rules import Costs
from reports.report import Aim, BenchRow, Side, compared

WORK = "Backtest"
AIM = Aim(least_to_peer=3.0)
EQUAL = 1e-9
EVERY = 25  # one bar in so many stands still, and may carry signals
CASH, SIZE, FEE = 1_000_000.0, 3.0, 0.00045
COSTS = Costs(FEE, FEE, 0.0, 0.0)

Say = Callable[[str], None]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Task:
    """What all sides do. signals: (C, T), +1, -1, 0 for out, NaN for none. stops, targets: (C,) fractions, or None."""

    name: str
    bars: Bars
    signals: Floats
    stops: Floats | None = None
    targets: Floats | None = None

    @property
    def size(self) -> str:
        return f"{len(self.signals)} parameter sets x {len(self.bars):,} bars"


def run(say: Say, rounds: int = 3, columns: int = 100, bars: int = 100_000, seed: int = 1) -> list[BenchRow]:
    """Two rows: signals alone, and signals with a stop and a target of each column's own."""
    return [_measure(say, task, rounds) for task in tasks(columns, bars, seed)]


def tasks(columns: int, bars: int, seed: int) -> list[Task]:
    rng, market = np.random.default_rng(seed), quiet_bars(bars, seed)
    drawn = rng.choice([-1.0, 0.0, 1.0, math.nan], (columns, bars), p=[0.2, 0.1, 0.2, 0.5])
    may = np.arange(bars) % EVERY == 0
    may[:2] = False  # backtesting.py begins at the second bar and fills at the next
    signals = np.where(may, drawn, math.nan)
    return [Task("signals", market, signals),
            Task("signals with stop and target", market, signals, rng.uniform(0.002, 0.02, columns),
                 rng.uniform(0.002, 0.02, columns))]


def quiet_bars(bars: int, seed: int) -> Bars:
    """A walk of one-minute bars without gaps; in one bar of EVERY the price stands still."""
    rng, quiet = np.random.default_rng(seed + 1), np.arange(bars) % EVERY == 0
    close = 100.0 * np.exp(np.cumsum(np.where(quiet, 0.0, rng.normal(0, 0.0007, bars))))
    opens = np.concatenate([[100.0], close[:-1]])
    wicks = np.where(quiet, 0.0, np.abs(rng.normal(0, 0.0003, (2, bars))))
    return Bars("X", 60_000, np.arange(bars, dtype=np.int64) * 60_000, opens, np.maximum(opens, close) * (1 + wicks[0]),
                np.minimum(opens, close) * (1 - wicks[1]), close, np.ones(bars))


def _measure(say: Say, task: Task, rounds: int) -> BenchRow:
    works = {"ours": ours(task), **vectorbt(task), "floor": one_pass(task)}
    say(f"{task.name}: compiling")
    curves = {name: work() for name, work in works.items()}
    single = backtesting_py(task)
    differences = {name: _difference(curves["ours"], curves[name]) for name in works if name.startswith("vectorbt")}
    differences["backtesting.py"] = _difference(curves["ours"][0], single())
    say(f"{task.name}: largest difference of equity " + ", ".join(f"{k} {v:.1e}" for k, v in differences.items()))
    if not max(differences.values()) <= EQUAL:
        raise NotMeasured(f"{task.name}: equity differs from {differences}")
    del curves
    say(f"{task.name}: {rounds} rounds")
    times: dict[str, list[float]] = {name: [] for name in works}
    alone = []
    for number in range(rounds):
        there = list(works)[::1 if number % 2 == 0 else -1]
        for name in [*there, *reversed(there)]:
            times[name].append(_timed(works[name]))
        alone.append(_timed(single))
    return _row(task, times, alone, differences)


def _row(task: Task, times: Mapping[str, list[float]], alone: list[float],
         differences: Mapping[str, float]) -> BenchRow:
    """The faster of vectorbt's ways is the peer."""
    sides = {name: Side(name, found) for name, found in times.items()}
    peers = sorted((side for name, side in sides.items() if name.startswith("vectorbt")), key=lambda side: side.median)
    return compared(
        f"{WORK}, {task.size}, {task.name}", "s", Side("policies.engine.columns.simulate_accounts", times["ours"]),
        peers[0], Side("one pass over the same bars and signals that writes one number for each", times["floor"]), AIM,
        [*peers[1:], Side("backtesting.py, one column only", alone)],
        {"largest_difference_of_equity": dict(differences), "equal_to": EQUAL,
         "backtesting_py_per_column_over_ours": Side("", alone).median * len(task.signals) / sides["ours"].median})


def ours(task: Task) -> Callable[[], Floats]:
    orders = Orders(task.signals * SIZE, leverage=1.0,
                    stop_pct=math.inf if task.stops is None else task.stops[:, None],
                    target_pct=math.inf if task.targets is None else task.targets[:, None])

    def work() -> Floats:
        curves = simulate_accounts(task.bars, orders, CASH, COSTS).curves
        assert curves is not None
        return curves

    return work


def vectorbt(task: Task) -> dict[str, Callable[[], Floats]]:
    """By name, to (C, T) views of its equity. From orders as well where there are no levels, which it can't follow."""
    from vectorbt import Portfolio

    bars, opens = task.bars, task.bars.open[:, None]
    index = pd.to_datetime(bars.open_time_ms, unit="ms")
    close = pd.DataFrame(np.repeat(bars.close[:, None], len(task.signals), 1), index=index)
    enters, leaves, shorts = ((task.signals == side).T.copy() for side in (1.0, 0.0, -1.0))
    sizes = task.signals.T.copy() * SIZE
    levels: dict[str, Any] = {} if task.stops is None else {
        "sl_stop": task.stops, "tp_stop": task.targets, "stop_entry_price": "FillPrice", "open": opens,
        "high": bars.high[:, None], "low": bars.low[:, None], "stop_exit_price": "StopMarket"}

    def from_signals() -> Floats:
        held = Portfolio.from_signals(close, enters, leaves, shorts, leaves, size=SIZE, price=opens, fees=FEE,
                                      init_cash=CASH, upon_opposite_entry="Reverse", **levels)
        return np.asarray(held.value()).T

    def from_orders() -> Floats:
        held = Portfolio.from_orders(close, sizes, "targetamount", price=opens, fees=FEE, init_cash=CASH)
        return np.asarray(held.value()).T

    ways = {"vectorbt from_signals": from_signals}
    return ways if task.stops is not None else {**ways, "vectorbt from_orders": from_orders}


def backtesting_py(task: Task) -> Callable[[], Floats]:
    """The first column's equity. A strategy sends at a close what fills at the next open, where its levels are set."""
    from backtesting import Backtest, Strategy

    bars, wanted = task.bars, (task.signals[0] * SIZE).tolist()
    stop, target = (None if levels is None else float(levels[0]) for levels in (task.stops, task.targets))
    opens = bars.open.tolist()

    class Sent(Strategy):
        def init(self) -> None:
            pass

        def next(self) -> None:
            bar = len(self.data)
            if bar == len(wanted) or math.isnan(wanted[bar]) or wanted[bar] == self.position.size:
                return
            if wanted[bar] == 0:
                self.position.close()
                return
            delta, side = int(wanted[bar] - self.position.size), math.copysign(1, wanted[bar])
            levels = {} if stop is None or target is None else {"sl": opens[bar] * (1 - side * stop),
                                                                "tp": opens[bar] * (1 + side * target)}
            (self.buy if delta > 0 else self.sell)(size=abs(delta), **levels)

    frame = pd.DataFrame({"Open": bars.open, "High": bars.high, "Low": bars.low, "Close": bars.close},
                         index=pd.to_datetime(bars.open_time_ms, unit="ms"))

    def work() -> Floats:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that open trades are left out of its statistics
            found = Backtest(frame, Sent, cash=CASH, commission=FEE, margin=0.5).run()
        return found._equity_curve.Equity.to_numpy()

    return work


def one_pass(task: Task) -> Callable[[], Floats]:
    """Reads what any backtest of this shape must read, and writes one number for each column and bar."""
    import numba

    prices = np.array([task.bars.open, task.bars.high, task.bars.low, task.bars.close])

    @numba.njit
    def passed(prices, signals):  # type: ignore[no-untyped-def]
        sums = np.empty(signals.shape)
        for column in range(signals.shape[0]):
            for bar in range(signals.shape[1]):
                sums[column, bar] = (prices[0, bar] + prices[1, bar] + prices[2, bar] + prices[3, bar]
                                     + signals[column, bar])
        return sums

    return lambda: np.asarray(passed(prices, task.signals))


def _difference(mine: Floats, other: Floats) -> float:
    """The largest, relative; infinite if the shapes differ, NaN if a number is none."""
    return float(np.abs(other / mine - 1.0).max()) if mine.shape == other.shape else math.inf


def _timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
