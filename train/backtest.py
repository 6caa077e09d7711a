"""What a head would have earned on recorded bars: one slot per symbol, filled by the market engine.

A row known at t is shown to the head at t; what it proposes is entered at the open of the next bar, and while that
trade is open the slot's rows pass unseen. Nothing later than a row can reach the decision made from it. `backtest`
asks the head row by row and is the definition; the fast paths take probabilities that a batch has given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    trades: list[BacktestTrade] = []
    for symbol in sorted(event_time_ms):
        times = event_time_ms[symbol]
        sides = _directions(probabilities[symbol], levels)
        taken = simulate_slots(bars[symbol], times, sides, levels.leverage, levels.tp_pct, levels.sl_pct, horizon_bars,
                               costs)
        fills, quantity = taken.fills, levels.size_fraction * levels.leverage * EQUITY / taken.fills.entry_price
        returns = quantity * fills.entry_price * (fills.gross - fills.fees - fills.funding) / EQUITY
        entries = bars[symbol].open_time_ms[np.searchsorted(bars[symbol].open_time_ms, times[taken.place])]
        rows = zip(sides[taken.place].tolist(), entries.tolist(), bars[symbol].close_time_ms[fills.exit_index].tolist(),
                   fills.reason.tolist(), returns.tolist(), fills.net_return_on_margin.tolist(), strict=True)
        trades += [BacktestTrade(symbol, CLASSES[side + 1], entry, exit_, Outcome.EXIT_REASONS[reason], net, on_margin)
                   for side, entry, exit_, reason, net, on_margin in rows]
    return report_of(trades)


@dataclass(frozen=True)
class LevelScores:
    """What P choices of levels came to, in the words of `BacktestReport.metrics`. All (P,).

    profit_factor: infinite with gains and no loss, NaN with neither.
    """

    trades: NDArray[np.int64]
    profit_factor: NDArray[np.float64]
    max_drawdown_percent: NDArray[np.float64]
    net_return_percent: NDArray[np.float64]


def score_levels(levels: Sequence[Levels], bars: Mapping[str, Bars], event_time_ms: Mapping[str, NDArray[np.int64]],
                 probabilities: Mapping[str, NDArray[np.float64]], horizon_bars: int, costs: Costs) -> LevelScores:
    """`backtest_probabilities(...).record` of each of P choices, the same figures to the last bit, in one walk."""
    leverage, tp_pct, sl_pct, size = (np.array([[getattr(one, name)] for one in levels])
                                      for name in ("leverage", "tp_pct", "sl_pct", "size_fraction"))
    found = []
    for place, symbol in enumerate(sorted(event_time_ms)):
        sides = np.array([_directions(probabilities[symbol], one) for one in levels])
        taken = simulate_slots(bars[symbol], event_time_ms[symbol], sides, leverage, tp_pct, sl_pct, horizon_bars,
                               costs)
        fills, margin = taken.fills, (size * leverage)[taken.slot, 0] * EQUITY
        returns = margin / fills.entry_price * fills.entry_price * (fills.gross - fills.fees - fills.funding) / EQUITY
        found.append((taken.slot, bars[symbol].close_time_ms[fills.exit_index], np.full(len(returns), place), returns))
    slot, exit_ms, symbols, returns = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.lexsort((symbols, exit_ms, slot))
    ends = np.searchsorted(slot[order], np.arange(1, len(levels)))
    scores = [_score(part) for part in np.split(returns[order], ends)]
    trades, factor, drawdown, net = zip(*scores, strict=True)
    return LevelScores(np.array(trades), np.array(factor), np.array(drawdown), np.array(net))


def _directions(probabilities: NDArray[np.float64], levels: Levels) -> NDArray[np.int64]:
    given = np.asarray(probabilities, dtype=np.float64)
    if given.ndim != 2 or given.shape[1] != len(CLASSES) or not (
            (given >= 0).all() and (np.abs(given.sum(axis=1) - 1.0) <= 1e-3).all()):
        raise InvalidInput("probabilities", "(N, 3), >= 0 and summing to 1", given.shape)
    return chosen_directions(given, levels.min_conf, levels.max_p_flat)


def _score(returns: NDArray[np.float64]) -> tuple[int, float, float, float]:
    """Trades, profit factor, drawdown and net return in percent; summed one by one, as the track record does."""
    total = np.concatenate([[0.0], np.cumsum(returns)])
    gain, loss = (float(np.cumsum(np.append(0.0, part))[-1]) for part in (returns[returns > 0], -returns[returns <= 0]))
    factor = gain / loss if loss > 0 else np.inf if gain > 0 else np.nan
    fall = float((100.0 * (np.maximum.accumulate(total) - total)).max())
    return len(returns), factor, fall, 100.0 * float(total[-1])


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
