"""`make retrain_rl`: train a policy by reinforcement, judge it on later bars, and hand it to the running hub.

    python -m train.rl.retrain_rl --home var --coins SOL,BTC --steps 1e6 --algo ppo

Ends with 0 when a candidate was made and handed over or no hub runs; 1 if something failed; 2 for wrong arguments; 3,
with --strict, if it did not pass the judgement (it is not handed over then); 4 if a hub runs and refused it; 130 when
interrupted. The same command again goes on where it was, a training from its last look. --load goes on from the
checkpoint of another job (weights, optimisers, remembered transitions), or from the actor of a bundle.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from feature_repo.market import KINDS, Market
from feature_repo.store import FeatureRepo
from policies.bundle import read_bundle
from policies.errors import BundleRefused, HubError, InvalidInput
from train.cluster import ray_cluster
from train.estimate import described
from train.handover import HandoverFailed, HubDoor
from train.quiet import quiet_libraries
from train.rl.job import RlCandidate, RlJob
from train.rl.loaded import Loaded, opened
from train.rl.report import log_to_mlflow, table_of, write_page
from train.rl.settings import ALGOS, PPO, SIZES, RlSettings, steps_from
from train.rl.training import updates_of
from train.seen import seen_until
from train.training_set import open_market, write_packed

NOT_PASSED, REFUSED, INTERRUPTED = 3, 4, 130
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
@click.option("--home", type=click.Path(path_type=Path, resolve_path=True), required=True,
              help="HUB_HOME of the hub.")
@click.option("--hub-url", default="http://127.0.0.1:8000", show_default=True)
@click.option("--market", type=click.Choice(["auto", *KINDS]), default="auto", show_default=True)
@click.option("--data-dir", default=None, help="Folder of recorded bars.")
@click.option("--coins", default="BTC,ETH,SOL,HYPE", show_default=True, help="Separated by commas.")
@click.option("--lookback", default=RlSettings.lookback_bars, show_default=True, help="Bars of history.")
@click.option("--steps", default="200000", show_default=True, help="Environment steps of a training, such as 1e6.")
@click.option("--algo", type=click.Choice(ALGOS), default=PPO, show_default=True)
@click.option("--load", type=click.Path(path_type=Path), default=None, help="A checkpoint's folder, or a bundle.")
@click.option("--size", type=click.Choice(SIZES), default="small", show_default=True)
@click.option("--seed", default=RlSettings.seed, show_default=True)
@click.option("--seeds", default=1, show_default=True, help="Trainings; the best on the validation range is taken.")
@click.option("--steps-per-update", default=RlSettings.steps_per_update, show_default=True, help="Of SAC.")
@click.option("--episodes", is_flag=True, help="Let SAC begin with the hub's own episodes.")
@click.option("--signal", default=1.0, show_default=True, help="Planted edge of a generated market.")
@click.option("--generated-bars", default=43_200, show_default=True)
@click.option("--strict", is_flag=True, help="End with 3 and hand nothing over unless it passes the judgement.")
@click.option("--keep-back", is_flag=True, help="Hand nothing over: the candidate stays in HOME/models.")
def main(home: Path, hub_url: str, market: str, data_dir: str | None, coins: str, lookback: int, steps: str, algo: str,
         load: Path | None, size: str, seed: int, seeds: int, steps_per_update: int, episodes: bool, signal: float,
         generated_bars: int, strict: bool, keep_back: bool) -> None:
    """Train, judge and hand over a policy."""
    quiet_libraries()
    console = Console(width=None if sys.stdout.isatty() else 160)
    try:
        settings = RlSettings(tuple(coins.split(",")), algo, steps_from(steps), lookback, size, seed, seeds,
                              steps_per_update)
        loaded = None if load is None else opened(load, settings)
        if episodes and algo == PPO:
            raise InvalidInput("EPISODES", "only with ALGO=sac: PPO learns from what it does itself", algo)
    except (InvalidInput, BundleRefused) as error:
        raise click.UsageError(str(error)) from error
    try:
        opened_market = open_market(market, data_dir, settings.symbols, seed, signal, generated_bars)
        sys.exit(_run(home, HubDoor(hub_url.rstrip("/"), home), opened_market, settings, loaded, episodes, strict,
                      keep_back, console))
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on from here")
        sys.exit(INTERRUPTED)
    except HubError as error:
        raise click.ClickException(str(error)) from error


def _run(home: Path, door: HubDoor, market: Market, settings: RlSettings, loaded: Loaded | None, episodes: bool,
         strict: bool, keep_back: bool, console: Console) -> int:
    began, status = time.time_ns() // 1_000_000, door.status()
    until_ms, why = seen_until(market, settings.symbols, status, began)
    console.print(market.describe(), highlight=False, soft_wrap=True)
    # Only the offline store is used; the online one is named because Feast wants an address.
    repo = FeatureRepo(home, "redis://127.0.0.1:6380/0", market.origin)
    with ray_cluster():
        job = RlJob(market, repo, home, settings, until_ms, loaded, episodes, Teller(console, settings).told)
        console.print(f"bars up to {why}; {len(job.finished_steps)} of {len(job.steps)} steps are done; "
                      f"ALGO={settings.algo} SIZE={settings.size}, {settings.steps:,} steps, {updates_of(settings)}",
                      highlight=False, soft_wrap=True)
        if loaded is not None:
            console.print(f"goes on from {loaded.described}", highlight=False, soft_wrap=True)
        candidate = job.run()
    run = log_to_mlflow(home, candidate, settings, job.key, began)
    path, taken = keep_candidate(home, candidate)
    console.print(table_of(candidate))
    for sentence in _sentences(candidate, settings):
        console.print(sentence, highlight=False, soft_wrap=True)
    seconds = (time.time_ns() // 1_000_000 - began) / 1_000
    page = write_page(home, candidate, settings, {"mlflow_run": run, "seconds": seconds,
                                                  "checkpoint": str(job.last_checkpoint(candidate.seed))})
    console.print(f"report {page}; candidate {path}{f' and {SERVED}' if taken else ''}; LOAD="
                  f"{job.last_checkpoint(candidate.seed)} goes on; MLflow experiment retrain_rl; "
                  f"{described(seconds)}", highlight=False, soft_wrap=True)
    if strict and not candidate.passed:
        return NOT_PASSED
    return 0 if keep_back else _handed_over(door, candidate, path, console)


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
