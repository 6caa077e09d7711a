"""The job's cluster: joined by another process, ended with its holder, however that ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from ci.pipeline import cluster as module
from ci.pipeline.cluster import MARK, NOTE, cluster, environment_of, start, stop
from ci.pipeline.step import Stopped, notes_folder
from train.leftovers import marked

JOINING = """
from train.cluster import ray_cluster
with ray_cluster() as cores:
    import ray
    print("found", ray.get(ray.remote(lambda: 6 * 7).remote()))
"""


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return tmp_path


def test_it_is_joined_by_who_has_its_note_and_nothing_is_left_of_it_even_when_its_holder_is_killed(home: Path) -> None:
    said = start(home)
    assert start(home) == said  # no second one
    note = json.loads((notes_folder(home) / NOTE).read_bytes())
    holder = psutil.Process(note["pid"])
    family = [holder, *holder.children(recursive=True)]
    try:
        environment = {**os.environ, **environment_of(home)}
        joined = subprocess.run([sys.executable, "-W", "ignore", "-c", JOINING], env=environment, capture_output=True,
                                text=True, timeout=120, check=False)
        assert "found 42" in joined.stdout, joined.stderr
    finally:
        holder.kill()
    holder.wait(30)
    assert environment_of(home) == {}
    stop(home)
    assert not alive(family)
    assert not marked(MARK, str(home))
    assert stop(home) == "none of ours was running"


def test_a_cluster_that_is_named_is_joined_and_none_is_started(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with cluster(home) as said:
        assert said == start(home) == "joined 10.0.0.1:6379"
    assert not notes_folder(home).exists()
    assert environment_of(home) == {}


def test_a_holder_that_does_not_start_is_said_with_its_log(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MODULE", "ci.pipeline.no_such_step")
    with pytest.raises(Stopped, match="no_such_step"), cluster(home):
        pass
