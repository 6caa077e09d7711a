"""Calibration: probabilities that hold on rows it never saw, and the same numbers in the served graph."""

from __future__ import annotations

import numpy as np
import pytest
from labelled_rows import IDENTITY, LAYOUT, labelled_rows, served_scores
from numpy.typing import NDArray

from policies.errors import InvalidInput
from policies.onnx_graph import PROBABILITIES
from train.calibration import (
    expected_calibration_error,
    fit_calibration,
    reliability,
)
from train.linear import LinearLearner
from train.softmax import log_loss, softmax

# From true logits to what a model says: right, too sure, too timid, biased, mixed up, with two columns of three.
DISTORTIONS = {
    "right": np.eye(3), "too sure": 4 * np.eye(3), "timid": 0.1 * np.eye(3),
    "mixed up": np.array([[1.0, 0.4, -0.3], [0.0, 2.0, 0.2], [-0.5, 0.1, 0.7]]),
    "no column for flat": np.diag([1.0, 0.0, 1.0])}


def drawn(n: int, seed: int, distortion: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64],
                                                                       NDArray[np.float64]]:
    """Scores, classes drawn by the true probabilities, and those."""
    rng = np.random.default_rng(seed)
    logits = 0.7 * rng.normal(size=(n, 3)) + [0.2, 0.8, 0.0]
    truth = softmax(logits)
    classes = (rng.random((n, 1)) > truth.cumsum(axis=1)).sum(axis=1)
    return logits @ distortion.T + [0.5, -1.0, 0.0], classes, truth


@pytest.mark.parametrize("name", DISTORTIONS)
@pytest.mark.parametrize("seed", range(3))
def test_the_calibrated_loss_is_never_worse_than_the_uncalibrated_on_fresh_rows(name: str, seed: int) -> None:
    scores, classes, _ = drawn(2_000, seed, DISTORTIONS[name])
    fresh_scores, fresh_classes, truth = drawn(20_000, 100 + seed, DISTORTIONS[name])
    calibrated = log_loss(fit_calibration(scores, classes).probabilities(fresh_scores), fresh_classes)
    parameters = 8
    noise = 3 * parameters / (2 * 2_000)  # three times what fitting so many numbers on 2,000 rows costs
    assert calibrated <= log_loss(softmax(fresh_scores), fresh_classes) + noise
    if name != "no column for flat":
        assert calibrated <= log_loss(truth, fresh_classes) + noise


def test_scores_that_say_nothing_become_the_class_frequencies() -> None:
    classes = np.random.default_rng(0).choice(3, p=[0.2, 0.5, 0.3], size=3_000)
    calibration = fit_calibration(np.zeros((3_000, 3)), classes)
    expected = np.bincount(classes) / 3_000
    np.testing.assert_allclose(calibration.probabilities(np.zeros((1, 3)))[0], expected, atol=1e-4)


def test_probabilities_of_any_scores_sum_to_one() -> None:
    scores, classes, _ = drawn(500, 1, DISTORTIONS["mixed up"])
    probabilities = fit_calibration(scores, classes).probabilities(np.vstack([scores, 1e6 * scores, 0 * scores]))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert (probabilities >= 0).all()


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_the_scale_of_the_scores_does_not_matter(scale: float) -> None:
    scores, classes, _ = drawn(1_000, 2, DISTORTIONS["mixed up"])
    np.testing.assert_allclose(fit_calibration(scale * scores + 7, classes).probabilities(scale * scores + 7),
                               fit_calibration(scores, classes).probabilities(scores), atol=1e-3)


def test_a_class_that_never_happened_is_improbable_but_not_impossible() -> None:
    scores, classes, _ = drawn(1_000, 3, DISTORTIONS["right"])
    probabilities = fit_calibration(scores, np.where(classes == 1, 0, classes)).probabilities(scores)
    assert probabilities[:, 1].min() > 0
    assert probabilities[:, 1].max() < 0.05


def test_the_graph_answers_what_numpy_does() -> None:
    learner, rows = LinearLearner(), labelled_rows(1_000, 1)
    fitted = learner.fit(rows, rows, LAYOUT, learner.defaults(), 0, lambda step, loss: None)
    scores = fitted.scores(rows.values)
    calibration = fit_calibration(scores, rows.classes)
    graph = calibration.append_to(fitted.graph())
    assert [output.name for output in graph.graph.output] == [PROBABILITIES]
    np.testing.assert_allclose(served_scores(graph, rows.values, PROBABILITIES), calibration.probabilities(scores),
                               atol=1e-6)
    with pytest.raises(InvalidInput, match="graph"):
        calibration.append_to(graph)


@pytest.mark.parametrize("scores", [np.full((4, 3), np.nan), np.zeros((4, 2)), np.zeros((3, 3)), np.zeros((0, 3))])
def test_scores_that_are_none_are_refused(scores: NDArray[np.float64]) -> None:
    with pytest.raises(InvalidInput, match="scores"):
        fit_calibration(scores, np.zeros(4 if len(scores) else 0, np.int64))


def test_the_calibration_error_is_small_where_probabilities_hold_and_what_is_missing_where_not() -> None:
    _, classes, truth = drawn(50_000, 4, DISTORTIONS["right"])
    assert expected_calibration_error(truth, classes) < 0.01
    sure = np.zeros((1_000, 3))
    sure[:, 0] = 1.0
    assert expected_calibration_error(sure, np.arange(1_000) % 4 // 3) == pytest.approx(0.25)


def test_reliability_counts_every_row_once_a_class_and_agrees_with_brute_force() -> None:
    _, classes, truth = drawn(2_000, 5, DISTORTIONS["right"])
    bins = reliability(truth, classes, 10)
    assert [sum(part.rows for part in bins if part.place == place) for place in range(3)] == [2_000] * 3
    for part in bins:
        inside = (truth[:, part.place] >= part.low) & (truth[:, part.place] < part.high)
        assert part.rows == inside.sum()
        if part.rows:
            assert part.mean_probability == pytest.approx(truth[inside, part.place].mean())
            assert part.frequency == pytest.approx((classes[inside] == part.place).mean())


def test_a_certain_probability_lies_in_the_last_bin() -> None:
    bins = reliability(np.array([[1.0, 0.0, 0.0]]), np.array([0]), 5)
    assert [(part.place, part.low) for part in bins if part.rows] == [(0, 0.8), (1, 0.0), (2, 0.0)]
    with pytest.raises(InvalidInput, match="bins"):
        reliability(np.eye(3), np.arange(3), 0)


def test_the_identity_takes_scores_as_log_probabilities() -> None:
    truth = np.array([[0.2, 0.5, 0.3]])
    np.testing.assert_allclose(IDENTITY.probabilities(np.log(truth) + 3), truth)
