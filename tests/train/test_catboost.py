"""The trained head: learns what is there, is served as it was trained, and is the same bundle from the same rows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from labelled_rows import LAYOUT, gain_over_chance, labelled_rows, served_scores

from policies.bundle import Manifest, pack_bundle, read_bundle
from policies.checks import check_policy
from policies.errors import InvalidInput
from policies.heads import load_head
from train.calibration import expected_calibration_error
from train.catboost import CatBoostLearner, FittedCatBoost
from train.dataset import FLAT, LONG, SHORT, Brackets, Dataset
from train.first_heads import CatBoostSettings, Trained, train_catboost
from train.softmax import log_loss, softmax

LEARNER = CatBoostLearner(iterations=60)
SETTINGS = CatBoostSettings(depth=4, iterations=40, learning_rate=0.2)
TEMPLATE = Manifest("momentum_rule", "trees_v1", ("a", "b", "c"), optional_features=("c",), trained_on={"seed": 1})


def rows(n: int, seed: int, signal: float = 1.0) -> Dataset:
    """Long pays when a > 0, short when a < 0, both in part by chance; c is often missing."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n, 3))
    values[rng.random(n) < 0.3, 2] = np.nan
    move = 0.02 * (signal * np.sign(values[:, 0]) + rng.normal(size=n))
    long, short = move - 0.01, -move - 0.01
    classes = np.where(np.maximum(long, short) <= 0, FLAT, np.where(long >= short, LONG, SHORT)).astype(np.int8)
    times = np.arange(n, dtype=np.int64) * 60_000
    return Dataset(np.full(n, "BTC"), times, values, times + 60_000, classes, long, short)


def ignored(step: int, loss: float) -> None:
    pass


@pytest.fixture(scope="module")
def fitted() -> FittedCatBoost:
    return LEARNER.fit(labelled_rows(2_000, 1), labelled_rows(1_000, 2), LAYOUT, LEARNER.defaults(), 7, ignored)


@pytest.fixture(scope="module")
def trained() -> Trained:
    return train_catboost(rows(3_000, 1), rows(1_000, 2), TEMPLATE, Brackets(), SETTINGS)


def test_the_bundle_is_sound_and_survives_packing(trained: Trained) -> None:
    bundle = read_bundle(pack_bundle(trained.bundle))
    assert bundle.policy_id == trained.bundle.policy_id
    assert check_policy(load_head(bundle), rows(200, 3).values) == []


def test_it_learns_the_direction_that_pays(trained: Trained) -> None:
    fresh = rows(1_000, 4)
    probabilities = load_head(trained.bundle).predict(fresh.values)
    sure = np.abs(fresh.values[:, 0]) > 0.5
    assert np.mean((probabilities[:, LONG] > probabilities[:, SHORT]) == (fresh.values[:, 0] > 0), where=sure) > 0.95


def test_the_same_rows_and_settings_give_the_same_bundle(trained: Trained) -> None:
    again = train_catboost(rows(3_000, 1), rows(1_000, 2), TEMPLATE, Brackets(), SETTINGS)
    assert again.bundle.policy_id == trained.bundle.policy_id
    other = train_catboost(rows(3_000, 1), rows(1_000, 2), TEMPLATE, Brackets(),
                           dataclasses.replace(SETTINGS, seed=8))
    assert other.bundle.policy_id != trained.bundle.policy_id


def test_the_manifest_says_what_it_was_trained_on_with_every_trial(trained: Trained) -> None:
    told = trained.bundle.manifest.trained_on
    assert told["seed"] == 1
    assert told["fit"]["rows"] == 3_000
    assert len(told["levels_tried"]) == 18
    assert trained.bundle.manifest.optional_features == ("c",)


def test_rows_that_lack_a_class_are_refused() -> None:
    part = rows(100, 1)
    without_flat = part.take(np.flatnonzero(part.classes != FLAT))
    with pytest.raises(InvalidInput, match=r"fit\.classes"):
        train_catboost(without_flat, part, TEMPLATE, Brackets(), SETTINGS)


def test_probabilities_of_the_bundle_hold_on_later_rows(trained: Trained) -> None:
    fresh = rows(3_000, 8)
    probabilities = load_head(trained.bundle).predict(fresh.values)
    assert expected_calibration_error(probabilities, fresh.classes) < 0.08


def test_served_scores_are_the_fitted_ones_with_missing_features(fitted: FittedCatBoost) -> None:
    fresh = labelled_rows(1_000, 9)
    assert np.isnan(fresh.values).any()
    np.testing.assert_allclose(served_scores(fitted.graph(), fresh.values), fitted.scores(fresh.values), atol=1e-5)


def test_a_window_in_the_row_is_not_read_and_an_embedding_is() -> None:
    layout = dataclasses.replace(LAYOUT, embedding=2, window_bars=3)
    model = LEARNER.fit(labelled_rows(500, 1, layout=layout), labelled_rows(200, 2, layout=layout), layout,
                        LEARNER.defaults(), 7, ignored)
    fresh = labelled_rows(200, 9, layout=layout).values
    other = fresh.copy()
    other[:, layout.window] = 1e6
    np.testing.assert_allclose(served_scores(model.graph(), other), model.scores(fresh), atol=1e-5)
    assert set(model.importances) == {*LAYOUT.features, "embedding_0", "embedding_1"}


def test_the_same_seed_gives_the_same_graph_whatever_the_threads(fitted: FittedCatBoost) -> None:
    again = CatBoostLearner(iterations=60, threads=1).fit(
        labelled_rows(2_000, 1), labelled_rows(1_000, 2), LAYOUT, LEARNER.defaults(), 7, ignored)
    assert again.graph().SerializeToString(deterministic=True) == fitted.graph().SerializeToString(deterministic=True)


@pytest.mark.parametrize("seed", range(3))
def test_it_learns_what_is_there_and_makes_nothing_of_noise(seed: int) -> None:
    assert gain_over_chance(LEARNER, 1.0, seed) > 0.05
    assert gain_over_chance(LEARNER, 0.0, seed) < 0.004


def test_importances_are_shares_and_the_feature_that_pays_has_the_most(fitted: FittedCatBoost) -> None:
    assert sum(fitted.importances.values()) == pytest.approx(1)
    assert max(fitted.importances, key=lambda name: fitted.importances[name]) == "a"


def test_whoever_listens_is_told_the_validation_loss_and_may_end_the_fit() -> None:
    told: list[tuple[int, float]] = []

    def heard(step: int, loss: float) -> None:
        told.append((step, loss))
        if step >= 20:
            raise StopIteration("enough")

    fit, validation = labelled_rows(2_000, 1), labelled_rows(1_000, 2)
    with pytest.raises(StopIteration, match="enough"):
        LEARNER.fit(fit, validation, LAYOUT, LEARNER.defaults(), 7, heard)
    assert [step for step, _ in told] == [10, 20]
    stopped = CatBoostLearner(iterations=20).fit(fit, validation, LAYOUT, LEARNER.defaults(), 7, ignored)
    assert stopped.steps == 20
    assert told[-1][1] == pytest.approx(log_loss(softmax(stopped.scores(validation.values)), validation.classes))


def test_defaults_lie_in_the_space() -> None:
    assert LEARNER.space().keys() == LEARNER.defaults().keys()
    assert all(space.low <= float(LEARNER.defaults()[name]) <= space.high for name, space in LEARNER.space().items())
