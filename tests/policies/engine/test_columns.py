"""Many accounts at once: to the last bit what stepping each says, and what must hold whatever the orders."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from bar_makers import gapless_bars, jumpy_bars, stepped
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from policies.bars import Bars
from policies.engine import rules
from policies.engine.account import Account, Order
from policies.engine.columns import AccountRuns, Books, Orders, simulate_accounts
from policies.engine.rules import Costs, Sizing
from policies.errors import InvalidInput

FREE = Costs(0.0, 0.0, 0.0, 0.0)
COSTS = (Costs(), FREE, Costs(0.001, 0.0, 0.003, 0.01), Costs(0.0, 0.002, 0.0, 0.1))
CASH = 1_000.0


def random_amounts(rng: np.random.Generator, sizing: Sizing, columns: int, bars: int) -> NDArray[np.float64]:
    scale = 0.8 if sizing is Sizing.TARGET_FRACTION else 8.0
    amounts = scale * rng.choice([-1.0, -0.5, 0.0, 0.25, 0.5, 1.0], (columns, bars))
    return np.where(rng.random((columns, bars)) < 0.25, amounts, np.nan)


def random_orders(rng: np.random.Generator, bars: Bars, sizing: Sizing, columns: int) -> Orders:
    """Market and limit orders with every field of their own."""
    shape = (columns, len(bars))
    before = np.concatenate([[bars.open[0]], bars.close[:-1]])
    limit = before * (1.0 + rng.normal(0, 0.002, shape))
    return Orders(random_amounts(rng, sizing, *shape), sizing, np.where(rng.random(shape) < 0.5, limit, np.nan),
                  rng.choice([1.0, 3.0, 10.0, 40.0], shape), rng.choice([math.inf, 0.004, 0.03], shape),
                  rng.choice([math.inf, 0.003, 0.02], (columns, 1)), rng.choice([0, 1, 7], shape))


def random_books(rng: np.random.Generator, bars: Bars, levels: int = 4) -> Books:
    """Some bars have none, some a side that ends early."""
    away = np.cumsum(rng.exponential(2e-4, (len(bars), levels)), axis=1)
    size = rng.exponential(1.5, (2, len(bars), levels))
    bid, ask = bars.open[:, None] * (1.0 - away), bars.open[:, None] * (1.0 + away)
    bid[rng.random(len(bars)) < 0.2] = np.nan
    ask[rng.random(len(bars)) < 0.3, 2:] = np.nan
    return Books(bid, size[0], ask, size[1], 0.004)


def order_at(orders: Orders, column: int, bar: int) -> Order | None:
    shape = np.shape(orders.amount)
    amount, limit, leverage, stop, target, horizon = (
        np.broadcast_to(np.asarray(field), shape)[column, bar].item() for field in (
            orders.amount, orders.limit_price, orders.leverage, orders.stop_pct, orders.target_pct,
            orders.horizon_bars))
    return None if math.isnan(amount) else Order(amount, orders.sizing, limit, leverage, stop, target, horizon)


def assert_equal_to_stepping(run: AccountRuns, column: int, bars: Bars, orders: Orders, costs: Costs,
                             books: Books | None) -> int:
    """The number of parts that were compared."""
    account = Account(CASH, costs)
    listed = [books.at(bar) for bar in range(len(bars))] if books else None
    equity, parts = stepped(account, bars, [order_at(orders, column, bar) for bar in range(len(bars))], listed)
    assert run.curves is not None
    assert run.parts is not None
    np.testing.assert_array_equal(equity, run.curves[column])
    assert (account.cash, account.equity, account.fees_paid, account.funding_paid, account.refused, len(parts)) == (
        run.cash[column], run.equity[column], run.fees_paid[column], run.funding_paid[column], run.refused[column],
        run.parts_count[column])
    own = np.flatnonzero(run.parts.column == column)
    assert [run.parts.part(int(place), bars) for place in own] == parts
    peaks = np.maximum.accumulate(np.concatenate([[CASH], equity]))[1:]
    assert run.max_drawdown_fraction[column] == pytest.approx((1.0 - equity / peaks).max(), abs=1e-12)
    return len(parts)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("sizing", list(Sizing))
def test_columns_equal_stepping_each_account_bit_for_bit(seed: int, sizing: Sizing) -> None:
    rng = np.random.default_rng(100 + seed)
    bars, costs = jumpy_bars(seed, 250), COSTS[seed % len(COSTS)]
    books = random_books(rng, bars) if seed % 2 else None
    orders = random_orders(rng, bars, sizing, 3)
    run = simulate_accounts(bars, orders, CASH, costs, books=books)
    assert sum(assert_equal_to_stepping(run, column, bars, orders, costs, books) for column in range(3)) > 30


def test_random_orders_meet_every_way_to_end_and_to_be_refused() -> None:
    rng, bars = np.random.default_rng(7), jumpy_bars(7, 2_000)
    run = simulate_accounts(bars, random_orders(rng, bars, Sizing.TARGET, 4), CASH)
    assert run.parts is not None
    assert set(run.parts.reason) == {rules.TARGET, rules.STOP, rules.HORIZON, rules.LIQUIDATION, rules.MANUAL}
    assert (run.refused > 0).all()


def test_each_column_has_its_own_symbol_and_cash() -> None:
    rng = np.random.default_rng(1)
    markets = [jumpy_bars(1), dataclasses.replace(jumpy_bars(2), symbol="Y", funding_rate=None)]
    orders = random_orders(rng, markets[0], Sizing.QUANTITY, 4)
    place, cash = np.array([0, 1, 1, 0]), np.array([500.0, 1e3, 2e3, 4e3])
    together = simulate_accounts(markets, orders, cash, market=place)
    for column in range(4):
        own = Orders(*(np.broadcast_to(np.asarray(getattr(orders, field.name)), (4, 400))[column]
                       if field.name != "sizing" else orders.sizing for field in dataclasses.fields(orders)))
        alone = simulate_accounts(markets[place[column]], own, cash[column])
        assert together.curves is not None
        assert alone.curves is not None
        np.testing.assert_array_equal(together.curves[column], alone.curves[0])


def test_parameters_and_amounts_broadcast_to_columns() -> None:
    bars, stops = jumpy_bars(3), np.array([[0.004], [0.01], [math.inf]])
    amount = random_amounts(np.random.default_rng(3), Sizing.TARGET, 1, 400)[0]
    grid = simulate_accounts(bars, Orders(amount, leverage=5.0, stop_pct=stops))
    wide = simulate_accounts(bars, Orders(np.tile(amount, (3, 1)), leverage=np.full((3, 400), 5.0), stop_pct=stops))
    assert grid.curves is not None
    np.testing.assert_array_equal(grid.curves, wide.curves)
    assert len(set(grid.equity)) == 3


def test_curves_and_parts_are_left_out_when_not_asked_for_and_the_figures_stay() -> None:
    rng, bars = np.random.default_rng(5), jumpy_bars(5)
    orders = random_orders(rng, bars, Sizing.TARGET, 3)
    whole, lean = simulate_accounts(bars, orders), simulate_accounts(bars, orders, curves=False, parts=False)
    assert (lean.curves, lean.parts) == (None, None)
    for name in ("cash", "equity", "fees_paid", "funding_paid", "max_drawdown_fraction", "refused", "parts_count"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(lean, name))


@pytest.mark.parametrize("seed", range(3))
def test_later_bars_and_orders_never_change_the_past(seed: int) -> None:
    cut, rng = 200, np.random.default_rng(seed)
    bars, other = jumpy_bars(seed), jumpy_bars(seed + 50)
    orders, others = (random_orders(rng, bars, Sizing.TARGET_FRACTION, 3) for _ in range(2))
    spliced = dataclasses.replace(bars, **{
        name: np.concatenate([getattr(bars, name)[:cut], getattr(other, name)[cut:]])
        for name in ("open", "high", "low", "close", "volume", "funding_rate")})
    mixed = Orders(*(np.concatenate([_wide(getattr(orders, field.name))[:, :cut],
                                     _wide(getattr(others, field.name))[:, cut:]], axis=1)
                     if field.name != "sizing" else orders.sizing for field in dataclasses.fields(orders)))
    before, after = simulate_accounts(bars, orders), simulate_accounts(spliced, mixed)
    assert before.curves is not None
    assert after.curves is not None
    np.testing.assert_array_equal(before.curves[:, :cut - 1], after.curves[:, :cut - 1])
    assert (before.equity != after.equity).all()


def _wide(field: Any) -> NDArray[np.float64]:
    return np.broadcast_to(np.asarray(field), (3, 400))


SEEDS = st.integers(0, 2**32 - 1)
QUICK = settings(max_examples=40, deadline=None)


@QUICK
@given(SEEDS, st.sampled_from(list(Sizing)), st.sampled_from(COSTS))
def test_equity_is_cash_plus_unrealised_and_parts_add_up(seed: int, sizing: Sizing, costs: Costs) -> None:
    rng = np.random.default_rng(seed)
    bars = jumpy_bars(seed, 120)
    orders = random_orders(rng, bars, sizing, 2)
    closing = np.asarray(orders.amount).copy()
    held = simulate_accounts(bars, orders, CASH, costs)
    assert held.parts is not None
    for column in range(2):
        account = Account(CASH, costs)
        stepped(account, bars, [order_at(orders, column, bar) for bar in range(len(bars))])
        unrealised = account.position.unrealised(bars.close[-1]) if account.position else 0.0
        assert held.equity[column] == pytest.approx(held.cash[column] + unrealised, abs=1e-9)
        open_costs = (account.position.notional * (account.position.fees + account.position.funding)
                      if account.position else 0.0)
        realised = held.parts.net_pnl[held.parts.column == column].sum()
        assert held.cash[column] == pytest.approx(CASH + realised - open_costs, abs=1e-8)
    np.testing.assert_array_equal(closing, orders.amount)  # inputs are left alone


@QUICK
@given(SEEDS, st.sampled_from(list(Sizing)), st.sampled_from(COSTS))
def test_no_part_loses_more_than_its_margin_and_cash_never_falls_below_zero(seed: int, sizing: Sizing,
                                                                           costs: Costs) -> None:
    rng = np.random.default_rng(seed)
    bars = jumpy_bars(seed, 120, volatility=0.02)
    orders = dataclasses.replace(random_orders(rng, bars, sizing, 2), leverage=20.0)
    run = simulate_accounts(bars, orders, CASH, costs)
    assert run.parts is not None
    margin = run.parts.quantity * run.parts.entry_price / 20.0
    assert (run.parts.net_pnl >= -margin * (1 + 1e-9)).all()
    assert (run.cash >= -1e-6).all()


@QUICK
@given(SEEDS, st.lists(st.floats(0.1, 5.0), min_size=2, max_size=4))
def test_closing_in_parts_at_one_price_equals_closing_at_once(seed: int, sizes: list[float]) -> None:
    _assert_splitting_changes_nothing(seed, sizes, entering=False)


@QUICK
@given(SEEDS, st.lists(st.floats(0.1, 5.0), min_size=2, max_size=4))
def test_entering_in_parts_at_one_price_equals_entering_at_once(seed: int, sizes: list[float]) -> None:
    _assert_splitting_changes_nothing(seed, sizes, entering=True)


def _assert_splitting_changes_nothing(seed: int, sizes: list[float], entering: bool) -> None:
    """The price stands still in the bars of the parts, so only the splitting differs."""
    n, parts = 60, len(sizes)
    quiet = np.zeros(n, dtype=bool)
    quiet[10:10 + parts] = quiet[40:40 + parts] = True
    bars = dataclasses.replace(gapless_bars(seed, quiet), funding_rate=np.where(np.arange(n) == 30, 0.001, 0.0))
    signed = np.array(sizes) * (1 if seed % 2 else -1)
    whole, split = np.full(n, np.nan), np.full(n, np.nan)
    start, stop = (10, 40 + parts - 1) if entering else (10 + parts - 1, 40)
    whole[start], whole[stop] = signed.sum(), 0.0
    split[start], split[stop] = whole[start], whole[stop]
    first = 10 if entering else 40
    split[first:first + parts] = np.cumsum(signed) if entering else signed.sum() - np.cumsum(signed)
    split[first + parts - 1] = signed.sum() if entering else 0.0
    run = simulate_accounts(bars, Orders(np.stack([whole, split]), leverage=3.0), 10_000.0, Costs(0.0005, 0.0, 0.0002))
    assert run.equity[0] == pytest.approx(run.equity[1], rel=1e-12)
    assert run.fees_paid[0] == pytest.approx(run.fees_paid[1], rel=1e-9)
    assert run.funding_paid[0] == pytest.approx(run.funding_paid[1], rel=1e-9)


@QUICK
@given(SEEDS)
def test_without_costs_a_short_earns_what_a_long_loses(seed: int) -> None:
    rng = np.random.default_rng(seed)
    bars = gapless_bars(seed, np.zeros(120, dtype=bool))
    amount = random_amounts(rng, Sizing.TARGET, 1, 120) / 2
    run = simulate_accounts(bars, Orders(np.concatenate([amount, -amount]), leverage=2.0), 10_000.0, FREE)
    assert run.curves is not None
    np.testing.assert_allclose(run.curves[0] - 10_000, 10_000 - run.curves[1], rtol=0, atol=1e-8)


@QUICK
@given(SEEDS)
def test_fees_are_never_negative_and_rise_with_their_rates(seed: int) -> None:
    rng = np.random.default_rng(seed)
    bars = gapless_bars(seed, np.zeros(120, dtype=bool))
    amount = random_amounts(rng, Sizing.TARGET, 3, 120)
    low, high = (simulate_accounts(bars, Orders(amount, leverage=2.0), 1e6, Costs(fee, fee / 2, 0.0))
                 for fee in (0.0002, 0.0006))
    assert (low.fees_paid > 0).all()
    assert (high.fees_paid > low.fees_paid).all()
    assert (high.equity < low.equity).all()


def test_funding_is_received_only_on_what_was_held_before_the_bar_and_is_kept_in_it() -> None:
    rates = np.random.default_rng(9).normal(0, 1e-4, 300)
    bars = dataclasses.replace(jumpy_bars(9, 300, volatility=1e-3), funding_rate=rates)
    held = np.tile([1.0, 2.0, -2.0, -3.0, 0.0], 60)  # open, add, reverse, add, close
    before = np.concatenate([[0.0], held[:-1]])
    kept = np.where(held * before > 0, np.minimum(np.abs(held), np.abs(before)), 0.0) * np.sign(before)
    closed, opened, rate = before - kept, held - kept, rates * bars.open
    paid = kept * rate + np.maximum(0.0, closed * rate) + np.maximum(0.0, opened * rate)
    run = simulate_accounts(bars, Orders(held), 1e6, FREE)
    assert run.funding_paid[0] == pytest.approx(paid.sum(), rel=1e-9)


def test_without_orders_equity_stands_still() -> None:
    run = simulate_accounts(jumpy_bars(0), Orders(np.full((2, 400), np.nan)), CASH)
    assert run.curves is not None
    assert (run.curves == CASH).all()
    assert (run.max_drawdown_fraction == 0).all()


@pytest.mark.parametrize("bad", [
    {"leverage": 0.5}, {"leverage": math.nan}, {"stop_pct": 0.0}, {"stop_pct": -math.inf}, {"target_pct": math.nan},
    {"limit_price": -1.0}, {"horizon_bars": -1}, {"amount": np.full(400, math.inf)}, {"amount": np.zeros(399)},
    {"stop_pct": np.ones((2, 7)) / 10}])
def test_senseless_orders_are_refused_by_name(bad: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(bad))):
        simulate_accounts(jumpy_bars(0), Orders(**{"amount": np.zeros(400), **bad}))


@pytest.mark.parametrize("bad", [{"cash": 0.0}, {"cash": math.nan}, {"market": 1}])
def test_senseless_accounts_are_refused_by_name(bad: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(bad))):
        simulate_accounts(jumpy_bars(0), Orders(np.zeros(400)), **bad)


def test_symbols_with_other_times_are_refused() -> None:
    late = dataclasses.replace(jumpy_bars(0), open_time_ms=jumpy_bars(0).open_time_ms + 1)
    with pytest.raises(InvalidInput, match="open_time_ms"):
        simulate_accounts([jumpy_bars(0), late], Orders(np.zeros(400)))


def test_stepping_one_account_and_importing_the_simulations_bring_no_compiler() -> None:
    code = "import sys, policies.engine.columns, policies.engine.account, policies.fills, policies.slots; " \
           "print('numba' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
