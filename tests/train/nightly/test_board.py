"""Progress: a line for each step, and the time left by what the last night took."""

from __future__ import annotations

import io

from here_jobs import says
from rich.console import Console

from train.nightly.board import NightBoard
from train.nightly.night import DONE, FAILED, SKIPPED, Ended
from train.nightly.plan import Plan

PLAN = Plan((says("features"), says("bo"), says("rl", skipped="weekly"), says("new")))


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def board(before: dict[str, list[float]]) -> tuple[NightBoard, io.StringIO, Clock]:
    said, clock = io.StringIO(), Clock()
    return NightBoard(PLAN, before, Console(file=said, width=80), clock), said, clock


def test_the_first_night_estimates_nothing() -> None:
    assert board({})[0].time_left() == "no earlier night to estimate from"


def test_time_left_is_what_the_last_night_took_for_what_is_open() -> None:
    """Of a step that no night has finished, the median of the others is assumed; a skipped one takes no time."""
    found, _, clock = board({"features": [500.0, 10.0], "bo": [30.0], "rl": [9_000.0]})
    assert found.time_left() == "about 70 s left by the last night"  # 10 + 30 + 30
    found.begins("features")
    clock.now_s = 4.0
    assert found.time_left() == "about 66 s left by the last night"
    clock.now_s = 40.0  # longer than the last time
    assert found.time_left() == "about 60 s left by the last night"
    found.ended(Ended("features", DONE, "", 40.0, 0), before=False)
    assert found.time_left() == "about 60 s left by the last night"


def test_a_line_for_each_step_counts_what_is_over() -> None:
    found, said, _ = board({"bo": [20.0]})
    found.begins("features")
    found.goes_on("features", "half of [it]")
    found.ended(Ended("features", DONE, "all rows", 12.0, 0), before=False)
    found.ended(Ended("rl", SKIPPED, "weekly"), before=False)
    found.ended(Ended("bo", DONE, "", 30.0, 0), before=True)
    found.ended(Ended("new", FAILED, "no such file", 3.0, 7), before=False)
    assert said.getvalue().splitlines() == [
        "[1/4] features: begins, about 60 s left by the last night", "[1/4] features: half of [it]",
        "[2/4] features: done in 12 s: all rows [about 40 s left by the last night]",
        "[2/4] rl: skipped: weekly [about 40 s left by the last night]", "[3/4] bo: was done before this run",
        "[4/4] new: failed in 3 s (exit 7): no such file"]
