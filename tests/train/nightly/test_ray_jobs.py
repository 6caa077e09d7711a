"""Steps as jobs of a real Ray, in a cluster of its own that ends with whoever opened it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import jobs_of_ray
import psutil
import pytest
import requests
from waiting import eventually

from train.leftovers import marked
from train.nightly.jobs import PROJECT, JobsUnreachable, RayJobs

MARK = "NIGHTLY_TEST"
HARD_TO_QUOTE = "it's $HOME; \"quoted\""
WAITS = ("import time\nprint('begun', flush=True)\n"
         "try:\n    time.sleep(600)\nexcept KeyboardInterrupt:\n    print('interrupted')")
SCRIPTS = {
    "joins": "import os, sys, ray; ray.init(log_to_driver=False); print(os.getcwd()); print(sys.argv[1]); "
             "print(os.environ['FOR_IT']); print(ray.get(ray.remote(num_cpus=1)(lambda: 6 * 7).remote()))",
    "does not pass": "import sys; print('well'); sys.exit(3)",
    "waits": WAITS,
    "has a child": f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {WAITS!r}]); "
                   "time.sleep(600)"}


@dataclass
class Opened:
    """A process that holds a cluster open. jobs: of this night, by step, all started at once."""

    process: subprocess.Popen[str]
    mark: str
    url: str
    headers: dict[str, str]
    started: dict[str, str] = field(default_factory=dict)

    def jobs(self, night: str = "tonight") -> RayJobs:
        from ray.job_submission import JobSubmissionClient

        return RayJobs(JobSubmissionClient(self.url, headers=dict(self.headers)), night)

    def ended(self, step: str) -> tuple[int | None, list[str]]:
        """Exit code and lines, when it has ended."""
        jobs, job = self.jobs(), self.started[step]
        eventually(lambda: jobs.exit_code(job) is not None, f"{step} ends", 60)
        return jobs.exit_code(job), jobs.output(job).splitlines()

    def begins(self, step: str) -> None:
        jobs, job = self.jobs(), self.started[step]
        eventually(lambda: "begun" in jobs.output(job), f"{step} begins", 60)


@pytest.fixture(scope="module")
def opened() -> Iterator[Opened]:
    mark = uuid.uuid4().hex
    process = subprocess.Popen([sys.executable, "-W", "ignore", jobs_of_ray.__file__, MARK, mark],
                               stdout=subprocess.PIPE, text=True, cwd=PROJECT)
    assert process.stdout is not None
    try:
        found = Opened(process, mark, **json.loads(process.stdout.readline()))
        jobs = found.jobs()
        for step, script in SCRIPTS.items():
            command = (sys.executable, "-W", "ignore", "-c", script, HARD_TO_QUOTE)
            found.started[step] = jobs.start(step, command, {"FOR_IT": "a b"})
        yield found
    finally:
        process.kill()
        process.wait()
        eventually(lambda: not marked(MARK, mark), "everything of the cluster ends", 60)


def test_a_job_runs_in_the_project_and_joins_the_cluster(opened: Opened) -> None:
    code, lines = opened.ended("joins")
    assert code == 0, lines
    assert lines[-4:] == [str(PROJECT), HARD_TO_QUOTE, "a b", "42"]


def test_a_job_ends_with_its_own_code(opened: Opened) -> None:
    assert opened.ended("does not pass") == (3, ["well"])


def test_a_job_that_still_runs_is_gone_on_with_by_its_night_only(opened: Opened) -> None:
    """Another client, as after a nightly that was killed."""
    opened.begins("waits")
    assert opened.jobs().start("waits", ("false",), {}) == opened.started["waits"]
    for jobs, step in ((opened.jobs(), "another step"), (opened.jobs("another night"), "waits")):
        assert jobs.start(step, ("false",), {}) not in opened.started.values()


def test_a_job_that_is_stopped_is_interrupted_as_by_ctrl_c(opened: Opened) -> None:
    opened.begins("waits")
    opened.jobs().stop(opened.started["waits"])
    code, lines = opened.ended("waits")
    assert code is not None
    assert lines[-1] == "interrupted"


def test_without_the_token_nobody_is_answered(opened: Opened) -> None:
    assert requests.get(f"{opened.url}/api/jobs/", timeout=10).status_code == 401
    assert requests.get(f"{opened.url}/api/jobs/", headers=opened.headers, timeout=10).status_code == 200


def test_a_cluster_that_is_gone_is_named(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        def get_job_info(self, job: str) -> None:
            raise RuntimeError("connection refused")

    monkeypatch.setattr("train.nightly.jobs.PATIENCE_S", 0.0)
    with pytest.raises(JobsUnreachable, match="connection refused"):
        RayJobs(Gone(), "tonight").exit_code("a job")


def test_what_ray_says_of_a_job_is_no_output_of_it_wherever_it_stands() -> None:
    class Quick:
        def get_job_info(self, job: str) -> SimpleNamespace:
            return SimpleNamespace(entrypoint="python -c 'print(1)\nprint(2)'")

        def get_job_logs(self, job: str) -> str:
            return "2026-11-29 22:53:04,073\tINFO job_manager.py:581 -- Runtime env is setting up.\n" \
                "1\nRunning entrypoint for job quick: python -c 'print(1)\nprint(2)'\n2\n"

    assert RayJobs(Quick(), "tonight").output("quick") == "1\n2\n"


def test_nothing_is_left_when_whoever_opened_it_is_killed(opened: Opened) -> None:
    """With a job under way that has started a process of its own."""
    opened.begins("has a child")
    folders = []
    for process in marked(MARK, opened.mark):
        with suppress(psutil.NoSuchProcess):  # some of Ray's live for a moment only
            folders.append(Path(process.environ()["TRAIN_RAY_FOLDER"]))
    assert len(folders) > 8
    opened.process.kill()
    began = time.monotonic()
    eventually(lambda: not marked(MARK, opened.mark), "everything of the cluster ends", 60)
    print(f"all {len(folders)} processes had ended after {time.monotonic() - began:.1f} s")
    eventually(lambda: not folders[0].exists(), "its folder is removed", 30)
