"""Runs a night: starts what may be started, waits, keeps what ended, and stops what needs a step that failed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from train import commands
from train.nightly.jobs import Jobs
from train.nightly.night import DONE, FAILED, KEPT_BACK, NOT_PASSED, SKIPPED, STOPPED, Ended, Night
from train.nightly.plan import Step

# Not passed: it did what it should, and what it looked at was not good enough. Away: no hub was there.
STATES = {0: DONE, commands.NOT_PASSED: NOT_PASSED, commands.AWAY: KEPT_BACK}
LOOK_EVERY_S, LISTEN_EVERY_S = 0.5, 30.0


class Told(Protocol):
    """Hears how the night goes."""

    def begins(self, step: str) -> None: ...

    def goes_on(self, step: str, line: str) -> None: ...

    def ended(self, how: Ended, before: bool) -> None:
        """before: it was done when this run began."""
        ...


@dataclass
class _Running:
    step: Step
    job: str
    began_s: float
    listened_s: float
    line: str = ""


class NightRun:
    """side_by_side: how many jobs may run at the same time; each of them uses every free core of the cluster."""

    def __init__(self, night: Night, jobs: Jobs, told: Told, side_by_side: int = 1,
                 look_every_s: float = LOOK_EVERY_S) -> None:
        self._night, self._jobs, self._told = night, jobs, told
        self._side_by_side, self._look_every_s = side_by_side, look_every_s
        self._ended: dict[str, Ended] = {}
        self._running: dict[str, _Running] = {}
        self._ran: set[str] = set()  # in this run

    def run(self) -> dict[str, Ended]:
        """How each step ended, in the order of the plan. Whatever interrupts it interrupts the jobs as well."""
        steps = self._night.plan.steps
        try:
            while len(self._ended) < len(steps):
                for step in steps.values():
                    self._settle(step)
                if self._running:
                    time.sleep(self._look_every_s)
                    self._look()
        finally:
            for running in self._running.values():
                self._stop(running)
        return {name: self._ended[name] for name in steps}

    def _settle(self, step: Step) -> None:
        """Start a step that may begin, or say why it never will."""
        if step.name in self._ended or step.name in self._running:
            return
        if step.skipped:
            self._note(Ended(step.name, SKIPPED, step.skipped))
        elif reason := _stopped_by(step, self._ended):
            self._note(Ended(step.name, STOPPED, reason))
        elif not all(name in self._ended for name in step.before):
            return
        elif (kept := self._night.kept(step.name)) and not self._ran.intersection(step.before):
            self._note(kept, before=True)
        elif len(self._running) < self._side_by_side:
            self._start(step)

    def _start(self, step: Step) -> None:
        self._night.forget(step.name)  # it was done after others than it would be now
        command = self._night.begin(step)
        self._told.begins(step.name)
        now_s = time.monotonic()
        job = self._jobs.start(step.name, command, step.environment)
        self._running[step.name] = _Running(step, job, now_s, now_s)

    def _look(self) -> None:
        for name, running in list(self._running.items()):
            code, now_s = self._jobs.exit_code(running.job), time.monotonic()
            if code is not None:
                del self._running[name]
                self._ran.add(name)
                self._listen(running)
                ended = Ended(name, _state_of(code), running.line, round(now_s - running.began_s, 1), code)
                self._night.end(running.step, ended)
                self._note(ended)
            elif now_s - running.listened_s >= LISTEN_EVERY_S:
                running.listened_s, before = now_s, running.line
                self._listen(running)
                if running.line != before:
                    self._told.goes_on(name, running.line)

    def _listen(self, running: _Running) -> None:
        """Keep what the job has printed; its last line is what it says."""
        output = self._jobs.output(running.job)
        self._night.log_of(running.step.name).write_text(output)
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        running.line = lines[-1][:500] if lines else ""

    def _stop(self, running: _Running) -> None:
        """End the job and keep what it has printed. What goes wrong is said: the other jobs must be stopped as well."""
        for act in (lambda: self._jobs.stop(running.job), lambda: self._listen(running)):
            try:
                act()
            except Exception as error:  # of Ray's client, which raises many kinds, or of a full disk
                self._told.goes_on(running.step.name, f"could not be stopped as it should be: {error}")

    def _note(self, ended: Ended, before: bool = False) -> None:
        self._ended[ended.step] = ended
        self._told.ended(ended, before)


def _state_of(code: int) -> str:
    return STATES.get(code, FAILED)


def _stopped_by(step: Step, ended: Mapping[str, Ended]) -> str:
    """Why a step cannot begin any more; "" if it can, or may be able to."""
    missing = [name for name in step.needs if name in ended and ended[name].state != DONE]
    if missing:
        return f"needs {missing[0]}, which {_told(ended[missing[0]])}"
    wanted = step.needs_one_of
    if wanted and all(name in ended and ended[name].state != DONE for name in wanted):
        return "needs one of " + ", ".join(f"{name}, which {_told(ended[name])}" for name in wanted)
    return ""


def _told(ended: Ended) -> str:
    return {FAILED: "failed", NOT_PASSED: "did not pass", KEPT_BACK: "was kept back",
            STOPPED: "was not begun"}.get(ended.state, "was skipped")


def all_well(ended: Mapping[str, Ended]) -> bool:
    """Whether nothing failed: a candidate that did not pass is no failure."""
    return all(how.state != FAILED for how in ended.values())
