"""Rows with a known edge, as supervised learners take them, and what they can at most make of chance."""

from __future__ import annotations

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto

from policies.heads import CLASSES
from train.calibration import Calibration, fit_calibration
from train.dataset import classes_of
from train.learners import ROWS, Labelled, Layout, Learner
from train.softmax import log_loss

OPTIONAL = ("e", "f")
IDENTITY = Calibration(np.eye(3, dtype=np.float32), np.zeros(3, np.float32))  # of scores that are log probabilities
LAYOUT = Layout(("a", "b", "c", "d", *OPTIONAL), OPTIONAL)


def labelled_rows(n: int, seed: int, signal: float = 1.0, layout: Layout = LAYOUT) -> Labelled:
    """Long pays when the first feature is above 0, short when it is below, both in part by chance.

    Scales differ by column; optional features are missing in three rows of ten; the last required feature is constant.
    """
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n, layout.width))
    move = 0.02 * (signal * np.sign(values[:, 0]) + rng.normal(size=n))
    values = values * 10.0 ** (np.arange(layout.width) % 5 - 2) + np.arange(layout.width)
    missing = rng.random((n, len(layout.optional))) < 0.3
    for column, name in enumerate(layout.optional):
        values[missing[:, column], layout.features.index(name)] = np.nan
    values[:, len(layout.features) - len(layout.optional) - 1] = 5.0
    returns = np.column_stack([move - 0.01, -move - 0.01])
    return Labelled(values.astype(np.float32), classes_of(*returns.T).astype(np.int64), returns)


def chance_loss(fit: Labelled, judged: Labelled) -> float:
    """The log loss of saying the class frequencies of `fit` to every row."""
    frequencies = np.bincount(fit.classes, minlength=len(CLASSES)) / len(fit)
    return log_loss(np.tile(frequencies, (len(judged), 1)), judged.classes)


def served_scores(graph: ModelProto, values: NDArray[np.float32], output: str = "scores") -> NDArray[np.float64]:
    """(N, 3) by ONNX Runtime on one thread, row by row, as a head asks."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run([output], {ROWS: row[None]})[0] for row in values]).astype(np.float64)


def gain_over_chance(learner: Learner, signal: float, seed: int, rows: int = 2_000) -> float:
    """Nats a row by which a fit's calibrated scores are better than the class frequencies, on fresh rows."""
    fit, validation, fresh = (labelled_rows(rows, 3 * seed + part, signal) for part in range(3))
    fitted = learner.fit(fit, validation, LAYOUT, learner.defaults(), seed, lambda step, loss: None)
    calibration = fit_calibration(fitted.scores(validation.values), validation.classes)
    return chance_loss(fit, fresh) - log_loss(calibration.probabilities(fitted.scores(fresh.values)), fresh.classes)
