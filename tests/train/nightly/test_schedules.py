"""The schedules: they parse, and what they start is what the command takes.

Of the Kubernetes manifest this checks what the command and the volumes need of each other, not the whole schema; that
was checked once with kubernetes-validate --strict against 1.37.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from train.nightly.__main__ import main

ROOT = Path(__file__).resolve().parents[3]
CRON = ROOT / "deploy" / "cron" / "learner-hub-nightly"
WORKFLOW = ROOT / ".github" / "workflows" / "nightly.yml"
MANIFEST = ROOT / "deploy" / "kubernetes" / "nightly.yaml"
SCHEDULE = re.compile(r"(\S+ ){4}\S+$")


def taken(arguments: list[str]) -> dict[str, Any]:
    """What the command makes of its arguments; UsageError if it does not take them."""
    return main.make_context("nightly", arguments).params


def arguments(target: str, module: str, *variables: str) -> list[str]:
    """Of what `make` with this target, these variables and no others would start."""
    said = subprocess.run(["make", "-n", "--no-print-directory", target, *variables], cwd=ROOT, text=True,
                          env={"PATH": os.environ["PATH"]}, stdout=subprocess.PIPE, check=True).stdout
    line = next(line for line in said.replace("\\\n", " ").splitlines() if module in line)
    words = shlex.split(line)
    return words[words.index(module) + 1:]


def made(*variables: str) -> dict[str, Any]:
    """What `make nightly` with these variables and no others would start, as the command takes it."""
    return taken(arguments("nightly", "train.nightly", *variables))


def test_make_passes_on_what_it_is_given() -> None:
    plain = made("HUB_HOME=/h")
    assert (plain["home"], plain["rl"], plain["night"], plain["data_dir"]) == (Path("/h"), "auto", "", None)
    given = made("HUB_HOME=/h", "HUB_DATA_DIR=/bars", "COINS=SOL,BTC", "LOOKBACK=6000", "HEADS=linear", "TRIALS=2",
                 "BO_TRIALS=8", "STEPS=2e4", "RL=1", "ALGO=ppo", "SIZE=full", "NIGHT=x", "HUB_URL=http://h:1",
                 "MARKET=files", "FOLDS=1", "WINDOW=30", "MIN_PF=1.2")
    wanted = {"data_dir": "/bars", "coins": "SOL,BTC", "lookback": 6000, "heads": "linear", "trials": 2, "bo_trials": 8,
              "steps": "2e4", "rl": "yes", "algo": "ppo", "size": "full", "night": "x", "hub_url": "http://h:1",
              "market": "files", "folds": 1, "window": 30, "min_pf": 1.2}
    assert {name: given[name] for name in wanted} == wanted
    assert [made(f"RL={asked}")["rl"] for asked in ("0", "no", "yes", "auto")] == ["no", "no", "yes", "auto"]


def test_make_passes_on_a_wrong_word_so_that_it_is_refused() -> None:
    for word in ("2", "weekly"):
        with pytest.raises(click.BadParameter):
            made(f"RL={word}")


@pytest.mark.parametrize(("target", "module", "switch", "option"), [
    ("retrain_rl", "train.rl.retrain_rl", "EPISODES", "--episodes"),
    ("retrain_rl", "train.rl.retrain_rl", "STRICT", "--strict"),
    ("retrain_sup", "train.retrain_sup", "STRICT", "--strict"), ("bo", "train.bo.optimise", "STRICT", "--strict"),
    ("forward_test", "ci.forward_test", "STRICT", "--strict")])
def test_nought_and_no_mean_no(target: str, module: str, switch: str, option: str) -> None:
    said = {word: option in arguments(target, module, "CANDIDATE=x", f"{switch}={word}") for word in
            ("", "0", "no", "1", "yes")}
    assert said == {"": False, "0": False, "no": False, "1": True, "yes": True}


def test_make_passes_on_how_often_sac_updates() -> None:
    words = arguments("retrain_rl", "train.rl.retrain_rl", "STEPS_PER_UPDATE=4", "ALGO=sac")
    assert words[words.index("--steps-per-update") + 1] == "4"


def test_the_cron_line_starts_make_nightly_for_one_user() -> None:
    lines = [line for line in CRON.read_text().splitlines() if line and not line.startswith("#")]
    variables = dict(line.split("=", 1) for line in lines if re.match(r"[A-Z_]+=", line))
    line, = (line for line in lines if not re.match(r"[A-Z_]+=", line))
    fields = line.split(None, 6)
    assert SCHEDULE.match(" ".join(fields[:5]))
    assert fields[5] == "learner-hub"
    used = set(re.findall(r"\$([A-Z_]+)", line))
    assert used <= set(variables), "cron knows no other variables"
    assert "%" not in line, "cron reads it as the end of the line"
    assert " make --no-print-directory nightly " in line
    assert subprocess.run(["sh", "-n", "-c", line.split(None, 6)[6]], check=False).returncode == 0


def test_the_workflow_runs_make_nightly_on_a_runner_of_ones_own() -> None:
    found = yaml.safe_load(WORKFLOW.read_text())
    triggers = found[True]  # YAML reads `on` as a truth
    assert SCHEDULE.match(triggers["schedule"][0]["cron"])
    job, = found["jobs"].values()
    assert "self-hosted" in job["runs-on"]
    assert found["concurrency"]["cancel-in-progress"] is False
    ran = [step["run"] for step in job["steps"] if "run" in step and "make" in step["run"]]
    assert [shlex.split(command)[:2] for command in ran] == [["make", "nightly"]]
    assert set(re.findall(r"\$([A-Z_]+)", ran[0])) <= set(job["env"])


@pytest.fixture(scope="module")
def cron_job() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(MANIFEST.read_text())
    return found


def test_kubernetes_never_runs_two_at_once(cron_job: dict[str, Any]) -> None:
    assert (cron_job["apiVersion"], cron_job["kind"]) == ("batch/v1", "CronJob")
    spec = cron_job["spec"]
    assert SCHEDULE.match(spec["schedule"])
    assert (spec["concurrencyPolicy"], spec["timeZone"]) == ("Forbid", "Etc/UTC")
    job = spec["jobTemplate"]["spec"]
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # podFailurePolicy asks for it
    ends = next(rule["onExitCodes"] for rule in job["podFailurePolicy"]["rules"] if "onExitCodes" in rule)
    assert ends["containerName"] == job["template"]["spec"]["containers"][0]["name"]
    assert ends["values"] == [2, 5]


def test_kubernetes_starts_what_the_command_takes_in_a_volume_that_is_there(cron_job: dict[str, Any]) -> None:
    pod = cron_job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    container, = pod["containers"]
    assert container["command"] == ["python", "-m", "train.nightly"]
    home = taken(container["args"])["home"]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert set(mounts.values()) == {volume["name"] for volume in pod["volumes"]}
    assert str(home) in mounts
    assert "/dev/shm" in mounts  # of Ray's object store
    assert pod["securityContext"]["runAsNonRoot"] is True
