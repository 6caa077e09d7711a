"""The first heads of a new hub: the momentum baseline and a CatBoost classifier, trained on what came before a time.

    python -m train.first_heads --home var --market generated --until-ms 1737000000000

prints progress, and for each head a line `policy <alias> <policy_id>` and a line `bundle <path>` of its packed file.
Registering them is left to the caller.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated

import click
import numpy as np
from annotated_types import Ge, Gt, Le

from feature_repo.definitions import LABEL_NAMES
from feature_repo.features import DECISION_V1
from feature_repo.market import Market, symbols_in
from feature_repo.store import OFFLINE_ONLY, FeatureRepo
from policies.bars import Bars
from policies.bundle import Bundle, Manifest, make_bundle, pack_bundle
from policies.checks import require_sound
from policies.errors import HubError
from policies.fills import Costs
from policies.heads import load_head
from train.backtest import BacktestReport, backtest
from train.catboost import CatBoostLearner
from train.commands import MarketOptions, market_options
from train.dataset import (
    Brackets,
    Dataset,
    FeatureRows,
    build_dataset,
    classes_of,
    split_by_time,
)
from train.learners import Labelled, Layout
from train.plots import equity_png
from train.supervised import bundle_of, fit_head, require_served_as_trained
from train.tracking import Tracker, code_version
from train.training_set import (
    Progress,
    bars_until,
    bracket_name,
    joined_rows,
    keep_labels,
    span_of,
    thinned,
    write_packed,
)

EXPERIMENT = "first_heads"
SERVED_ROWS = 200  # of the validation slice, on which served and trained answers are compared


@dataclass(frozen=True)
class CatBoostSettings:
    depth: Annotated[int, Ge(1), Le(10)] = 5
    iterations: Annotated[int, Ge(1), Le(300)] = 300
    learning_rate: Annotated[float, Gt(0), Le(1)] = 0.1
    early_stopping_rounds: Annotated[int, Ge(1)] = 30
    thread_count: Annotated[int, Ge(1)] = 2
    seed: int = 7


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


@dataclass(frozen=True)
class Trained:
    """A trained bundle and figures of its training."""

    bundle: Bundle
    metrics: Mapping[str, float]


def train_first_heads(market: Market, repo: FeatureRepo, home: Path, now_ms: int, symbols: Sequence[str] = (),
                      until_ms: int | None = None, settings: FirstHeadsSettings | None = None,
                      progress: Progress = lambda line: None) -> list[Bundle]:
    """Both bundles, the baseline first; each is logged with its backtest and packed as home/policies/<alias>.pt.

    symbols: all of the market's if empty. until_ms: no bar that closes later is seen; None is the end of the bars.
    """
    settings = settings or FirstHeadsSettings()
    bars = bars_until(market, symbols or market.symbols, until_ms, settings.lookback_bars)
    repo.apply()
    rows = joined_rows(market, repo, bars, progress)
    template = _template(market, bars, settings)
    required = np.array([name not in template.optional_features for name in template.features])
    dataset = build_dataset(bars, thinned(rows, settings.training_rows), required, settings.brackets, settings.costs)
    progress(f"dataset: {len(dataset)} rows; short, flat, long: "
             f"{np.bincount(dataset.classes, minlength=3).tolist()}")
    embargo_ms = (settings.brackets.horizon_bars + 1) * next(iter(bars.values())).interval_ms
    shares = (settings.fit_share, settings.validation_share, 1 - settings.fit_share - settings.validation_share)
    bracket = bracket_name(settings.brackets, settings.costs)
    keep_labels(repo, dataset, bracket)
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
        curve = {bundle.manifest.alias: (np.array([trade.exit_time_ms for trade in report.trades], np.int64),
                                         np.array([trade.net_return for trade in report.trades]))}
        Tracker(home, EXPERIMENT).log(
            bundle.manifest.alias, now_ms,
            {**bundle.manifest.parameters, "symbols": ",".join(bars), "rows": len(dataset)},
            {**metrics, **{f"backtest_{n}": v for n, v in report.metrics().items()}},
            {f"{bundle.manifest.alias}.pt": pack_bundle(bundle), "equity.png": equity_png("held-out slice", curve)},
            {"policy_id": bundle.policy_id, "kind": bundle.manifest.kind})
        write_packed(packed_path(home, bundle), bundle)
    return [baseline, trained.bundle]


def train_catboost(fit: Dataset, validation: Dataset, template: Manifest, brackets: Brackets,
                   settings: CatBoostSettings) -> Trained:
    """The same data and settings give the same bundle, byte for byte.

    Trees are fitted on one slice of time; a later one stops the boosting early, calibrates the scores and chooses when
    the head trades at all. What it is worth must therefore be measured on a third, later still. template: alias,
    features, groups and whatever `trained_on` the caller knows.
    """
    learner = CatBoostLearner(settings.iterations, settings.early_stopping_rounds, settings.thread_count)
    chosen = {**learner.defaults(), "depth": settings.depth, "learning_rate": settings.learning_rate}
    layout = Layout(template.features, template.optional_features)
    head = fit_head(learner, _labelled(fit), _labelled(validation), layout, chosen, settings.seed)
    about = {**template.trained_on, "fit": _span(fit), "validation": _span(validation), "learner": asdict(settings)}
    bundle = bundle_of(head, replace(template, trained_on=about), brackets)
    require_served_as_trained(bundle, head, _labelled(validation).values[:SERVED_ROWS])
    return Trained(bundle, {"trees": float(head.fitted.steps), "validation_log_loss": head.validation_log_loss,
                            **{f"validation_{name}": value for name, value in head.levels.chosen.items()}})


def _labelled(dataset: Dataset) -> Labelled:
    """In float32, what serving feeds the graph with, so that no value falls on another side of a split."""
    return Labelled(dataset.values.astype(np.float32), dataset.classes.astype(np.int64),
                    np.column_stack([dataset.long_return, dataset.short_return]))


def _span(dataset: Dataset) -> dict[str, int]:
    return {"rows": len(dataset), "from_ms": int(dataset.event_time_ms[0]), "until_ms": int(dataset.event_time_ms[-1])}


def packed_path(home: Path, bundle: Bundle) -> Path:
    return home / "policies" / f"{bundle.manifest.alias}.pt"


def _as_known(repo: FeatureRepo, part: Dataset, bracket: str, as_of_ms: int) -> Dataset:
    """The rows whose label the feature repo knew at as_of_ms, with that label."""
    table = repo.labels(part.symbol.tolist(), part.event_time_ms, bracket, as_of_ms)
    long, short = (table[name].to_numpy(np.float64) for name in LABEL_NAMES)
    labelled = replace(part, long_return=long, short_return=short, classes=classes_of(long, short))
    return labelled.take(np.isfinite(long) & np.isfinite(short))


def _since(rows: FeatureRows, start_ms: int) -> FeatureRows:
    first = int(np.searchsorted(rows.event_time_ms, start_ms))
    return FeatureRows(rows.event_time_ms[first:], rows.values[first:])


def _template(market: Market, bars: Mapping[str, Bars], settings: FirstHeadsSettings) -> Manifest:
    """What both manifests share, in the kind that needs no files. All bars are named, those of the backtest too."""
    return Manifest(
        kind="momentum_rule", alias="template", features=DECISION_V1.names, feature_service=DECISION_V1.name,
        required_groups=DECISION_V1.required_groups, optional_groups=DECISION_V1.optional_groups,
        optional_features=DECISION_V1.may_be_missing,
        trained_on={"market": market.describe(), "symbols": list(bars), "code_version": code_version(),
                    "lookback_bars": settings.lookback_bars, "costs": asdict(settings.costs),
                    "bars": span_of(bars)})


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


@click.command()
@click.option("--home", type=click.Path(path_type=Path), required=True, help="HUB_HOME of the hub.")
@market_options
@click.option("--symbols", default="BTC,ETH,SOL,HYPE", show_default=True, help="Separated by commas.")
@click.option("--until-ms", type=int, default=None, help="No bar that closes later is seen.")
@click.option("--lookback-bars", default=FirstHeadsSettings.lookback_bars, show_default=True)
@click.option("--training-rows", default=FirstHeadsSettings.training_rows, show_default=True)
def main(home: Path, market: MarketOptions, symbols: str, until_ms: int | None, lookback_bars: int,
         training_rows: int) -> None:
    """Train the first heads and print where their bundles are."""
    for library in ("alembic", "mlflow"):
        logging.getLogger(library).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    settings = FirstHeadsSettings(lookback_bars=lookback_bars, training_rows=training_rows)
    try:
        opened = market.opened(symbols_in(symbols))
        click.echo(opened.describe())
        repo = FeatureRepo(home, OFFLINE_ONLY, opened.origin)
        bundles = train_first_heads(opened, repo, home, time.time_ns() // 1_000_000, until_ms=until_ms,
                                    settings=settings, progress=click.echo)
    except HubError as error:
        raise click.ClickException(str(error)) from error
    for bundle in bundles:
        click.echo(f"policy {bundle.manifest.alias} {bundle.policy_id}")
        click.echo(f"bundle {packed_path(home, bundle)}")


if __name__ == "__main__":
    main()
