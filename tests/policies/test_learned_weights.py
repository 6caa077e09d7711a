"""Learned weights: a share each, more to who earns, equal where nothing is known."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from policies.errors import InvalidInput
from policies.learned_weights import RIDGE, learned_weights


def drawn(count: int, means: list[float], seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(means, 0.01, size=(count, len(means)))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(1, 8), st.integers(0, 10_000), st.floats(0, 1e4))
def test_weights_are_shares_whatever_was_earned(count: int, members: int, seed: int, prior: float) -> None:
    weights = learned_weights(np.random.default_rng(seed).standard_t(2, size=(count, members)), prior)
    assert weights.shape == (members,)
    assert np.all(weights >= 0)
    assert weights.sum() == pytest.approx(1.0)


def test_the_better_member_gets_more_and_the_more_the_longer_it_is_known() -> None:
    shares = [np.mean([learned_weights(drawn(count, [0.004, 0.0], seed))[0] for seed in range(40)])
              for count in (20, 200, 2_000, 20_000)]
    assert shares[0] > 0.5
    assert all(later > earlier for earlier, later in pairwise(shares))


def test_where_nobody_earns_or_nothing_is_known_weights_are_equal() -> None:
    for returns in (drawn(500, [-0.01, -0.02, -0.03]), np.zeros((100, 3)), np.empty((0, 3)), np.ones((1, 3))):
        np.testing.assert_allclose(learned_weights(returns), 1 / 3)


def test_a_losing_member_gets_no_more_than_the_belief_in_equal_weights() -> None:
    assert learned_weights(drawn(400, [0.005, -0.005]), prior_trades=100.0)[1] == pytest.approx(0.5 * 100 / 500)


def test_two_copies_share_what_one_would_get() -> None:
    one, other = drawn(50_000, [0.004, 0.004]).T
    weights = learned_weights(np.column_stack([one, one, other]), prior_trades=0.0)
    assert weights[0] == pytest.approx(weights[1])
    assert weights[0] + weights[1] == pytest.approx(0.5, abs=0.06)


def test_weights_are_the_best_of_many_tried() -> None:
    returns = drawn(300, [0.003, 0.001, -0.001, 0.002], seed=5)
    found = learned_weights(returns, prior_trades=0.0)
    covariance = np.cov(returns, rowvar=False)
    covariance += RIDGE * np.trace(covariance) / 4 * np.eye(4)

    def ratio(weights: NDArray[np.float64]) -> float:
        return float(weights @ returns.mean(axis=0) / np.sqrt(weights @ covariance @ weights))

    tried = np.random.default_rng(1).dirichlet(np.ones(4), size=5_000)
    assert ratio(found) >= max(map(ratio, tried)) - 1e-12


@pytest.mark.parametrize("returns", [[1.0, 2.0], np.zeros((3, 0)), np.zeros((3, 65)), [[np.nan, 0.0]], [[np.inf, 0.0]]])
def test_returns_of_no_sense_are_refused(returns: object) -> None:
    with pytest.raises(InvalidInput, match="returns"):
        learned_weights(returns)  # type: ignore[arg-type]


@pytest.mark.parametrize("prior", [-1.0, np.nan, np.inf])
def test_a_belief_of_no_sense_is_refused(prior: float) -> None:
    with pytest.raises(InvalidInput, match="prior_trades"):
        learned_weights(np.zeros((3, 2)), prior)
