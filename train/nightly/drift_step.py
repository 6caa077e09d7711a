"""Step: how far the last whole day lies from the 90 days before it, as the offline store knows them.

    python -m train.nightly.drift_step --home var --coins SOL,BTC --until 1749400000000

The store is asked rather than the market or the counts of the feature job: it knows a live market's past, and a day
before the end of what was counted. Where there are too few days, that is said, and is no failure. The report is
HOME/reports/nightly_drift.json with a page beside it.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np

from feature_repo.drift import (
    DAY_MS,
    Counts,
    DriftFeatures,
    DriftReport,
    DriftSettings,
    count_days,
    date_of,
    drift_alarms,
    judge_day,
    level_alarms,
)
from feature_repo.features import BARS, DECISION_V1
from feature_repo.market import symbols_in
from feature_repo.store import OFFLINE_ONLY, FeatureRepo
from policies.errors import HubError
from reports.report import Plot, write_report
from train.commands import MarketOptions, market_options

REPORT = "nightly_drift"
SHOWN_DAYS = 14  # in the figure, and for alarms of several days running
MOST_DIVERGED = 5  # features that are named


def last_whole_day(until_ms: int) -> int:
    """Days since 1970 of the last day whose every event time is before until_ms."""
    return until_ms // DAY_MS - 1


def counted(repo: FeatureRepo, symbol: str, first_day: int, last_day: int) -> tuple[np.ndarray, Counts]:
    """Histograms of the days, as `feature_repo.drift.count_days` makes them."""
    times = repo.offline.event_times(BARS, symbol, first_day * DAY_MS, (last_day + 1) * DAY_MS - 1)
    rows = repo.training_frame((symbol,), times)[list(DECISION_V1.names)].to_numpy(np.float64) if len(times) \
        else np.empty((0, len(DECISION_V1)))
    return count_days(times, rows, DECISION_V1.scales)


def drift_history(repo: FeatureRepo, symbols: Sequence[str], last_day: int,
                  settings: DriftSettings) -> dict[str, list[DriftReport]]:
    """By symbol, the last SHOWN_DAYS days, oldest first; each is judged against the days before it."""
    judged, found = DriftFeatures.of(DECISION_V1), {}
    for symbol in symbols:
        days, counts = counted(repo, symbol, last_day - settings.reference_days - SHOWN_DAYS + 1, last_day)
        found[symbol] = [judge_day(day, days, counts, judged, settings, symbol)
                         for day in range(last_day - SHOWN_DAYS + 1, last_day + 1)]
    return found


def summary_of(history: dict[str, list[DriftReport]], settings: DriftSettings) -> dict[str, Any]:
    """Plain JSON: of each symbol the last day, its alarms, and the features that lie furthest off."""
    rows = []
    for symbol, reports in history.items():
        last = reports[-1]
        furthest = sorted(last.divergence.items(), key=lambda item: -item[1])[:MOST_DIVERGED]
        rows.append({
            "symbol": symbol, "day": last.date, "figure": last.figure, "level_figure": last.level_figure,
            "alarm": last.day in drift_alarms(reports, settings),
            "level_alarm": last.day in level_alarms(reports, settings),
            "rows": last.rows, "reference_days": last.reference_days, "reason": last.reason or "",
            "furthest": ", ".join(f"{name} {value:.2f}" for name, value in furthest)})
    return {"symbols": rows, "settings": asdict(settings)}


def sentence_of(summary: dict[str, Any]) -> str:
    """One line for people."""
    told = []
    for row in summary["symbols"]:
        if row["figure"] is None:
            told.append(f"{row['symbol']} of {row['day']} not judged: {row['reason']}")
        else:
            alarm = " ALARM" if row["alarm"] or row["level_alarm"] else ""
            told.append(f"{row['symbol']} of {row['day']} {row['figure']:.3f}, level "
                        f"{row['level_figure'] or 0.0:.3f}{alarm}")
    return "drift in nats: " + "; ".join(told)


def plot_of(history: dict[str, list[DriftReport]], settings: DriftSettings) -> Plot:
    series = {symbol: [(float(report.day), report.figure) for report in reports if report.figure is not None]
              for symbol, reports in history.items()}
    days = [report.day for reports in history.values() for report in reports]
    series["limit"] = [(float(day), settings.limit) for day in (min(days), max(days))]
    return Plot(f"Drift of each day up to {date_of(max(days))} against the {settings.reference_days} days before it",
                "days since 1970", "nats", series)


@click.command()
@click.option("--home", type=click.Path(path_type=Path), required=True)
@click.option("--coins", required=True, help="Separated by commas.")
@click.option("--until", "until_ms", type=int, required=True, help="Of the market's clock, in ms; the day before it.")
@market_options
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Folder for drift.json.")
def main(home: Path, coins: str, until_ms: int, market: MarketOptions, out: Path | None) -> None:
    """Judge the drift of the last whole day."""
    warnings.filterwarnings("ignore")
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    symbols, settings = symbols_in(coins), DriftSettings()
    try:
        opened = market.opened(symbols)
        repo = FeatureRepo(home, OFFLINE_ONLY, opened.origin)
        repo.apply()
        history = drift_history(repo, symbols, last_whole_day(until_ms), settings)
    except HubError as error:
        raise click.ClickException(str(error)) from error
    summary = summary_of(history, settings)
    write_report(home / "reports", REPORT, summary, [plot_of(history, settings)])
    if out is not None:
        (out / "drift.json").write_text(json.dumps({**summary, "figures": {
            symbol: [[report.day, report.figure] for report in reports] for symbol, reports in history.items()}}))
    click.echo(sentence_of(summary))


if __name__ == "__main__":
    main()
