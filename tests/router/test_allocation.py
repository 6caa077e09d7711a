import math

import numpy as np
import pytest

from policies.errors import InvalidInput, UnknownEntity
from policies.types import STRATEGIES
from router.allocation import PRIOR_SHAPE, AllocationSettings, RewardSums, StrategyAllocationBandit, blend


def taught(seed: int = 1) -> StrategyAllocationBandit:
    bandit = StrategyAllocationBandit(seed)
    rng = np.random.default_rng(0)
    for place, strategy in enumerate(STRATEGIES):
        for reward in rng.normal(0.3 * place, 1.0, 300):
            bandit.update(strategy, float(reward))
    return bandit


def test_weights_sum_to_one_and_respect_the_floor():
    for bandit in (StrategyAllocationBandit(), taught()):
        weights = bandit.propose_weights()
        assert set(weights) == set(STRATEGIES)
        assert sum(weights.values()) == pytest.approx(1.0)
        assert min(weights.values()) >= bandit.settings.floor


def test_best_strategy_gets_most_of_the_capital():
    weights = taught().propose_weights()
    assert max(weights, key=weights.__getitem__) == "sniping"
    assert weights["sniping"] > 0.5
    assert weights["market_making"] < 0.03


def test_same_key_gives_same_weights_and_asking_changes_nothing():
    bandit = StrategyAllocationBandit(seed=5)
    assert bandit.propose_weights(key=7) == bandit.propose_weights(key=7)
    assert bandit.propose_weights(key=7) != bandit.propose_weights(key=8)
    assert bandit.propose_weights() == bandit.propose_weights()
    assert bandit.propose_weights(key=7) != StrategyAllocationBandit(seed=6).propose_weights(key=7)


def test_posterior_is_the_conjugate_update_one_reward_at_a_time():
    settings = AllocationSettings()
    sums = RewardSums()
    mean, weight, shape, rate = 0.0, settings.prior_trades, PRIOR_SHAPE, PRIOR_SHAPE * settings.prior_sd**2
    for reward in np.random.default_rng(1).normal(0.3, 2.0, 50):
        sums = RewardSums(sums.count + 1, sums.total + reward, sums.squares + reward**2)
        rate += weight * (reward - mean) ** 2 / (2 * (weight + 1))
        mean = (weight * mean + reward) / (weight + 1)
        weight, shape = weight + 1, shape + 0.5
        expected = (mean, math.sqrt(rate / (shape * weight)), 2 * shape)
        assert sums.student_t(settings) == pytest.approx(expected)


def test_forgetting_undoes_learning():
    bandit = StrategyAllocationBandit(seed=2)
    bandit.update("momentum", 0.5)
    before = bandit.propose_weights(key=1)
    bandit.update("momentum", 2.0)
    assert bandit.propose_weights(key=1) != before
    bandit.forget("momentum", 2.0)
    assert bandit.propose_weights(key=1) == before


def test_what_was_never_learnt_cannot_be_forgotten():
    with pytest.raises(InvalidInput):
        StrategyAllocationBandit().forget("momentum", 1.0)


def test_unknown_strategy_and_nan_are_refused_and_change_nothing():
    bandit = StrategyAllocationBandit()
    with pytest.raises(UnknownEntity, match="market_making"):
        bandit.update("hodl", 1.0)
    with pytest.raises(InvalidInput):
        bandit.update("momentum", math.nan)
    assert bandit.updates == 0


def test_floor_that_leaves_nothing_is_refused():
    with pytest.raises(InvalidInput, match="floor"):
        StrategyAllocationBandit(settings=AllocationSettings(floor=0.2))


def test_blend_weighs_bandit_and_llm_by_the_share():
    assert blend({"a": 0.8, "b": 0.2}, {"a": 1.0, "b": 3.0}, 0.5) == pytest.approx({"a": 0.525, "b": 0.475})


@pytest.mark.parametrize("llm", [{}, {"a": 0.0}, {"elsewhere": 1.0}])
def test_llm_without_an_opinion_leaves_the_bandit(llm):
    assert blend({"a": 0.8, "b": 0.2}, llm, 0.5) == {"a": 0.8, "b": 0.2}


@pytest.mark.parametrize(("llm", "share"), [({"a": -1.0}, 0.5), ({"a": math.nan}, 0.5), ({"a": math.inf}, 0.5),
                                            ({"a": 1.0}, 1.1), ({"a": 1.0}, math.nan)])
def test_blend_refuses_weights_and_shares_out_of_range(llm, share):
    with pytest.raises(InvalidInput):
        blend({"a": 0.8, "b": 0.2}, llm, share)
