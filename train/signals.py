"""What proposals made in one go would have earned, each with levels of its own: the slots of `train.backtest`.

For heads whose levels are the same on every row, `train.backtest.backtest_probabilities` does it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policies.bars import Bars
from policies.errors import InvalidInput
from policies.fills import Costs
from policies.slots import simulate_slots
from policies.types import Direction, Outcome
from train.backtest import BacktestReport, BacktestTrade, report_of

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Signals:
    """Proposals of N rows. direction: +1, -1 or 0. The others float64 (N,), in the words of policies.types.Action."""

    direction: NDArray[np.int64]
    size_fraction: Floats
    leverage: Floats
    tp_pct: Floats
    sl_pct: Floats


def backtest_signals(bars: Mapping[str, Bars], symbol: NDArray[np.str_], time_ms: NDArray[np.int64], signals: Signals,
                     horizon_bars: int, costs: Costs) -> BacktestReport:
    """symbol, time_ms: (N,), of each row; times rise within a symbol. Trades that the bars do not see to their end are
    left out, and so is what comes after one.
    """
    if not len(symbol) == len(time_ms) == len(signals.direction):
        raise InvalidInput("signals", "as many as rows", (len(symbol), len(time_ms), len(signals.direction)))
    return report_of([trade for name in sorted(set(symbol.tolist()))
                      for trade in _slot(bars[name], time_ms, signals, np.flatnonzero(symbol == name), horizon_bars,
                                         costs)])


def _slot(bars: Bars, time_ms: NDArray[np.int64], signals: Signals, own: NDArray[np.int64], horizon_bars: int,
          costs: Costs) -> list[BacktestTrade]:
    taken = simulate_slots(bars, time_ms[own], signals.direction[own], signals.leverage[own], signals.tp_pct[own],
                           signals.sl_pct[own], horizon_bars, costs)
    fills, rows = taken.fills, own[taken.place]
    entry = np.searchsorted(bars.open_time_ms, time_ms[rows])
    margin = signals.size_fraction[rows] * signals.leverage[rows]
    net = margin * (fills.gross - fills.fees - fills.funding)
    return [BacktestTrade(
        bars.symbol, Direction.LONG if signals.direction[row] > 0 else Direction.SHORT,
        int(bars.open_time_ms[entry[number]]), int(bars.close_time_ms[fills.exit_index[number]]),
        Outcome.EXIT_REASONS[fills.reason[number]], float(net[number]), float(fills.net_return_on_margin[number]))
        for number, row in enumerate(rows)]
