"""`make retrain_sup`: search for better supervised heads, judge them, and hand the best one to the running hub.

    python -m train.retrain_sup --home var --coins SOL,BTC --window 60 --lookback 25200

Ends with a code of `train.commands`: with --strict, the best must pass the judgement. The same command again goes on
where it was. With --keep-back nothing is handed over: whoever asks for that, such as the nightly, tests the candidates
first.
"""

from __future__ import annotations

import time
from collections.abc import Collection

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from policies.bundle import Bundle
from policies.types import NO_EMBEDDING
from train.candidates import Candidate
from train.cluster import ray_cluster
from train.commands import (
    FAILED,
    NOT_PASSED,
    REFUSED,
    JobOptions,
    console_of,
    ended,
    job_options,
    settings_of,
)
from train.estimate import described, seconds_left, seconds_of
from train.handover import HandoverFailed, HubDoor
from train.pool import RayPool
from train.retrain import Retraining
from train.retrain_log import log_to_mlflow, sentences_of, table_of, write_page
from train.retrain_settings import HEADS, SIZES, RetrainSettings
from train.seen import seen_until
from train.training_set import write_packed

EMBEDDER_FILE = "embedder.pt"  # of the candidates with an embedding, beside them


class Board:
    """Progress for people: a bar with the time left on a terminal, a line for each step elsewhere."""

    def __init__(self, console: Console, settings: RetrainSettings, steps: Collection[str], finished: Collection[str],
                 cores: int) -> None:
        self._console, self._settings, self._cores = console, settings, cores
        self._left = {step: 0.0 if step in finished else 1.0 for step in steps}
        self._whole = self._estimate()
        self._began = time.monotonic()
        self._bar = Progress(TextColumn("{task.description:<28}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
                             TimeElapsedColumn(), TextColumn("{task.fields[left]}"), console=console,
                             disable=not console.is_terminal)
        self._task = self._bar.add_task("starting", total=max(self._whole, 1e-9), left="")

    def __enter__(self) -> Board:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def told(self, step: str, share: float) -> None:
        """share: of the step that is done; of one that was finished before nothing is told."""
        before = self._left.get(step)
        if before is None or 1.0 - share >= before:
            return
        self._left[step] = 1.0 - share
        left = self._time_left()
        self._bar.update(self._task, completed=self._whole - self._estimate(), description=step,
                         left=f"about {described(left)} left")
        if share >= 1.0 and not self._console.is_terminal:
            done = sum(1 for value in self._left.values() if value <= 0)
            self._console.print(f"[{done}/{len(self._left)}] {step}, about {described(left)} left", highlight=False)

    def _time_left(self) -> float:
        """The estimate of what is left, corrected by how right it has been so far."""
        left, spent = self._estimate(), time.monotonic() - self._began
        done = self._whole - left
        return left * min(4.0, max(0.25, spent / done)) if done > 0.05 * self._whole and spent > 5 else left

    def _estimate(self) -> float:
        """Seconds, as if every step took its estimate."""
        open_ = [step for step, share in self._left.items() if share > 0]
        partly = sum(seconds_of(step, self._settings) * (1 - share) for step, share in self._left.items() if share > 0)
        return max(0.0, seconds_left(open_, self._settings, self._cores) - partly)


def hand_over(best: Candidate, embedder: Bundle | None, door: HubDoor, say: Console) -> None:
    """Register a candidate in the hub behind the door; first the embedder, if it was made for one."""
    kept_back = ""
    if best.bundle.manifest.embedding_version != NO_EMBEDDING and embedder is not None:
        kept_back = door.use_embedder(embedder)
    door.register(best.bundle)
    say.print(f"registered {best.bundle.manifest.alias}; see: hub status", highlight=False)
    if kept_back:
        say.print(f"its embedding is not in use: {kept_back}\nto use it all the same: hub embedding use "
                  f"{best.bundle.manifest.embedding_version} --force", highlight=False, soft_wrap=True)


@click.command()
@job_options
@click.option("--window", default=60, show_default=True, help="Bars of raw input.")
@click.option("--heads", default=",".join(HEADS), show_default=True)
@click.option("--trials", default=4, show_default=True, help="Of each sweep.")
@click.option("--seeds", default=1, show_default=True, help="Trainings of each head and fold.")
@click.option("--folds", default=2, show_default=True, help="Of the walk-forward.")
@click.option("--size", type=click.Choice(SIZES), default="small", show_default=True)
def main(job: JobOptions, window: int, heads: str, trials: int, seeds: int, folds: int, size: str) -> None:
    """Train, judge and hand over supervised heads."""
    console = console_of()
    settings = settings_of(lambda: RetrainSettings(job.symbols, window, job.lookback, tuple(heads.split(",")), trials,
                                                   seeds, folds, size, job.market.seed))
    ended(lambda: _run(job, settings, console), console)


def _run(job: JobOptions, settings: RetrainSettings, console: Console) -> int:
    market, home, door = job.market.opened(settings.symbols), job.home, job.door
    began = time.time_ns() // 1_000_000
    until_ms, why = seen_until(market, settings.symbols, door.status(), began)
    console.print(market.describe(), highlight=False, soft_wrap=True)
    with ray_cluster() as cores:
        search = Retraining(market, job.repo(market), home, settings, until_ms, RayPool())
        left = described(seconds_left(set(search.steps) - set(search.finished_steps), settings, cores))
        for symbol, count in search.bars_of.items():
            if count < settings.lookback_bars:
                console.print(f"{symbol}: {count} bars, less than the {settings.lookback_bars} asked for")
        console.print(f"bars up to {why}; {len(search.finished_steps)} of {len(search.steps)} steps are done; "
                      f"estimate: {left} on {cores} cores, SIZE={settings.size}", highlight=False)
        with Board(console, settings, search.steps, search.finished_steps, cores) as board:
            search.told = board.told
            retrained = search.run()
    runs = log_to_mlflow(home, retrained, began)
    for candidate in retrained.candidates:
        write_packed(home / "models" / f"candidate_{candidate.name}.pt", candidate.bundle)
    if retrained.embedder is not None:
        write_packed(home / "models" / EMBEDDER_FILE, retrained.embedder)
    console.print(table_of(retrained))
    for head, reason in retrained.failed.items():
        console.print(f"{head} was left out: {reason}", highlight=False, soft_wrap=True)
    for sentence in sentences_of(retrained):
        console.print(sentence, highlight=False, soft_wrap=True)
    page = write_page(home, retrained, {"mlflow_runs": runs, "seconds": (time.time_ns() // 1_000_000 - began) / 1_000})
    console.print(f"report {page}; candidates {home / 'models'}/candidate_*.pt; MLflow experiment retrain_sup; "
                  f"{described((time.time_ns() // 1_000_000 - began) / 1_000)}", highlight=False, soft_wrap=True)
    if not retrained.asked_for:
        console.print("none of the heads that were asked for could be made; nothing is handed over")
        return FAILED
    best = retrained.asked_for[0]
    _tell_best(best, console)
    if job.strict and not best.passed:
        return NOT_PASSED
    if job.keep_back:
        return 0
    if door.status() is None:
        console.print(f"no hub of this home answers at {door.url}: hand one over with "
                      f"hub register --path {home / 'models' / f'candidate_{best.name}.pt'}", soft_wrap=True)
        return 0
    try:
        hand_over(best, retrained.embedder, door, console)
    except HandoverFailed as error:
        console.print(f"not handed over: {error}", soft_wrap=True)
        return REFUSED
    return 0


def _tell_best(best: Candidate, console: Console) -> None:
    if best.passed:
        console.print(f"best: {best.name}, which passed the judgement", highlight=False)
        return
    console.print(f"best: {best.name}, which did not pass: " + "; ".join(best.missed), highlight=False, soft_wrap=True)
    console.print("a hub gives it no more than a challenger's share until it has earned more by trades of its own",
                  highlight=False)


if __name__ == "__main__":
    main()
