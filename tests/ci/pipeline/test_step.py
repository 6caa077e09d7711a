"""What steps share: waiting for who is away, codes of their ends, notes for the next step, settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from ci.pipeline.settings import PipelineSettings, setting_options
from ci.pipeline.step import (
    AWAY,
    FAILED,
    INTERRUPTED,
    LONGEST_PAUSE_S,
    Away,
    Stopped,
    again,
    command,
    ended,
    leave_note,
    read_note,
)
from ci.pipeline.unit_tests import commands, environment_for_tests
from policies.errors import InvalidInput


class Time:
    def __init__(self) -> None:
        self.now, self.pauses = 0.0, list[float]()

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.pauses.append(seconds)


def failing(times: int, time: Time) -> Callable[[], int]:
    calls: list[float] = []

    def work() -> int:
        calls.append(time.now)
        if len(calls) <= times:
            raise Away("not there")
        return len(calls)

    return work


def test_who_is_away_for_a_while_is_asked_again_with_growing_pauses() -> None:
    time, said = Time(), list[str]()
    assert again(failing(8, time), 1_000.0, said.append, lambda: time.now, time.sleep) == 9
    assert time.pauses == sorted(time.pauses)
    assert max(time.pauses) == LONGEST_PAUSE_S
    assert said == ["not there; trying again"] * 8


@pytest.mark.parametrize("patience_s", [0.0, 10.0])
def test_patience_ends_after_the_last_try_at_its_end(patience_s: float) -> None:
    time = Time()
    with pytest.raises(Away):
        again(failing(1_000, time), patience_s, lambda text: None, lambda: time.now, time.sleep)
    assert time.now == pytest.approx(patience_s)


def test_what_was_judged_is_not_asked_again() -> None:
    def refusing() -> None:
        raise Stopped(4, "refused")

    with pytest.raises(Stopped):
        again(refusing, 1_000.0, lambda text: None, lambda: 0.0, lambda seconds: None)


@pytest.mark.parametrize(("error", "code"), [
    (Stopped(3, "x"), 3), (Away("x"), AWAY), (InvalidInput("a", "b", "c"), FAILED), (KeyboardInterrupt(), INTERRUPTED)])
def test_a_step_ends_with_a_code_of_its_own_kind(error: BaseException, code: int, tmp_path: Path) -> None:
    def run(settings: PipelineSettings, say: Any) -> str:
        raise error

    assert ended(run, PipelineSettings(tmp_path), print)[0] == code
    asked = CliRunner().invoke(command(run, "x"), ["--home", str(tmp_path)])
    assert asked.exit_code == code


def test_a_note_that_is_missing_names_the_step_that_leaves_it(tmp_path: Path) -> None:
    leave_note(tmp_path, "trained", [1])
    assert read_note(tmp_path, "trained", "train_small") == [1]
    with pytest.raises(Stopped, match=r"python -m ci\.pipeline\.forward"):
        read_note(tmp_path, "forward", "forward")


def settings_of(arguments: list[str], **variables: str) -> tuple[PipelineSettings | None, str]:
    found: list[PipelineSettings] = []

    @click.command()
    @setting_options
    def main(settings: PipelineSettings) -> None:
        found.append(settings)

    ran = CliRunner(env=variables).invoke(main, arguments)
    return (found[0] if found else None), ran.output


def test_settings_come_by_argument_or_by_the_variables_of_a_workflow(tmp_path: Path) -> None:
    told, _ = settings_of(["--coins", "BTC"], HUB_HOME=str(tmp_path), COINS="SOL", STRICT="1", MIN_PF="1.5",
                          ARTEFACTS="s3://elite-policies", HUB_URL="http://hub:8000/", LOOKBACK="")
    assert told is not None
    assert (told.home, told.symbols, told.strict, told.min_pf) == (tmp_path, ("BTC",), True, 1.5)
    assert (told.artefacts_url, told.url) == ("s3://elite-policies", "http://hub:8000")
    assert told.lookback == PipelineSettings.lookback  # a variable that is empty is none
    assert told.forward(("BTC",)).least_profit_factor == 1.5


@pytest.mark.parametrize("arguments", [["--lookback", "10"], ["--min-pf", "nan"], ["--max-dd", "0"], ["--trials", "0"],
                                       ["--coins", "BTC,"], ["--market", "kraken"], ["--patience-s", "-1"]])
def test_wrong_settings_are_refused_by_name(arguments: list[str]) -> None:
    told, output = settings_of(arguments)
    assert told is None
    assert arguments[0].removeprefix("--").replace("-", "_") in output.replace("-", "_")


def test_tests_are_targets_or_paths() -> None:
    assert commands("") == []
    assert commands("check,all") == [["make", "check"], ["make", "test"]]
    assert commands("check,tests/router,tests/ci")[1][1:] == ["-m", "pytest", "tests/router", "tests/ci"]


def test_tests_do_not_see_what_the_chain_was_told() -> None:
    given = {"PATH": "/bin", "HUB_HOME": "/home", "HUB_DATA_DIR": "/data", "HUB_TOKEN": "t", "HUB_WEBHOOK_SECRET": "s",
             "HUB_URL": "http://hub", "COINS": "BTC", "MAKEFLAGS": " -- COINS=BTC"}
    assert environment_for_tests(given) == {"PATH": "/bin", "HUB_HOME": "/home", "HUB_DATA_DIR": "/data"}
