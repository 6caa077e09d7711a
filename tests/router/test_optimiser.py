"""The online optimiser: its posterior against scikit-learn's, a planted optimum, the bandit where it knows less."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel

from policies.errors import InvalidInput
from router.optimiser import BayesianOptimiser, OptimiserSettings
from router.param_start import FoundLevels, ParamStart
from router.params import ParamBandit, ParamGrid

CALM_UP, WILD_UP = (0.0001, 1.0), (0.01, 1.0)
EAGER = OptimiserSettings(min_samples=1, update_cadence_s=1)
GRID = ParamGrid()
SECOND = 1_000


def optimiser(settings: OptimiserSettings = EAGER, seed: int = 1) -> BayesianOptimiser:
    return BayesianOptimiser(ParamBandit(seed=seed), settings)


def taught(found: BayesianOptimiser, trades: int, seed: int = 0) -> list[tuple[float, float, float]]:
    """(tp, sl, reward) of trades at points, a second apart."""
    rng, points = np.random.default_rng(seed), found.posterior("momentum", "calm_up").points
    seen = []
    for trade in range(trades):
        tp, sl = points[rng.integers(len(points))].tolist()
        reward = float(rng.normal(-0.1 + 0.3 * (tp > 0.01), 1.0))
        assert found.learn("momentum", "calm_up", {"tp_pct": tp, "sl_pct": sl}, reward, trade * SECOND) == (tp, sl)
        seen.append((tp, sl, reward))
    return seen


def scaled(points: np.ndarray) -> np.ndarray:
    low, high = np.log([0.006, 0.004]), np.log([0.015, 0.010])
    return (np.log(points) - low) / (high - low)


@pytest.mark.parametrize("trades", [1, 7, 400])
def test_the_posterior_is_that_of_a_gaussian_process_over_every_single_trade(trades: int) -> None:
    found = optimiser()
    seen = np.array(taught(found, trades))
    made = found.posterior("momentum", "calm_up")
    settings = found.settings
    kernel = ConstantKernel(settings.level_sd**2, "fixed") + ConstantKernel(settings.deviation_sd**2, "fixed") * RBF(
        settings.length, "fixed")
    peer = GaussianProcessRegressor(kernel, alpha=settings.reward_sd**2, optimizer=None)
    peer.fit(scaled(seen[:, :2]), seen[:, 2])
    mean, sd = peer.predict(scaled(made.points), return_std=True)
    np.testing.assert_allclose(made.mean, mean, atol=1e-9)
    np.testing.assert_allclose(made.sd**2, sd**2, atol=2e-6)


def test_points_are_the_grid_and_the_middles_between_its_values() -> None:
    points = optimiser().posterior("momentum", "calm_up").points
    assert len(points) == 81
    assert {(tp, sl) for tp in GRID.tp_grid_pct for sl in GRID.sl_grid_pct} < set(map(tuple, points.tolist()))
    assert (points.min(axis=0).tolist(), points.max(axis=0).tolist()) == ([0.006, 0.004], [0.015, 0.010])


def test_before_min_samples_and_for_leverage_and_confidence_always_it_is_the_bandit() -> None:
    found = optimiser(OptimiserSettings(min_samples=20, update_cadence_s=1))
    taught(found, 19)
    for key in range(30):
        assert found.suggest("momentum", CALM_UP, key) == found.bandit.propose("momentum", CALM_UP, key)
    found.learn("momentum", "calm_up", {"tp_pct": 0.01, "sl_pct": 0.006}, 0.1, 60 * SECOND)
    assert found.suggests("momentum", "calm_up")
    suggested, proposed = found.suggest("momentum", CALM_UP, "x"), found.bandit.propose("momentum", CALM_UP, "x")
    assert all(suggested[name] == proposed[name] for name in ("leverage", "min_conf"))
    assert found.suggest("momentum", WILD_UP, "x") == found.bandit.propose("momentum", WILD_UP, "x")


def test_every_suggestion_lies_within_the_grids_ranges_and_asking_changes_nothing() -> None:
    found = optimiser()
    taught(found, 50)
    before = [found.suggest("momentum", CALM_UP, key) for key in range(200)]
    assert before == [found.suggest("momentum", CALM_UP, key) for key in range(200)]
    for levels in before:
        assert 0.006 <= levels["tp_pct"] <= 0.015
        assert 0.004 <= levels["sl_pct"] <= 0.010
    assert len({tuple(levels.values()) for levels in before}) > 20


@pytest.mark.parametrize("seed", range(6))
def test_it_finds_a_planted_optimum(seed: int) -> None:
    """Mean rewards fall with the squared distance from (0.013, 0.0045), up to a whole risk unit; noise is one."""
    found = optimiser(OptimiserSettings(min_samples=30, update_cadence_s=300), seed)
    rng, best = np.random.default_rng(seed), scaled(np.array([[0.013, 0.0045]]))
    late = []
    for trade in range(1_200):
        levels = found.suggest("momentum", CALM_UP, trade)
        far = float(((scaled(np.array([[levels["tp_pct"], levels["sl_pct"]]])) - best)**2).sum())
        found.bandit.learn("momentum", "calm_up", levels, 0.0)
        found.learn("momentum", "calm_up", levels, float(rng.normal(-far, 1.0)), trade * 30 * SECOND)
        if trade >= 900:
            late.append(far)
    points = found.posterior("momentum", "calm_up").points
    anywhere = float(((scaled(points) - best)**2).sum(axis=1).mean())
    assert np.mean(late) < 0.2 * anywhere


def test_trades_beyond_the_ranges_teach_nothing_and_others_count_for_the_nearest_point() -> None:
    found = optimiser()
    for values in ({"tp_pct": 0.0159, "sl_pct": 0.005}, {"tp_pct": 0.01, "sl_pct": 0.0039}, {"tp_pct": 0.01},
                   {"tp_pct": math.nan, "sl_pct": 0.005}):
        assert found.learn("momentum", "calm_up", values, 1.0, 0) is None
    found.forget("momentum", "calm_up", None, 1.0)
    assert found.learn("momentum", "calm_up", {"tp_pct": 0.00601, "sl_pct": 0.00998}, 1.0, 0) == (0.006, 0.010)
    with pytest.raises(InvalidInput):
        found.learn("momentum", "calm_up", {"tp_pct": 0.01, "sl_pct": 0.005}, math.nan, 0)


def test_what_is_forgotten_is_as_if_it_had_never_been() -> None:
    one, other = optimiser(), optimiser()
    taught(one, 30)
    taught(other, 30)
    place = one.learn("momentum", "calm_up", {"tp_pct": 0.01, "sl_pct": 0.006}, 4.0, 31 * SECOND)
    one.forget("momentum", "calm_up", place, 4.0)
    for found in (one, other):
        found.learn("momentum", "calm_up", {"tp_pct": 0.012, "sl_pct": 0.006}, 0.5, 40 * SECOND)
    np.testing.assert_allclose(one.posterior("momentum", "calm_up").mean,
                               other.posterior("momentum", "calm_up").mean, atol=1e-12)
    with pytest.raises(InvalidInput, match="learnt"):
        one.forget("momentum", "wild_up", (0.01, 0.006), 1.0)


def test_later_trades_enter_when_the_cadence_has_passed() -> None:
    found = optimiser(OptimiserSettings(min_samples=1, update_cadence_s=180))
    levels = {"tp_pct": 0.01, "sl_pct": 0.006}
    found.learn("momentum", "calm_up", levels, 1.0, 0)
    before = found.posterior("momentum", "calm_up").mean
    found.learn("momentum", "calm_up", levels, -5.0, 179 * SECOND)
    assert found.posterior("momentum", "calm_up").mean is before
    found.learn("momentum", "calm_up", levels, -5.0, 180 * SECOND)
    assert found.posterior("momentum", "calm_up").mean.max() < before.min()


def test_a_start_is_its_prior_mean_and_goes_with_it() -> None:
    found = optimiser(OptimiserSettings(min_samples=1))
    found.begin_from(ParamStart({"momentum": {"calm_up": FoundLevels(0.015, 0.004, 0.0, 900, 0.1, 1.0, 0.4, 0.01)}}))
    made = found.posterior("momentum", "calm_up")
    assert made.points[made.mean.argmax()].tolist() == [0.015, 0.004]
    assert made.mean.max() == pytest.approx(0.4, rel=0.02)
    assert np.ptp(found.posterior("momentum", "calm_down").mean) == 0
    found.begin_from(ParamStart())
    assert np.ptp(found.posterior("momentum", "calm_up").mean) == 0


def test_other_grids_keep_what_still_applies() -> None:
    found = optimiser()
    taught(found, 60)
    before = found.posterior("momentum", "calm_up")
    found.reconfigure({"default": ParamGrid(tp_grid_pct=(0.02, 0.03))}, EAGER)
    assert (found.posterior("momentum", "calm_up").mean == 0).all()
    found.reconfigure({"default": GRID}, EAGER)
    np.testing.assert_array_equal(found.posterior("momentum", "calm_up").mean, before.mean)


def test_trades_at_points_that_the_grid_no_longer_has_do_not_count_towards_a_suggestion() -> None:
    found = optimiser(replace(EAGER, min_samples=30))
    taught(found, 40)
    assert found.suggests("momentum", "calm_up")
    found.reconfigure({"default": ParamGrid(tp_grid_pct=(0.02, 0.03))}, found.settings)
    assert not found.suggests("momentum", "calm_up")
    found.reconfigure({"default": GRID}, found.settings)
    assert found.suggests("momentum", "calm_up")


def test_a_grid_of_one_value_each_is_that_value() -> None:
    grid = ParamGrid(tp_grid_pct=(0.01,), sl_grid_pct=(0.005,))
    found = BayesianOptimiser(ParamBandit(grids={"default": grid}), EAGER)
    found.learn("momentum", "calm_up", {"tp_pct": 0.01, "sl_pct": 0.005}, 1.0, 0)
    levels = found.suggest("momentum", CALM_UP, 1)
    assert (levels["tp_pct"], levels["sl_pct"]) == (0.01, 0.005)


def test_update_credits_what_was_just_suggested() -> None:
    found = optimiser()
    suggested = found.suggest("scalping", CALM_UP)
    found.update("scalping", CALM_UP, 1.0)
    arms = found.bandit.arms("scalping", CALM_UP)
    assert arms["leverage"][suggested["leverage"]].trades == 1
    assert found.suggests("scalping", "calm_up")
