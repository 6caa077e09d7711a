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
from train.backtest import BacktestReport, Floats, report_of, slot_trades


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
    trades = []
    for name in sorted(set(symbol.tolist())):
        own = symbol == name
        trades += slot_trades(bars[name], time_ms[own], signals.direction[own], signals.size_fraction[own],
                              signals.leverage[own], signals.tp_pct[own], signals.sl_pct[own], horizon_bars, costs)
    return report_of(trades)
