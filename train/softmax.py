"""Multinomial logistic regression by L-BFGS: the linear baseline and the calibration are both one of these."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

TOLERANCE = 1e-9  # of the gradient; the objective is strictly convex, so its end is one point
MAX_ITERATIONS = 500
BIAS_L2 = 1e-6


@dataclass(frozen=True)
class SoftmaxRegression:
    """logits = rows @ weights.T + bias. weights: float64 (K, F). bias: float64 (K,). iterations: that it took."""

    weights: NDArray[np.float64]
    bias: NDArray[np.float64]
    iterations: int


def fit_softmax(rows: NDArray[np.float64], classes: NDArray[np.int64], l2: float,
                centre: NDArray[np.float64]) -> SoftmaxRegression:
    """Least mean log loss + l2/2 * ||weights - centre||^2 + tiny l2 on the bias, which fixes its free sum.

    rows: float64 (N, F), about standard. classes: places 0..K-1, (N,). centre: (K, F), where the weights start from and
    are drawn to. l2 > 0.
    """
    places = np.arange(len(rows))
    count = len(rows)
    width = rows.shape[1]
    kinds = len(centre)

    def loss_and_gradient(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights, bias = flat[:-kinds].reshape(kinds, width), flat[-kinds:]
        logits = rows @ weights.T + bias
        logits -= logits.max(axis=1, keepdims=True)
        rest = np.exp(logits)
        sums = rest.sum(axis=1)
        apart = weights - centre
        loss = float((np.log(sums) - logits[places, classes]).mean() + l2 / 2 * (apart ** 2).sum()
                     + BIAS_L2 / 2 * (bias ** 2).sum())
        rest /= sums[:, None]
        rest[places, classes] -= 1.0
        rest /= count
        return loss, np.concatenate([(rest.T @ rows + l2 * apart).ravel(), rest.sum(axis=0) + BIAS_L2 * bias])

    found = minimize(loss_and_gradient, np.concatenate([centre.ravel(), np.zeros(kinds)]), jac=True, method="L-BFGS-B",
                     options={"maxiter": MAX_ITERATIONS, "gtol": TOLERANCE, "ftol": 1e-14})
    return SoftmaxRegression(found.x[:-kinds].reshape(kinds, width), found.x[-kinds:], int(found.nit))


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, K) that sum to 1 by row; infinite logits give NaN."""
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def log_loss(probabilities: NDArray[np.float64], classes: NDArray[np.integer]) -> float:
    """Mean of -log(probability of what happened), in nats; a probability counts as at least 1e-15. Less is better."""
    happened = probabilities[np.arange(len(classes)), classes]
    return float(-np.log(np.maximum(happened, 1e-15)).mean())
