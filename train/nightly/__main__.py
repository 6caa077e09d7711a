"""`make nightly`: features, drift, supervised and reinforcement learning, levels, forward tests, registration.

    python -m train.nightly --home var --coins SOL,BTC --data-dir recorded

Each step is a job of the Ray that RAY_ADDRESS names, or of one that ends with this command. Ends with 0 if nothing
failed, 1 if a step failed, 2 for wrong arguments, 5 if another nightly of this home is under way, 130 when interrupted.
The same command again goes on where it was, after kill -9 as well: steps that are done are not done again.
"""

from __future__ import annotations

import signal
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from feature_repo.market import KINDS, symbols_in
from policies.errors import HubError, InvalidInput
from train.commands import FAILED, INTERRUPTED, LOCKED
from train.estimate import described
from train.handover import HubDoor
from train.job_cluster import job_client, outside_cluster
from train.locked import UnderWay
from train.nightly.board import NightBoard
from train.nightly.jobs import RayJobs
from train.nightly.lock import MARK, end_what_was_left, only_one
from train.nightly.night import Night, forget_old, seconds_before
from train.nightly.run import NightRun, all_well
from train.nightly.settings import RL, NightSettings, night_plan
from train.quiet import quiet_libraries
from train.rl.settings import steps_from
from train.seen import seen_until
from train.training_set import open_market

defaults = NightSettings(("BTC", "ETH", "SOL", "HYPE"))


@click.command()
@click.option("--home", type=click.Path(path_type=Path), required=True, help="HUB_HOME of the hub.")
@click.option("--data-dir", default=None, help="Folder of recorded bars.")
@click.option("--market", type=click.Choice(["auto", *KINDS]), default="auto", show_default=True)
@click.option("--coins", default=",".join(defaults.symbols), show_default=True, help="Separated by commas.")
@click.option("--lookback", default=defaults.lookback_bars, show_default=True, help="Bars of history.")
@click.option("--window", default=defaults.window_bars, show_default=True, help="Bars of raw input.")
@click.option("--heads", default="", help="Supervised heads; by default all.")
@click.option("--trials", default=defaults.trials, show_default=True, help="Of each supervised sweep.")
@click.option("--folds", default=defaults.folds, show_default=True, help="Of the walk-forward.")
@click.option("--bo-trials", default=defaults.bo_trials, show_default=True, help="Of each search for levels.")
@click.option("--rl", type=click.Choice(RL), default="auto", show_default=True, help="auto: once a week.")
@click.option("--rl-weekday", default=defaults.rl_weekday, show_default=True, help="0 is Monday, UTC.")
@click.option("--algo", default=",".join(defaults.algorithms), show_default=True, help="Separated by commas.")
@click.option("--steps", default=str(defaults.steps), show_default=True, help="Of each reinforcement learner: 1e6.")
@click.option("--size", default=defaults.size, show_default=True, help="small, or full for a GPU.")
@click.option("--min-pf", default=defaults.least_profit_factor, show_default=True, help="Of a forward test; 0: none.")
@click.option("--hub-url", default=defaults.hub_url, show_default=True)
@click.option("--night", default="", help="Its name; by default the date (UTC) of the market's clock.")
@click.option("--side-by-side", default=1, show_default=True, help="Jobs at the same time; each uses every free core.")
@click.option("--seed", default=defaults.seed, show_default=True)
@click.option("--signal", "planted", default=defaults.signal, show_default=True,
              help="Planted edge of a generated market.")
@click.option("--generated-bars", default=defaults.generated_bars, show_default=True)
def main(home: Path, data_dir: str | None, market: str, coins: str, lookback: int, window: int, heads: str, trials: int,
         folds: int, bo_trials: int, rl: Any, rl_weekday: int, algo: str, steps: str, size: str, min_pf: float,
         hub_url: str, night: str, side_by_side: int, seed: int, planted: float, generated_bars: int) -> None:
    """Run what is to be run at night."""
    quiet_libraries()
    console = Console(width=None if sys.stdout.isatty() else 160)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as a cluster ends a pod
    try:
        settings = NightSettings(
            symbols_in(coins), market, data_dir and str(Path(data_dir).resolve()), lookback, window, heads,
            trials, folds, bo_trials, rl, rl_weekday, tuple(algo.split(",")), steps_from(steps), size, min_pf,
            hub_url.rstrip("/"), seed, planted, generated_bars)
        if "/" in night or night.startswith("."):
            raise InvalidInput("--night", "a name for a folder", night)
    except InvalidInput as error:
        raise click.UsageError(str(error)) from error
    try:
        sys.exit(_run(home.resolve(), settings, night, max(1, side_by_side), console))
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on from here")
        sys.exit(INTERRUPTED)
    except UnderWay as error:
        click.echo(str(error), err=True)
        sys.exit(LOCKED)
    except HubError as error:
        raise click.ClickException(str(error)) from error


def _run(home: Path, settings: NightSettings, name: str, side_by_side: int, console: Console) -> int:
    began_s, wall_ms = time.monotonic(), time.time_ns() // 1_000_000
    with ExitStack() as stack:
        stack.enter_context(only_one(home))
        left = end_what_was_left(home)
        if left:
            console.print(f"ended {left} processes that a killed nightly had left", highlight=False)
        now_ms, why = _now(home, settings, wall_ms)
        name = name or datetime.fromtimestamp(now_ms / 1_000, UTC).strftime("%Y-%m-%d")
        plan = night_plan(home, settings, now_ms)
        night, before = Night(home, name, plan), seconds_before(home, name)
        console.print(f"night {name}, by {why}; its steps are kept in {night.folder}", highlight=False, soft_wrap=True)
        client = stack.enter_context(job_client({MARK: str(home)}))
        console.print(f"jobs: {outside_cluster() or 'a Ray of this machine'}", highlight=False)
        jobs = RayJobs(client, f"{home}:{name}:{plan.key}")
        ended = NightRun(night, jobs, NightBoard(plan, before, console), side_by_side).run()
        return _told(night, ended, settings, before, wall_ms, began_s, console)


def _told(night: Night, ended: Any, settings: NightSettings, before: Any, wall_ms: int, began_s: float,
          console: Console) -> int:
    """Write the report and show it; the exit code."""
    from train.nightly.report import candidates_table, log_night, plots_of, report_of, table_of, write_night

    report = report_of(night, ended, asdict(settings), time.monotonic() - began_s)
    page = write_night(night, report, plots_of(night, ended, before))
    log_night(night, report, wall_ms)
    forget_old(night.home)
    console.print(table_of(report))
    if report["candidates"]:
        console.print(candidates_table(report))
    console.print(f"report {page}; MLflow experiment nightly; {described(report['seconds'])}", highlight=False,
                  soft_wrap=True)
    return 0 if all_well(ended) else FAILED


def _now(home: Path, settings: NightSettings, wall_ms: int) -> tuple[int, str]:
    """The market's clock, and where it comes from: of a recording, what a hub would replay later is not yet."""
    status = HubDoor(settings.hub_url, home).status()
    market = open_market(settings.market, settings.data_dir, settings.symbols, settings.seed, settings.signal,
                         settings.generated_bars)
    if market.name == "hyperliquid" and status is None:
        return wall_ms, "the clock on the wall"
    return seen_until(market, settings.symbols, status, wall_ms)


if __name__ == "__main__":
    main()
