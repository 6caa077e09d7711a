"""Accounts that actors move on together: to the last bit what stepping each by itself says."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from bar_makers import jumpy_bars
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from policies.actor import ActorLimits, observations, order_amounts, position_numbers, wanted
from policies.bars import Bars
from policies.engine import rules
from policies.engine.account import Account
from policies.engine.columns import Orders, simulate_accounts
from policies.engine.position import Order, Part
from policies.engine.rules import Costs, Sizing, bar_at, price_rows
from policies.engine.stepping import EpisodeRules, SteppedAccounts
from policies.errors import InvalidInput

COSTS = (Costs(), Costs(0.0, 0.0, 0.0, 0.0), Costs(0.001, 0.0, 0.003, 0.01))
LIMITS = (ActorLimits(), ActorLimits(0.005, 25.0, 1e-4, 0.5, 1e-4, 0.05, band=0.0, horizon_bars=3.0),
          ActorLimits(0.005, 3.0, 0.001, 0.01, 0.001, 0.01, dead_zone=0.5, band=0.6))
RULES = EpisodeRules(ActorLimits(), Costs(), 1_000.0, 2.0, 2.0, 0.5)
ACCOUNTS = 6


def features_of(bars: Bars, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(len(bars), 60)).astype(np.float32)


def made(bars: Bars, count: int = ACCOUNTS, told: EpisodeRules = RULES) -> SteppedAccounts:
    return SteppedAccounts(price_rows(bars).T, features_of(bars), count, told)


class Reference:
    """One account by the engine's definition, with the orders and the observations of `policies.actor`."""

    def __init__(self, bars: Bars, first: int, told: EpisodeRules) -> None:
        self.bars, self.bar, self.told = bars, first, told
        self.account = Account(told.cash, told.costs)
        self.account.last_close = float(bars.close[first])
        self.peak = told.cash
        self.parts: list[Part] = []

    def step(self, action: NDArray[np.float64]) -> Order | None:
        asked, held, limits = wanted(action, self.told.limits), self.account.position, self.told.limits
        exposure = held.sign * held.quantity * self.account.last_close / self.account.equity if held else 0.0
        amount = float(order_amounts(asked.exposure, exposure, limits))
        order = None if math.isnan(amount) else Order(
            amount, Sizing.TARGET_FRACTION, leverage=limits.leverage, stop_pct=float(asked.stop),
            target_pct=float(asked.target))
        self.bar += 1
        self.parts += self.account.step(bar_at(self.bars, self.bar), order)
        self.peak = max(self.peak, self.account.equity)
        return order

    def observed(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        account, held, limits = self.account, self.account.position, self.told.limits
        alone = (account.last_close, account.equity, self.peak, account.free_cash, limits)
        numbers = position_numbers(0, 0, 0, 0, 0, 0, *alone) if held is None else position_numbers(
            held.sign, held.quantity, held.entry, held.stop_pct, held.target_pct, held.bars_held, *alone)
        return observations(features[self.bar], numbers)


def compared(bars: Bars, actions: NDArray[np.float64], told: EpisodeRules) -> list[Reference]:
    """Every number of every step of accounts that begin at bars of their own."""
    steps, count = actions.shape[:2]
    first = np.arange(count) * 3
    accounts, references = made(bars, count, told), [Reference(bars, bar, told) for bar in first]
    features = features_of(bars)
    accounts.begin(first, first + steps)
    for action in actions:
        accounts.step(action)
        for place, one in enumerate(references):
            one.step(action[place])
            assert accounts.equity[place] == one.account.equity
            np.testing.assert_array_equal(accounts.observations[place].view(np.int32),
                                          one.observed(features).view(np.int32))
            assert accounts.parts_closed[place] == len(one.parts)
    assert accounts.bar.tolist() == [one.bar for one in references]
    return references


def random_actions(seed: int, steps: int, count: int = ACCOUNTS) -> NDArray[np.float64]:
    """Some held for a while, some at the edges and beyond."""
    rng = np.random.default_rng(seed)
    drawn = np.round(rng.uniform(-1.3, 1.3, (steps, count, 3)), 1)
    held = rng.random((steps, count)) < 0.5
    for step in range(1, steps):
        drawn[step, held[step]] = drawn[step - 1, held[step]]
    return drawn


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(COSTS), st.sampled_from(LIMITS), st.sampled_from([1e-3, 4e-3, 0.01]))
def test_accounts_equal_stepping_each_by_itself_bit_for_bit(seed: int, costs: Costs, limits: ActorLimits,
                                                            volatility: float) -> None:
    told = dataclasses.replace(RULES, costs=costs, limits=limits, ruin=0.0)
    compared(jumpy_bars(seed, 60, volatility), random_actions(seed, 40), told)


def test_random_actions_meet_every_way_to_end_gaps_and_funding_on_both_sides() -> None:
    told = dataclasses.replace(RULES, limits=LIMITS[1], ruin=0.0)
    references = compared(jumpy_bars(3, 350, 0.01), random_actions(3, 300), told)
    parts = [part for one in references for part in one.parts]
    assert {part.reason for part in parts} == {rules.TARGET, rules.STOP, rules.LIQUIDATION, rules.MANUAL}
    assert {part.sign for part in parts} == {-1, 1}
    assert min(part.funding for part in parts) < 0 < max(part.funding for part in parts)


