import math

import numpy as np
import pytest

from policies.errors import InvalidInput
from policies.types import Outcome
from router.rewards import RewardModel, RewardSettings, net_return

PLAIN = RewardSettings(cvar_weight=0.0, drawdown_weight=0.0)


def outcome(pnl: float, fees: float = 0.0, funding: float = 0.0) -> Outcome:
    return Outcome("d1", 0, 0, 0, 60_000, 100.0, 101.0, 1.0, pnl, fees, funding, "target")


def test_fees_and_paid_funding_are_costs_and_received_funding_is_income():
    assert net_return(outcome(10.0, fees=1.0, funding=2.0), 1_000.0) == pytest.approx(0.007)
    assert net_return(outcome(10.0, fees=1.0, funding=-2.0), 1_000.0) == pytest.approx(0.011)


@pytest.mark.parametrize("equity", [0.0, -1.0, math.nan, math.inf])
def test_equity_that_is_not_positive_is_refused(equity):
    with pytest.raises(InvalidInput, match="equity_at_entry"):
        net_return(outcome(1.0), equity)


def test_a_full_stop_is_minus_one_risk_unit():
    assert RewardModel(PLAIN).reward(-0.002, 0.0) == pytest.approx(-1.0)


def test_reward_is_clipped_on_both_sides():
    model = RewardModel(RewardSettings(clip=3.0))
    assert (model.reward(1.0, 0.0), model.reward(-1.0, 0.0)) == (3.0, -3.0)


def test_cvar_is_the_mean_of_the_worst_fifth_of_the_window():
    rng = np.random.default_rng(4)
    model = RewardModel(RewardSettings(window=50))
    returns = rng.standard_normal(180) * 0.002
    for place, value in enumerate(returns, start=1):
        model.observe(float(value))
        recent = np.sort(returns[max(0, place - 50):place])
        worst = recent[: len(recent) // 5]
        assert model.cvar == pytest.approx(worst.mean() if len(worst) else 0.0, abs=1e-15)


def test_losing_tail_and_drawdown_cost_reward_and_a_winning_tail_earns_none():
    model = RewardModel(RewardSettings(cvar_weight=0.5, drawdown_weight=0.25))
    assert model.reward(0.002, 0.004) == pytest.approx(1.0 - 0.25 * 2)
    for _ in range(10):
        model.observe(-0.002)
    assert model.reward(0.002, 0.0) == pytest.approx(1.0 - 0.5)
    winning = RewardModel()
    for _ in range(10):
        winning.observe(0.002)
    assert winning.reward(0.0, 0.0) == 0.0


def test_asking_for_a_reward_changes_nothing():
    model = RewardModel()
    model.observe(-0.01)
    assert len({model.reward(0.001, 0.001) for _ in range(20)}) == 1


@pytest.mark.parametrize(("value", "drawdown"), [(math.nan, 0), (math.inf, 0), (0, math.nan), (0, -0.1), (0, math.inf)])
def test_figures_that_are_no_figures_are_refused(value, drawdown):
    with pytest.raises(InvalidInput):
        RewardModel().reward(value, drawdown)


def test_nan_is_never_observed():
    model = RewardModel()
    with pytest.raises(InvalidInput):
        model.observe(math.nan)
    assert model.cvar == 0.0
