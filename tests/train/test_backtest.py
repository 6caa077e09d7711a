"""The backtest: one trade per slot, filled by the engine, blind to whatever lies after a decision."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from policies.bars import Bars
from policies.bundle import Manifest, make_bundle
from policies.errors import InvalidInput
from policies.fills import Costs, simulate_brackets
from policies.heads import Levels, load_head
from policies.track_record import TrackRecord
from policies.types import Action, Context, Direction, Proposal
from train.backtest import BacktestReport, backtest, backtest_probabilities
from train.dataset import FeatureRows

MINUTE = 60_000
ACTION = Action(Direction.LONG, 0.05, 5.0, 0.006, 0.004)


class SignHead:
    """Long where the only feature is above 1, short where it is under -1."""

    policy_id = "0" * 64
    features = ("x",)

    def __init__(self, offset: float = 0.0) -> None:
        self._offset = offset

    def predict(self, obs: ArrayLike) -> NDArray[np.float64]:
        raise NotImplementedError

    def propose(self, context: Context) -> Proposal:
        x = context.features[0]
        side = Direction.LONG if x > 1 else Direction.SHORT if x < -1 else Direction.FLAT
        return Proposal(dataclasses.replace(ACTION, direction=side, limit_offset_pct=self._offset), 0.6)


def market(seed: int = 0, n: int = 600) -> tuple[dict[str, Bars], dict[str, FeatureRows]]:
    bars, rows = {}, {}
    for number, symbol in enumerate(("BTC", "ETH")):
        rng = np.random.default_rng(seed + number)
        close = 100 * np.exp(np.cumsum(rng.normal(0, 0.002, n)))
        opens = np.concatenate([[100.0], close[:-1]])
        bars[symbol] = Bars(symbol, MINUTE, np.arange(n, dtype=np.int64) * MINUTE, opens,
                            np.maximum(opens, close) * 1.0005, np.minimum(opens, close) * 0.9995, close, np.ones(n))
        rows[symbol] = FeatureRows(bars[symbol].close_time_ms, rng.normal(size=(n, 1)))
    return bars, rows


def run(bars: dict[str, Bars], rows: dict[str, FeatureRows], offset: float = 0.0) -> BacktestReport:
    return backtest(SignHead(offset), bars, rows, 10, Costs())


def test_trades_equal_those_of_the_fast_walk_taken_one_at_a_time() -> None:
    bars, rows = market()
    expected = []
    for symbol, part in rows.items():
        n = len(bars[symbol])
        x = part.values[:, 0]
        fills = simulate_brackets(bars[symbol], np.arange(1, n + 1), np.where(x > 0, 1, -1), 5.0, 0.006, 0.004, 10)
        free = 0
        for place in np.flatnonzero(np.abs(x) > 1):
            if place < free:
                continue
            if not fills.finished[place]:
                break
            free = fills.exit_index[place]
            expected.append((int(bars[symbol].close_time_ms[free]), symbol, 0.05 * fills.net_return_on_margin[place]))
    trades = run(bars, rows).trades
    assert [(t.exit_time_ms, t.symbol) for t in trades] == [(e[0], e[1]) for e in sorted(expected)]
    assert [t.net_return for t in trades] == pytest.approx([e[2] for e in sorted(expected)])
    assert len(trades) > 50


def test_a_slot_never_holds_two_trades() -> None:
    for symbol in ("BTC", "ETH"):
        own = [t for t in run(*market()).trades if t.symbol == symbol]
        assert all(a.exit_time_ms <= b.entry_time_ms for a, b in itertools.pairwise(own))


def test_the_future_changes_no_trade_that_ended_before_it() -> None:
    bars, rows = market(0)
    other_bars, other_rows = market(50)
    cut = 300
    spliced_bars = {s: dataclasses.replace(b, **{
        name: np.concatenate([getattr(b, name)[:cut], getattr(other_bars[s], name)[cut:]])
        for name in ("open", "high", "low", "close", "volume")}) for s, b in bars.items()}
    spliced_rows = {s: FeatureRows(r.event_time_ms, np.concatenate([r.values[:cut], other_rows[s].values[cut:]]))
                    for s, r in rows.items()}
    before, after = ([t for t in run(b, r).trades if t.exit_time_ms <= cut * MINUTE]
                     for b, r in ((bars, rows), (spliced_bars, spliced_rows)))
    assert before == after
    assert len(before) > 20


def test_limit_entries_that_are_not_filled_are_no_trades() -> None:
    market_trades, limit_trades = (run(*market(), offset=o).trades for o in (0.0, 0.002))
    assert 0 < len(limit_trades) < len(market_trades)
    assert all(t.exit_reason != "not_filled" for t in limit_trades)


def test_the_record_is_the_fold_of_the_trades_in_the_order_of_their_exits() -> None:
    report = run(*market())
    record = TrackRecord()
    for trade in report.trades:
        record.record(f"{trade.symbol}{trade.entry_time_ms}", trade.net_return)
    figures = report.metrics()
    assert figures["trades"] == record.trades == len(report.trades)
    assert figures["profit_factor"] == record.profit_factor
    assert figures["max_drawdown_percent"] == record.max_drawdown_percent


def test_no_trades_give_figures_without_a_profit_factor() -> None:
    bars, rows = market()
    flat = {s: FeatureRows(r.event_time_ms, np.zeros_like(r.values)) for s, r in rows.items()}
    assert run(bars, flat).metrics() == {"trades": 0.0, "max_drawdown_percent": 0.0, "net_return_percent": 0.0}


CHOICES = (Levels(), Levels(min_conf=0.62), Levels(max_p_flat=0.25), Levels(10.0, 0.003, 0.002, 0.55, 0.4, 0.004),
           Levels(min_conf=1.0, max_p_flat=0.0))


def answers(rows: dict[str, FeatureRows]) -> dict[str, NDArray[np.float64]]:
    """Probabilities of any kind; some rows are undecided."""
    rng = np.random.default_rng(9)
    drawn = {symbol: rng.dirichlet([1.0, 0.7, 1.0], len(part)) for symbol, part in rows.items()}
    for part in drawn.values():
        part[::7] = (0.3, 0.4, 0.3)
        part[::11] = (0.0, 1.0, 0.0)
    return drawn


class RecitingHead:
    """Answers the probabilities that stand in the row, by the rule of every head."""

    policy_id = "0" * 64
    features = ("p_short", "p_flat", "p_long")

    def __init__(self, levels: Levels) -> None:
        parameters = {name: getattr(levels, name) for name in Levels.RANGES}
        self._head = load_head(make_bundle(Manifest(kind="momentum_rule", alias="m", features=("z",),
                                                    inputs={"momentum": "z"}, parameters=parameters), {}))

    def propose(self, context: Context) -> Proposal:
        self._head._probabilities = lambda row: np.array(context.features)  # type: ignore[attr-defined]
        return self._head.propose(dataclasses.replace(context, features=(0.0,)))


@pytest.mark.parametrize("levels", CHOICES)
def test_probabilities_of_a_batch_give_the_report_of_asking_row_by_row(levels: Levels) -> None:
    bars, rows = market()
    told = {symbol: FeatureRows(rows[symbol].event_time_ms, part) for symbol, part in answers(rows).items()}
    slow = backtest(RecitingHead(levels), bars, told, 10, Costs())  # type: ignore[arg-type]
    fast = backtest_probabilities(levels, bars, {symbol: part.event_time_ms for symbol, part in told.items()},
                                  {symbol: part.values for symbol, part in told.items()}, 10, Costs())
    assert fast == slow
    assert levels.min_conf == 1.0 or len(slow.trades) > 20


def test_probabilities_that_are_none_are_refused() -> None:
    bars, rows = market()
    told = answers(rows)
    told["ETH"][5, 0] = np.nan
    with pytest.raises(InvalidInput, match="probabilities"):
        backtest_probabilities(Levels(), bars, {s: part.event_time_ms for s, part in rows.items()}, told, 10, Costs())
