"""The linear baseline: the regularised maximum of the likelihood, served as it was fitted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from labelled_rows import IDENTITY, LAYOUT, gain_over_chance, labelled_rows, served_scores
from sklearn.linear_model import LogisticRegression

from policies.errors import InvalidInput
from policies.onnx_graph import require_closed_graph
from train.learners import Layout
from train.linear import FittedLinear, LinearLearner
from train.softmax import fit_softmax, log_loss, softmax
from train.tabular import Scaling

LEARNER = LinearLearner()


def fitted(seed: int = 1, layout: Layout = LAYOUT, rows: int = 2_000) -> FittedLinear:
    return LEARNER.fit(labelled_rows(rows, seed, layout=layout), labelled_rows(500, seed + 1, layout=layout), layout,
                       LEARNER.defaults(), 0, lambda step, loss: None)


def test_served_scores_are_the_fitted_ones_with_missing_features() -> None:
    model, rows = fitted(), labelled_rows(1_000, 9)
    assert np.isnan(rows.values).any()
    np.testing.assert_allclose(served_scores(model.graph(), rows.values), model.scores(rows.values), atol=1e-5)


def test_a_window_in_the_row_is_not_read() -> None:
    layout = replace(LAYOUT, embedding=4, window_bars=3)
    model, rows = fitted(layout=layout), labelled_rows(200, 9, layout=layout)
    other = rows.values.copy()
    other[:, layout.window] = 1e6
    np.testing.assert_array_equal(model.scores(other), model.scores(rows.values))
    np.testing.assert_allclose(served_scores(model.graph(), other), model.scores(rows.values), atol=1e-5)
    assert set(model.importances) == {*layout.features, "embedding_0", "embedding_1", "embedding_2", "embedding_3"}


def test_the_graph_with_calibration_is_one_that_a_bundle_may_carry() -> None:
    graph = IDENTITY.append_to(fitted().graph())
    onnx.checker.check_model(graph, full_check=True)
    require_closed_graph(graph.SerializeToString(), LAYOUT.width)


def test_the_same_rows_give_the_same_graph_and_others_another() -> None:
    once, again, other = (fitted(seed).graph().SerializeToString(deterministic=True) for seed in (1, 1, 5))
    assert once == again
    assert once != other


@pytest.mark.parametrize("seed", range(5))
def test_it_learns_the_direction_that_pays_and_makes_nothing_of_noise(seed: int) -> None:
    assert gain_over_chance(LEARNER, 1.0, seed) > 0.05
    assert gain_over_chance(LEARNER, 0.0, seed) < 0.003


def test_the_weights_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    rows, l2 = rng.normal(size=(800, 5)), 0.05
    classes = rng.choice(3, p=[0.2, 0.3, 0.5], size=800)
    own = fit_softmax(rows, classes, l2, np.zeros((3, 5)))
    theirs = LogisticRegression(C=1 / (l2 * 800), tol=1e-10, max_iter=1_000).fit(rows, classes)
    np.testing.assert_allclose(own.weights, theirs.coef_, atol=1e-4)
    np.testing.assert_allclose(own.bias - own.bias.mean(), theirs.intercept_ - theirs.intercept_.mean(), atol=1e-4)


def test_a_column_that_never_changed_or_was_never_there_is_ignored_when_served() -> None:
    table = np.column_stack([np.full(50, 1e6), np.full(50, np.nan), np.arange(50)]).astype(np.float32)
    scaled = Scaling.of(table).applied(np.array([[3.0, 4.0, 24.5], [np.nan, np.nan, np.nan], [0, 0, 1e9]], np.float32))
    np.testing.assert_array_equal(scaled, [[0, 0, 0], [0, 0, 0], [0, 0, 10]])


def test_the_loss_that_is_told_is_that_of_the_validation_rows() -> None:
    told, validation = [], labelled_rows(500, 2)
    model = LEARNER.fit(labelled_rows(1_000, 1), validation, LAYOUT, LEARNER.defaults(), 0,
                        lambda step, loss: told.append((step, loss)))
    assert told == [(1, log_loss(softmax(model.scores(validation.values)), validation.classes))]


def test_importances_are_shares_and_the_feature_that_pays_has_the_most() -> None:
    shares = fitted().importances
    assert sum(shares.values()) == pytest.approx(1)
    assert max(shares, key=lambda name: shares[name]) == "a"
    assert shares["d"] == 0


def test_rows_without_one_class_and_an_l2_that_is_none_are_refused() -> None:
    rows = labelled_rows(200, 1)
    one_class = replace(rows, classes=np.zeros(200, np.int64))
    with pytest.raises(InvalidInput, match=r"fit\.classes"):
        LEARNER.fit(one_class, rows, LAYOUT, LEARNER.defaults(), 0, lambda s, v: None)
    with pytest.raises(InvalidInput, match="l2"):
        LEARNER.fit(rows, rows, LAYOUT, {"l2": float("nan")}, 0, lambda s, v: None)
    with pytest.raises(InvalidInput, match="rows of 7"):
        LEARNER.fit(rows, rows, replace(LAYOUT, embedding=1), LEARNER.defaults(), 0, lambda s, v: None)
