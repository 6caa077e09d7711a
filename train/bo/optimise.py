"""`python -m train.bo.optimise`: search for levels on recorded bars, judge them on later ones, hand the start over.

    python -m train.bo.optimise --home var --coins SOL,BTC --lookback 25200 --trials 16

Ends with 0 when a start was written and handed over, or kept back, or no hub runs; 1 if something failed; 2 for wrong
arguments; 3, with --strict, if the choices together are not above the middle of the grid on the later bars (nothing is
handed over then); 4 if a hub runs and refused it; 130 when interrupted. The same command again goes on where it was.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click
from rich.console import Console

from feature_repo.features import HOUR_MS
from feature_repo.market import KINDS, Market, replay_range
from feature_repo.store import FeatureRepo
from policies.errors import HubError, InvalidInput
from train.bo.job import Optimising
from train.bo.result import log_to_mlflow, passed, sentences_of, table_of, write_page, write_start
from train.bo.rules import RULES
from train.bo.settings import BoSettings
from train.cluster import ray_cluster
from train.handover import HandoverFailed, HubDoor
from train.pool import RayPool
from train.quiet import quiet_libraries
from train.training_set import open_market

NOT_PASSED, REFUSED, INTERRUPTED = 3, 4, 130
UNTIL_MS = 6 * HOUR_MS  # a hub's clock moves on; within such a stretch an interrupted job can be gone on with


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
@click.option("--home", type=click.Path(path_type=Path, resolve_path=True), required=True,
              help="HUB_HOME of the hub.")
@click.option("--hub-url", default="http://127.0.0.1:8000", show_default=True)
@click.option("--market", type=click.Choice(["auto", *KINDS]), default="auto", show_default=True)
@click.option("--data-dir", default=None, help="Folder of recorded bars.")
@click.option("--coins", default="BTC,ETH,SOL,HYPE", show_default=True, help="Separated by commas.")
@click.option("--lookback", default=25_200, show_default=True, help="Bars of history.")
@click.option("--trials", default=16, show_default=True, help="Of each strategy; each looks at some dozen points.")
@click.option("--strategies", default=",".join(RULES), show_default=True)
@click.option("--seed", default=7, show_default=True)
@click.option("--signal", default=1.0, show_default=True, help="Planted edge of a generated market.")
@click.option("--generated-bars", default=43_200, show_default=True)
@click.option("--keep-back", is_flag=True, help="Hand nothing over; the file and the report are written.")
@click.option("--strict", is_flag=True, help="End with 3 and hand nothing over unless the later bars confirm it.")
def main(home: Path, hub_url: str, market: str, data_dir: str | None, coins: str, lookback: int, trials: int,
         strategies: str, seed: int, signal: float, generated_bars: int, keep_back: bool, strict: bool) -> None:
    """Find what the parameter learners start from."""
    quiet_libraries()
    console = Console(width=None if sys.stdout.isatty() else 180)
    try:
        settings = BoSettings(tuple(coins.split(",")), lookback, trials, seed, tuple(strategies.split(",")))
    except InvalidInput as error:
        raise click.UsageError(str(error)) from error
    try:
        opened = open_market(market, data_dir, settings.symbols, seed, signal, generated_bars)
        sys.exit(_run(home, HubDoor(hub_url.rstrip("/"), home), opened, settings, strict, keep_back, console))
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on from here")
        sys.exit(INTERRUPTED)
    except HubError as error:
        raise click.ClickException(str(error)) from error


def until_of(market: Market, settings: BoSettings, status: dict[str, object] | None, wall_ms: int) -> int:
    """No bar is seen that a running hub has still to replay, or would if it ran. wall_ms: the time now."""
    if status is not None:
        return int(status["hub"]["now_ms"]) // UNTIL_MS * UNTIL_MS  # type: ignore[index]
    if market.name == "hyperliquid":
        return wall_ms // UNTIL_MS * UNTIL_MS
    return replay_range(market, settings.symbols)[1]


def _run(home: Path, door: HubDoor, market: Market, settings: BoSettings, strict: bool, keep_back: bool,
         console: Console) -> int:
    began = time.time_ns() // 1_000_000
    console.print(market.describe(), highlight=False, soft_wrap=True)
    # Only the offline store is used; the online one is named because Feast wants an address.
    repo = FeatureRepo(home, "redis://127.0.0.1:6380/0", market.origin)
    with ray_cluster() as cores:
        job = Optimising(market, repo, home, settings, until_of(market, settings, door.status(), began), RayPool(),
                         cores, told=Progress(console).told)
        optimised = job.run()
    runs = log_to_mlflow(home, optimised, began)
    path = write_start(home, optimised)
    console.print(table_of(optimised))
    for step, reason in optimised.failed.items():
        console.print(f"{step} was left out: {reason}", highlight=False, soft_wrap=True)
    for sentence in sentences_of(optimised):
        console.print(sentence, highlight=False, soft_wrap=True)
    seconds = (time.time_ns() // 1_000_000 - began) / 1_000
    page = write_page(home, optimised, {"mlflow_runs": runs, "seconds": seconds})
    console.print(f"start {optimised.start.start_id[:12]} in {path}; report {page}; MLflow experiment bo; "
                  f"{seconds:.0f} s", highlight=False, soft_wrap=True)
    if strict and not passed(optimised):
        return NOT_PASSED
    if keep_back or door.status() is None:
        why = "kept back" if keep_back else f"no hub of this home answers at {door.url}"
        console.print(f"{why}: hand it over with hub params start --path {path}", highlight=False, soft_wrap=True)
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
