"""Running a night: what begins when, what a failure stops, and what is not done twice."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from here_jobs import WAITS, HereJobs, leaves, says

from train.nightly.night import (
    DONE,
    FAILED,
    KEPT_BACK,
    NOT_PASSED,
    SKIPPED,
    STOPPED,
    Ended,
    Night,
    forget_old,
    seconds_before,
)
from train.nightly.plan import FOLDER_OF, Plan, Step
from train.nightly.run import NightRun, all_well


@dataclass
class Heard:
    """begun, ended, before: names, in order. interrupt_at: a step whose beginning is interrupted."""

    begun: list[str] = field(default_factory=list)
    over: list[str] = field(default_factory=list)
    before: list[str] = field(default_factory=list)
    interrupt_at: str = ""

    def begins(self, step: str) -> None:
        self.begun.append(step)

    def goes_on(self, step: str, line: str) -> None:
        if step == self.interrupt_at:
            raise KeyboardInterrupt

    def ended(self, how: Ended, before: bool) -> None:
        (self.before if before else self.over).append(how.step)


def run(home: Path, *steps: Step, name: str = "a night", side_by_side: int = 1,
        heard: Heard | None = None) -> tuple[dict[str, Ended], HereJobs]:
    jobs = HereJobs(home / "logs")
    night = Night(home, name, Plan(steps))
    return NightRun(night, jobs, heard or Heard(), side_by_side, look_every_s=0.01).run(), jobs


def states(ended: dict[str, Ended]) -> dict[str, str]:
    return {name: how.state for name, how in ended.items()}


GRAPH = (says("features"), says("drift", needs=["features"]), says("supervised", needs=["features"]),
         says("rl", needs=["features"], skipped="weekly"), says("bo", needs=["features"]),
         says("forward", needs_one_of=("supervised", "rl")), says("register", needs=["forward"]))


def broken(name: str, code: int = 1) -> tuple[Step, ...]:
    """The graph with one step that ends with another code."""
    return tuple(says(step.name, "went wrong", step.needs, code, needs_one_of=step.needs_one_of)
                 if step.name == name else step for step in GRAPH)


def test_every_step_runs_once_after_what_it_needs(tmp_path: Path) -> None:
    ended, jobs = run(tmp_path, *GRAPH)
    assert jobs.started == ["features", "drift", "supervised", "bo", "forward", "register"]
    assert states(ended) == {**dict.fromkeys(jobs.started, DONE), "rl": SKIPPED}
    assert ended["rl"].said == "weekly"
    assert ended["drift"].said == "well"  # its last line
    assert all_well(ended)


@pytest.mark.parametrize(("name", "stopped"), [
    ("features", {"drift", "supervised", "bo", "forward", "register"}), ("drift", set()), ("bo", set()),
    ("supervised", {"forward", "register"}), ("forward", {"register"}), ("register", set())])
def test_a_step_that_fails_stops_what_needs_it_and_nothing_else(tmp_path: Path, name: str, stopped: set[str]) -> None:
    ended, jobs = run(tmp_path, *broken(name))
    assert {step for step, state in states(ended).items() if state == STOPPED} == stopped
    assert ended[name] == Ended(name, FAILED, "went wrong", ended[name].seconds, 1)
    assert not stopped & set(jobs.started)
    assert not all_well(ended)


def test_one_of_several_is_enough_where_one_is_enough(tmp_path: Path) -> None:
    steps = (says("a", code=1), says("b"), says("either", needs_one_of=("a", "b")), says("both", needs=("a", "b")))
    ended, _ = run(tmp_path, *steps)
    assert states(ended) == {"a": FAILED, "b": DONE, "either": DONE, "both": STOPPED}
    assert "a, which failed" in ended["both"].said


def test_what_did_not_pass_stops_what_needs_it_but_is_no_failure(tmp_path: Path) -> None:
    ended, _ = run(tmp_path, *broken("forward", 3))
    assert (ended["forward"].state, ended["register"].state) == (NOT_PASSED, STOPPED)
    assert "did not pass" in ended["register"].said
    assert all_well(ended)


def test_what_a_hub_that_was_away_should_have_had_is_tried_again_and_is_no_failure(tmp_path: Path) -> None:
    ended, _ = run(tmp_path, *broken("register", 6))
    assert ended["register"].state == KEPT_BACK
    assert all_well(ended)
    _, jobs = run(tmp_path, *broken("register", 6))
    assert jobs.started == ["register"]


def test_the_same_night_again_does_nothing_twice(tmp_path: Path) -> None:
    run(tmp_path, *broken("forward", 3))
    heard = Heard()
    again, jobs = run(tmp_path, *broken("forward", 3), heard=heard)
    assert jobs.started == []
    assert heard.before == ["features", "drift", "supervised", "bo", "forward"]
    assert again["forward"].state == NOT_PASSED
    _, others = run(tmp_path, *broken("forward", 3), name="another night")
    assert len(others.started) == 5


def test_what_failed_is_tried_again_with_what_needs_it(tmp_path: Path) -> None:
    marker = tmp_path / "there"
    once = Step("supervised", (sys.executable, "-c",
                               "import sys, pathlib; p = pathlib.Path(sys.argv[1]); there = p.exists(); p.touch(); "
                               "sys.exit(0 if there else 1)", str(marker)), ("features",))
    steps = tuple(once if step.name == "supervised" else step for step in GRAPH)
    first, _ = run(tmp_path, *steps)
    assert first["forward"].state == STOPPED
    again, jobs = run(tmp_path, *steps)
    assert jobs.started == ["supervised", "forward", "register"]
    assert all_well(again)


def test_a_step_is_done_again_after_one_that_was_not_there_before(tmp_path: Path) -> None:
    """What the forward tests found with one maker's candidates is not what they would find with two makers'."""
    marker = tmp_path / "there"
    late = Step("late", (sys.executable, "-c", "import sys, pathlib; sys.exit(0 if pathlib.Path(sys.argv[1]).exists() "
                                               "else 1)", str(marker)))
    steps = (says("early"), late, says("either", needs_one_of=("early", "late")))
    first, _ = run(tmp_path, *steps)
    assert first["either"].state == DONE
    marker.touch()
    _, jobs = run(tmp_path, *steps)
    assert jobs.started == ["late", "either"]


def test_other_arguments_make_another_step_and_others_of_all_behind_it(tmp_path: Path) -> None:
    steps = (says("a"), says("b", needs=["a"]), says("c"))
    run(tmp_path, *steps)
    _, jobs = run(tmp_path, says("a", "otherwise"), *steps[1:])
    assert jobs.started == ["a", "b"]


def test_steps_run_side_by_side_where_that_is_allowed(tmp_path: Path) -> None:
    """Each of two waits for a file of the other: alone neither would end."""
    script = ("import sys, pathlib, time; mine, other = map(pathlib.Path, sys.argv[1:]); mine.touch()\n"
              "while not other.exists(): time.sleep(0.01)")
    files = (str(tmp_path / "one"), str(tmp_path / "two"))
    steps = [Step(name, (sys.executable, "-c", script, *order)) for name, order in
             (("one", files), ("two", files[::-1]))]
    ended, _ = run(tmp_path, *steps, side_by_side=2)
    assert states(ended) == {"one": DONE, "two": DONE}


def test_a_step_finds_what_those_before_it_left(tmp_path: Path) -> None:
    reads = Step("reads", (sys.executable, "-c", "import sys; print(open(sys.argv[1]).read())",
                           f"{FOLDER_OF % 'makes'}/found.txt"), ("makes",))
    ended, _ = run(tmp_path, leaves("makes", "found.txt", "seven"), reads)
    assert ended["reads"].said == "seven"


def test_files_of_tonight_are_kept_with_their_step_and_older_ones_are_not(tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (models / "candidate_old.pt").write_text("of another night")
    step = Step("makes", (sys.executable, "-c", "import sys, pathlib; pathlib.Path(sys.argv[1]).write_text('new')",
                          str(models / "candidate_new.pt")), makes=("models/candidate_*.pt",))
    night = Night(tmp_path, "a night", Plan([step]))
    NightRun(night, HereJobs(tmp_path / "logs"), Heard(), look_every_s=0.01).run()
    (models / "candidate_new.pt").write_text("overwritten later")
    assert {name: path.read_text() for name, path in night.files("makes").items()} == {"candidate_new.pt": "new"}


def test_an_interrupted_night_stops_its_job_and_goes_on_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.nightly.run.LISTEN_EVERY_S", 0.0)
    waits = Step("waits", (sys.executable, "-c", WAITS), ("a",))
    jobs = HereJobs(tmp_path / "logs")
    night = Night(tmp_path, "a night", Plan((says("a"), waits)))
    with pytest.raises(KeyboardInterrupt):
        NightRun(night, jobs, Heard(interrupt_at="waits"), look_every_s=0.01).run()
    assert all(process.poll() is not None for process in jobs.running.values())
    assert night.log_of("waits").read_text().startswith("begun")
    assert night.kept("a") is not None
    assert night.kept("waits") is None


def test_a_job_that_cannot_be_stopped_leaves_no_other_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unstoppable(HereJobs):
        def stop(self, job: str) -> None:
            super().stop(job)
            if job.startswith("one"):
                monkeypatch.setattr(self, "output", unreadable)
                raise RuntimeError("the cluster does not answer")

    def unreadable(job: str) -> str:
        raise OSError("no space")

    monkeypatch.setattr("train.nightly.run.LISTEN_EVERY_S", 0.0)
    jobs, heard = Unstoppable(tmp_path / "logs"), Heard(interrupt_at="two")
    night = Night(tmp_path, "a night", Plan(Step(name, (sys.executable, "-c", WAITS)) for name in ("one", "two")))
    with pytest.raises(KeyboardInterrupt):
        NightRun(night, jobs, heard, side_by_side=2, look_every_s=0.01).run()
    assert len(jobs.running) == 2
    assert all(process.poll() is not None for process in jobs.running.values())


def test_nights_before_tell_what_their_steps_took_and_old_ones_are_forgotten(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        run(tmp_path, says("a"), says("b", code=1), name=name)
    found = seconds_before(tmp_path, "three")
    assert list(found) == ["a"]  # b was never done
    assert len(found["a"]) == 2
    forget_old(tmp_path, kept=2)
    assert sorted(path.name for path in (tmp_path / "nightly").iterdir()) == ["three", "two"]
