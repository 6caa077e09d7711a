"""What a head would have earned on recorded bars: one slot per symbol, filled by the market engine.

A row known at t is shown to the head at t; what it proposes is entered at the open of the next bar, and while that
trade is open the slot's rows pass unseen. Nothing later than a row can reach the decision made from it. `backtest`
asks the head row by row and is the definition; the fast paths take probabilities that a batch has given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policies.bars import Bars
from policies.errors import InvalidInput
from policies.fills import BracketTrade, Costs, bar_at
from policies.heads import CLASSES, Levels, Policy
from policies.slots import simulate_slots
from policies.track_record import TrackRecord
from policies.types import Context, Direction, Outcome, Portfolio
from train.dataset import FeatureRows
from train.levels import chosen_directions

Floats = NDArray[np.float64]
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
    return report_of([trade for symbol in sorted(rows)
                    for trade in _run_slot(head, bars[symbol], rows[symbol], horizon_bars, costs, strategy)])


def backtest_probabilities(levels: Levels, bars: Mapping[str, Bars], event_time_ms: Mapping[str, NDArray[np.int64]],
                           probabilities: Mapping[str, NDArray[np.float64]], horizon_bars: int,
                           costs: Costs) -> BacktestReport:
    """The report that `backtest` gives of a head with these levels, from its answers in a batch; trade for trade equal.

    By symbol: event_time_ms, int64 (N,), rising; probabilities of short, flat, long, (N, 3). Milliseconds for 25,000
    rows, where asking the head row by row takes minutes.
    """
    each = (levels.size_fraction, levels.leverage, levels.tp_pct, levels.sl_pct)
    return report_of([trade for symbol in sorted(event_time_ms) for trade in slot_trades(
        bars[symbol], event_time_ms[symbol], _directions(probabilities[symbol], levels), *each, horizon_bars, costs)])


def slot_trades(bars: Bars, time_ms: NDArray[np.int64], direction: NDArray[np.int64], size_fraction: Floats | float,
                leverage: Floats | float, tp_pct: Floats | float, sl_pct: Floats | float, horizon_bars: int,
                costs: Costs) -> list[BacktestTrade]:
    """Of one symbol's rows (N,) at rising times. direction: +1, -1 or 0. The others: of all rows, or of each (N,)."""
    taken = simulate_slots(bars, time_ms, direction, leverage, tp_pct, sl_pct, horizon_bars, costs)
    fills, rows = taken.fills, taken.place
    margin = np.broadcast_to(np.asarray(size_fraction) * leverage * EQUITY, time_ms.shape)[rows]
    # In the order of the engine's own sums, so that a trade is the same to the last bit.
    returns = margin / fills.entry_price * fills.entry_price * (fills.gross - fills.fees - fills.funding) / EQUITY
    entries = bars.open_time_ms[np.searchsorted(bars.open_time_ms, time_ms[rows])]
    columns = zip(direction[rows].tolist(), entries.tolist(), bars.close_time_ms[fills.exit_index].tolist(),
                  fills.reason.tolist(), returns.tolist(), fills.net_return_on_margin.tolist(), strict=True)
    return [BacktestTrade(bars.symbol, CLASSES[side + 1], entry, exit_, Outcome.EXIT_REASONS[reason], net, on_margin)
            for side, entry, exit_, reason, net, on_margin in columns]


def _directions(probabilities: NDArray[np.float64], levels: Levels) -> NDArray[np.int64]:
    given = np.asarray(probabilities, dtype=np.float64)
    if given.ndim != 2 or given.shape[1] != len(CLASSES) or not (
            (given >= 0).all() and (np.abs(given.sum(axis=1) - 1.0) <= 1e-3).all()):
        raise InvalidInput("probabilities", "(N, 3), >= 0 and summing to 1", given.shape)
    return chosen_directions(given, levels.min_conf, levels.max_p_flat)


def report_of(trades: list[BacktestTrade]) -> BacktestReport:
    """Of trades in any order."""
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
