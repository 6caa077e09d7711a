"""What the steps of the chain may be told, by arguments or by the variables that a workflow sets."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import click
from annotated_types import Ge, Gt, Le

from feature_repo.market import KINDS, symbols_in
from hub.config import load
from train.forward_result import ForwardSettings

TOKEN, SECRET = "HUB_TOKEN", "HUB_WEBHOOK_SECRET"  # only ever in the environment: arguments can be read by others


@dataclass(frozen=True)
class PipelineSettings:
    """home: of the job: models, reports, outbox. hub_url: "" for the configured one. hub_home: of the hub, whose
    tokens and webhook secret are read there unless HUB_TOKEN and HUB_WEBHOOK_SECRET are set; "" for the job's.
    artefacts: a folder or s3://bucket/prefix, as the hub's storage.artefacts_url; "" for the hub's own folder.
    tests: `check`, `all`, or paths for pytest, separated by commas. patience_s: how long who is away is waited for.
    lookback: bars of each symbol to train on; forward_bars: that the forward test plays, the first after training.
    """

    home: Path
    hub_url: str = ""
    hub_home: str = ""
    artefacts: str = ""
    s3_endpoint_url: str = ""
    mlflow_url: str = ""
    market: str = "auto"
    data_dir: str = ""
    coins: str = "SOL,BTC"
    lookback: Annotated[int, Ge(3_000), Le(1_000_000)] = 6_000
    heads: str = "linear,catboost"
    trials: Annotated[int, Ge(1), Le(1_000)] = 2
    folds: Annotated[int, Ge(1), Le(50)] = 1
    seed: int = 7
    signal: Annotated[float, Ge(0), Le(10)] = 1.0
    generated_bars: Annotated[int, Ge(2_000), Le(1_000_000)] = 43_200
    forward_bars: Annotated[int, Ge(1), Le(1_000_000)] = ForwardSettings.most_bars
    min_pf: Annotated[float, Ge(0), Le(1_000)] = 0.0
    max_dd: Annotated[float, Gt(0), Le(1)] = 0.04
    strict: bool = False
    tests: str = "check,tests/policies,tests/router"
    patience_s: Annotated[float, Ge(0), Le(86_400)] = 60.0

    @property
    def symbols(self) -> tuple[str, ...]:
        return symbols_in(self.coins)

    @property
    def url(self) -> str:
        """Of the hub, without a trailing slash."""
        if self.hub_url:
            return self.hub_url.rstrip("/")
        server = load().server
        return f"http://{server.host}:{server.port}"

    @property
    def hub_folder(self) -> Path:
        return Path(self.hub_home).resolve() if self.hub_home else self.home

    @property
    def artefacts_url(self) -> str:
        return self.artefacts or str(self.hub_folder / "artefacts")

    def forward(self, symbols: tuple[str, ...]) -> ForwardSettings:
        return ForwardSettings(symbols, self.forward_bars, self.min_pf, self.max_dd, self.strict)


_VARIABLES = {"home": "HUB_HOME", "hub_url": "HUB_URL", "hub_home": "HUB_SERVED_HOME", "data_dir": "HUB_DATA_DIR",
              "mlflow_url": "MLFLOW_TRACKING_URI"}  # of the others the name in capitals
_HELP = {
    "home": "Of the job: models, reports, outbox.", "hub_url": "Of the running hub; by default the configured one.",
    "hub_home": "The running hub's own home, if it is another one on this machine.",
    "artefacts": "A folder or s3://bucket/prefix, as the hub's; by default the hub's folder.",
    "s3_endpoint_url": "Of an S3 other than Amazon's.", "mlflow_url": "By default the home's own.",
    "coins": "Separated by commas.", "lookback": "Bars of each symbol.", "heads": "Separated by commas.",
    "forward_bars": "Of each symbol that the forward test plays, the first after training.",
    "min_pf": "Profit factor that the forward test demands; 0: none.",
    "max_dd": "Fall of allotted capital that it allows.", "strict": "Demand what --strict of the forward test does.",
    "tests": "check, all, or paths for pytest, separated by commas; empty: none.",
    "patience_s": "Seconds for which who is away is waited for.", "signal": "Planted edge of a generated market.",
    "seed": "Of the training, and of a generated market."}


def setting_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options for every setting; the function is called with `settings`, and with whatever options are its own."""
    names = [f.name for f in fields(PipelineSettings)]

    @functools.wraps(function)
    def with_settings(**values: Any) -> Any:
        given = {name: values.pop(name) for name in names}
        settings = PipelineSettings(**{**given, "home": Path(given["home"]).resolve()})
        _require_ranges(settings)
        return function(settings=settings, **values)

    wrapped: Callable[..., Any] = with_settings
    for f in reversed(fields(PipelineSettings)):
        wrapped = _option(f.name, f.default)(wrapped)
    return wrapped


def _option(name: str, default: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    asked: dict[str, Any] = {"envvar": _VARIABLES.get(name, name.upper()), "help": _HELP.get(name, ""),
                             "show_default": True, "default": default}
    if name == "home":
        asked |= {"type": click.Path(path_type=Path), "default": Path("var")}
    elif name == "market":
        asked["type"] = click.Choice(["auto", *KINDS])
    elif name == "strict":
        asked["is_flag"] = True
    return click.option(f"--{name.replace('_', '-')}", name, **asked)


def _require_ranges(settings: PipelineSettings) -> None:
    """click.UsageError names the argument, the range and the value; NaN is outside every range."""
    ranges = {"lookback": (3_000, 1_000_000), "forward_bars": (1, 1_000_000), "trials": (1, 1_000), "folds": (1, 50),
              "signal": (0, 10), "generated_bars": (2_000, 1_000_000), "min_pf": (0, 1_000), "max_dd": (1e-6, 1),
              "patience_s": (0, 86_400)}
    for name, (low, high) in ranges.items():
        if not low <= getattr(settings, name) <= high:
            raise click.UsageError(f"{name}: must be between {low:g} and {high:g}, got {getattr(settings, name)}")
    if not all(settings.symbols):
        raise click.UsageError(f"coins: must be symbols separated by commas, got {settings.coins!r}")


def variables() -> set[str]:
    """Every variable that a step reads for itself, secrets included."""
    return {_VARIABLES.get(f.name, f.name.upper()) for f in fields(PipelineSettings)} | {TOKEN, SECRET}


def from_environment(name: str) -> str:
    """A secret that the environment may hold; "" if it does not."""
    return os.environ.get(name, "").strip()
