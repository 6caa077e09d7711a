"""The account's rules one by one, on hand-made bars with sums done by hand."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from bar_makers import MINUTE

from policies.engine.account import Account
from policies.engine.position import Order, Part
from policies.engine.rules import Bar, Book, Costs, Sizing
from policies.errors import InvalidInput

FREE = Costs(0.0, 0.0, 0.0, 0.0)
FLAT = (100.0, 100.0, 100.0, 100.0)
Row = tuple[float, ...]


def hold(amount: float, **fields: Any) -> Order:
    return Order(amount, **{"leverage": 10.0, **fields})


def run(rows: list[Row], orders: dict[int, Order], costs: Costs = FREE, cash: float = 1_000.0,
        books: dict[int, Book] | None = None) -> tuple[Account, list[Part]]:
    """Bars (open, high, low, close[, funding rate]) and the orders by the place of the bar that they meet."""
    account, parts = Account(cash, costs), []
    for place, row in enumerate(rows):
        parts += account.step(Bar(place * MINUTE, *row), orders.get(place), (books or {}).get(place))
    return account, parts


def test_equity_is_cash_and_the_unrealised_gain_at_the_close() -> None:
    account, parts = run([FLAT, (100, 103, 99, 102)], {0: hold(5.0)})
    assert (account.cash, account.equity, parts) == (1_000.0, 1_010.0, [])
    assert account.free_cash == 950.0


def test_adding_raises_the_average_entry_and_moves_stop_and_target_with_it() -> None:
    account, _ = run([FLAT, (110, 110, 110, 110)], {0: hold(2.0, stop_pct=0.5), 1: hold(4.0, stop_pct=0.05)})
    assert account.position is not None
    assert (account.position.entry, account.position.quantity) == (105.0, 4.0)
    assert account.position.stop_price == pytest.approx(105 * 0.95)


def test_reducing_realises_its_share_and_leaves_entry_and_levels() -> None:
    account, parts = run([FLAT, (110, 110, 110, 110)], {0: hold(4.0, stop_pct=0.2), 1: hold(1.0, stop_pct=0.01)})
    assert [(part.quantity, part.net_pnl, part.exit_reason) for part in parts] == [(3.0, pytest.approx(30.0), "manual")]
    assert account.position is not None
    assert (account.position.entry, account.position.stop_pct) == (100.0, 0.2)
    assert account.equity == pytest.approx(1_040.0)


def test_reversal_closes_and_opens_the_rest_at_the_same_price() -> None:
    account, parts = run([FLAT, (110, 110, 108, 108)], {0: hold(4.0), 1: hold(-3.0)}, Costs(0.001, 0.0, 0.0, 0.0))
    assert [part.sign for part in parts] == [1]
    assert account.position is not None
    assert (account.position.sign, account.position.quantity, account.position.entry) == (-1, 3.0, 110.0)
    assert account.fees_paid == pytest.approx(0.4 + 0.44 + 0.33)
    assert account.equity == pytest.approx(1_000 + 40 + 6 - account.fees_paid)


def test_sizes_may_be_a_quantity_a_target_or_a_share_of_equity_at_the_open() -> None:
    rows: list[Row] = [FLAT, FLAT, (120, 120, 120, 120)]
    account, _ = run(rows, {0: hold(2.0, sizing=Sizing.QUANTITY), 1: hold(3.0, sizing=Sizing.QUANTITY)})
    assert account.position is not None
    assert account.position.quantity == 5.0
    account, _ = run(rows, {0: hold(5.0), 2: hold(0.5, sizing=Sizing.TARGET_FRACTION)})
    assert account.position is not None
    assert account.position.quantity == pytest.approx(0.5 * 1_100 / 120)


@pytest.mark.parametrize(("amount", "price"), [(2.0, 100.2), (-2.0, 99.8)])
def test_market_orders_fill_at_the_open_with_slippage_and_taker_fee(amount: float, price: float) -> None:
    account, _ = run([FLAT], {0: hold(amount)}, Costs(0.001, 0.0, 0.002, 0.0))
    assert account.position is not None
    assert account.position.entry == pytest.approx(price)
    assert account.fees_paid == pytest.approx(2 * price * 0.001)


def test_a_limit_fills_at_its_price_for_the_maker_fee_only_if_the_bar_trades_beyond_it() -> None:
    costs = Costs(0.001, 0.0002, 0.002, 0.0)
    touched, _ = run([FLAT, (100, 101, 99, 100)], {1: hold(2.0, limit_price=99.0)}, costs)
    assert touched.position is None
    filled, _ = run([FLAT, (98, 101, 97, 100)], {1: hold(2.0, limit_price=99.0)}, costs)
    assert filled.position is not None
    assert filled.position.entry == 99.0, "never better, though the bar opened lower"
    assert filled.fees_paid == pytest.approx(2 * 99 * 0.0002)


def test_a_limit_on_the_taking_side_of_the_close_before_is_refused() -> None:
    account, _ = run([FLAT, (100, 105, 95, 100)], {1: hold(2.0, limit_price=100.5)})
    assert (account.position, account.refused) == (None, 1)


def test_an_order_lives_for_its_bar_only() -> None:
    account, _ = run([FLAT, FLAT, (100, 101, 90, 100)], {1: hold(2.0, limit_price=95.0)})
    assert account.position is None


def test_a_limit_that_opens_takes_no_target_in_its_bar_but_can_be_stopped() -> None:
    order = hold(2.0, limit_price=99.0, target_pct=0.01, stop_pct=0.05)
    account, parts = run([FLAT, (100, 105, 98, 100), (100, 105, 99, 100)], {1: order})
    assert [(part.exit_reason, part.exit_time_ms) for part in parts] == [("target", 3 * MINUTE)]
    account, parts = run([FLAT, (100, 105, 90, 100)], {1: order})
    assert (account.position, parts[0].exit_reason, parts[0].exit_price) == (None, "stop", pytest.approx(99 * 0.95))


def test_a_limit_that_reduces_is_not_filled_in_a_bar_that_reaches_the_stop() -> None:
    orders = {0: hold(2.0, stop_pct=0.02), 1: hold(1.0, limit_price=102.0)}
    _, parts = run([FLAT, (100, 103, 97, 100)], orders)
    assert [(part.exit_reason, part.quantity) for part in parts] == [("stop", 2.0)]
    _, parts = run([FLAT, (100, 103, 99, 100)], orders)
    assert [(part.exit_reason, part.quantity, part.exit_price) for part in parts] == [("manual", 1.0, 102.0)]


def test_a_gap_beyond_the_stop_ends_the_position_at_the_open_and_drops_the_order() -> None:
    account, parts = run([FLAT, (95, 96, 94, 95)], {0: hold(2.0, stop_pct=0.02), 1: hold(-2.0)})
    assert [(part.exit_reason, part.exit_price) for part in parts] == [("stop", 95.0)]
    assert account.position is None


def test_liquidation_comes_where_the_margin_less_fees_and_funding_is_down_to_maintenance() -> None:
    costs = Costs(0.001, 0.0, 0.0, 0.025)
    account, parts = run([(100, 100, 100, 100, 0.002), (100, 100, 90, 95)], {0: hold(2.0)}, costs)
    (part,) = parts
    assert part.exit_reason == "liquidation"
    left = 20 - 0.2 - 0.4 + 2 * (part.exit_price - 100)
    assert left == pytest.approx(0.025 * 2 * part.exit_price)
    assert account.cash == pytest.approx(1_000 + part.net_pnl)


@pytest.mark.parametrize(("amount", "gap"), [(2.0, 50.0), (-2.0, 200.0)])
def test_a_loss_ends_at_the_margin_however_wide_the_gap(amount: float, gap: float) -> None:
    account, parts = run([FLAT, (gap, gap, gap, gap)], {0: hold(amount)}, Costs())
    assert parts[0].net_pnl == pytest.approx(-parts[0].quantity * parts[0].entry_price / 10)
    assert account.cash >= 1_000 - 20.1


@pytest.mark.parametrize(("amount", "rate", "paid"), [(2.0, 0.01, 2.0), (-2.0, 0.01, -2.0), (2.0, -0.01, -2.0)])
def test_funding_is_settled_at_the_open_of_its_bar(amount: float, rate: float, paid: float) -> None:
    account, _ = run([FLAT, (100, 110, 95, 105, rate)], {0: hold(amount)})
    assert account.funding_paid == pytest.approx(paid)
    assert account.cash == pytest.approx(1_000 - paid)


@pytest.mark.parametrize(("rate", "paid"), [(0.01, 3.0), (-0.01, -1.0)])
def test_what_an_order_closes_pays_the_funding_of_its_bar_but_does_not_receive_it(rate: float, paid: float) -> None:
    account, parts = run([FLAT, (*FLAT, rate)], {0: hold(3.0), 1: hold(1.0)})
    assert account.funding_paid == pytest.approx(paid)
    assert parts[0].funding == pytest.approx(max(rate, 0.0))
    assert account.equity == pytest.approx(1_000 - paid)


@pytest.mark.parametrize("side", [1.0, -1.0])
@pytest.mark.parametrize(("due", "opened", "added"), [(0.01, 1.0, 1.0 + 2.0), (-0.01, 0.0, -1.0)])
def test_what_an_order_opens_or_adds_pays_the_funding_of_its_bar_but_does_not_receive_it(
        side: float, due: float, opened: float, added: float) -> None:
    rows: list[Row] = [(*FLAT, side * due), (*FLAT, side * due)]
    account, _ = run(rows, {0: hold(side), 1: hold(3.0 * side)})
    assert account.funding_paid == pytest.approx(opened + added)
    assert account.cash == pytest.approx(1_000 - opened - added)
    assert account.position is not None
    assert account.position.notional * account.position.funding == pytest.approx(opened + added)


@pytest.mark.parametrize("limit", [math.nan, 100.0])
@pytest.mark.parametrize(("rate", "paid"), [(0.01, 2.0), (-0.01, 3.0)])
def test_of_a_reversal_each_half_pays_the_funding_of_its_bar_and_neither_receives_it(rate: float, paid: float,
                                                                                     limit: float) -> None:
    account, parts = run([FLAT, (100, 101, 99, 100, rate)], {0: hold(2.0), 1: hold(-3.0, limit_price=limit)})
    assert account.funding_paid == pytest.approx(paid)
    assert [part.funding for part in parts] == [pytest.approx(max(rate, 0.0))]
    assert account.position is not None
    assert (account.position.sign, account.position.funding) == (-1, pytest.approx(max(-rate, 0.0)))


def test_an_order_that_needs_more_than_the_free_cash_is_refused_whole() -> None:
    account, _ = run([FLAT, FLAT], {0: hold(60.0), 1: hold(101.0)})
    assert account.refused == 1
    assert account.position is not None
    assert account.position.quantity == 60.0, "600 of 1000 are set aside, the other 41 need 410"


def test_unrealised_gains_are_not_free() -> None:
    account, _ = run([FLAT, (150, 150, 150, 150)], {0: hold(90.0), 1: hold(100.0)})
    assert (account.refused, account.equity, account.free_cash) == (1, 5_500.0, 100.0)


def test_of_a_reversal_without_margin_the_closing_half_is_filled() -> None:
    account, parts = run([FLAT, FLAT], {0: hold(2.0), 1: hold(-20.0, leverage=1.0)})
    assert (len(parts), account.position, account.refused) == (1, None, 1)


def test_the_horizon_counts_the_first_bar_and_exits_at_the_close() -> None:
    _, parts = run([FLAT, (100, 101, 99, 100.5), FLAT], {0: hold(2.0, horizon_bars=2)})
    (part,) = parts
    assert (part.exit_reason, part.exit_price, part.exit_time_ms) == ("horizon", 100.5, 2 * MINUTE)


BOOK = Book([99.0, 98.0], [1.0, 2.0], [101.0, 102.0], [1.0, 2.0], 0.005)


@pytest.mark.parametrize(("amount", "average"), [(1.0, 101.0), (3.0, (101 + 2 * 102) / 3),
                                                 (5.0, (101 + 2 * 102 + 2 * 102 * 1.005) / 5),
                                                 (-2.0, (99 + 98) / 2), (-4.0, (99 + 2 * 98 + 98 * 0.995) / 4)])
def test_a_market_order_walks_the_known_book_and_pays_more_beyond_it(amount: float, average: float) -> None:
    account, _ = run([FLAT], {0: hold(amount)}, Costs(slippage_fraction=0.05), books={0: BOOK})
    assert account.position is not None
    assert account.position.entry == pytest.approx(average)


def test_a_book_that_is_not_known_leaves_the_fraction() -> None:
    unknown = Book([math.nan], [math.nan], [math.nan], [math.nan])
    account, _ = run([FLAT], {0: hold(2.0)}, Costs(slippage_fraction=0.01), books={0: unknown})
    assert account.position is not None
    assert account.position.entry == pytest.approx(101.0)


@pytest.mark.parametrize(("fraction", "exit_price"), [(0.0001, 98.0 * 0.99), (0.02, 98.0 * 0.98)])
def test_a_stop_pays_the_dearer_of_book_and_fraction(fraction: float, exit_price: float) -> None:
    costs = dataclasses.replace(FREE, slippage_fraction=fraction)
    _, parts = run([FLAT, (100, 100, 97, 97)], {0: hold(1.0, stop_pct=0.02)}, costs, books={0: BOOK, 1: BOOK})
    entry = 101.0  # the book, not the fraction
    assert parts[0].exit_price == pytest.approx(exit_price * entry / 100)


def test_a_remainder_that_is_only_rounding_is_closed_too() -> None:
    account, _ = run([FLAT, FLAT, FLAT], {place: hold(amount, sizing=Sizing.QUANTITY)
                                          for place, amount in enumerate((0.1, 0.2, -0.3))})
    assert account.position is None


@pytest.mark.parametrize("bad", [{"amount": math.nan}, {"amount": math.inf}, {"leverage": 0.5}, {"leverage": math.nan},
                                 {"stop_pct": 0.0}, {"target_pct": math.nan}, {"limit_price": -1.0},
                                 {"horizon_bars": -1}])
def test_a_senseless_order_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(bad))):
        Order(**{"amount": 1.0, **bad})


def test_a_bar_out_of_order_or_with_a_nan_is_refused() -> None:
    account = Account(1_000.0, FREE)
    account.step(Bar(0, *FLAT))
    with pytest.raises(InvalidInput, match="open_time_ms"):
        account.step(Bar(0, *FLAT))
    with pytest.raises(InvalidInput, match="bar"):
        account.step(Bar(MINUTE, 100, math.nan, 100, 100))
