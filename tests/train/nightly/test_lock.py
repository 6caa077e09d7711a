"""Two nightlies of one home are never under way at once, and one that is killed leaves neither lock nor process."""

from __future__ import annotations

import subprocess
import sys
import uuid
from pathlib import Path

import psutil
import pytest
from waiting import eventually

from train.leftovers import end_marked, marked
from train.locked import UnderWay
from train.nightly.lock import MARK, end_what_was_left, only_one

HOLDS = ("import sys, time; from pathlib import Path; from train.nightly.lock import only_one\n"
         "with only_one(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(600)")
STUBBORN = ("import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
            "print('begun', flush=True); time.sleep(600)")


def test_a_second_one_is_refused_with_the_number_of_the_first(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(UnderWay, match=rf"process {process.pid}\b"), only_one(tmp_path):
        pass
    with only_one(tmp_path / "another home"):
        pass
    process.kill()
    process.wait()
    with only_one(tmp_path):
        pass


def test_a_home_is_free_again_after_a_night_that_raised(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), only_one(tmp_path):
        raise RuntimeError
    with only_one(tmp_path):
        pass


def test_what_a_killed_nightly_left_is_ended_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that ignores the request to end, and its child."""
    monkeypatch.setattr("train.nightly.lock.LEAVES_BY_ITSELF_S", 0.0)
    started = []
    for home in (tmp_path, tmp_path / "another home"):
        with monkeypatch.context() as environment:
            environment.setenv(MARK, str(home))
            started.append(subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, text=True))
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
    assert end_what_was_left(tmp_path) == 2
    assert marked(MARK, str(tmp_path)) == []
    assert len(marked(MARK, str(tmp_path / "another home"))) == 2
    end_marked(MARK, str(tmp_path / "another home"), grace_s=0.1)
    for process in started:
        process.wait(10)


def test_what_ends_by_itself_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as environment:
        environment.setenv(MARK, str(tmp_path))
        process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    eventually(lambda: len(marked(MARK, str(tmp_path))) == 1, "it is seen")
    assert process.stdin is not None
    process.stdin.close()
    assert end_what_was_left(tmp_path) == 0
    assert process.wait(10) == 0


def test_what_may_not_be_ended_is_left_alone_and_the_others_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    class Process:
        def __init__(self, pid: int, allowed: bool) -> None:
            self.pid, self._allowed, self.alive = pid, allowed, True

        def terminate(self) -> None:
            if not self._allowed:
                raise psutil.AccessDenied(self.pid)
            self.alive = False

        kill = terminate

    theirs, own = Process(1, False), Process(2, True)
    monkeypatch.setattr("train.leftovers.marked", lambda *_: [one for one in (theirs, own) if one.alive])
    monkeypatch.setattr("psutil.wait_procs", lambda *_, **__: None)
    assert end_marked(MARK, "somebody's") == 1
    assert (theirs.alive, own.alive) == (True, False)


def test_nothing_is_found_of_a_mark_that_nobody_carries() -> None:
    assert end_marked(MARK, uuid.uuid4().hex) == 0
