"""Weights of an ensemble's members from what each of them earned."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from policies.errors import InvalidInput

MAX_MEMBERS_LEARNED = 64
RIDGE = 0.1  # share of the mean variance added to each, so that near-copies share a weight instead of trading it
_STEPS = 500


def learned_weights(returns: ArrayLike, prior_trades: float = 200.0) -> NDArray[np.float64]:
    """(K,) weights >= 0 that sum to 1, the better a member and the less it resembles the others the greater.

    returns: (N, K), net return of each member's own action on the same N opportunities, 0 where it stayed flat; rows
    that the weights were not chosen on by anything else. prior_trades: so many opportunities does the belief in equal
    weights count as.

    The mean-variance weights: w >= 0 that maximises w.m - w.C w / 2, m the means, C the covariance with a ridge, scaled
    to sum 1; equal weights if no member has earned anything. Of them N / (N + prior_trades) is taken, the rest is
    equal weights: on few trades, learned weights lose to equal ones by the noise in m (DeMiguel, Garlappi & Uppal,
    2009, Review of Financial Studies 22(5)).
    """
    earned = np.asarray(returns, dtype=np.float64)
    if earned.ndim != 2 or not 1 <= earned.shape[1] <= MAX_MEMBERS_LEARNED or not np.all(np.isfinite(earned)):
        raise InvalidInput("returns", f"finite, of shape (N, K) with K from 1 to {MAX_MEMBERS_LEARNED}", earned.shape)
    if not 0 <= prior_trades < np.inf:
        raise InvalidInput("prior_trades", "a finite number >= 0", prior_trades)
    count, members = earned.shape
    equal = np.full(members, 1.0 / members)
    if count < 2:
        return equal
    best = _mean_variance(earned.mean(axis=0), np.atleast_2d(np.cov(earned, rowvar=False)))
    if not best.sum() > 0:
        return equal
    believed = count / (count + prior_trades)
    return believed * best / best.sum() + (1.0 - believed) * equal


def _mean_variance(means: NDArray[np.float64], covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """The w >= 0 of the docstring above up to scale, by descent along one coordinate after the other."""
    spread = float(np.trace(covariance)) / len(means)
    if not spread > 0:
        return np.maximum(means, 0.0)
    ridged = covariance + RIDGE * spread * np.eye(len(means))
    weights = np.zeros(len(means))
    for _ in range(_STEPS):
        before = weights.copy()
        for place in range(len(means)):
            others = ridged[place] @ weights - ridged[place, place] * weights[place]
            weights[place] = max(0.0, (means[place] - others) / ridged[place, place])
        if np.array_equal(before, weights):
            break
    return weights
