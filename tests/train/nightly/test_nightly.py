"""The command: how it ends, what it says, the one report, and that it goes on where it was."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from here_jobs import HereJobs, leaves, says
from hub_door import fake_hub
from mlflow import MlflowClient
from plain_bundles import momentum_bundle

from policies.bundle import make_bundle, pack_bundle, read_bundle
from policies.free_ports import free_port
from train.nightly import __main__ as command
from train.nightly.lock import only_one
from train.nightly.night import Night
from train.nightly.plan import FOLDER_OF, OUT, Plan, Step
from train.nightly.report import log_night

TINY = ("--market", "generated", "--generated-bars", "9000", "--coins", "BTC")
COPIES = "import shutil, sys; shutil.copy(*sys.argv[1:])"


class Table:
    """The steps of the nights to come, in place of the real commands."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.steps, self.jobs = folder, (says("features"),), HereJobs(folder)

    def plan(self, home: Path, settings: Any, now_ms: int) -> Plan:
        return Plan(self.steps)


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Table:
    @contextmanager
    def nobody(marks: Mapping[str, str]) -> Iterator[None]:
        yield

    found = Table(tmp_path / "jobs")
    monkeypatch.setattr(command, "night_plan", found.plan)
    monkeypatch.setattr(command, "job_client", nobody)
    monkeypatch.setattr(command, "RayJobs", lambda client, night: found.jobs)
    monkeypatch.setattr("train.nightly.report.log_night", lambda *_: "")  # a new MLflow store takes seconds
    return found


def run(home: Path, *more: str) -> Result:
    nobody = f"http://127.0.0.1:{free_port()}"
    return CliRunner().invoke(command.main, ["--home", str(home), "--hub-url", nobody, *TINY, *more])


