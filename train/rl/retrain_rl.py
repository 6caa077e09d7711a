"""`make retrain_rl`: train a policy by reinforcement, judge it on later bars, and hand it to the running hub.

    python -m train.rl.retrain_rl --home var --coins SOL,BTC --steps 1e6 --algo ppo

Ends with a code of `train.commands`: with --strict, the candidate must pass the judgement. The same command again goes
on where it was, a training from its last look. --load goes on from the checkpoint of another job (weights, optimisers,
remembered transitions), or from the actor of a bundle; one that has seen bars of the test range is refused.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from policies.bundle import read_bundle
from policies.errors import BundleRefused, InvalidInput
from train.cluster import ray_cluster
from train.commands import NOT_PASSED, REFUSED, JobOptions, console_of, ended, job_options, settings_of
from train.estimate import described
from train.handover import HandoverFailed, HubDoor
from train.rl.job import RlCandidate, RlJob
from train.rl.loaded import Loaded, opened
from train.rl.report import log_to_mlflow, table_of, write_page
from train.rl.settings import ALGOS, PPO, SIZES, RlSettings, steps_from
from train.rl.training import updates_of
from train.seen import seen_until
from train.training_set import write_packed

SERVED = "policy_rl.pt"  # what `learning.rl.policy_path` names by default


class Teller:
    """A line for each look: where it is, how fast, what it earned, how long it still takes at most."""

    def __init__(self, console: Console, settings: RlSettings) -> None:
        self._console, self._settings = console, settings
        self._began: dict[int, tuple[float, int]] = {}  # by seed: when it was first heard of, and at which step

    def told(self, seed: int, look: Mapping[str, Any]) -> None:
        now, steps = time.monotonic(), int(look["steps"])
        since, first = self._began.setdefault(seed, (now - float(look["seconds"]), 0))
        speed = (steps - first) / max(now - since, 1e-9)
        left = max(0, self._settings.steps - steps) / max(speed, 1e-9)
        reward = "" if look["reward"] is None else f", reward {look['reward']:+.2f}"
        self._console.print(
            f"seed {seed}: {steps:,} of {self._settings.steps:,} steps, {speed:,.0f} steps/s{reward}, validation "
            f"{look['figure']:+.3f} % (every bar {look['played_net_return_percent']:+.2f}, served "
            f"{look['served_net_return_percent']:+.2f}), at most {described(left)} left", highlight=False,
            soft_wrap=True)


def keep_candidate(home: Path, candidate: RlCandidate) -> tuple[Path, bool]:
    """Its file, and whether it became what `learning.rl.policy_path` names: the better of both algorithms' latest
    candidates on the same validation range, or the latest if they cannot be compared.
    """
    models = home / "models"
    path = models / f"candidate_{candidate.name}.pt"
    write_packed(path, candidate.bundle)
    other = _validated(models / SERVED)
    own = _validated_in(candidate.bundle.manifest.trained_on)
    better = other is None or own is None or other[0] != own[0] or own[1] >= other[1]
    if better:
        write_packed(models / SERVED, candidate.bundle)
    return path, better


def _validated(path: Path) -> tuple[Any, float] | None:
    try:
        return _validated_in(read_bundle(path).manifest.trained_on)
    except (BundleRefused, OSError):
        return None


def _validated_in(trained_on: Mapping[str, Any]) -> tuple[Any, float] | None:
    """What it was validated on, and its figure there."""
    try:
        return ((trained_on["market"], trained_on["symbols"], trained_on["ranges"]["validation"]),
                float(trained_on["validation"]["figure"]))
    except (KeyError, TypeError):
        return None


@click.command()
@job_options
@click.option("--steps", default="200000", show_default=True, help="Environment steps of a training, such as 1e6.")
@click.option("--algo", type=click.Choice(ALGOS), default=PPO, show_default=True)
@click.option("--load", type=click.Path(path_type=Path), default=None, help="A checkpoint's folder, or a bundle.")
@click.option("--size", type=click.Choice(SIZES), default="small", show_default=True)
@click.option("--seeds", default=1, show_default=True, help="Trainings; the best on the validation range is taken.")
@click.option("--steps-per-update", default=RlSettings.steps_per_update, show_default=True, help="Of SAC.")
@click.option("--episodes", is_flag=True, help="Let SAC begin with the hub's own episodes.")
def main(job: JobOptions, steps: str, algo: str, load: Path | None, size: str, seeds: int, steps_per_update: int,
         episodes: bool) -> None:
    """Train, judge and hand over a policy."""
    console = console_of()

    def checked() -> tuple[RlSettings, Loaded | None]:
        made = RlSettings(job.symbols, algo, steps_from(steps), job.lookback, size, job.market.seed, seeds,
                          steps_per_update)
        if episodes and algo == PPO:
            raise InvalidInput("EPISODES", "only with ALGO=sac: PPO learns from what it does itself", algo)
        return made, None if load is None else opened(load, made)

    settings, loaded = settings_of(checked)
    ended(lambda: _run(job, settings, loaded, episodes, console), console)


def _run(job: JobOptions, settings: RlSettings, loaded: Loaded | None, episodes: bool, console: Console) -> int:
    market, home, door = job.market.opened(settings.symbols), job.home, job.door
    began = time.time_ns() // 1_000_000
    until_ms, why = seen_until(market, settings.symbols, door.status(), began)
    console.print(market.describe(), highlight=False, soft_wrap=True)
    learning = settings_of(lambda: RlJob(market, job.repo(market), home, settings, until_ms, loaded, episodes,
                                         Teller(console, settings).told))
    with ray_cluster():
        console.print(f"bars up to {why}; {len(learning.finished_steps)} of {len(learning.steps)} steps are done; "
                      f"ALGO={settings.algo} SIZE={settings.size}, {settings.steps:,} steps, {updates_of(settings)}",
                      highlight=False, soft_wrap=True)
        if loaded is not None:
            console.print(f"goes on from {loaded.described}", highlight=False, soft_wrap=True)
        candidate = learning.run()
    run = log_to_mlflow(home, candidate, settings, learning.key, began)
    path, taken = keep_candidate(home, candidate)
    console.print(table_of(candidate))
    for sentence in _sentences(candidate, settings):
        console.print(sentence, highlight=False, soft_wrap=True)
    seconds = (time.time_ns() // 1_000_000 - began) / 1_000
    page = write_page(home, candidate, settings, {"mlflow_run": run, "seconds": seconds,
                                                  "checkpoint": str(learning.last_checkpoint(candidate.seed))})
    console.print(f"report {page}; candidate {path}{f' and {SERVED}' if taken else ''}; LOAD="
                  f"{learning.last_checkpoint(candidate.seed)} goes on; MLflow experiment retrain_rl; "
                  f"{described(seconds)}", highlight=False, soft_wrap=True)
    if job.strict and not candidate.passed:
        return NOT_PASSED
    return 0 if job.keep_back else _handed_over(door, candidate, path, console)


def _handed_over(door: HubDoor, candidate: RlCandidate, path: Path, console: Console) -> int:
    if door.status() is None:
        console.print(f"no hub of this home answers at {door.url}: hand it over with hub register --path {path}",
                      soft_wrap=True)
        return 0
    try:
        door.register(candidate.bundle)
    except HandoverFailed as error:
        console.print(f"not handed over: {error}", soft_wrap=True)
        return REFUSED
    console.print(f"registered {candidate.bundle.manifest.alias}; see: hub status", highlight=False)
    return 0


def _sentences(candidate: RlCandidate, settings: RlSettings) -> list[str]:
    said = [f"served actions differ from RLlib's own by at most {candidate.largest_difference:.1g}"]
    updates = candidate.by_seed[0]["updates"]
    if updates is not None:
        said.append(f"SAC: {updates:,} updates, {updates_of(settings)}"
                    + (f"; began with {candidate.episodes} episodes of the hub" if candidate.episodes else ""))
    if candidate.passed:
        return [*said, "it passed the judgement"]
    return [*said, "it did not pass the judgement: " + "; ".join(candidate.missed),
            "a hub gives it no more than a challenger's share until it has earned more by trades of its own"]


if __name__ == "__main__":
    main()
