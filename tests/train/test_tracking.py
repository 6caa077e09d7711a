"""The record of experiments: whole runs that are found again, failed ones that are not, parents and children."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from waiting import eventually

from policies.free_ports import free_port
from train import tracking
from train.tracking import LONGEST_PARAMETER, Tracker, code_version


def runs(home: Path, experiment: str = "tests") -> dict[str, Run]:
    client = MlflowClient(f"sqlite:///{home / 'mlflow' / 'mlflow.sqlite'}")
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return {run.info.run_id: run for run in client.search_runs([found.experiment_id])}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of an MLflow server that keeps artefacts itself."""
    folder, url = tmp_path_factory.mktemp("server"), f"http://127.0.0.1:{(port := free_port())}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
               "--backend-store-uri", f"sqlite:///{folder / 'mlflow.sqlite'}",
               "--artifacts-destination", str(folder / "artifacts")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True,
                                   env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"})

    def answers() -> bool:
        try:
            return httpx.get(f"{url}/health", timeout=2.0).status_code == 200
        except httpx.HTTPError:
            return False

    try:
        eventually(answers, "the server answers", 120.0)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def test_a_run_has_its_figures_its_files_and_its_parent(home: Path) -> None:
    tracker = Tracker(home, "tests")
    parent = tracker.log("search", 1_000, {}, {}, {}, {"job": "a"})
    child = tracker.log("linear", 2_000, {"l2": 0.03, "long": "x" * 2_000}, {"loss": 0.5},
                        {"head.pt": b"\x00\x01", "equity.png": b"png"}, {"job": "a"}, parent)
    run = runs(home)[child]
    assert run.info.run_name == "linear"
    assert run.info.status == "FINISHED"
    assert run.info.start_time == 2_000
    assert run.data.params == {"l2": "0.03", "long": "x" * LONGEST_PARAMETER}
    assert run.data.metrics == {"loss": 0.5}
    assert run.data.tags["mlflow.parentRunId"] == parent
    folder = Path(run.info.artifact_uri.removeprefix("file://"))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "head.pt": b"\x00\x01", "equity.png": b"png"}
    assert folder.is_relative_to(home)


def test_a_finished_run_is_known_by_its_name_and_job_to_whoever_opens_the_record_again(home: Path) -> None:
    run = Tracker(home, "tests").log("catboost", 1_000, {}, {}, {}, {"job": "b"})
    again = Tracker(home, "tests")
    assert again.known("catboost", "b") == run
    assert again.known("catboost", "c") is None
    assert again.known("linear", "b") is None
    assert Tracker(home, "other").known("catboost", "b") is None


def test_a_server_keeps_the_same_record_and_the_files(server: str, tmp_path: Path) -> None:
    run = Tracker(tmp_path / "home", "tests", server).log("linear", 1_000, {"l2": 0.03}, {"loss": 0.5},
                                                          {"head.pt": b"\x00\x01"}, {"job": "a"})
    assert Tracker(tmp_path / "other home", "tests", server).known("linear", "a") == run
    client = MlflowClient(server)
    assert client.get_run(run).data.metrics == {"loss": 0.5}
    assert Path(client.download_artifacts(run, "head.pt", str(tmp_path))).read_bytes() == b"\x00\x01"
    assert not (tmp_path / "home").exists()


def test_a_run_that_could_not_be_written_whole_is_failed_and_not_known(home: Path) -> None:
    tracker = Tracker(home, "tests")
    with pytest.raises(FileNotFoundError):
        tracker.log("broken", 1_000, {}, {}, {"no/such/folder.png": b""}, {"job": "d"})
    assert tracker.known("broken", "d") is None
    assert [run.info.status for run in runs(home).values() if run.info.run_name == "broken"] == ["FAILED"]
    assert tracker.known("broken", "d") != tracker.log("broken", 1_000, {}, {}, {}, {"job": "d"})


def test_the_version_of_the_code_is_that_of_the_sources_which_matter(monkeypatch: pytest.MonkeyPatch,
                                                                      tmp_path: Path) -> None:
    for room in (*tracking.ROOMS, "hub"):
        (tmp_path / room).mkdir()
        (tmp_path / room / "a.py").write_text("x = 1\n")
    monkeypatch.setattr(tracking, "__file__", str(tmp_path / "train" / "tracking.py"))
    versions = [code_version()]
    (tmp_path / "hub" / "a.py").write_text("x = 2\n")
    assert code_version() == versions[0]
    for change in (lambda: (tmp_path / "policies" / "a.py").write_text("x = 2\n"),
                   lambda: (tmp_path / "train" / "b.py").write_text(""),
                   lambda: (tmp_path / "feature_repo" / "a.py").rename(tmp_path / "feature_repo" / "c.py")):
        change()
        versions.append(code_version())
    assert len(set(versions)) == 4
    assert code_version() == versions[-1]
