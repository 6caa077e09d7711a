"""Formulas against their papers' examples, direct simulation and brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import rankdata

from policies.errors import InvalidInput
from train.overfitting import (
    Moments,
    autocorrelation,
    backtest_overfitting,
    deflated_sharpe,
    effective_trials,
    expected_maximum,
    expected_maximum_sharpe,
    minimum_track_record,
    moments,
    probabilistic_sharpe,
    sharpe_ratios,
    standard_error,
)


def rng(seed: int = 1) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_the_papers_example_of_a_deflated_sharpe() -> None:
    """2014, section on an example: annual SR 2.5 over 1,250 days, skewness -3, kurtosis 10, annual V 1/2."""
    of = Moments(1_250, 2.5 / math.sqrt(250), -3.0, 10.0)
    spread = math.sqrt(0.5 / 250)
    for trials, confidence in ((100, 0.9004), (46, 0.9505)):
        assert probabilistic_sharpe(of, spread * expected_maximum(trials)) == pytest.approx(confidence, abs=1e-4)
    assert spread * expected_maximum(100) == pytest.approx(0.1132, abs=1e-4)


@pytest.mark.parametrize("name", ["normal", "right-skewed", "left-skewed", "heavy"])
def test_standard_error_is_the_spread_of_simulated_sharpe_ratios(name) -> None:
    draw = {"normal": lambda r, s: r.normal(0.1, 1, s), "right-skewed": lambda r, s: r.gamma(2, 1, s) - 1.8,
            "left-skewed": lambda r, s: 2.2 - r.gamma(2, 1, s), "heavy": lambda r, s: r.standard_t(6, s) + 0.15}[name]
    simulated = sharpe_ratios(draw(rng(), (200, 10_000))).std()
    truth = moments(draw(rng(2), 500_000))
    of = Moments(200, truth.sharpe, truth.skewness, truth.kurtosis)
    assert standard_error(of) == pytest.approx(simulated, rel=0.04)


def test_autocorrelation_is_that_of_neighbouring_blocks() -> None:
    shocks = rng().normal(size=20_001)
    assert autocorrelation(shocks) == pytest.approx(0.0, abs=0.02)
    assert autocorrelation(shocks[1:] + shocks[:-1]) == pytest.approx(0.5, abs=0.02)
    assert math.isnan(autocorrelation(np.zeros(9)))


def test_minimum_track_record_is_the_length_at_which_the_confidence_is_reached() -> None:
    of = moments(rng().gamma(2, 1, 300) - 1.7)
    blocks = minimum_track_record(of, 0.05, 0.95)
    assert probabilistic_sharpe(Moments(blocks, of.sharpe, of.skewness, of.kurtosis), 0.05) == pytest.approx(0.95)
    assert minimum_track_record(of, of.sharpe) == math.inf


@pytest.mark.parametrize(("trials", "tolerance"), [(2, 0.09), (3, 0.02), (20, 0.025), (200, 0.015)])
def test_expected_maximum_is_near_that_of_simulated_normals(trials, tolerance) -> None:
    simulated = rng().standard_normal((40_000, trials)).max(axis=1).mean()
    assert expected_maximum(trials) == pytest.approx(simulated, rel=tolerance)


def test_one_trial_is_not_deflated() -> None:
    of = moments(rng().normal(0.1, 1, 100))
    assert expected_maximum(1) == 0.0
    assert deflated_sharpe(of, 1, np.array([of.sharpe])) == probabilistic_sharpe(of)


@pytest.mark.parametrize(("trials", "correlation"), [(2, 0.0), (20, 0.0), (20, 0.8), (200, 0.5)])
def test_the_best_of_worthless_trials_is_rarely_believed(trials, correlation) -> None:
    believed = undeflated = 0
    for seed in range(300):
        draw = rng(seed)
        returns = (math.sqrt(correlation) * draw.standard_normal((60, 1))
                   + math.sqrt(1 - correlation) * draw.standard_normal((60, trials)))
        sharpes = sharpe_ratios(returns)
        best = moments(returns[:, sharpes.argmax()])
        believed += deflated_sharpe(best, trials, sharpes) >= 0.95
        undeflated += probabilistic_sharpe(best) >= 0.95
    assert believed <= 0.05 * 300 + 3 * math.sqrt(0.05 * 0.95 * 300)
    assert undeflated > 2 * believed


def test_agreeing_trials_do_not_hide_how_many_there_were() -> None:
    alike = np.full(3, 0.2)
    assert expected_maximum_sharpe(50, alike, 101) == pytest.approx(0.1 * expected_maximum(50))
    assert expected_maximum_sharpe(50, np.array([0.0, math.nan]), 101) == pytest.approx(0.1 * expected_maximum(50))


def test_effective_trials_lie_between_one_and_all() -> None:
    own = rng().standard_normal((4_000, 6))
    assert effective_trials(60, own) == pytest.approx(60, rel=0.03)
    assert effective_trials(60, own[:, [0, 0, 0]]) == pytest.approx(1.0)
    assert effective_trials(60, 0.7071 * (own + rng(9).standard_normal((4_000, 1)))) == pytest.approx(30.5, rel=0.05)
    assert effective_trials(60, own[:, :1]) == 60.0


def brute_force(performance: np.ndarray, parts: int) -> tuple[np.ndarray, list[bool]]:
    runs = np.split(performance[len(performance) % parts:], parts)
    logits, losses = [], []
    for chosen in itertools.combinations(range(parts), parts // 2):
        within = np.concatenate([runs[part] for part in chosen])
        without = np.concatenate([runs[part] for part in range(parts) if part not in chosen])
        best = int(np.argmax(within.mean(axis=0) / within.std(axis=0)))
        outside = (without.mean(axis=0) / without.std(axis=0)).round(9)
        share = rankdata(outside)[best] / (performance.shape[1] + 1)
        logits.append(math.log(share / (1 - share)))
        losses.append(bool(outside[best] < 0))
    return np.array(logits), losses


@pytest.mark.parametrize(("blocks", "trials", "parts"), [(16, 2, 2), (30, 5, 4), (61, 9, 6), (43, 4, 8)])
def test_overfitting_equals_brute_force(blocks, trials, parts) -> None:
    performance = rng(blocks).standard_t(3, (blocks, trials))
    performance[:, -1] = performance[:, 0]  # a tie
    logits, losses = brute_force(performance, parts)
    found = backtest_overfitting(performance, parts)
    assert found.logits == pytest.approx(logits)
    assert found.probability == np.mean(logits <= 1e-12)
    assert found.loss_probability == np.mean(losses)


def test_one_trial_leaves_nothing_to_choose() -> None:
    assert backtest_overfitting(rng().normal(size=(64, 1))) is None


def test_a_trial_that_is_best_everywhere_is_not_overfitted() -> None:
    performance = rng().normal(0, 1, (160, 10))
    performance[:, 3] += 1.0
    found = backtest_overfitting(performance, 8)
    assert found.probability == 0.0
    assert found.loss_probability == 0.0


def test_worthless_trials_are_overfitted_half_the_time_or_more() -> None:
    shares = [backtest_overfitting(rng(seed).normal(size=(96, 20)), 8).probability for seed in range(40)]
    assert 0.4 < np.mean(shares) < 0.75


def test_equally_good_trials_are_overfitted_but_lose_nothing() -> None:
    found = [backtest_overfitting(rng(seed).normal(0.4, 1, (160, 20)), 8) for seed in range(20)]
    assert np.mean([one.probability for one in found]) > 0.4
    assert np.mean([one.loss_probability for one in found]) < 0.01


def test_trials_that_never_trade_rank_as_zero() -> None:
    performance = rng().normal(1, 0.1, (64, 3))
    performance[:, 1] = 0.0
    assert backtest_overfitting(performance, 4).loss_probability == 0.0
    assert math.isnan(sharpe_ratios(performance)[1])


def test_a_choice_that_stands_still_elsewhere_loses_nothing() -> None:
    performance = np.full((8, 2), -1.0) + rng().normal(0, 0.01, (8, 2))
    performance[:, 0] = [0.9, 1.1, 1.0, 1.2, 0.0, 0.0, 0.0, 0.0]
    assert backtest_overfitting(performance, 2).loss_probability == 0.0


def test_returns_without_spread_have_no_figures_and_pass_no_check() -> None:
    of = moments(np.zeros(50))
    assert math.isnan(of.sharpe)
    assert math.isnan(standard_error(of))
    assert not probabilistic_sharpe(of) >= 0.0
    assert math.isnan(minimum_track_record(of))
    assert math.isnan(moments(np.full(50, 0.1)).sharpe)


@pytest.mark.parametrize("refused", [
    lambda: moments(np.array([1.0])), lambda: moments(np.array([1.0, math.nan])), lambda: expected_maximum(0),
    lambda: expected_maximum(math.nan), lambda: backtest_overfitting(np.ones((64, 3)), 5),
    lambda: backtest_overfitting(np.ones((7, 3)), 4), lambda: backtest_overfitting(np.full((64, 3), math.nan), 4),
    lambda: minimum_track_record(moments(np.arange(5.0)), confidence=math.nan)])
def test_bad_input_is_refused(refused) -> None:
    with pytest.raises(InvalidInput):
        refused()
