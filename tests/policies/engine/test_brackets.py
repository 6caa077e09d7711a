"""One entry with brackets: the account, the bracket trade and the compiled walk say the same of it."""

from __future__ import annotations

import numpy as np
import pytest
from bar_makers import MINUTE, jumpy_bars, stepped

from policies.bars import Bars
from policies.engine.account import Account, Order
from policies.engine.columns import Orders, simulate_accounts
from policies.engine.rules import Costs, Sizing
from policies.fills import UNFINISHED, BracketTrade, ClosedTrade, bar_at, simulate_brackets
from policies.types import Action, Direction, Outcome

EQUITY, SIZE = 10_000.0, 0.04
COSTS = (Costs(), Costs(0.0, 0.0, 0.0, 0.0), Costs(0.001, 0.0, 0.003, 0.01))


@pytest.mark.parametrize("seed", range(6))
def test_an_account_with_one_entry_and_brackets_ends_as_the_bracket_walk_says(seed: int) -> None:
    rng, bars = np.random.default_rng(seed), jumpy_bars(seed, 300)
    n, costs, horizon = len(bars), COSTS[seed % 3], int(rng.integers(1, 30))
    sign, leverage = rng.choice([-1.0, 1.0], n), rng.choice([1.0, 3.0, 10.0, 20.0, 35.0, 60.0], n)
    tp, sl = rng.uniform(0.002, 0.03, n), rng.uniform(0.00005, 0.05, n)
    walked = simulate_brackets(bars, np.arange(n), sign, leverage, tp, sl, horizon, costs)
    amount = np.where(np.eye(n, dtype=bool), (sign * SIZE * leverage)[:, None], np.nan)
    run = simulate_accounts(bars, Orders(amount, Sizing.TARGET_FRACTION, np.nan, leverage[:, None], sl[:, None],
                                         tp[:, None], horizon), EQUITY, costs)
    assert run.parts is not None
    done = np.flatnonzero(walked.reason != UNFINISHED)
    np.testing.assert_array_equal(run.parts.column, done)
    np.testing.assert_array_equal(run.parts.entry_index, done)
    for name in ("exit_index", "entry_price", "exit_price", "reason", "gross", "fees", "funding"):
        np.testing.assert_array_equal(getattr(run.parts, name), getattr(walked, name)[done], err_msg=name)
    np.testing.assert_array_equal(run.equity[done], run.cash[done])
    np.testing.assert_allclose(run.cash[done] - EQUITY, SIZE * EQUITY * walked.net_return_on_margin[done],
                               rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize("horizon", [1, 2, 7])
def test_funding_is_what_the_entry_bar_charges_and_what_later_bars_settle(horizon: int) -> None:
    bars = jumpy_bars(20, 300)
    assert bars.funding_rate is not None
    entries = np.arange(len(bars) - horizon)
    for sign in (1.0, -1.0):
        walked = simulate_brackets(bars, entries, sign, 2.0, 0.02, 0.02, horizon)
        due = sign * bars.funding_rate * bars.open
        summed = [max(0.0, due[entry]) + due[entry + 1:exit_ + 1].sum()
                  for entry, exit_ in zip(entries, walked.exit_index, strict=True)]
        np.testing.assert_allclose(walked.funding, summed / walked.entry_price, rtol=0, atol=1e-15)
        if horizon == 1:
            assert (walked.funding > 0).any()
            assert not (walked.funding < 0).any(), "no entry earns the rate of its own bar"


def ended(trade: BracketTrade, bars: Bars, entry: int) -> ClosedTrade | None:
    for place in range(entry, entry + 21):
        if trade.step(bar_at(bars, place)):
            break
    return trade.result


@pytest.mark.parametrize("offset", [0.0, 0.002])
@pytest.mark.parametrize("direction", [Direction.LONG, Direction.SHORT])
def test_stepping_an_account_says_what_stepping_the_bracket_trade_says(direction: Direction, offset: float) -> None:
    bars, compared = jumpy_bars(11, 300), set()
    for entry in range(1, 260):
        stop = (0.01, 0.03)[entry % 2]  # before and behind the liquidation
        action = Action(direction, SIZE, 25.0, 0.006, stop, offset)
        trade = BracketTrade(action, entry * MINUTE, bars.close[entry - 1], EQUITY, 12, MINUTE)
        account = Account(EQUITY)
        limit = bars.close[entry - 1] * (1.0 - direction.sign * offset) if offset else np.nan
        order = Order(direction.sign * SIZE * 25.0, Sizing.TARGET_FRACTION, limit, 25.0, stop, 0.006, 12)
        _, parts = stepped(account, bars, [*[None] * entry, order, *[None] * 20])
        closed = ended(trade, bars, entry)
        if closed is None or closed.exit_reason == "not_filled":
            assert parts == []
            continue
        (part,) = parts
        assert (part.entry_price, part.exit_price, part.gross, part.fees, part.funding, part.exit_reason,
                part.exit_time_ms, part.quantity) == (
            closed.entry_price, closed.exit_price, closed.gross, closed.fees, closed.funding, closed.exit_reason,
            closed.exit_time_ms, closed.quantity)
        assert account.cash - EQUITY == pytest.approx(closed.net_pnl, abs=1e-9)
        compared.add(part.exit_reason)
    assert compared >= set(Outcome.EXIT_REASONS[:4])
