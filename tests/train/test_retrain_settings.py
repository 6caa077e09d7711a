"""What a search may be told: everything else is refused by the word that the user typed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from small_search import PLAIN, SYMBOLS, retraining, without_ray

from feature_repo.generated import GeneratedMarket
from feature_repo.windows import WINDOW_BARS
from policies.errors import InvalidInput
from train.estimate import described, seconds_left
from train.retrain_settings import LEAST_BARS, RetrainSettings
from train.supervised import ENSEMBLE, PLANS


def of(**given: object) -> RetrainSettings:
    return RetrainSettings(**{"symbols": ("SOL", "BTC"), **given})  # type: ignore[arg-type]


@pytest.mark.parametrize(("word", "given"), [
    ("SIZE", {"size": "huge"}), ("COINS", {"symbols": ()}), ("COINS", {"symbols": ("BTC", "BTC")}),
    ("COINS", {"symbols": ("",)}), ("HEADS", {"heads": ("lstm",)}), ("HEADS", {"heads": ()}),
    ("WINDOW", {"window_bars": 0}), ("WINDOW", {"window_bars": 121}), ("WINDOW", {"window_bars": 62}),
    ("LOOKBACK", {"lookback_bars": 10}),
    ("TRIALS", {"trials": 0}), ("SEEDS", {"seeds": 0}), ("FOLDS", {"folds": 0}), ("FOLDS", {"folds": float("nan")}),
])
def test_what_is_out_of_range_is_refused_by_its_own_word(word: str, given: dict[str, object]) -> None:
    with pytest.raises(InvalidInput, match=word):
        of(**given)


def test_the_bars_that_a_search_needs_are_enough_and_one_less_is_refused_in_words(tmp_path: Path) -> None:
    settings = replace(PLAIN, window_bars=WINDOW_BARS)
    with without_ray():
        found = retraining(tmp_path, settings, of=GeneratedMarket(3, 1.0, SYMBOLS, LEAST_BARS)).run()
    assert {candidate.name for candidate in found.candidates} == {"linear", "catboost"}
    with pytest.raises(InvalidInput, match=f"at least {LEAST_BARS} bars .* got BTC with {LEAST_BARS - 1}"):
        retraining(tmp_path, settings, of=GeneratedMarket(3, 1.0, SYMBOLS, LEAST_BARS - 1))


def test_every_head_brings_the_baseline_that_it_must_beat() -> None:
    assert of(heads=("catboost_mae",)).plans == ("linear", "catboost", "catboost_mae")
    for name in PLANS:
        plans = of(heads=(name,)).plans
        assert {PLANS[name].baseline, name} <= set(plans)


def test_an_ensemble_by_itself_brings_members() -> None:
    settings = of(heads=(ENSEMBLE,))
    assert len(settings.members) >= 2
    assert set(settings.members) <= set(settings.plans)
    assert of(heads=("linear",)).members == ()


def test_a_head_with_an_embedding_has_no_sweep_of_its_own() -> None:
    assert of(heads=("catboost_mae", "linear_mae")).swept == ("linear", "catboost")
    assert of(heads=("timesnet",)).swept == ("linear", "timesnet")
    assert not of(heads=("timesnet",)).embeds


def test_an_estimate_falls_as_steps_are_done_and_more_cores_never_take_longer() -> None:
    steps = ("rows", "embedder", "sweep.linear", "sweep.tabnet", "fit.tabnet.0.0", "final.tabnet")
    left = [seconds_left(steps[done:], of(), 2) for done in range(len(steps) + 1)]
    assert left == sorted(left, reverse=True)
    assert left[-1] == 0
    assert seconds_left(steps, of(), 8) <= seconds_left(steps, of(), 2) <= seconds_left(steps, of(), 1)
    assert seconds_left(steps, of(size="full"), 2) > 10 * seconds_left(steps, of(), 2)


def test_lengths_of_time_are_told_in_words() -> None:
    assert [described(s) for s in (3, 89, 600, 7_200)] == ["3 s", "89 s", "10 min", "2.0 h"]
