"""The trained head: learns what is there, is served as it was trained, and is the same bundle from the same rows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from policies.bundle import Manifest, pack_bundle, read_bundle
from policies.checks import check_policy
from policies.errors import InvalidInput
from policies.heads import CLASSES, load_head
from policies.types import Context, Direction, Portfolio
from train.catboost import (
    CatBoostSettings,
    Trained,
    choose_trial,
    chosen_directions,
    level_trials,
    train_catboost,
)
from train.dataset import FLAT, LONG, SHORT, Brackets, Dataset

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
    assert len(told["trials"]) == 18
    assert trained.bundle.manifest.optional_features == ("c",)


def test_the_rule_over_many_rows_is_the_heads_own_rule(trained: Trained) -> None:
    levels = {"min_conf": 0.6, "max_p_flat": 0.3}
    manifest = dataclasses.replace(trained.bundle.manifest,
                                   parameters={**trained.bundle.manifest.parameters, **levels})
    head = load_head(dataclasses.replace(trained.bundle, manifest=manifest))
    values = rows(300, 5).values
    signs = chosen_directions(head.predict(values), **levels)
    proposed = [head.propose(Context("BTC", "momentum", 0, tuple(row), {}, Portfolio(1e4))).action.direction.sign
                for row in values]
    assert signs.tolist() == proposed
    assert set(proposed) == {-1, 0, 1}


def test_a_trial_is_judged_by_what_its_trades_earned() -> None:
    part = rows(500, 6)
    probabilities = np.random.default_rng(0).dirichlet(np.ones(3), 500)
    for trial in level_trials(probabilities, part):
        earned = []
        for (p_short, p_flat, p_long), long, short in zip(probabilities, part.long_return, part.short_return,
                                                          strict=True):
            if max(p_short, p_long) / (p_short + p_long) >= trial["min_conf"] and p_flat <= trial["max_p_flat"]:
                earned.append(long if p_long > p_short else short)
        assert trial["trades"] == len(earned)
        assert trial["mean"] == pytest.approx(np.mean(earned))
        assert trial["score"] == pytest.approx(np.mean(earned) / (np.std(earned) / len(earned) ** 0.5))


def test_the_chosen_trial_reaches_the_aim_if_one_does_and_never_rests_on_few_trades() -> None:
    def trial(trades: float, score: float, profit_factor: float) -> dict[str, float]:
        return {"trades": trades, "score": score, "profit_factor": profit_factor}

    few, aimed, strong = trial(5, 99, 99), trial(50, 3, 2.6), trial(500, 9, 1.4)
    assert choose_trial([few, aimed, strong]) is aimed
    assert choose_trial([few, strong]) is strong
    assert choose_trial([few, trial(2, 100, 100)]) is few


def test_rows_that_lack_a_class_are_refused() -> None:
    part = rows(100, 1)
    without_flat = part.take(np.flatnonzero(part.classes != FLAT))
    with pytest.raises(InvalidInput, match=r"fit\.classes"):
        train_catboost(without_flat, part, TEMPLATE, Brackets(), SETTINGS)


def test_classes_are_places_in_the_heads_order() -> None:
    assert (CLASSES[SHORT], CLASSES[FLAT], CLASSES[LONG]) == (Direction.SHORT, Direction.FLAT, Direction.LONG)
