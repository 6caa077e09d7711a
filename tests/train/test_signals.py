"""Trades of many proposals at once: the same as a head asked row by row, whatever the proposals."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from policies.bars import Bars
from policies.errors import InvalidInput
from policies.fills import Costs
from policies.heads import Levels
from policies.types import Context, Direction, Proposal
from train.backtest import BacktestReport, backtest
from train.dataset import FeatureRows
from train.levels import chosen_directions
from train.signals import Signals, backtest_signals

MINUTE = 60_000
LEVELS = Levels(leverage=8.0, tp_pct=0.004, sl_pct=0.003, min_conf=0.55, max_p_flat=0.5)


class TableHead:
    """Answers with the probabilities that stand in its row, by the rule of all heads."""

    policy_id, features = "0" * 64, ("p_short", "p_flat", "p_long")

    def predict(self, obs: ArrayLike) -> NDArray[np.float64]:
        return np.asarray(obs, dtype=np.float64)

    def propose(self, context: Context) -> Proposal:
        p_short, p_flat, p_long = context.features
        confidence = max(p_short, p_long) / (p_short + p_long)
        trades = p_long != p_short and confidence >= LEVELS.min_conf and p_flat <= LEVELS.max_p_flat
        side = Direction.LONG if p_long > p_short else Direction.SHORT
        return Proposal(LEVELS.action(side if trades else Direction.FLAT), confidence)


def market(seed: int, n: int = 400) -> tuple[dict[str, Bars], dict[str, FeatureRows]]:
    bars, rows = {}, {}
    for number, symbol in enumerate(("BTC", "ETH")):
        rng = np.random.default_rng(100 * seed + number)
        close = 100 * np.exp(np.cumsum(rng.normal(0, 0.002, n)))
        opens = np.concatenate([[100.0], close[:-1]])
        rate = np.where(rng.random(n) < 0.05, 0.0005, 0.0)
        bars[symbol] = Bars(symbol, MINUTE, np.arange(n, dtype=np.int64) * MINUTE, opens,
                            np.maximum(opens, close) * 1.0005, np.minimum(opens, close) * 0.9995, close, np.ones(n),
                            rate)
        known = np.sort(rng.choice(n, n // 2, replace=False))
        rows[symbol] = FeatureRows(bars[symbol].close_time_ms[known], rng.dirichlet(np.ones(3), len(known)))
    return bars, rows


def fast(bars: dict[str, Bars], rows: dict[str, FeatureRows], levels: Levels = LEVELS) -> BacktestReport:
    symbol = np.concatenate([np.full(len(part), name) for name, part in rows.items()])
    time_ms = np.concatenate([part.event_time_ms for part in rows.values()])
    order = np.lexsort((symbol, time_ms))
    values = np.concatenate([part.values for part in rows.values()])[order]
    ones = np.ones(len(values))
    signals = Signals(chosen_directions(values, levels.min_conf, levels.max_p_flat), ones * levels.size_fraction,
                      ones * levels.leverage, ones * levels.tp_pct, ones * levels.sl_pct)
    return backtest_signals(bars, symbol[order], time_ms[order], signals, 12, Costs())


@pytest.mark.parametrize("seed", range(8))
def test_trades_are_those_of_the_head_asked_row_by_row(seed: int) -> None:
    bars, rows = market(seed)
    slow, quick = backtest(TableHead(), bars, rows, 12, Costs()), fast(bars, rows)
    assert len(slow.trades) > 20
    for one, other in zip(slow.trades, quick.trades, strict=True):
        assert (one.symbol, one.direction, one.entry_time_ms, one.exit_time_ms, one.exit_reason) == (
            other.symbol, other.direction, other.entry_time_ms, other.exit_time_ms, other.exit_reason)
        assert other.net_return == pytest.approx(one.net_return, rel=1e-12, abs=1e-15)
        assert other.net_return_on_margin == pytest.approx(one.net_return_on_margin, rel=1e-12, abs=1e-15)
    assert quick.record.max_drawdown_percent == pytest.approx(slow.record.max_drawdown_percent, rel=1e-9)


def test_rows_that_come_while_a_trade_is_open_pass_unseen() -> None:
    bars, rows = market(0)
    for symbol in bars:
        own = [trade for trade in fast(bars, rows).trades if trade.symbol == symbol]
        assert all(later.entry_time_ms >= earlier.exit_time_ms for earlier, later in itertools.pairwise(own))


def test_bars_after_a_trade_has_ended_change_nothing_of_it() -> None:
    bars, rows = market(1)
    cut = {symbol: run.slice(0, 300) for symbol, run in bars.items()}
    whole, early = fast(bars, rows).trades, fast(cut, rows).trades
    ended = int(cut["BTC"].close_time_ms[-1])
    assert [t for t in whole if t.exit_time_ms <= ended] == list(early)


def test_nobody_who_stays_flat_has_a_trade() -> None:
    bars, rows = market(2)
    assert fast(bars, rows, Levels(min_conf=1.0, max_p_flat=0.0)).trades == ()


def test_times_that_go_back_within_a_symbol_are_refused() -> None:
    bars, rows = market(3)
    part = rows["BTC"]
    ones = np.ones(len(part))
    signals = Signals(np.ones(len(part), np.int64), 0.1 * ones, 5 * ones, 0.01 * ones, 0.01 * ones)
    with pytest.raises(InvalidInput, match="rising"):
        backtest_signals(bars, np.full(len(part), "BTC"), part.event_time_ms[::-1], signals, 12, Costs())
