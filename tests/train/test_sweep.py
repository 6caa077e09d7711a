"""A search over settings on a real Ray: the first settings first, the same again, gone on with after a kill."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import sweep_objectives
from sweep_objectives import FIRST, SPACE, Bowl, Hopeless, Needs
from waiting import eventually

import train.cluster
from policies.errors import InvalidInput
from train.cluster import ray_cluster
from train.sweep import FAILED, FINISHED, PRUNED, SweepSettings, Trial, TrialFailed, best_of, search

SETTINGS = SweepSettings(trials=4, seed=3)
KIT = str(Path(sweep_objectives.__file__).parent)
DRIVER = """
import sys
from pathlib import Path
from sweep_objectives import FIRST, SPACE, Bowl
from train.cluster import ray_cluster
from train.sweep import SweepSettings, search
with ray_cluster(1):
    search(Bowl(Path(sys.argv[2])), SPACE, FIRST, SweepSettings(trials=4, seed=3), Path(sys.argv[1]))
"""


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", KIT)  # workers look there for what they are to do
        with ray_cluster(1):
            yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[Trial]:
    """A search that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    return search(Bowl(), SPACE, FIRST, SETTINGS, folder / "sweep.bowl")


def told(trials: list[Trial]) -> list[tuple[object, ...]]:
    return [(trial.number, dict(trial.settings), trial.state, trial.steps, trial.loss, trial.found)
            for trial in trials]


def test_the_given_settings_are_tried_first_and_all_are_within_the_space(whole: list[Trial]) -> None:
    assert [trial.number for trial in whole] == list(range(SETTINGS.trials))
    assert dict(whole[0].settings) == FIRST
    assert whole[0].state == FINISHED
    for trial in whole:
        assert 0.1 <= float(trial.settings["x"]) <= 10
        assert trial.settings["depth"] in range(2, 7)
        assert trial.settings["kind"] in ("a", "b")
    assert len({tuple(sorted(trial.settings.items())) for trial in whole}) == SETTINGS.trials


def test_a_finished_trial_has_the_loss_of_its_end_and_what_was_found(whole: list[Trial]) -> None:
    for trial in (one for one in whole if one.state == FINISHED):
        assert trial.loss == pytest.approx(Bowl.loss_of(trial.settings))
        assert trial.found == {"of": dict(trial.settings)}
        assert trial.steps == Bowl.steps


def test_what_falls_behind_is_ended_early_and_said_to_be(whole: list[Trial]) -> None:
    pruned = [trial for trial in whole if trial.state == PRUNED]
    assert pruned
    best = best_of(whole)
    for trial in pruned:
        assert trial.steps == SETTINGS.grace
        assert trial.loss is not None
        assert trial.loss > Bowl.heard_of(best.settings, SETTINGS.grace)
        assert trial.found == {}


def test_the_best_is_the_finished_one_with_the_least_loss_and_the_first_of_equals() -> None:
    trials = [Trial(0, {}, FINISHED, 1, 0.5), Trial(1, {}, PRUNED, 1, 0.1), Trial(2, {}, FINISHED, 1, 0.4),
              Trial(3, {}, FINISHED, 1, 0.4), Trial(4, {}, FAILED, 0, None)]
    assert best_of(trials).number == 2


def test_a_search_whose_process_was_killed_goes_on_with_the_same_trials(whole: list[Trial], tmp_path: Path) -> None:
    """Killed with all of its Ray while the third trial is on its way, then gone on with on another Ray."""
    folder, gate = tmp_path / "sweep.bowl", tmp_path / "gate"
    gate.mkdir()
    path = os.pathsep.join([KIT, str(Path(train.cluster.__file__).parents[1])])
    driver = subprocess.Popen([sys.executable, "-W", "ignore", "-c", DRIVER, str(folder), str(gate)],
                              env={**os.environ, "PYTHONPATH": path}, start_new_session=True,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: len(list(gate.glob("begun_*"))) >= 3 or driver.poll() is not None, "a third trial", 120)
        assert driver.poll() is None
    finally:
        for process in [*psutil.Process(driver.pid).children(recursive=True), psutil.Process(driver.pid)]:
            process.send_signal(signal.SIGKILL)
        driver.wait(30)
    (gate / "open").touch()
    begun = [path.name for path in gate.glob("begun_*")]
    assert told(search(Bowl(gate), SPACE, FIRST, SETTINGS, folder)) == told(whole)
    finished = [trial for trial in whole[:2] if trial.state == FINISHED]
    assert len(list(gate.glob("begun_*"))) - len(begun) <= SETTINGS.trials - len(finished)  # what was over was not run


def test_a_trial_that_failed_is_tried_again_when_the_search_is_gone_on_with(tmp_path: Path) -> None:
    folder, needed = tmp_path / "sweep.needs", tmp_path / "needed"
    settings = SweepSettings(trials=2, seed=3)
    first = search(Needs(needed), SPACE, FIRST, settings, folder)
    assert [trial.state for trial in first] == [FINISHED, FAILED]
    assert "needed is not there" in first[1].found["reason"]
    assert first[1].loss is None
    needed.touch()
    again = search(Needs(needed), SPACE, FIRST, settings, folder)
    assert [trial.state for trial in again] == [FINISHED, FINISHED]
    assert [trial.settings for trial in again] == [trial.settings for trial in first]
    assert told(again)[0] == told(first)[0]


def test_a_search_of_which_nothing_came_to_an_end_says_why(tmp_path: Path) -> None:
    with pytest.raises(TrialFailed, match="no hope"):
        search(Hopeless(), SPACE, FIRST, SweepSettings(trials=1), tmp_path / "sweep.hopeless")
    shutil.rmtree(tmp_path)


def test_first_settings_that_are_not_of_the_space_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="first"):
        search(Bowl(), SPACE, {"x": 1.0}, SETTINGS, tmp_path / "sweep.bowl")
