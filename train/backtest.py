"""What a head would have earned on recorded bars: one slot per symbol, filled by the market engine.

A row known at t is shown to the head at t; what it proposes is entered at the open of the next bar, and while that
trade is open the slot's rows pass unseen. Nothing later than a row can reach the decision made from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from policies.bars import Bars
from policies.fills import BracketTrade, Costs, bar_at
from policies.heads import Policy
from policies.track_record import TrackRecord
from policies.types import Context, Direction, Portfolio
from train.dataset import FeatureRows

EQUITY = 10_000.0  # USD before every trade: returns are over it, and do not compound


@dataclass(frozen=True)
class BacktestTrade:
    """net_return: net PnL over equity at entry, fees and funding in. net_return_on_margin: >= -1."""

    symbol: str
    direction: Direction
    entry_time_ms: int
    exit_time_ms: int
    exit_reason: str
    net_return: float
    net_return_on_margin: float


@dataclass(frozen=True)
class BacktestReport:
    """Trades in the order of their exits, and the track record folded from them in that order."""

    trades: tuple[BacktestTrade, ...]
    record: TrackRecord

    def metrics(self) -> dict[str, float]:
        """Trades, profit factor (absent without one), drawdown in percent, and the summed net return in percent."""
        figures = {"trades": float(self.record.trades), "max_drawdown_percent": self.record.max_drawdown_percent,
                   "net_return_percent": 100.0 * sum(self.record.returns)}
        if np.isfinite(self.record.profit_factor):
            figures["profit_factor"] = self.record.profit_factor
        return figures


def backtest(head: Policy, bars: Mapping[str, Bars], rows: Mapping[str, FeatureRows], horizon_bars: int,
             costs: Costs, strategy: str = "momentum") -> BacktestReport:
    """Run a head over the rows of each symbol. Trades that the bars do not see to their end are left out."""
    trades = [trade for symbol in sorted(rows)
              for trade in _run_slot(head, bars[symbol], rows[symbol], horizon_bars, costs, strategy)]
    trades.sort(key=lambda trade: (trade.exit_time_ms, trade.symbol))
    record = TrackRecord()
    for number, trade in enumerate(trades):
        record.record(str(number), trade.net_return)
    return BacktestReport(tuple(trades), record)


def _run_slot(head: Policy, bars: Bars, rows: FeatureRows, horizon_bars: int, costs: Costs,
              strategy: str) -> list[BacktestTrade]:
    trades = []
    free_from_ms = 0
    for time_ms, values in zip(rows.event_time_ms.tolist(), rows.values.tolist(), strict=True):
        entry = int(np.searchsorted(bars.open_time_ms, time_ms))
        if time_ms < free_from_ms or entry == 0:
            continue
        context = Context(bars.symbol, strategy, time_ms, tuple(values), {"bars": time_ms}, Portfolio(EQUITY))
        action = head.propose(context).action
        if action.direction is Direction.FLAT:
            continue
        trade = BracketTrade(action, time_ms, float(bars.close[entry - 1]), EQUITY, horizon_bars, bars.interval_ms,
                             costs)
        closed = None
        for index in range(entry, len(bars)):
            closed = trade.step(bar_at(bars, index))
            if closed is not None:
                break
        if closed is None:
            break
        free_from_ms = closed.exit_time_ms
        if closed.exit_reason != "not_filled":
            trades.append(BacktestTrade(bars.symbol, action.direction, closed.entry_time_ms, closed.exit_time_ms,
                                        closed.exit_reason, closed.net_pnl / EQUITY, closed.net_return_on_margin))
    return trades
