"""The first heads of a new hub: the momentum baseline and a CatBoost classifier, trained on what came before a time.

    python -m train.first_heads --home var --market generated --until-ms 1737000000000

prints progress, and for each head a line `policy <alias> <policy_id>` and a line `bundle <path>` of its packed file.
Registering them is left to the caller.
"""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated

import click
import numpy as np
from annotated_types import Ge, Le

from feature_repo.definitions import LABEL_NAMES
from feature_repo.features import BARS, DECISION_V1
from feature_repo.generated import GeneratedMarket
from feature_repo.market import KINDS, ChosenMarket, Market, choose_market
from feature_repo.sources import FrameSource, gathered, sources_of
from feature_repo.store import FeatureRepo, LabelRows
from feature_repo.transforms import LOOKBACK_BARS
from policies.bars import Bars
from policies.bundle import Bundle, Manifest, make_bundle, pack_bundle
from policies.checks import require_sound
from policies.errors import HubError, InvalidInput
from policies.fills import Costs
from policies.heads import load_head
from train.backtest import BacktestReport, backtest
from train.catboost import CatBoostSettings, train_catboost
from train.dataset import (
    Brackets,
    Dataset,
    FeatureRows,
    build_dataset,
    classes_of,
    rows_by_symbol,
    split_by_time,
)
from train.tracking import code_version, log_training

EXPERIMENT = "first_heads"
Progress = Callable[[str], None]


@dataclass(frozen=True)
class FirstHeadsSettings:
    """lookback_bars: of each symbol, up to the end of training. training_rows: of all symbols together, evenly spaced:
    neighbouring rows have nearly the same features and label, and the point-in-time join is the slow part.
    fit_share, validation_share: of the time range; the rest is for the backtest.
    """

    lookback_bars: Annotated[int, Ge(1_000), Le(1_000_000)] = 25_200
    training_rows: Annotated[int, Ge(500), Le(1_000_000)] = 20_000
    fit_share: Annotated[float, Ge(0.1), Le(0.8)] = 0.6
    validation_share: Annotated[float, Ge(0.05), Le(0.4)] = 0.2
    momentum_threshold: Annotated[float, Ge(0), Le(100)] = 1.0
    brackets: Brackets = field(default_factory=Brackets)
    costs: Costs = field(default_factory=Costs)
    catboost: CatBoostSettings = field(default_factory=CatBoostSettings)


def train_first_heads(market: Market, repo: FeatureRepo, home: Path, now_ms: int, symbols: Sequence[str] = (),
                      until_ms: int | None = None, settings: FirstHeadsSettings | None = None,
                      progress: Progress = lambda line: None) -> list[Bundle]:
    """Both bundles, the baseline first; each is logged with its backtest and packed as home/policies/<alias>.pt.

    symbols: all of the market's if empty. until_ms: no bar that closes later is seen; None is the end of the bars.
    """
    settings = settings or FirstHeadsSettings()
    bars = _bars_until(market, symbols or market.symbols, until_ms, settings.lookback_bars)
    repo.apply()
    rows = {}
    for symbol, run in bars.items():
        rows[symbol] = _joined(repo, sources_of(market), run)
        progress(f"features: {symbol}, {len(rows[symbol])} rows joined point in time")
    template = _template(market, list(bars), settings)
    required = np.array([name not in template.optional_features for name in template.features])
    dataset = build_dataset(bars, _thinned(rows, settings.training_rows), required, settings.brackets, settings.costs)
    progress(f"dataset: {len(dataset)} rows; short, flat, long: "
             f"{np.bincount(dataset.classes, minlength=3).tolist()}")
    embargo_ms = (settings.brackets.horizon_bars + 1) * next(iter(bars.values())).interval_ms
    shares = (settings.fit_share, settings.validation_share, 1 - settings.fit_share - settings.validation_share)
    bracket = _bracket_name(settings)
    _keep_labels(repo, dataset, bracket)
    slices = split_by_time(dataset, shares, embargo_ms)
    ends_ms = [*(int(later.event_time_ms[0]) for later in slices[1:]), int(dataset.known_ms.max())]
    fit, validation, held_out = (_as_known(repo, part, bracket, end_ms)
                                 for part, end_ms in zip(slices, ends_ms, strict=True))
    unseen = {symbol: _since(part, int(held_out.event_time_ms[0])) for symbol, part in rows.items()}
    baseline = _momentum_bundle(template, settings)
    trained = train_catboost(fit, validation, replace(template, alias="catboost_v1"), settings.brackets,
                             settings.catboost)
    progress(f"catboost: {trained.metrics['trees']:.0f} trees, log loss "
             f"{trained.metrics['validation_log_loss']:.4f} on the validation slice")
    for bundle, metrics in ((baseline, {}), (trained.bundle, dict(trained.metrics))):
        head = load_head(bundle)
        require_sound(head, held_out.values[:64])
        report = backtest(head, bars, unseen, settings.brackets.horizon_bars, settings.costs)
        progress(_described(bundle, report))
        log_training(home, EXPERIMENT, bundle, {"symbols": ",".join(bars), "rows": len(dataset)},
                     {**metrics, **{f"backtest_{n}": v for n, v in report.metrics().items()}}, report.record.returns,
                     now_ms)
        _write_packed(home, bundle)
    return [baseline, trained.bundle]


