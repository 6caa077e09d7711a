"""The workflows: they parse, and everything that they run is a target of the Makefile or a module that is there.

What GitHub alone can say, that an action's version exists and that its expressions hold, is not checked here.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from ci.pipeline.settings import SECRET, TOKEN
from ci.pipeline.verify import main as step_options

ROOT = Path(__file__).resolve().parents[3]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
CHAIN = ("cluster start", "train_small", "cluster stop", "forward", "track", "publish", "webhook", "verify")
FROM_AWS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"}


def parsed(path: Path) -> dict[Any, Any]:
    found = yaml.safe_load(path.read_text())
    assert isinstance(found, dict)
    return found


def steps_of(path: Path) -> list[dict[str, Any]]:
    return [step for job in parsed(path)["jobs"].values() for step in job["steps"]]


def commands_of(path: Path) -> list[str]:
    return [line.strip() for step in steps_of(path) for line in str(step.get("run", "")).splitlines() if line.strip()]


def targets() -> set[str]:
    return set(re.findall(r"^([a-z_]+):", (ROOT / "Makefile").read_text(), re.M))


def test_there_are_workflows() -> None:
    assert {"ci.yml", "pipeline.yml"} <= {path.name for path in WORKFLOWS}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_has_triggers_and_jobs_that_end(path: Path) -> None:
    found = parsed(path)
    assert found[True]  # `on` is a boolean to YAML 1.1
    for job in found["jobs"].values():
        assert job["runs-on"]
        assert 0 < job["timeout-minutes"] <= 24 * 60
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step), step
            assert re.fullmatch(r"[\w./-]+@v\d+", step.get("uses", "a/b@v1"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_every_target_and_module_that_a_workflow_runs_is_there(path: Path) -> None:
    asked = commands_of(path)
    assert asked
    for command in asked:
        made = re.findall(r"\bmake\s+([a-z_]+)", command)
        modules = re.findall(r"python\s+-m\s+([\w.]+)", command)
        assert made or modules or command.startswith("test "), f"{command}: neither a target nor a module"
        assert set(made) <= targets(), command
        assert all(importlib.util.find_spec(module) is not None for module in modules), command


def test_the_pipeline_is_the_chain_in_its_order_and_ends_its_cluster_whatever_happens() -> None:
    path = ROOT / ".github" / "workflows" / "pipeline.yml"
    asked = [found[1] for command in commands_of(path) if (found := re.search(r"-m ci\.pipeline\.(.+)$", command))]
    assert tuple(asked) == CHAIN
    [ending] = [step for step in steps_of(path) if "cluster stop" in str(step.get("run"))]
    assert ending["if"] == "always()"
    assert parsed(path)["concurrency"]["cancel-in-progress"] is False


def test_the_variables_that_the_pipeline_sets_are_those_that_its_steps_read() -> None:
    path = ROOT / ".github" / "workflows" / "pipeline.yml"
    known = {option.envvar for option in step_options.params if isinstance(option, click.Option)}
    assert set(parsed(path)["jobs"]["pipeline"]["env"]) <= known
    for step in steps_of(path):
        assert set(step.get("env", {})) <= {TOKEN, SECRET, *FROM_AWS}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_secrets_come_by_name_and_only_to_the_step_that_needs_them(path: Path) -> None:
    found = parsed(path)
    assert "secrets." not in str(found.get("env", {}))
    for job in found["jobs"].values():
        assert "secrets." not in str(job.get("env", {}))
        for step in job["steps"]:
            assert "secrets." not in str(step.get("run", ""))
            for name, value in step.get("env", {}).items():
                secret = name in (TOKEN, SECRET, "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
                assert secret == ("secrets." in str(value)), name