def report(home: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((home / "reports" / "nightly.json").read_bytes())
    return found


def runs_of(home: Path) -> list[Any]:
    client = MlflowClient(f"sqlite:///{home / 'mlflow' / 'mlflow.sqlite'}")
    experiment = client.get_experiment_by_name("nightly")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


def candidate_night(home: Path) -> tuple[Step, ...]:
    """A maker whose candidate passed its forward test and was registered, and drift of two days."""
    bundle = momentum_bundle()
    told = {"passed": False, "judgement": {"deflated_sharpe": 0.25, "head": {}}}
    bundle = make_bundle(replace(bundle.manifest, alias="rule", trained_on=told, files={}), dict(bundle.files))
    home.mkdir(exist_ok=True)
    made = home / "rule.pt"
    made.write_bytes(pack_bundle(bundle))
    kept = f"{FOLDER_OF % 'supervised'}/candidate_rule.pt"
    played = {"path": kept, "passed": True, "exit_code": 0, "report": {
        "missed": [], "played": {"trades": 12, "profit_factor": 1.5, "max_drawdown_percent": 0.5}}}
    drift = {"symbols": [{"symbol": "BTC", "figure": 0.1}], "figures": {"BTC": [[1, 0.2], [2, 0.1]]}}
    return (leaves("drift", "drift.json", json.dumps(drift)),
            Step("supervised", (sys.executable, "-c", COPIES, str(made), f"{OUT}/candidate_rule.pt")),
            leaves("forward", "forward_rule.json", json.dumps(played), needs_one_of=("supervised",)),
            leaves("register", "registered.json", json.dumps(
                {"alias": "rule", "policy_id": bundle.policy_id}), ["forward"]))


def test_a_night_is_named_by_the_markets_clock_and_ends_well(tmp_path: Path, table: Table) -> None:
    ended = run(tmp_path / "home")
    assert ended.exit_code == 0, ended.output
    folders = [path.name for path in (tmp_path / "home" / "nightly").iterdir() if path.is_dir()]
    assert folders == [report(tmp_path / "home")["night"]]
    with fake_hub(tmp_path / "home", 86_400_000 * 20_000) as hub:
        run(tmp_path / "home", "--hub-url", hub.url)
    assert report(tmp_path / "home")["night"] == "2024-10-04"
    run(tmp_path / "home", "--night", "by hand")
    assert report(tmp_path / "home")["night"] == "by hand"


def test_a_step_that_fails_ends_it_with_1_after_all_others(tmp_path: Path, table: Table) -> None:
    table.steps = (says("features"), says("drift", "no such file", ["features"], 7), says("bo", needs=["features"]))
    ended = run(tmp_path / "home")
    assert ended.exit_code == 1
    assert table.jobs.started == ["features", "drift", "bo"]
    assert "drift: failed" in ended.output
    assert "(exit 7): no such file" in ended.output
    told = report(tmp_path / "home")
    assert told["all_well"] is False
    assert [(one["step"], one["state"]) for one in told["steps"]] == [("features", "done"), ("drift", "failed"),
                                                                      ("bo", "done")]


def test_another_nightly_ends_it_with_5(tmp_path: Path, table: Table) -> None:
    with only_one((tmp_path / "home").resolve()):
        ended = run(tmp_path / "home")
    assert ended.exit_code == 5
    assert table.jobs.started == []


def test_an_interrupt_ends_it_with_130_and_the_same_command_goes_on(tmp_path: Path, table: Table,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    table.steps = (says("features"), says("bo", needs=["features"]))
    def interrupted(job: str) -> int:
        if job.startswith("bo"):
            raise KeyboardInterrupt
        return 0

    with monkeypatch.context() as now:
        now.setattr(table.jobs, "exit_code", interrupted)
        ended = run(tmp_path / "home")
    assert ended.exit_code == 130
    assert "the same command goes on" in ended.output
    assert not (tmp_path / "home" / "reports").exists()
    again = run(tmp_path / "home")
    assert again.exit_code == 0, again.output
    assert table.jobs.started == ["features", "bo", "bo"]
    assert "features: was done before this run" in again.output


@pytest.mark.parametrize(("word", "arguments"), [
    ("COINS", ["--coins", "BTC,BTC"]), ("STEPS", ["--steps", "0"]), ("ALGO", ["--algo", "dqn"]),
    ("--rl", ["--rl", "x"]), ("--night", ["--night", "../elsewhere"])])
def test_wrong_arguments_end_with_2_and_the_word(tmp_path: Path, word: str, arguments: list[str]) -> None:
    ended = run(tmp_path / "home", *arguments)
    assert ended.exit_code == 2
    assert word in ended.output
    assert not (tmp_path / "home").exists()


def test_the_report_tells_candidates_drift_and_what_was_registered(tmp_path: Path, table: Table) -> None:
    home = tmp_path / "home"
    table.steps = candidate_night(home)
    ended = run(home)
    assert ended.exit_code == 0, ended.output
    told = report(home)
    candidate, = told["candidates"]
    policy_id = read_bundle(home / "rule.pt").policy_id
    assert {name: candidate[name] for name in (
        "name", "alias", "policy_id", "made_by", "judged", "deflated_sharpe", "forward", "forward_trades",
        "forward_profit_factor", "registered")} == {
        "name": "rule", "alias": "rule", "policy_id": policy_id, "made_by": "supervised", "judged": "not passed",
        "deflated_sharpe": 0.25, "forward": "passed", "forward_trades": 12, "forward_profit_factor": 1.5,
        "registered": "yes"}
    assert told["drift"] == [{"symbol": "BTC", "figure": 0.1}]
    assert told["rows"] == []
    page = (home / "reports" / "nightly.html").read_text()
    assert page.count("<svg") == 2


def test_a_night_is_one_run_in_mlflow_however_often_it_is_told(tmp_path: Path, table: Table) -> None:
    home = tmp_path / "home"
    table.steps = candidate_night(home)
    run(home)
    night = Night(home, report(home)["night"], Plan(table.steps))
    assert log_night(night, report(home), 1_000) == log_night(night, {**report(home), "seconds": 0.5}, 2_000)
    run_of_night, = runs_of(home)
    assert run_of_night.data.metrics["candidates_passed"] == 1.0
    assert run_of_night.data.metrics["drift_BTC"] == 0.1
    assert run_of_night.data.tags["registered"] == "rule"


def test_time_left_comes_from_the_night_before(tmp_path: Path, table: Table) -> None:
    assert "no earlier night to estimate from" in run(tmp_path / "home", "--night", "one").output
    assert "left by the last night" in run(tmp_path / "home", "--night", "two").output
