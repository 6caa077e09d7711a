"""From a model's scores to probabilities of (short, flat, long) that hold: a matrix, a bias and a softmax.

Matrix scaling (Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4.2), drawn towards plain
temperature scaling by an L2 term, since validation rows are few and overlap. It is fitted on rows that the model did
not learn from, and served inside the model's own graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper
from scipy.optimize import minimize_scalar

from policies.errors import InvalidInput
from policies.heads import CLASSES
from policies.onnx_graph import PROBABILITIES
from train.learners import SCORES
from train.softmax import fit_softmax, log_loss, softmax
from train.tabular import constant_tensors

L2 = 0.01  # on the distance of the matrix from the temperature, for scores of deviation 1
LOG_TEMPERATURE = (-7.0, 3.0)  # of the factor on the scores: from next to nothing to 20
BINS = 15


@dataclass(frozen=True)
class Calibration:
    """probabilities = softmax(scores @ weights.T + bias). weights: float32 (3, 3). bias: float32 (3,)."""

    weights: NDArray[np.float32]
    bias: NDArray[np.float32]

    def probabilities(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N, 3) for (N, 3)."""
        return softmax(scores @ self.weights.T.astype(np.float64) + self.bias)

    def append_to(self, graph: ModelProto) -> ModelProto:
        """A copy of a graph with the output `scores` float32 (N, 3), whose only output is `probabilities`."""
        if [output.name for output in graph.graph.output] != [SCORES]:
            raise InvalidInput("graph", f"a graph whose one output is `{SCORES}`",
                               [output.name for output in graph.graph.output])
        whole = ModelProto()
        whole.CopyFrom(graph)
        names = {"calibration_weights": self.weights, "calibration_bias": self.bias}
        whole.graph.initializer.extend(constant_tensors(names))
        whole.graph.node.append(helper.make_node("Gemm", [SCORES, *names], ["calibration_logits"], transB=1))
        whole.graph.node.append(helper.make_node("Softmax", ["calibration_logits"], [PROBABILITIES], axis=1))
        del whole.graph.output[:]
        whole.graph.output.append(
            helper.make_tensor_value_info(PROBABILITIES, TensorProto.FLOAT, ["N", len(CLASSES)]))
        return whole


@dataclass(frozen=True)
class ReliabilityBin:
    """Rows whose probability of one class lies in [low, high), the last bin with its upper end.

    place: of the class in CLASSES. mean_probability and frequency: what was said and what was, both 0 if rows is 0.
    """

    place: int
    low: float
    high: float
    rows: int
    mean_probability: float
    frequency: float


def fit_calibration(scores: NDArray[np.float64], classes: NDArray[np.integer], l2: float = L2) -> Calibration:
    """The calibration of scores (N, 3) for rows that were of these classes (N,), places in CLASSES.

    First one factor (the inverse temperature, > 0) with a bias, then the whole matrix, drawn to that factor times the
    identity. A class that never happened is made improbable, not impossible.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] != len(CLASSES) or len(values) != len(classes) or not len(values):
        raise InvalidInput("scores", "(N, 3) with N classes, N >= 1", (values.shape, len(classes)))
    if not np.isfinite(values).all():
        raise InvalidInput("scores", "finite", "a number that is not")
    mean = values.mean(axis=0)
    spread = float((values - mean).std()) or 1.0
    standard = (values - mean) / spread
    places = np.asarray(classes, dtype=np.int64)
    factor = _best_factor(standard, places)
    found = fit_softmax(standard, places, l2, factor * np.eye(len(CLASSES)))
    weights = found.weights / spread
    bias = found.bias - weights @ mean
    return Calibration(weights.astype(np.float32), (bias - bias.mean()).astype(np.float32))


def reliability(probabilities: NDArray[np.float64], classes: NDArray[np.integer],
                bins: int = BINS) -> tuple[ReliabilityBin, ...]:
    """Each class against the others, in bins of equal width; the rows of a reliability plot."""
    rows = []
    for place in range(len(CLASSES)):
        count, said, was = _binned(probabilities[:, place], classes == place, bins)
        rows += [ReliabilityBin(place, i / bins, (i + 1) / bins, int(count[i]), float(said[i]), float(was[i]))
                 for i in range(bins)]
    return tuple(rows)


def expected_calibration_error(probabilities: NDArray[np.float64], classes: NDArray[np.integer],
                               bins: int = BINS) -> float:
    """Mean |said - was| of the most probable class, in bins of equal width weighted by their rows; 0..1.

    Guo et al. 2017, equation 3. Finite rows alone make it about sqrt(bins / rows), also for perfect probabilities.
    """
    best = probabilities.argmax(axis=1)
    count, said, was = _binned(probabilities.max(axis=1), best == classes, bins)
    return float((count * np.abs(said - was)).sum() / max(count.sum(), 1))


def _best_factor(standard: NDArray[np.float64], classes: NDArray[np.int64]) -> float:
    """The inverse temperature with the least log loss, a bias fitted for each that is tried."""
    def loss(log_factor: float) -> float:
        logits = np.exp(log_factor) * standard
        return log_loss(softmax(logits + _best_bias(logits, classes)), classes)

    return float(np.exp(minimize_scalar(loss, bounds=LOG_TEMPERATURE, method="bounded", options={"xatol": 1e-3}).x))


def _best_bias(logits: NDArray[np.float64], classes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Under which the mean probabilities are the frequencies: the bias's own condition of least log loss.

    Iterative proportional fitting; a class without rows counts as half a row.
    """
    counts = np.maximum(np.bincount(classes, minlength=len(CLASSES)), 0.5)
    wanted = counts / counts.sum()
    bias = np.zeros(len(CLASSES))
    for _ in range(100):
        step = np.log(wanted / np.maximum(softmax(logits + bias).mean(axis=0), 1e-300))
        bias += step
        if np.abs(step).max() < 1e-6:
            break
    return bias


def _binned(probability: NDArray[np.float64], happened: NDArray[np.bool_],
            bins: int) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """By bin: rows, mean probability, frequency."""
    if not bins >= 1:
        raise InvalidInput("bins", ">= 1", bins)
    place = np.clip((probability * bins).astype(np.int64), 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    some = np.maximum(count, 1)
    return (count, np.bincount(place, weights=probability, minlength=bins) / some,
            np.bincount(place, weights=happened.astype(np.float64), minlength=bins) / some)
