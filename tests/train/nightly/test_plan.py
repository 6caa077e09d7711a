"""The plan: steps stand behind what they need, and every command says what it was asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from here_jobs import says

from policies.errors import InvalidInput
from train.nightly.plan import FOLDER_OF, OUT, Plan, Step, with_folders
from train.nightly.settings import NightSettings, hub_market, night_plan, no_rl_because

SUNDAY_MS = 1_700_352_000_000  # 2023-11-19 00:00 UTC
DAY_MS = 86_400_000
SETTINGS = NightSettings(("SOL", "BTC"), data_dir="/bars", rl="yes", heads="linear")
HOME = Path("/home of the hub")


def command_of(name: str, settings: NightSettings = SETTINGS, now_ms: int = SUNDAY_MS) -> str:
    return " ".join(night_plan(HOME, settings, now_ms).steps[name].command)


def test_a_step_before_what_it_needs_is_refused() -> None:
    for steps in ([says("b", needs=["a"]), says("a")], [says("a"), says("a")],
                  [says("a", needs_one_of=("nobody",))]):
        with pytest.raises(InvalidInput):
            Plan(steps)


def test_a_step_is_named_by_all_that_it_depends_on() -> None:
    plan = Plan([says("a"), says("b", needs=["a"]), says("c")])
    other = Plan([says("a", "otherwise"), says("b", needs=["a"]), says("c")])
    assert plan.key != other.key
    assert {name for name in plan.steps if plan.folder_of(name) != other.folder_of(name)} == {"a", "b"}


def test_folders_are_filled_into_a_command_when_it_is_run() -> None:
    assert with_folders(("x", OUT, f"--made={FOLDER_OF % 'a'}", FOLDER_OF % "b"), "/out", {"a": "/of a"}) == (
        "x", "/out", "--made=/of a", FOLDER_OF % "b")


def test_what_needs_what() -> None:
    steps = night_plan(HOME, SETTINGS, SUNDAY_MS).steps
    assert {name: step.before for name, step in steps.items()} == {
        "features": (), "drift": ("features",), "supervised": ("features",), "rl.ppo": ("features",),
        "rl.sac": ("features",), "bo": ("features",), "forward": ("supervised", "rl.ppo", "rl.sac"),
        "register": ("forward",), "param_start": ("bo",)}
    assert steps["forward"].needs == ()


def test_what_was_asked_for_reaches_the_commands() -> None:
    for name in ("supervised", "rl.ppo", "bo"):
        assert "--coins SOL,BTC" in command_of(name)
        assert "--data-dir /bars" in command_of(name)
        assert "--lookback 25200" in command_of(name)
    assert "--heads linear" in command_of("supervised")
    assert "--steps 200000" in command_of("rl.sac")
    assert "--algo sac" in command_of("rl.sac")
    assert "--symbols SOL,BTC" in command_of("features")


def test_no_step_takes_the_candidates_of_another_that_runs_beside_it() -> None:
    steps = night_plan(HOME, SETTINGS, SUNDAY_MS).steps
    made = [pattern for step in steps.values() for pattern in step.makes]
    assert not any("*" in pattern for pattern in made)
    assert len(set(made)) == len(made)
    assert {"models/candidate_linear.pt", "models/candidate_ensemble.pt"} <= set(steps["supervised"].makes)
    assert steps["rl.sac"].makes == ("models/candidate_sac.pt",)


def test_candidates_are_handed_over_after_their_test_only() -> None:
    for name in ("supervised", "rl.ppo", "rl.sac", "bo"):
        assert "--keep-back" in command_of(name)


@pytest.mark.parametrize(("asked", "days_later", "skipped"), [
    ("auto", 0, False), ("auto", 1, True), ("auto", 7, False), ("yes", 3, False), ("no", 0, True)])
def test_reinforcement_learning_is_weekly_unless_asked_for(asked: str, days_later: int, skipped: bool) -> None:
    settings = replace(SETTINGS, rl=asked)  # type: ignore[arg-type]
    assert bool(no_rl_because(settings, SUNDAY_MS + days_later * DAY_MS)) == skipped
    plan = night_plan(HOME, settings, SUNDAY_MS + days_later * DAY_MS)
    assert bool(plan.steps["rl.ppo"].skipped) == skipped


def test_a_night_that_is_gone_on_with_hours_later_has_the_same_steps() -> None:
    now = night_plan(HOME, SETTINGS, SUNDAY_MS + 1)
    assert now.key == night_plan(HOME, SETTINGS, SUNDAY_MS + DAY_MS - 1).key
    assert now.key != night_plan(HOME, SETTINGS, SUNDAY_MS + DAY_MS).key


def test_the_hubs_own_command_gets_the_market_that_was_asked_for() -> None:
    assert hub_market(SETTINGS) == {}  # the hub's configuration says
    assert hub_market(replace(SETTINGS, market="files")) == {"HUB_MARKET__KIND": "files"}
    assert hub_market(replace(SETTINGS, market="generated", seed=3))["HUB_MARKET__SEED"] == "3"


@pytest.mark.parametrize(("word", "changed"), [
    ("COINS", {"symbols": ()}), ("COINS", {"symbols": ("BTC", "BTC")}), ("RL", {"rl": "perhaps"}),
    ("ALGO", {"algorithms": ("dqn",)}), ("ALGO: must be different", {"algorithms": ("ppo", "ppo")}),
    ("rl-weekday", {"rl_weekday": 7}), ("STEPS", {"steps": float("nan")}),
    ("LOOKBACK", {"lookback_bars": 2_999}), ("BO_TRIALS", {"bo_trials": 0}), ("BO_TRIALS", {"bo_trials": 1_001}),
    ("STEPS", {"steps": 999}), ("STEPS", {"steps": 4_000}), ("SIZE", {"size": "huge"}),
    ("HEADS", {"heads": "linear,tree"}), ("WINDOW", {"window_bars": 9}), ("FOLDS", {"folds": 51}),
    ("TRIALS", {"trials": 0})])
def test_what_cannot_be_is_refused_by_its_word(word: str, changed: dict[str, object]) -> None:
    with pytest.raises(InvalidInput, match=word):
        replace(SETTINGS, **changed)  # type: ignore[arg-type]


def test_a_night_without_reinforcement_learning_does_not_ask_for_its_steps() -> None:
    assert replace(SETTINGS, rl="no", steps=4_000).steps == 4_000


def test_a_step_knows_all_that_it_waits_for() -> None:
    assert Step("a", needs=("b",), needs_one_of=("c", "d")).before == ("b", "c", "d")
