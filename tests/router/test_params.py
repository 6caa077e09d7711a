import math
from collections import Counter

import numpy as np
import pytest

from policies.errors import InvalidInput, UnknownEntity
from router.params import PARAMETERS, Arm, ParamBandit, ParamGrid, ParamSettings

CALM_UP = (0.0001, 1.0)
GRIDS = {"default": ParamGrid(), "momentum": ParamGrid(leverage_grid=(6, 10, 14, 18, 20))}


def test_proposal_takes_every_value_from_its_grid():
    bandit = ParamBandit(seed=1, grids=GRIDS)
    seen = {name: set() for name in PARAMETERS}
    for key in range(300):
        for name, value in bandit.propose("momentum", CALM_UP, key=key).items():
            seen[name].add(value)
    assert seen == {name: set(values) for name, values in GRIDS["momentum"].values.items()}


def test_strategy_without_a_grid_uses_the_default():
    assert ParamBandit(grids=GRIDS).propose("sniping", CALM_UP)["leverage"] in ParamGrid().leverage_grid
    with pytest.raises(UnknownEntity):
        ParamBandit(grids={"momentum": ParamGrid()}).propose("sniping", CALM_UP)


@pytest.mark.parametrize(("features", "bucket"), [
    ((0.0001, 1.0), "calm_up"), ((0.0005, -1.0), "normal_down"), ((0.0010, 0.0), "wild_flat"),
    ((math.nan, math.nan), "normal_flat"), ((math.inf, -0.1), "wild_down"),
])
def test_bucket_is_volatility_level_and_sign_of_trend(features, bucket):
    assert ParamBandit().bucket(features) == bucket


def test_bucket_reads_the_configured_places():
    assert ParamBandit(settings=ParamSettings(volatility_index=3, trend_index=1)).bucket((9, -9, 9, 0.0)) == "calm_down"


def test_same_key_gives_same_values_and_asking_changes_nothing():
    bandit = ParamBandit(seed=1)
    proposals = [bandit.propose("momentum", CALM_UP, key=key) for key in range(30)]
    assert proposals == [bandit.propose("momentum", CALM_UP, key=key) for key in range(30)]
    assert bandit.updates == 0
    assert proposals != [ParamBandit(seed=2).propose("momentum", CALM_UP, key=key) for key in range(30)]


def test_best_value_of_each_parameter_is_found_in_its_bucket_only():
    bandit = ParamBandit(seed=3)
    best = {"leverage": 8.0, "tp_pct": 0.012, "sl_pct": 0.005, "min_conf": 0.65}
    rng = np.random.default_rng(0)
    for trade in range(1_500):
        values = bandit.propose("momentum", CALM_UP, key=trade)
        reward = sum(values[name] == best[name] for name in PARAMETERS) - 1 + 0.5 * rng.standard_normal()
        bandit.learn("momentum", "calm_up", values, float(reward))
    late = Counter(tuple(bandit.propose("momentum", CALM_UP, key=f"late-{trade}").items()) for trade in range(200))
    assert late.most_common(1)[0] == (tuple(best.items()), pytest.approx(200, abs=40))
    elsewhere = {bandit.propose("momentum", (0.0001, -1.0), key=trade)["leverage"] for trade in range(100)}
    assert len(elsewhere) == 5


def test_draws_follow_the_known_variance_posterior():
    settings = ParamSettings(prior_trades=2.0, reward_sd=1.5)
    bandit = ParamBandit(seed=1, grids={"default": ParamGrid(leverage_grid=(2, 4))}, settings=settings)
    for reward in (1.0, 2.0, 0.5):
        bandit.learn("momentum", "calm_up", {"leverage": 4.0}, reward)
    picked = np.mean([bandit.propose("momentum", CALM_UP, key=key)["leverage"] == 4 for key in range(4_000)])
    spread = math.hypot(1.5 / math.sqrt(5), 1.5 / math.sqrt(2))
    assert picked == pytest.approx(0.5 * math.erfc(-(3.5 / 5) / spread / math.sqrt(2)), abs=0.03)


def test_only_arms_that_were_executed_as_they_are_on_the_grid_are_credited():
    bandit = ParamBandit(grids=GRIDS)
    credited = bandit.learn("momentum", "calm_up", {"leverage": 7.3, "tp_pct": 0.008, "min_conf": 0.5}, 1.0)
    assert credited == {"tp_pct": 0.008, "min_conf": 0.5}
    arms = bandit.arms("momentum", CALM_UP)
    assert arms["tp_pct"][0.008] == arms["min_conf"][0.5] == Arm(1, 1.0)
    assert sum(arm.trades for options in arms.values() for arm in options.values()) == 2


def test_forgetting_what_was_credited_undoes_it_even_after_the_grid_changed():
    bandit = ParamBandit(grids=GRIDS)
    before = bandit.arms("momentum", CALM_UP)
    credited = bandit.learn("momentum", "calm_up", bandit.propose("momentum", CALM_UP), 0.75)
    bandit.reconfigure({"default": ParamGrid(leverage_grid=(3,))})
    bandit.forget("momentum", "calm_up", credited, 0.75)
    bandit.reconfigure(GRIDS)
    assert bandit.arms("momentum", CALM_UP) == before
    with pytest.raises(InvalidInput, match="learnt"):
        bandit.forget("momentum", "calm_up", credited, 0.75)


def test_update_credits_what_was_just_proposed():
    bandit = ParamBandit(seed=9)
    proposed = bandit.propose("scalping", CALM_UP)
    bandit.update("scalping", CALM_UP, 1.0)
    arms = bandit.arms("scalping", CALM_UP)
    assert all(arms[name][proposed[name]] == Arm(1, 1.0) for name in PARAMETERS)


def test_changed_grid_keeps_what_still_applies():
    bandit = ParamBandit()
    bandit.learn("momentum", "calm_up", {"leverage": 4.0}, 2.0)
    bandit.reconfigure({"default": ParamGrid(leverage_grid=(3, 4))})
    assert bandit.arms("momentum", CALM_UP)["leverage"] == {3.0: Arm(), 4.0: Arm(1, 2.0)}


@pytest.mark.parametrize("grid", [(), (math.nan,), (2.0, math.inf)])
def test_empty_or_infinite_grid_is_refused(grid):
    with pytest.raises(InvalidInput, match="leverage"):
        ParamBandit(grids={"default": ParamGrid(leverage_grid=grid)})


def test_nan_reward_is_refused():
    bandit = ParamBandit()
    with pytest.raises(InvalidInput):
        bandit.update("momentum", CALM_UP, math.nan)
    assert bandit.updates == 0


@pytest.mark.parametrize("edges", [(0.2, 0.1), (0.1, 0.1), (math.nan, 0.1), (0.1, math.nan), (0.1, math.inf),
                                   (-math.inf, 0.1)])
def test_edges_that_are_not_finite_and_in_order_are_refused(edges):
    with pytest.raises(InvalidInput):
        ParamBandit(settings=ParamSettings(volatility_low=edges[0], volatility_high=edges[1]))


def test_edges_of_a_logarithm_may_be_negative():
    bandit = ParamBandit(settings=ParamSettings(volatility_low=math.log(0.5), volatility_high=0.0))
    assert [bandit.bucket((value, 1.0)) for value in (-0.7, -0.5, 0.0)] == ["calm_up", "normal_up", "wild_up"]
