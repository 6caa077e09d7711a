"""The market engine: each rule by itself on hand-made bars, then the fast walk against stepping on random ones."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from bar_makers import jumpy_bars

from policies import fills
from policies.bars import Bars
from policies.errors import InvalidInput
from policies.fills import Bar, BracketTrade, ClosedTrade, Costs, bar_at, simulate_brackets
from policies.types import Action, Direction, Outcome

MINUTE = 60_000
FREE = Costs(0.0, 0.0, 0.0, 0.0)


def action(direction: str = "long", leverage: float = 10.0, tp: float = 0.01, sl: float = 0.005,
           offset: float = 0.0) -> Action:
    return Action(Direction(direction), 0.04, leverage, tp, sl, offset)


def run(act: Action, *rows: tuple[float, ...], costs: Costs = FREE, horizon: int = 10) -> ClosedTrade | None:
    """Step a trade decided at time 0 on a close of 100 over bars given as (open, high, low, close[, funding])."""
    trade = BracketTrade(act, 0, 100.0, 10_000.0, horizon, MINUTE, costs)
    for number, row in enumerate(rows):
        if trade.step(Bar(number * MINUTE, *row)):
            break
    return trade.result


def test_stop_comes_before_the_target_when_one_bar_reaches_both() -> None:
    closed = run(action(), (100, 102, 99, 101))
    assert closed is not None
    assert closed.exit_reason == "stop"
    assert closed.exit_price == pytest.approx(99.5)


def test_target_fills_at_its_price_even_when_the_bar_opens_beyond_it() -> None:
    closed = run(action(), (100, 100.5, 99.9, 100.4), (103, 104, 102, 103))
    assert closed is not None
    assert (closed.exit_reason, closed.exit_price) == ("target", 101.0)


def test_target_that_is_only_touched_is_not_filled() -> None:
    assert run(action(), (100, 101.0, 99.9, 100.4)) is None


@pytest.mark.parametrize(("direction", "row", "price"), [("long", (98, 98.5, 97, 98), 98.0),
                                                         ("short", (102, 103, 101.5, 102), 102.0)])
def test_gap_through_the_stop_fills_at_the_worse_open(direction: str, row: tuple[float, ...], price: float) -> None:
    closed = run(action(direction), (100, 100.2, 99.8, 100), row)
    assert closed is not None
    assert (closed.exit_reason, closed.exit_price) == ("stop", price)


def test_horizon_exits_at_the_close_of_the_last_bar() -> None:
    closed = run(action(), (100, 100.2, 99.8, 100), (100, 100.3, 99.9, 100.1), horizon=2)
    assert closed is not None
    assert (closed.exit_reason, closed.exit_price) == ("horizon", 100.1)
    assert closed.exit_time_ms == 2 * MINUTE


def test_entry_and_market_exit_pay_slippage_and_taker_fee_and_target_pays_the_maker_fee() -> None:
    costs = Costs(0.001, 0.0004, 0.002, 0.0)
    stopped = run(action(), (100, 100.1, 90, 100), costs=costs)
    assert stopped is not None
    assert stopped.entry_price == pytest.approx(100.2)
    assert stopped.exit_price == pytest.approx(100.2 * 0.995 * 0.998)
    assert stopped.fees == pytest.approx(0.001 + 0.001 * stopped.exit_price / 100.2)
    won = run(action(), (100, 110, 100, 100), costs=costs)
    assert won is not None
    assert won.exit_price == pytest.approx(100.2 * 1.01)
    assert won.fees == pytest.approx(0.001 + 0.0004 * 1.01)


@pytest.mark.parametrize(("direction", "paid"), [("long", 0.001), ("short", -0.001)])
def test_longs_pay_positive_funding_and_shorts_receive_it(direction: str, paid: float) -> None:
    closed = run(action(direction), (100, 100.2, 99.8, 100), (100, 100.2, 99.8, 100, 0.001), horizon=2)
    assert closed is not None
    assert closed.funding == pytest.approx(paid)


@pytest.mark.parametrize("offset", [0.0, 0.001])
@pytest.mark.parametrize(("direction", "rate", "paid"), [("long", 0.001, 0.001), ("short", 0.001, 0.0),
                                                         ("long", -0.001, 0.0), ("short", -0.001, 0.001)])
def test_funding_of_the_entry_bar_is_paid_but_not_received(direction: str, rate: float, paid: float,
                                                           offset: float) -> None:
    row = (100, 100.2, 99.8, 100)
    for horizon in (1, 2):
        closed = run(action(direction, offset=offset), (*row, rate), row, horizon=horizon)
        assert closed is not None
        assert closed.exit_reason == "horizon"
        assert closed.funding == pytest.approx(paid, rel=0.002)
        assert closed.net_return_on_margin == pytest.approx((closed.gross - closed.funding) * 10)


def test_liquidation_comes_where_the_margin_is_down_to_maintenance() -> None:
    closed = run(action(leverage=20, sl=0.04), (100, 100, 96.5, 97), costs=Costs(0.0, 0.0, 0.0, 0.025))
    assert closed is not None
    assert closed.exit_reason == "liquidation"
    margin_left = 100 * 0.05 + (closed.exit_price - 100)
    assert margin_left == pytest.approx(0.025 * closed.exit_price)


@pytest.mark.parametrize("direction", ["long", "short"])
def test_loss_ends_at_the_margin_however_wide_the_gap(direction: str) -> None:
    row = (50, 51, 49, 50) if direction == "long" else (200, 201, 199, 200)
    closed = run(action(direction), (100, 100.2, 99.8, 100), row, costs=Costs())
    assert closed is not None
    assert closed.net_return_on_margin == pytest.approx(-1.0, abs=1e-12)
    assert closed.net_pnl == pytest.approx(-0.04 * 10_000)
    assert closed.worst_loss_fraction <= 0.04


def test_limit_entry_that_is_only_touched_is_not_filled_and_costs_nothing() -> None:
    closed = run(action(offset=0.002), (100, 100.5, 99.8, 100), costs=Costs())
    assert closed is not None
    assert (closed.exit_reason, closed.net_pnl, closed.quantity) == ("not_filled", 0.0, 0.0)


def test_limit_entry_fills_at_the_limit_for_the_maker_fee_and_takes_no_target_in_that_bar() -> None:
    closed = run(action(offset=0.002), (100, 105, 99.7, 100), (100, 105, 99.9, 100), costs=Costs())
    assert closed is not None
    assert closed.entry_price == pytest.approx(99.8)
    assert closed.exit_time_ms == 2 * MINUTE
    assert closed.fees == pytest.approx(0.00015 + 0.00015 * 1.01)


def test_worst_unrealised_loss_is_over_equity() -> None:
    closed = run(action(sl=0.05), (100, 100, 98, 99), (99, 102, 99, 101))
    assert closed is not None
    assert closed.worst_loss_fraction == pytest.approx(0.02 * 10 * 0.04)


def test_a_bar_from_before_the_decision_or_out_of_order_is_refused() -> None:
    trade = BracketTrade(action(), MINUTE, 100.0, 10_000.0, 5, MINUTE, FREE)
    with pytest.raises(InvalidInput, match="open_time_ms"):
        trade.step(Bar(0, 100, 100, 100, 100))
    trade.step(Bar(MINUTE, 100, 100, 100, 100))
    with pytest.raises(InvalidInput, match="open_time_ms"):
        trade.step(Bar(MINUTE, 100, 100, 100, 100))


@pytest.mark.parametrize("bad", [{"leverage": math.nan}, {"leverage": 0.5}, {"tp_pct": 0.0}, {"sl_pct": math.nan},
                                 {"size_fraction": 1.5}, {"direction": Direction.FLAT}, {"limit_offset_pct": -0.1}])
def test_a_senseless_action_is_refused(bad: dict) -> None:
    with pytest.raises(InvalidInput):
        BracketTrade(dataclasses.replace(action(), **bad), 0, 100.0, 10_000.0, 5, MINUTE)


def test_a_bar_with_a_nan_is_refused() -> None:
    with pytest.raises(InvalidInput, match="bar"):
        run(action(), (100, 101, math.nan, 100))


def test_outcome_carries_money_that_adds_up() -> None:
    closed = run(action("short"), (100, 100.2, 99.8, 100), (100, 100.1, 98, 98, 0.001), costs=Costs())
    assert closed is not None
    assert closed.funding < 0
    outcome = closed.outcome("d1", equity=10_030.0)
    assert outcome.pnl == pytest.approx((outcome.entry_price - outcome.exit_price) * outcome.size)
    assert outcome.net_pnl == pytest.approx(closed.net_pnl)
    assert outcome.net_pnl / (0.04 * 10_000) == pytest.approx(closed.net_return_on_margin)
    assert outcome == Outcome.from_dict(outcome.to_dict())


def stepped(bars: Bars, entry: int, sign: int, leverage: float, tp: float, sl: float, horizon: int,
            costs: Costs) -> ClosedTrade | None:
    act = action("long" if sign > 0 else "short", leverage, tp, sl)
    trade = BracketTrade(act, entry * MINUTE, 100.0, 10_000.0, horizon, MINUTE, costs)
    for index in range(entry, len(bars)):
        if trade.step(bar_at(bars, index)):
            break
    return trade.result


@pytest.mark.parametrize("seed", range(6))
def test_walking_many_brackets_equals_stepping_each_bit_for_bit(seed: int) -> None:
    rng, bars = np.random.default_rng(1000 + seed), jumpy_bars(seed)
    n = len(bars)
    sign = rng.choice([-1, 1], n)
    leverage = rng.choice([1.0, 3.0, 10.0, 20.0, 35.0, 60.0], n)
    tp, sl = rng.uniform(0.002, 0.03, n), rng.uniform(0.00005, 0.05, n)
    horizon, costs = int(rng.integers(1, 30)), [Costs(), FREE, Costs(0.001, 0.0, 0.003, 0.01)][seed % 3]
    walked = simulate_brackets(bars, np.arange(n), sign, leverage, tp, sl, horizon, costs)
    for i in range(n):
        one = stepped(bars, i, int(sign[i]), leverage[i], tp[i], sl[i], horizon, costs)
        if one is None:
            assert walked.reason[i] == fills.UNFINISHED
            assert walked.exit_index[i] == -1
            assert np.isnan(walked.net_return_on_margin[i])
            continue
        figures = (one.entry_price, one.exit_price, one.gross, one.fees, one.funding, one.net_return_on_margin)
        assert figures == (walked.entry_price[i], walked.exit_price[i], walked.gross[i], walked.fees[i],
                           walked.funding[i], walked.net_return_on_margin[i])
        assert one.exit_reason == Outcome.EXIT_REASONS[walked.reason[i]]
        assert one.exit_time_ms == bars.close_time_ms[walked.exit_index[i]]
        assert one.net_return_on_margin >= -1.0
        assert one.net_return_on_margin == pytest.approx(one.net_pnl / 400.0, abs=1e-9)


def test_random_bars_meet_every_way_to_end() -> None:
    bars = jumpy_bars(3)
    walked = simulate_brackets(bars, np.arange(len(bars)), 1, 20.0, 0.01, np.tile([0.03, 0.01], 200), 10)
    assert set(walked.reason) == {fills.UNFINISHED, fills.TARGET, fills.STOP, fills.HORIZON, fills.LIQUIDATION}


def test_parameters_broadcast_over_entries_as_if_each_set_were_walked_alone() -> None:
    bars, rng = jumpy_bars(4), np.random.default_rng(4)
    entries, sign = np.arange(0, 400, 3), rng.choice([-1, 1], 134)
    leverage, tp = np.array([1.0, 10.0, 40.0])[:, None], rng.uniform(0.002, 0.03, (3, 1))
    sl, horizon = np.array([0.004, 0.03])[:, None, None], np.array([3, 9, 20])[:, None]
    grid = simulate_brackets(bars, entries, sign, leverage, tp, sl, horizon)
    assert grid.reason.shape == (2, 3, 134)
    for i, j in np.ndindex(2, 3):
        alone = simulate_brackets(bars, entries, sign, leverage[j, 0], tp[j, 0], sl[i, 0, 0], int(horizon[j, 0]))
        for field in dataclasses.fields(fills.BracketFills):
            np.testing.assert_array_equal(getattr(grid, field.name)[i, j], getattr(alone, field.name))


def test_later_bars_never_change_a_trade_that_ended_before_them() -> None:
    bars, other = jumpy_bars(1), jumpy_bars(2)
    cut = 200
    spliced = dataclasses.replace(bars, **{
        name: np.concatenate([getattr(bars, name)[:cut], getattr(other, name)[cut:]])
        for name in ("open", "high", "low", "close", "volume", "funding_rate")})
    before, after = (simulate_brackets(b, np.arange(cut), -1, 5.0, 0.01, 0.01, 10) for b in (bars, spliced))
    known = before.exit_index < cut
    assert known.sum() > 150
    np.testing.assert_array_equal(before.net_return_on_margin[known], after.net_return_on_margin[known])


@pytest.mark.parametrize("bad", [{"entry_index": [-1]}, {"entry_index": [401]}, {"direction": 0},
                                 {"sl_pct": math.nan}, {"leverage": [math.nan]}, {"horizon_bars": 0},
                                 {"leverage": [1.0, 2.0]}, {"entry_index": [[0]]}])
def test_senseless_entries_are_refused(bad: dict) -> None:
    arguments = {"entry_index": [0], "direction": 1, "leverage": 5.0, "tp_pct": 0.01, "sl_pct": 0.01,
                 "horizon_bars": 5} | bad
    with pytest.raises(InvalidInput):
        simulate_brackets(jumpy_bars(0), **arguments)