@pytest.mark.parametrize("seed", range(3))
def test_the_orders_that_were_asked_for_earn_the_same_in_a_backtest(seed: int) -> None:
    bars, actions, costs = jumpy_bars(seed, 301), random_actions(seed, 300), COSTS[seed]
    told = dataclasses.replace(RULES, costs=costs, limits=LIMITS[seed], ruin=0.0)
    accounts = made(bars, ACCOUNTS, told)
    accounts.begin(0, 300)
    orders, equity = np.full((3, ACCOUNTS, 301), np.nan), np.full((ACCOUNTS, 301), told.cash)
    orders[1:] = 0.01  # of bars without an order, where it does not matter
    for step, action in enumerate(actions, 1):
        accounts.step(action)
        orders[:, :, step], equity[:, step] = accounts.orders.T, accounts.equity
    run = simulate_accounts(bars, Orders(orders[0], Sizing.TARGET_FRACTION, leverage=told.limits.leverage,
                                         stop_pct=orders[1], target_pct=orders[2]), told.cash, costs)
    assert run.curves is not None
    np.testing.assert_array_equal(run.curves, equity)
    np.testing.assert_array_equal(run.parts_count, accounts.parts_closed)
    assert run.parts_count.sum() > 200


def test_nothing_that_lies_ahead_is_observed_or_traded_on() -> None:
    bars, other, cut, actions = jumpy_bars(1, 120), jumpy_bars(2, 120), 60, random_actions(5, 100)
    spliced = dataclasses.replace(bars, **{
        name: np.concatenate([getattr(bars, name)[:cut], getattr(other, name)[cut:]])
        for name in ("open", "high", "low", "close", "funding_rate")})
    features = [features_of(bars), features_of(bars)]
    features[1][cut:] = 9.0
    pair = [SteppedAccounts(price_rows(one).T, known, ACCOUNTS, RULES)
            for one, known in zip((bars, spliced), features, strict=True)]
    for accounts in pair:
        accounts.begin(5, 105)
    for step, action in enumerate(actions):
        before = [accounts.observations.tobytes() + accounts.equity.tobytes() for accounts in pair]
        assert (before[0] == before[1]) == (5 + step < cut)
        for accounts in pair:
            accounts.step(action)


def test_an_episode_is_cut_off_at_its_last_bar_and_the_next_step_begins_another() -> None:
    accounts, bars = made(jumpy_bars(0, 100, 0.0005), 2), 10
    accounts.begin([0, 20], [bars, 20 + bars + 1])
    for _ in range(bars):
        assert not accounts.truncated.any()
        accounts.step(np.ones((2, 3)))
    assert accounts.truncated.tolist() == [True, False]
    last = accounts.observations[0].copy()
    assert last[60] == 1.0, "the position is open: it is valued, not closed"
    accounts.choose(np.array([0]), 50, 60)
    accounts.step(np.ones((2, 3)))
    assert (accounts.bar.tolist(), accounts.truncated.tolist()) == ([50, 31], [False, True])
    assert (accounts.equity[0], accounts.rewards[0], accounts.held[0]) == (1_000.0, 0.0, 0.0)
    assert np.isnan(accounts.orders[0, 0])
    assert accounts.observations[0, 60:].tolist() == [0.0] * 7 + [1.0] + [0.0] * 32


def test_an_episode_is_over_when_equity_falls_below_the_ruin() -> None:
    fall = np.full(40, 100.0)
    fall[10:] = 60.0
    bars = dataclasses.replace(jumpy_bars(0, 40), open=fall, high=fall, low=fall, close=fall, funding_rate=None)
    limits = ActorLimits(0.005, 5.0, 1e-4, 1e-4)
    accounts = made(bars, 2, dataclasses.replace(RULES, limits=limits, costs=COSTS[1], ruin=0.5))
    accounts.begin(0, 30)
    for _ in range(10):
        accounts.step([[1.0, 0.0, 1.0], [-1.0, 0.0, 1.0]])
    assert accounts.terminated.tolist() == [True, False]
    assert not accounts.truncated.any()
    assert accounts.rewards[0] == -RULES.reward_clip
    assert np.isfinite(accounts.observations).all()
    with pytest.raises(InvalidInput, match="next one"):
        accounts.step(np.zeros((2, 3)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_action_that_is_not_finite_moves_nothing(bad: float) -> None:
    accounts = made(jumpy_bars(0))
    accounts.begin(0, 50)
    accounts.step(np.ones((ACCOUNTS, 3)))
    before = (accounts.bar.tolist(), accounts.equity.tobytes(), accounts.observations.tobytes())
    actions = np.ones((ACCOUNTS, 3))
    actions[-1, 2] = bad
    with pytest.raises(InvalidInput, match="actions"):
        accounts.step(actions)
    assert (accounts.bar.tolist(), accounts.equity.tobytes(), accounts.observations.tobytes()) == before


@pytest.mark.parametrize(("first", "last"), [(5, 5), (-1, 5), (0, 400), ([0] * 5 + [9], [8] * 6)])
def test_an_episode_outside_the_bars_is_refused(first: int | Sequence[int], last: int | Sequence[int]) -> None:
    with pytest.raises(InvalidInput, match="first"):
        made(jumpy_bars(0)).begin(first, last)


def test_what_does_not_fit_together_is_refused() -> None:
    bars = jumpy_bars(0)
    with pytest.raises(InvalidInput, match="prices, features"):
        SteppedAccounts(price_rows(bars), features_of(bars), 2, RULES)
    with pytest.raises(InvalidInput, match="count"):
        made(bars, 0)
    with pytest.raises(InvalidInput, match="actions"):
        made(bars).step(np.zeros((2, 3)))
    with pytest.raises(InvalidInput, match="next one"):
        made(bars).step(np.zeros((ACCOUNTS, 3)))


@pytest.mark.parametrize("bad", [{"cash": 0.0}, {"cash": math.nan}, {"ruin": 1.0}, {"reward_clip": math.nan},
                                 {"drawdown_penalty": -1.0}])
def test_senseless_rules_are_refused_by_name(bad: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(bad))):
        dataclasses.replace(RULES, **bad)