def packed_path(home: Path, bundle: Bundle) -> Path:
    return home / "policies" / f"{bundle.manifest.alias}.pt"


def _bars_until(market: Market, symbols: Sequence[str], until_ms: int | None, lookback_bars: int) -> dict[str, Bars]:
    bars = {}
    for symbol in symbols:
        run = market.bars(symbol, stop_ms=until_ms)
        if until_ms is not None:
            run = run.slice(0, int(np.searchsorted(run.close_time_ms, until_ms, "right")))
        if len(run) < 2 * LOOKBACK_BARS:
            raise InvalidInput("until_ms", f"after at least {2 * LOOKBACK_BARS} bars of {symbol}", until_ms)
        bars[symbol] = run.slice(max(0, len(run) - lookback_bars), len(run))
    return bars


def _joined(repo: FeatureRepo, sources: Sequence[FrameSource], run: Bars) -> FeatureRows:
    """A row for each bar that has features, with everything that was known at its close, by the feature repo's join."""
    start_ms, stop_ms = int(run.open_time_ms[0]), int(run.close_time_ms[-1])
    frames = gathered(sources, run.symbol, start_ms, stop_ms)
    for frame in frames.values():
        if len(frame):
            repo.append(run.symbol, frame, time.time_ns() // 1_000_000)
    times = frames[BARS].event_time_ms
    table = repo.training_frame([run.symbol], times[times >= start_ms])
    return rows_by_symbol(table, DECISION_V1.names)[run.symbol]


def _bracket_name(settings: FirstHeadsSettings) -> str:
    """What distinguishes these labels from those of another trade on the same bar."""
    return ",".join(f"{name}={value:g}" for part in (settings.brackets, settings.costs)
                    for name, value in asdict(part).items())


def _keep_labels(repo: FeatureRepo, dataset: Dataset, bracket: str) -> None:
    for symbol in np.unique(dataset.symbol):
        own = dataset.take(dataset.symbol == symbol)
        returns = np.column_stack([own.long_return, own.short_return])
        repo.append_labels(LabelRows(str(symbol), bracket, own.event_time_ms, own.known_ms, returns),
                           time.time_ns() // 1_000_000)


def _as_known(repo: FeatureRepo, part: Dataset, bracket: str, as_of_ms: int) -> Dataset:
    """The rows whose label the feature repo knew at as_of_ms, with that label."""
    table = repo.labels(part.symbol.tolist(), part.event_time_ms, bracket, as_of_ms)
    long, short = (table[name].to_numpy(np.float64) for name in LABEL_NAMES)
    labelled = replace(part, long_return=long, short_return=short, classes=classes_of(long, short))
    return labelled.take(np.isfinite(long) & np.isfinite(short))


def _thinned(rows: Mapping[str, FeatureRows], limit: int) -> dict[str, FeatureRows]:
    """Every so many rows of each symbol, so that all together are about `limit`."""
    step = -(-sum(map(len, rows.values())) // limit)
    return {symbol: FeatureRows(part.event_time_ms[::step], part.values[::step]) for symbol, part in rows.items()}


def _since(rows: FeatureRows, start_ms: int) -> FeatureRows:
    first = int(np.searchsorted(rows.event_time_ms, start_ms))
    return FeatureRows(rows.event_time_ms[first:], rows.values[first:])


def _template(market: Market, symbols: list[str], settings: FirstHeadsSettings) -> Manifest:
    """What both manifests share, in the kind that needs no files."""
    return Manifest(
        kind="momentum_rule", alias="template", features=DECISION_V1.names, feature_service=DECISION_V1.name,
        required_groups=DECISION_V1.required_groups, optional_groups=DECISION_V1.optional_groups,
        optional_features=DECISION_V1.may_be_missing,
        trained_on={"market": market.describe(), "symbols": symbols, "code_version": code_version(),
                    "lookback_bars": settings.lookback_bars, "costs": asdict(settings.costs)})


def _momentum_bundle(template: Manifest, settings: FirstHeadsSettings) -> Bundle:
    """The baseline learns nothing: it is there to be beaten."""
    levels = {name: float(getattr(settings.brackets, name)) for name in ("leverage", "tp_pct", "sl_pct")}
    return make_bundle(replace(
        template, alias="momentum_v1", inputs={"momentum": "ret_15"},
        parameters={**levels, "threshold": settings.momentum_threshold, "min_conf": 0.5}), {})


def _described(bundle: Bundle, report: BacktestReport) -> str:
    figures = report.metrics()
    return (f"{bundle.manifest.alias}: {figures['trades']:.0f} trades on the held-out slice, profit factor "
            f"{report.record.profit_factor:.2f}, drawdown {figures['max_drawdown_percent']:.2f} %")


def _write_packed(home: Path, bundle: Bundle) -> None:
    """A reader sees the old file or the new one, whole."""
    path = packed_path(home, bundle)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = path.with_suffix(f".{os.getpid()}.part")  # two that train at once must not share it
    part.write_bytes(pack_bundle(bundle))
    os.replace(part, path)


def _open_market(kind: str, data_dir: str | None, symbols: Sequence[str], seed: int, signal: float,
                 generated_bars: int) -> Market:
    if kind == "generated":
        return ChosenMarket(GeneratedMarket(seed, signal, symbols, generated_bars), "asked for by the caller")
    return choose_market(data_dir, None if kind == "auto" else kind, symbols=symbols, seed=seed)


@click.command()
@click.option("--home", type=click.Path(path_type=Path), required=True, help="HUB_HOME of the hub.")
@click.option("--market", type=click.Choice(["auto", *KINDS]), default="auto", show_default=True)
@click.option("--data-dir", default=None, help="Folder of recorded bars.")
@click.option("--symbols", default="BTC,ETH,SOL,HYPE", show_default=True, help="Separated by commas.")
@click.option("--seed", default=7, show_default=True, help="Of the generated market.")
@click.option("--signal", default=1.0, show_default=True, help="Planted edge of the generated market.")
@click.option("--generated-bars", default=43_200, show_default=True)
@click.option("--until-ms", type=int, default=None, help="No bar that closes later is seen.")
@click.option("--lookback-bars", default=FirstHeadsSettings.lookback_bars, show_default=True)
@click.option("--training-rows", default=FirstHeadsSettings.training_rows, show_default=True)
def main(home: Path, market: str, data_dir: str | None, symbols: str, seed: int, signal: float, generated_bars: int,
         until_ms: int | None, lookback_bars: int, training_rows: int) -> None:
    """Train the first heads and print where their bundles are."""
    for library in ("alembic", "mlflow"):
        logging.getLogger(library).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    settings = FirstHeadsSettings(lookback_bars=lookback_bars, training_rows=training_rows)
    try:
        opened = _open_market(market, data_dir, symbols.split(","), seed, signal, generated_bars)
        click.echo(opened.describe())
        # Only the offline store is used; the online one is named because Feast wants an address.
        repo = FeatureRepo(home, "redis://127.0.0.1:6380/0", opened.origin)
        bundles = train_first_heads(opened, repo, home, time.time_ns() // 1_000_000, until_ms=until_ms,
                                    settings=settings, progress=click.echo)
    except HubError as error:
        raise click.ClickException(str(error)) from error
    for bundle in bundles:
        click.echo(f"policy {bundle.manifest.alias} {bundle.policy_id}")
        click.echo(f"bundle {packed_path(home, bundle)}")


if __name__ == "__main__":
    main()
