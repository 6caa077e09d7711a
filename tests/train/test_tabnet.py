"""TabNet: predicts what a long and a short would earn, and is served without the library that trained it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from labelled_rows import LAYOUT, chance_loss, labelled_rows, served_scores
from pytorch_tabnet.sparsemax import Sparsemax

from policies.errors import InvalidInput
from policies.onnx_graph import PROBABILITIES, require_closed_graph
from train.calibration import fit_calibration
from train.dataset import FLAT, LONG, SHORT
from train.learners import Layout
from train.softmax import log_loss
from train.tabnet import PROFILES, FittedTabNet, PlainSparsemax, TabNetLearner, Targets, plain_network

LEARNER = TabNetLearner("small", max_epochs=12)


def fit(seed: int = 1, signal: float = 1.0, layout: Layout = LAYOUT, rows: int = 2_000,
        learner: TabNetLearner = LEARNER) -> FittedTabNet:
    return learner.fit(labelled_rows(rows, 3 * seed, signal, layout), labelled_rows(rows, 3 * seed + 1, signal, layout),
                       layout, learner.defaults(), seed, lambda step, loss: None)


@pytest.fixture(scope="module")
def fitted() -> FittedTabNet:
    return fit()


def gain(model: FittedTabNet, seed: int, signal: float) -> float:
    """Nats a row over the class frequencies, on rows that neither the fit nor the calibration saw."""
    learnt, checked, fresh = (labelled_rows(2_000, 3 * seed + part, signal) for part in range(3))
    calibration = fit_calibration(model.scores(checked.values), checked.classes)
    return chance_loss(learnt, fresh) - log_loss(calibration.probabilities(model.scores(fresh.values)), fresh.classes)


def test_served_scores_are_the_librarys_with_missing_features_and_without_the_window() -> None:
    layout = replace(LAYOUT, embedding=2, window_bars=3)
    model = fit(layout=layout, learner=TabNetLearner("small", max_epochs=3))
    rows = labelled_rows(1_000, 9, layout=layout).values
    assert np.isnan(rows).any()
    other = rows.copy()
    other[:, layout.window] = 1e6
    graph = model.graph()
    np.testing.assert_allclose(served_scores(graph, other), model.scores(rows), atol=1e-4)
    assert set(model.importances) == {*LAYOUT.features, "embedding_0", "embedding_1"}
    onnx.checker.check_model(graph, full_check=True)
    calibrated = fit_calibration(model.scores(rows), np.arange(1_000) % 3).append_to(graph)
    assert calibrated.graph.output[0].name == PROBABILITIES
    require_closed_graph(calibrated.SerializeToString(), layout.width)


def test_the_same_seed_gives_the_same_graph_and_another_seed_another() -> None:
    learner, rows = TabNetLearner("small", max_epochs=2), labelled_rows(600, 3)
    settings = {**learner.defaults(), "steps": 1}
    state = torch.random.get_rng_state()
    once, again, other = (learner.fit(rows, rows, LAYOUT, settings, seed, lambda step, loss: None)
                          for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert once.graph().SerializeToString(deterministic=True) == again.graph().SerializeToString(deterministic=True)
    assert not np.array_equal(other.scores(rows.values), once.scores(rows.values))


@pytest.mark.parametrize("seed", [1, 2])
def test_it_learns_what_is_there_and_makes_nothing_of_noise(seed: int) -> None:
    assert gain(fit(seed), seed, 1.0) > 0.05
    assert gain(fit(seed, signal=0.0), seed, 0.0) < 0.005


def test_scores_are_predicted_net_returns_of_short_nothing_and_long(fitted: FittedTabNet) -> None:
    fresh = labelled_rows(2_000, 5)
    scores = fitted.scores(fresh.values)
    assert not scores[:, FLAT].any()
    up = fresh.values[:, 0] > np.median(fresh.values[:, 0])
    for column, place in ((0, LONG), (1, SHORT)):
        predicted = scores[:, place] * fitted.targets.scale
        for half in (up, ~up):
            assert predicted[half].mean() == pytest.approx(fresh.returns[half, column].mean(), abs=0.004)


def test_whoever_listens_is_told_every_epoch_and_may_end_the_fit() -> None:
    told: list[tuple[int, float]] = []

    def heard(step: int, loss: float) -> None:
        told.append((step, loss))
        if step == 3:
            raise StopIteration("enough")

    rows = labelled_rows(500, 1)
    with pytest.raises(StopIteration, match="enough"):
        LEARNER.fit(rows, rows, LAYOUT, LEARNER.defaults(), 1, heard)
    assert [step for step, _ in told] == [1, 2, 3]


def test_the_weights_of_the_best_epoch_are_kept() -> None:
    told: list[float] = []
    learnt, checked = labelled_rows(400, 1, 0.0), labelled_rows(400, 2, 0.0)
    learner = TabNetLearner("small", max_epochs=25)
    model = learner.fit(learnt, checked, LAYOUT, learner.defaults(), 1, lambda step, loss: told.append(loss))
    assert model.steps == 1 + int(np.argmin(told)) < len(told)
    assert len(told) == min(25, model.steps + PROFILES["small"].patience)
    scores = model.scores(checked.values)[:, [LONG, SHORT]] - model.targets.offset
    errors = scores - model.targets.scaled(checked.returns)
    assert np.sqrt(np.mean(errors ** 2)) == pytest.approx(min(told), rel=1e-4)


def test_the_plain_mask_selector_is_the_librarys() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.cat([3 * torch.randn(500, 7, generator=generator), torch.zeros(1, 7), torch.eye(7)])
    projected = PlainSparsemax()(rows)
    torch.testing.assert_close(projected, Sparsemax()(rows.clone()), atol=1e-6, rtol=0)
    torch.testing.assert_close(projected.sum(dim=1), torch.ones(len(rows)))
    assert (projected == 0).any()


def test_the_plain_network_is_the_librarys(fitted: FittedTabNet) -> None:
    rows = torch.randn(300, len(LAYOUT.features), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = fitted.model.network(rows.clone())[0]
        torch.testing.assert_close(plain_network(fitted.model.network)(rows)[0], expected, atol=1e-6, rtol=1e-6)


def test_targets_are_about_one_and_come_back() -> None:
    returns = labelled_rows(1_000, 1).returns
    targets = Targets.of(returns)
    scaled = targets.scaled(returns)
    assert scaled.std() == pytest.approx(1, abs=0.01)
    np.testing.assert_allclose((scaled + targets.offset) * targets.scale, returns, atol=1e-6)


def test_importances_are_shares_and_the_feature_that_pays_has_the_most(fitted: FittedTabNet) -> None:
    assert sum(fitted.importances.values()) == pytest.approx(1)
    assert max(fitted.importances, key=lambda name: fitted.importances[name]) == "a"


def test_sizes_have_defaults_in_their_space_and_full_is_the_users_own() -> None:
    for size in PROFILES:
        learner = TabNetLearner(size)
        assert learner.space().keys() == learner.defaults().keys()
    assert TabNetLearner("full").defaults() == {"width": 64, "steps": 5, "gamma": 1.5, "lambda_sparse": 1e-4,
                                                "learning_rate": 2e-2}
    full = TabNetLearner("full").profile
    assert (full.max_epochs, full.patience, full.step_epochs, full.step_factor) == (1000, 50, 50, 0.9)
    with pytest.raises(InvalidInput, match="size"):
        TabNetLearner("huge")


def test_rows_that_lack_a_class_are_refused() -> None:
    rows = labelled_rows(200, 1)
    with pytest.raises(InvalidInput, match=r"fit\.classes"):
        LEARNER.fit(replace(rows, classes=np.zeros(200, np.int64)), rows, LAYOUT, LEARNER.defaults(), 0,
                    lambda step, loss: None)
