"""Steps as jobs of a Ray cluster, over Ray's Jobs API."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from policies.errors import HubError
from train.commands import FAILED

PROJECT = Path(__file__).resolve().parents[2]
PATIENCE_S, LOOK_AGAIN_S = 60.0, 1.0
NIGHT, STEP = "night", "step"  # metadata of a job

T = TypeVar("T")
RAYS_OWN = re.compile(r"^[\d-]+ [\d:,]+\t[A-Z]+ job_manager\.py:\d+ -- .*\n", re.MULTILINE)  # before it begins


class JobsUnreachable(HubError):
    """The cluster does not answer any more, or takes no job."""

    code = "jobs_unreachable"


class Jobs(Protocol):
    """Starts commands and says how they ended. A job is named by a text."""

    def start(self, step: str, command: Sequence[str], environment: Mapping[str, str]) -> str: ...

    def exit_code(self, job: str) -> int | None:
        """None while it runs."""
        ...

    def output(self, job: str) -> str:
        """What it has printed so far."""
        ...

    def stop(self, job: str) -> None:
        """Interrupt it as Ctrl-C would, and wait until it has ended."""
        ...


class RayJobs:
    """client: Ray's JobSubmissionClient. night: names all that belongs to this night, on a cluster that others use too.

    A cluster of several machines runs jobs on its head, which must have the project and HUB_HOME under the same paths.
    """

    def __init__(self, client: Any, night: str) -> None:
        self._client, self._night = client, night

    def start(self, step: str, command: Sequence[str], environment: Mapping[str, str]) -> str:
        """One of this night and step that still runs, left behind by a nightly that was killed, is gone on with."""
        running = _patiently(lambda: self._running(step))
        if running:
            return running
        said = " ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items())
        entrypoint = f"cd {shlex.quote(str(PROJECT))} && exec env {said} {shlex.join(command)}"
        submit = self._client.submit_job
        return _patiently(lambda: str(submit(entrypoint=entrypoint, metadata={NIGHT: self._night, STEP: step})))

    def exit_code(self, job: str) -> int | None:
        found = _patiently(lambda: self._client.get_job_info(job))
        if not found.status.is_terminal():
            return None
        if found.status == "SUCCEEDED":
            return 0
        return found.driver_exit_code or FAILED

    def output(self, job: str) -> str:
        """Without the words in which Ray says what it runs; it flushes them after the start, so they may stand behind
        what a quick job has printed.
        """
        whole: str = _patiently(lambda: self._client.get_job_logs(job))
        entrypoint = _patiently(lambda: self._client.get_job_info(job)).entrypoint
        before, _, after = whole.partition(f"Running entrypoint for job {job}: {entrypoint}\n")
        return RAYS_OWN.sub("", before) + after

    def stop(self, job: str) -> None:
        self._client.stop_job(job)
        deadline = time.monotonic() + PATIENCE_S
        while self.exit_code(job) is None and time.monotonic() < deadline:
            time.sleep(LOOK_AGAIN_S / 5)

    def _running(self, step: str) -> str:
        mine = {NIGHT: self._night, STEP: step}
        return next((str(job.submission_id) for job in self._client.list_jobs() if job.submission_id
                     and not job.status.is_terminal() and mine.items() <= (job.metadata or {}).items()), "")


def _patiently(ask: Callable[[], T]) -> T:
    """A dashboard answers with errors until its agent is there, and while it is busy."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return ask()
        except Exception as error:  # Ray's client raises bare RuntimeErrors, requests' and its own
            if time.monotonic() > deadline:
                raise JobsUnreachable(f"Ray's jobs: {error}") from error
            time.sleep(LOOK_AGAIN_S)
