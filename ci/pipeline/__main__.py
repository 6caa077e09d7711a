"""`make ci_pipeline`: the whole chain, step by step, with a table at the end.

    python -m ci.pipeline --home var --local-s3

It stops at the first step that fails, with that step's exit code: 1 failed, 3 no candidate passed, 4 the hub refused,
6 somebody is away and what is unsent waits in the outbox, 130 interrupted. The same command goes on where it makes
sense: the training from its last step, the publication from the outbox. `--from STEP` leaves out what comes before.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from ci.pipeline import forward, publish, track, train_small, unit_tests, verify, webhook
from ci.pipeline.cluster import cluster
from ci.pipeline.local_hub import local_hub
from ci.pipeline.local_s3 import BUCKET, CREDENTIALS, local_s3
from ci.pipeline.settings import PipelineSettings, setting_options
from ci.pipeline.step import INTERRUPTED, Run, Say, ended
from reports.report import write_report

STEPS = ("unit_tests", "cluster", "train_small", "forward", "track", "local", "publish", "webhook", "verify")
REPORT = "ci_pipeline"
NOT_RUN = "not run"


@dataclass(frozen=True)
class Line:
    """What came of one step. state: done, failed, left out, or not run."""

    step: str
    state: str
    seconds: float
    said: str


class Chain:
    """settings: of the job. local: with a store, and where no hub is named a hub, of its own."""

    def __init__(self, settings: PipelineSettings, say: Say, local: bool = False,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self.settings, self.lines = settings, list[Line]()
        self._say, self._local, self._clock = say, local, clock
        self._training, self._serving = ExitStack(), ExitStack()
        modules = {"unit_tests": unit_tests, "train_small": train_small, "forward": forward, "track": track,
                   "publish": publish, "webhook": webhook, "verify": verify}
        self.runs: dict[str, Run] = {name: module.run for name, module in modules.items()}
        self.runs |= {"cluster": self._start_cluster, "local": self._start_local}

    def run(self, first: str = STEPS[0]) -> int:
        """The exit code of the first step that fails; 0 if none does. Whatever was started is ended on return."""
        code = 0
        with self._serving, self._training:
            for name in STEPS:
                if code or STEPS.index(name) < STEPS.index(first) or (name == "local" and not self._local):
                    self.lines.append(Line(name, NOT_RUN if code else "left out", 0.0, ""))
                    continue
                code = self._step(name)
                if name == "train_small":
                    self._training.close()  # the cluster's memory is the hub's now
        return code

    def _step(self, name: str) -> int:
        self._say(f"-- {name}")
        began = self._clock()
        code, said = ended(self.runs[name], self.settings, self._say)
        self._say(said)
        self.lines.append(Line(name, "failed" if code else "done", self._clock() - began, said))
        return code

    def _start_cluster(self, settings: PipelineSettings, say: Say) -> str:
        return self._training.enter_context(cluster(settings.home))

    def _start_local(self, settings: PipelineSettings, say: Say) -> str:
        os.environ.update(CREDENTIALS)
        url = self._serving.enter_context(local_s3(settings.home))
        self.settings = replace(settings, artefacts=f"s3://{BUCKET}", s3_endpoint_url=url)
        if settings.hub_url:
            return f"S3 at {url}"
        hub_url, hub_home = self._serving.enter_context(local_hub(self.settings))
        self.settings = replace(self.settings, hub_url=hub_url, hub_home=str(hub_home))
        return f"S3 at {url}, a hub at {hub_url}"


def table_of(lines: Sequence[Line]) -> Table:
    shown = Table("step", "state", "seconds", "what came of it", title="the chain")
    for line in lines:
        shown.add_row(line.step, line.state, f"{line.seconds:.1f}" if line.seconds else "-", line.said)
    return shown


@click.command()
@setting_options
@click.option("--local-s3", "local", is_flag=True,
              help="With an S3 of its own on loopback and, unless --hub-url is given, a hub of its own.")
@click.option("--from", "first", type=click.Choice(STEPS), default=STEPS[0], show_default=True,
              help="Leave out the steps before.")
def main(settings: PipelineSettings, local: bool, first: str) -> None:
    """Tests, training, forward test, MLflow, publication, webhook, challenger."""
    reports = settings.home / "reports"
    if local and not settings.hub_url:
        settings = replace(settings, home=settings.home / "ci_pipeline")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    began, chain = time.monotonic(), Chain(settings, lambda text: _say(console, text), local)
    try:
        code = chain.run(first)
    except KeyboardInterrupt:
        code = INTERRUPTED
    console.print(table_of(chain.lines))
    page = write(reports, chain.lines, settings, code)
    console.print(f"exit code {code} after {time.monotonic() - began:.0f} s; report {page}", soft_wrap=True)
    sys.exit(code)


def write(folder: Path, lines: Sequence[Line], settings: PipelineSettings, code: int) -> Path:
    """FOLDER/ci_pipeline.json and its page."""
    steps = [{"step": line.step, "state": line.state, "seconds": round(line.seconds, 1), "said": line.said}
             for line in lines]
    return write_report(folder, REPORT, {"exit_code": code, "steps": steps, "settings": {
        "coins": settings.coins, "lookback": settings.lookback, "heads": settings.heads, "trials": settings.trials,
        "market": settings.market, "min_pf": settings.min_pf, "max_dd": settings.max_dd, "strict": settings.strict}})


def _say(console: Console, text: str) -> None:
    console.print(f"[{time.strftime('%H:%M:%S')}] {text}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
