import math

import numpy as np
import pytest
from scipy import stats

from policies.errors import InvalidInput
from policies.track_record import TrackRecord
from router.posteriors import (
    PRIOR_TRADES,
    BetaPosterior,
    NormalPosterior,
    posterior_of,
    probability_best,
    profit_factor_posterior,
)


def record_of(returns) -> TrackRecord:
    record = TrackRecord()
    for place, value in enumerate(returns):
        record.record(str(place), float(value))
    return record


def test_no_trades_means_profit_factor_one_within_the_prior():
    posterior = profit_factor_posterior(TrackRecord())
    assert posterior == NormalPosterior(0.0, pytest.approx(math.sqrt(4 / PRIOR_TRADES)))
    assert profit_factor_posterior(record_of([0.0, 0.0])) == posterior


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_posterior_does_not_depend_on_the_unit_of_returns(unit):
    returns = np.random.default_rng(1).standard_normal(80)
    plain, scaled = profit_factor_posterior(record_of(returns)), profit_factor_posterior(record_of(unit * returns))
    assert scaled.mean == pytest.approx(plain.mean)
    assert scaled.sd == pytest.approx(plain.sd)


def test_location_and_scale_match_repeated_experiments():
    rng = np.random.default_rng(2)
    trades, repeats = 400, 2_000
    wins = rng.random((repeats, trades)) < 0.6
    sizes = rng.gamma(2.0, 1.0, (repeats, trades))
    returns = np.where(wins, sizes, -sizes)
    log_pf = np.log(np.where(wins, sizes, 0).sum(axis=1) / np.where(wins, 0, sizes).sum(axis=1))
    posteriors = [profit_factor_posterior(record_of(row)) for row in returns[:200]]
    assert np.mean([one.sd for one in posteriors]) == pytest.approx(log_pf.std(), rel=0.08)
    assert np.mean([one.mean for one in posteriors]) == pytest.approx(log_pf.mean(), abs=0.02)


def test_beta_counts_wins_and_losses():
    assert posterior_of(record_of([1, 1, -1]), "beta") == BetaPosterior(3.0, 2.0)


def test_unknown_kind_is_refused():
    with pytest.raises(InvalidInput, match="profit_factor, beta"):
        posterior_of(TrackRecord(), "gamma")  # type: ignore[arg-type]


@pytest.mark.parametrize(("posterior", "reference"), [(NormalPosterior(0.4, 0.3), stats.norm(0.4, 0.3)),
                                                      (BetaPosterior(3.0, 8.0), stats.beta(3.0, 8.0))])
def test_samples_are_quantiles_and_never_infinite(posterior, reference):
    for u in (0.01, 0.5, 0.99):
        assert posterior.sample(u) == pytest.approx(reference.ppf(u))
    assert math.isfinite(posterior.sample(0.0))
    assert math.isfinite(posterior.sample(1 - 2**-53))
    x = np.array([0.1, 0.45])
    np.testing.assert_allclose(posterior.cdf(x), reference.cdf(x))
    np.testing.assert_allclose(posterior.pdf(x), reference.pdf(x))
    for u in (-0.1, 1.0, math.nan):
        with pytest.raises(InvalidInput):
            posterior.sample(u)


@pytest.mark.parametrize(("mean", "sd", "other_mean", "other_sd"),
                         [(0.0, 1.0, 0.0, 1.0), (0.3, 0.2, 0.1, 0.7), (0.0, 1e-4, 0.5, 2.0), (5.0, 0.1, 0.0, 0.1)])
def test_probability_best_of_two_normals_is_the_closed_form(mean, sd, other_mean, other_sd):
    first, second = probability_best([NormalPosterior(mean, sd), NormalPosterior(other_mean, other_sd)])
    assert first == pytest.approx(stats.norm.cdf((mean - other_mean) / math.hypot(sd, other_sd)), abs=1e-10)
    assert first + second == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("posteriors", [
    [NormalPosterior(0.0, 0.7), NormalPosterior(0.2, 0.1), NormalPosterior(0.1, 0.4), NormalPosterior(-1.0, 1.5)],
    [BetaPosterior(1, 1), BetaPosterior(50, 40), BetaPosterior(5_000, 4_000), BetaPosterior(1, 30)],
])
def test_probability_best_agrees_with_simulation(posteriors):
    draws = 200_000
    u = np.random.default_rng(3).random((len(posteriors), draws))
    if isinstance(posteriors[0], NormalPosterior):
        samples = np.array([stats.norm.ppf(row, one.mean, one.sd) for row, one in zip(u, posteriors, strict=True)])
    else:
        samples = np.array([stats.beta.ppf(row, one.a, one.b) for row, one in zip(u, posteriors, strict=True)])
    simulated = np.bincount(samples.argmax(axis=0), minlength=len(posteriors)) / draws
    exact = probability_best(posteriors)
    assert sum(exact) == pytest.approx(1.0, abs=1e-9)
    np.testing.assert_allclose(exact, simulated, atol=5 * 0.5 / math.sqrt(draws))


def test_nobody_and_one_alone():
    assert probability_best([]) == ()
    assert probability_best([NormalPosterior(0, 1)]) == (1.0,)
