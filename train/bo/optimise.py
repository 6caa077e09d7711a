"""`python -m train.bo.optimise`: search for levels on recorded bars, judge them on later ones, hand the start over.

    python -m train.bo.optimise --home var --coins SOL,BTC --lookback 25200 --trials 16

Ends with a code of `train.commands`: with --strict, the choices together must be above the middle of the grid on the
later bars. While a search has failed there is no start, and it ends with 1. The same command again goes on where it
was.
"""

from __future__ import annotations

import time

import click
from rich.console import Console

from train.bo.job import Optimising
from train.bo.result import log_to_mlflow, passed, sentences_of, table_of, write_page, write_start
from train.bo.rules import RULES
from train.bo.settings import BoSettings
from train.cluster import ray_cluster
from train.commands import FAILED, NOT_PASSED, REFUSED, JobOptions, console_of, ended, job_options, settings_of
from train.handover import HandoverFailed
from train.pool import RayPool
from train.seen import seen_until


class Progress:
    """A line for each step that is done, with the time that is left if the others take as long."""

    def __init__(self, console: Console) -> None:
        self._console, self._began, self._first = console, time.monotonic(), 0

    def told(self, step: str, done: int, of: int) -> None:
        if done == 0:  # the next steps are of another kind
            self._began, self._first = time.monotonic(), -1
            self._console.print(f"{step}: done", highlight=False)
            return
        if self._first < 0:
            self._first = done - 1  # those before were done in an earlier run
        each = (time.monotonic() - self._began) / (done - self._first)
        self._console.print(f"[{done}/{of}] {step}, about {each * (of - done):.0f} s left", highlight=False)


@click.command()
@job_options
@click.option("--trials", default=16, show_default=True, help="Of each strategy; each looks at some dozen points.")
@click.option("--strategies", default=",".join(RULES), show_default=True)
def main(job: JobOptions, trials: int, strategies: str) -> None:
    """Find what the parameter learners start from."""
    console = console_of(180)
    settings = settings_of(lambda: BoSettings(job.symbols, job.lookback, trials, job.market.seed,
                                              tuple(strategies.split(","))))
    ended(lambda: _run(job, settings, console), console)


def _run(job: JobOptions, settings: BoSettings, console: Console) -> int:
    market, home, door = job.market.opened(settings.symbols), job.home, job.door
    began = time.time_ns() // 1_000_000
    until_ms, why = seen_until(market, settings.symbols, door.status(), began)
    console.print(f"{market.describe()}\nbars up to {why}", highlight=False, soft_wrap=True)
    with ray_cluster() as cores:
        search = Optimising(market, job.repo(market), home, settings, until_ms, RayPool(), cores,
                            told=Progress(console).told)
        optimised = search.run()
    if optimised.failed:
        for step, reason in optimised.failed.items():
            console.print(f"{step} failed: {reason}", highlight=False, soft_wrap=True)
        console.print("nothing is handed over; the same command tries again what failed", highlight=False,
                      soft_wrap=True)
        return FAILED
    runs = log_to_mlflow(home, optimised, began)
    path = write_start(home, optimised)
    console.print(table_of(optimised))
    for sentence in sentences_of(optimised):
        console.print(sentence, highlight=False, soft_wrap=True)
    seconds = (time.time_ns() // 1_000_000 - began) / 1_000
    page = write_page(home, optimised, {"mlflow_runs": runs, "seconds": seconds})
    console.print(f"start {optimised.start.start_id[:12]} in {path}; report {page}; MLflow experiment bo; "
                  f"{seconds:.0f} s", highlight=False, soft_wrap=True)
    if job.strict and not passed(optimised):
        return NOT_PASSED
    if job.keep_back or door.status() is None:
        kept = "kept back" if job.keep_back else f"no hub of this home answers at {door.url}"
        console.print(f"{kept}: hand it over with hub params start --path {path}", highlight=False, soft_wrap=True)
        return 0
    try:
        answer = door.begin_params_from(optimised.start.to_dict(), f"found by job {optimised.key}")
    except HandoverFailed as error:
        console.print(f"not handed over: {error}", soft_wrap=True)
        return REFUSED
    console.print(f"the hub starts from it: {answer['accepted']} at position {answer['position']}", highlight=False)
    return 0


if __name__ == "__main__":
    main()
