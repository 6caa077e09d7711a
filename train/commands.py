"""What the training commands have in common: the options that say where and on what, and how they end.

With 0 when what was made is handed over or kept back, or no hub runs; 1 if nothing that was asked for could be made; 2
for wrong arguments; 3, with --strict, if it did not pass (nothing is handed over then); 4 if a hub runs and refused it;
130 when interrupted.
The steps of a night and of a chain end with the same codes, and with 5 if another one is under way, 6 if whoever they
need is away.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

import click
from rich.console import Console

from feature_repo.market import KINDS, Market, symbols_in
from feature_repo.store import OFFLINE_ONLY, FeatureRepo
from policies.errors import BundleRefused, HubError, InvalidInput
from train.handover import HubDoor
from train.quiet import quiet_libraries
from train.training_set import open_market

FAILED, NOT_PASSED, REFUSED, LOCKED, AWAY, INTERRUPTED = 1, 3, 4, 5, 6, 130
LINE = 160  # characters of a line that nobody looks at in a terminal

_MARKET = {
    "kind": click.option("--market", "kind", type=click.Choice(["auto", *KINDS]), default="auto", show_default=True),
    "data_dir": click.option("--data-dir", default=None, help="Folder of recorded bars."),
    "seed": click.option("--seed", default=7, show_default=True, help="Of what is drawn, a generated market included."),
    "signal": click.option("--signal", default=1.0, show_default=True, help="Planted edge of a generated market."),
    "generated_bars": click.option("--generated-bars", default=43_200, show_default=True)}
_JOB = {
    "home": click.option("--home", type=click.Path(path_type=Path, resolve_path=True), required=True,
                         help="HUB_HOME of the hub."),
    "hub_url": click.option("--hub-url", default="http://127.0.0.1:8000", show_default=True),
    "coins": click.option("--coins", default="BTC,ETH,SOL,HYPE", show_default=True, help="Separated by commas."),
    "lookback": click.option("--lookback", default=25_200, show_default=True, help="Bars of history."),
    "strict": click.option("--strict", is_flag=True, help="End with 3 and hand nothing over unless it passes."),
    "keep_back": click.option("--keep-back", is_flag=True, help="Hand nothing over: it stays in HOME/models.")}


@dataclass(frozen=True)
class MarketOptions:
    """kind: auto, or one of feature_repo.market.KINDS. seed, signal, generated_bars: of a generated market."""

    kind: str
    data_dir: str | None
    seed: int
    signal: float
    generated_bars: int

    def opened(self, symbols: tuple[str, ...]) -> Market:
        """A symbol or a folder that is not there is a wrong argument."""
        return cast(Market, settings_of(
            lambda: open_market(self.kind, self.data_dir, symbols, self.seed, self.signal, self.generated_bars)))


@dataclass(frozen=True)
class JobOptions:
    """home: HUB_HOME. lookback: bars of each symbol. strict, keep_back: when nothing is handed over."""

    home: Path
    hub_url: str
    coins: str
    lookback: int
    strict: bool
    keep_back: bool
    market: MarketOptions

    @property
    def symbols(self) -> tuple[str, ...]:
        return symbols_in(self.coins)

    @property
    def door(self) -> HubDoor:
        return HubDoor(self.hub_url.rstrip("/"), self.home)

    def repo(self, market: Market) -> FeatureRepo:
        return FeatureRepo(self.home, OFFLINE_ONLY, market.origin)


def market_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of a market; the function is called with `market` in their place."""
    return _gathered(function, _MARKET, "market", MarketOptions, tuple(_MARKET))


def job_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of a training command, its market's included; the function is called with `job` in their place."""
    return market_options(_gathered(function, _JOB, "job", JobOptions, (*_JOB, "market")))


def _gathered(function: Callable[..., Any], options: Mapping[str, Callable[..., Any]], argument: str,
              kind: Callable[..., Any], fields: Sequence[str]) -> Callable[..., Any]:
    @functools.wraps(function)
    def called(**values: Any) -> Any:
        given = {name: values.pop(name) for name in fields}
        return function(**values, **{argument: kind(**given)})

    found: Callable[..., Any] = called
    for option in reversed(tuple(options.values())):
        found = option(found)
    return found


def settings_of(make: Callable[[], Any]) -> Any:
    """What it makes of the arguments; what is wrong with them ends the command with 2, before anything begins."""
    try:
        return make()
    except (InvalidInput, BundleRefused) as error:
        raise click.UsageError(str(error)) from error


def console_of(width: int = LINE) -> Console:
    """For a command's lines and tables, with the libraries silenced."""
    quiet_libraries()
    return Console(width=None if sys.stdout.isatty() else width)


def ended(run: Callable[[], int], console: Console) -> NoReturn:
    """Run to the exit code that it returns. Nothing is lost by an interruption, and that is said."""
    try:
        sys.exit(run())
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on from here")
        sys.exit(INTERRUPTED)
    except HubError as error:
        raise click.ClickException(str(error)) from error
