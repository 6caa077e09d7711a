"""Does the drift figure keep still on quiet weeks, see a broken feed, and see the crash of 2025-10-10?

    python -m ci.experiments.drift --data-dir $HUB_DATA_DIR --home var

Takes the recorded year of BTC and ETH minutes. Every day is judged as it would have been on that day: against the 90
days before it. Binning, doubt and the level's limit were chosen on the days before 2025-10-01: the limit is the least
multiple of half a nat with at most 1 % of quiet days in alarm for each symbol, and the doubt falls off with distance
because that sees 16 of 40 violent days there instead of 12, at the same false alarms. October was looked at twice: with
equal doubt in every bin, where BTC alarms on 2025-10-11 only and ETH just misses (1.99), and with the doubt that falls.

quiet week   Monday to Sunday (UTC), every day judged, and the largest daily range of the week (log of high over low)
             below the median of the same number over the 13 weeks before. The rule knows nothing of any feature.
violent day  its largest range within a clock hour is at least 6 times the median hourly range of the 90 days before.
broken feed  the features of the last 60 days before 2025-10-01, spoilt on the day judged: halved, doubled, shifted...
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from ci.experiments.zero_edge import clopper_pearson
from feature_repo.drift import (
    DAY_MS,
    Counts,
    DriftFeatures,
    DriftReport,
    DriftSettings,
    count_days,
    date_of,
    day_of,
    drift_alarms,
    judge_day,
    level_alarms,
)
from feature_repo.features import DECISION_V1
from feature_repo.files import FileMarket
from feature_repo.transforms import FeatureFrame, compute_features
from policies.bars import Bars
from policies.errors import InvalidInput
from policies.keyed_random import generator
from reports.report import BenchRow, Plot, write_report

VENUE, SYMBOLS, POOLED = "binance_spot", ("BTC", "ETH"), "BTC + ETH pooled"
CHOSEN_BEFORE = day_of("2025-10-01")
CRASH = day_of("2025-10-10")  # 21:13 to 21:25 UTC: most of the violent rows belong to the next day
WEEKS_BEFORE, LEAST_WEEKS_BEFORE = 13, 5
VIOLENT_RATIO, FAULT_DAYS = 6.0, 60
HIGHEST_FALSE_SHARE = 0.01

SETTINGS = DriftSettings()
FEATURES = DriftFeatures.of(DECISION_V1)
RULES: dict[str, Callable[[Sequence[DriftReport]], tuple[int, ...]]] = {
    f"figure > {SETTINGS.limit:g}, {SETTINGS.days_running} days running":
        lambda reports: drift_alarms(reports, SETTINGS),
    f"figure > {SETTINGS.limit:g}, one day":
        lambda reports: drift_alarms(reports, DriftSettings(days_running=1)),
    f"level figure > {SETTINGS.level_limit:g}, one day":
        lambda reports: level_alarms(reports, SETTINGS),
}
NAIVE_RULE = "KL of log_vol_120 > 0.3, one day"
FAULTS: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "halved": lambda values: values * 0.5,
    "doubled": lambda values: values * 2.0,
    "shifted by half a scale": lambda values: values + 0.5 * DECISION_V1.scales,
    "stuck at 0": lambda values: values * 0.0,
    "stuck at 0 every second row": lambda values: values * (np.arange(len(values)) % 2)[:, None],
}


@dataclass(frozen=True)
class Year:
    """One symbol, or both pooled, with the quiet weeks and violent days of BTC. quiet_weeks: {first day: its days}."""

    name: str
    reports: list[DriftReport]
    quiet_weeks: dict[int, range]
    violent_days: tuple[int, ...]

    def judged(self, before: bool) -> list[DriftReport]:
        return [r for r in self.reports if r.figure is not None and (r.day < CHOSEN_BEFORE) == before]


def daily_and_hourly_ranges(bars: Bars) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Days (D,) with rows in every hour (of event times), their log ranges (D,), and those of their hours (D, 24)."""
    hour_ms = DAY_MS // 24
    hours, first = np.unique(bars.close_time_ms // hour_ms, return_index=True)
    high, low = np.maximum.reduceat(bars.high, first), np.minimum.reduceat(bars.low, first)
    days, first_hour, hours_of_day = np.unique(hours // 24, return_index=True, return_counts=True)
    whole = hours_of_day == 24
    places = first_hour[whole][:, None] + np.arange(24)
    daily = np.log(high[places].max(axis=1) / low[places].min(axis=1))
    return days[whole], daily, np.log(high[places] / low[places])


def quiet_weeks(days: NDArray[np.int64], ranges: NDArray[np.float64], judged: set[int]) -> dict[int, range]:
    range_of = dict(zip(days.tolist(), ranges.tolist(), strict=True))
    mondays = [day for day in range_of if (day + 3) % 7 == 0 and all(day + k in range_of for k in range(7))]
    largest = [max(range_of[monday + k] for k in range(7)) for monday in mondays]
    quiet = {}
    for place, monday in enumerate(mondays):
        before = largest[max(0, place - WEEKS_BEFORE):place]
        week = range(monday, monday + 7)
        if len(before) >= LEAST_WEEKS_BEFORE and largest[place] < np.median(before) and judged.issuperset(week):
            quiet[monday] = week
    return quiet


def violent_days(days: NDArray[np.int64], hourly: NDArray[np.float64], judged: set[int]) -> tuple[int, ...]:
    found = []
    for place in range(SETTINGS.least_reference_days, len(days)):
        ordinary = np.median(hourly[max(0, place - SETTINGS.reference_days):place])
        if hourly[place].max() >= VIOLENT_RATIO * ordinary and int(days[place]) in judged:
            found.append(int(days[place]))
    return tuple(found)


def year_of(name: str, bars: Bars, days: NDArray[np.int64], counts: Counts) -> Year:
    reports = [judge_day(day, days, counts, FEATURES, SETTINGS) for day in days.tolist()]
    judged = {report.day for report in reports if report.figure is not None}
    whole_days, ranges, hourly = daily_and_hourly_ranges(bars)
    return Year(name, reports, quiet_weeks(whole_days, ranges, judged), violent_days(whole_days, hourly, judged))


def false_alarms(year: Year, alarms: Sequence[int], before: bool) -> dict[str, Any]:
    """Of the quiet weeks of a stretch: share of days in alarm with a bootstrap over weeks, and exactly of weeks."""
    weeks = [week for monday, week in year.quiet_weeks.items() if (monday < CHOSEN_BEFORE) == before]
    if not weeks:
        return {"weeks": 0, "days": 0, "days_in_alarm": 0, "share_of_days": None}
    hits = np.array([sum(day in alarms for day in week) for week in weeks])
    drawn = generator(0, "drift", year.name).integers(0, len(weeks), (4_000, len(weeks)))
    low, high = np.quantile(hits[drawn].sum(axis=1) / (7 * len(weeks)), [0.025, 0.975])
    weeks_hit = int((hits > 0).sum())
    return {"weeks": len(weeks), "days": 7 * len(weeks), "days_in_alarm": int(hits.sum()),
            "share_of_days": float(hits.sum() / (7 * len(weeks))), "interval_95_of_days": [float(low), float(high)],
            "weeks_with_alarm": weeks_hit, "interval_95_of_weeks": list(clopper_pearson(weeks_hit, len(weeks)))}


def violent_seen(year: Year, alarms: Sequence[int], before: bool) -> dict[str, Any]:
    days = [day for day in year.violent_days if (day < CHOSEN_BEFORE) == before]
    return {"violent_days": len(days), "alarm_the_same_day": sum(day in alarms for day in days),
            "alarm_that_day_or_the_next": sum(day in alarms or day + 1 in alarms for day in days)}


def stretch(year: Year, before: bool) -> dict[str, Any]:
    """Figures and alarms of one stretch of the year."""
    reports = year.judged(before)
    if not reports:
        return {"judged_days": 0}
    figures = np.array([report.figure for report in reports], float)
    levels = np.array([report.level_figure for report in reports], float)
    days = {report.day for report in reports}
    by_rule = {name: rule(year.reports) for name, rule in RULES.items()}
    by_rule[NAIVE_RULE] = tuple(r.day for r in reports if r.divergence["log_vol_120"] > SETTINGS.limit)
    return {"judged_days": len(reports),
            "figure": {"median": float(np.median(figures)), "q99": float(np.quantile(figures, 0.99)),
                       "largest": float(figures.max()), "on": date_of(reports[int(figures.argmax())].day)},
            "level_figure": {"median": float(np.median(levels)), "q99": float(np.quantile(levels, 0.99)),
                             "largest": float(levels.max()), "on": date_of(reports[int(levels.argmax())].day)},
            "rules": {name: {"alarms": [date_of(day) for day in alarms if day in days],
                             "quiet_weeks": false_alarms(year, alarms, before),
                             "violent_days": violent_seen(year, alarms, before)} for name, alarms in by_rule.items()}}


def crash_of(year: Year) -> list[dict[str, Any]]:
    """The day of the crash and the day after: figures, ranks among all judged days (1 is the largest), alarms."""
    judged = [report for report in year.reports if report.figure is not None]
    alarms = {name: rule(year.reports) for name, rule in RULES.items()}
    rows = []
    for report in (r for r in judged if r.day in (CRASH, CRASH + 1)):
        over = sorted(((kl, name) for name, kl in report.divergence.items() if kl > SETTINGS.limit), reverse=True)
        rows.append({
            "date": report.date, "figure": report.figure, "level_figure": report.level_figure, "of_days": len(judged),
            "rank_of_figure": 1 + sum(r.figure > report.figure for r in judged),  # type: ignore[operator]
            "rank_of_level": 1 + sum(r.level_figure > report.level_figure for r in judged),  # type: ignore[operator]
            "alarms": [name for name, days in alarms.items() if report.day in days],
            "features_over_limit": [f"{name} {kl:.2f}" for kl, name in over], "divergence": dict(report.divergence)})
    return rows


def faults_seen(frame: FeatureFrame, days: NDArray[np.int64], counts: Counts) -> dict[str, dict[str, Any]]:
    """Share of the last FAULT_DAYS days before October whose figure is above the limit if their rows are spoilt."""
    first, stop = np.searchsorted(frame.event_time_ms, np.array([CHOSEN_BEFORE - FAULT_DAYS, CHOSEN_BEFORE]) * DAY_MS)
    part = frame.slice(int(first), int(stop))
    seen = {}
    for name, spoil in FAULTS.items():
        spoilt_days, spoilt = count_days(part.event_time_ms, spoil(part.values), DECISION_V1.scales)
        reports = []
        for day, of_day in zip(spoilt_days.tolist(), spoilt, strict=True):
            past = days < day
            both = np.concatenate([counts[past], of_day[None]])
            reports.append(judge_day(day, np.r_[days[past], day], both, FEATURES, SETTINGS))
        figures = np.array([report.figure for report in reports if report.figure is not None])
        if len(figures):
            seen[name] = {"days": len(figures), "share_above_limit": float(np.mean(figures > SETTINGS.limit)),
                          "smallest_figure": float(figures.min()), "median_figure": float(np.median(figures))}
    return seen


def bench_rows(years: Sequence[Year]) -> list[BenchRow]:
    rows = []
    for year in years:
        rules = stretch(year, True)["rules"]
        naive = rules[NAIVE_RULE]["quiet_weeks"]["share_of_days"]
        for name in RULES:
            share = rules[name]["quiet_weeks"]["share_of_days"]
            met = None if share is None else share <= HIGHEST_FALSE_SHARE
            rows.append(BenchRow(f"drift: false alarms on quiet weeks, {year.name}: {name}", share, "share of days",
                                 NAIVE_RULE, naive, HIGHEST_FALSE_SHARE, naive / share if share else None,
                                 None if share is None else share / HIGHEST_FALSE_SHARE,
                                 f"<= {HIGHEST_FALSE_SHARE:.0%}", met))
        crash = crash_of(year)
        for name in RULES if crash else ():
            alarms = sum(name in entry["alarms"] for entry in crash)
            rows.append(BenchRow(f"drift: alarm on 2025-10-10 or the day after, {year.name}: {name}", alarms,
                                 "days in alarm", "none", None, None, None, None, ">= 1", alarms >= 1))
    return rows


def plots_of(years: Sequence[Year]) -> list[Plot]:
    first = years[0].reports[0].day

    def plot(title: str, what: str, limit: float) -> Plot:
        lines = {year.name: [(r.day - first, getattr(r, what)) for r in year.reports if getattr(r, what) is not None]
                 for year in years}
        lines["limit"] = [(r.day - first, limit) for r in years[0].reports]
        return Plot(title, f"days since {date_of(first)}", "nats", lines)

    return [plot("Drift figure: median KL over stationary features", "figure", SETTINGS.limit),
            plot("Level figure: upward KL of the volatility level", "level_figure", SETTINGS.level_limit)]


def show(console: Console, years: Sequence[Year], rows: Sequence[BenchRow]) -> None:
    table = Table("what", "figure", "aim", "met")
    for row in rows:
        shown = "-" if row.figure is None else f"{row.figure:.2%}" if row.unit == "share of days" else f"{row.figure:g}"
        table.add_row(row.work.removeprefix("drift: "), shown, row.aim, {True: "yes", False: "NO", None: "-"}[row.met])
    console.print(table)
    for year in years:
        for entry in crash_of(year):
            console.print(f"{year.name} {entry['date']}: figure {entry['figure']:.3f} (rank {entry['rank_of_figure']} "
                          f"of {entry['of_days']}), level {entry['level_figure']:.2f} (rank {entry['rank_of_level']})")


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write the report; 0 if that could be done, whatever it shows, 2 without recorded data.

    A symbol's own figures carry the aims; the pooled ones are in the report to compare.
    """
    parser = argparse.ArgumentParser(description="Drift on recorded data: quiet weeks, broken feeds, the crash")
    parser.add_argument("--data-dir", type=Path, default=Path(os.environ.get("HUB_DATA_DIR", "recorded")))
    parser.add_argument("--home", type=Path, default=Path("var"), help="the report goes to HOME/reports")
    parser.add_argument("--until", default="2100-01-01", help="look at event times before this date only")
    options = parser.parse_args(arguments)
    try:
        market = FileMarket(options.data_dir, VENUE, SYMBOLS)
        start_ms, stop_ms = market.common_range(SYMBOLS)
    except InvalidInput as error:
        print(f"no recorded year of {' and '.join(SYMBOLS)}: {error}", file=sys.stderr)
        return 2
    stop_ms = min(stop_ms, day_of(options.until) * DAY_MS - 60_000)  # a bar is known a minute after it opened
    years, pooled, faults = [], None, {}
    for symbol in SYMBOLS:
        bars = market.bars(symbol, start_ms, stop_ms)
        frame = compute_features(bars)
        days, counts = count_days(frame.event_time_ms, frame.values, DECISION_V1.scales)
        pooled = counts if pooled is None else pooled + counts
        years.append(year_of(symbol, bars, days, counts))
        faults[symbol] = faults_seen(frame, days, counts)
    assert pooled is not None
    years.append(year_of(POOLED, market.bars(SYMBOLS[0], start_ms, stop_ms), days, pooled))
    rows = bench_rows(years[:len(SYMBOLS)])
    content = {"settings": asdict(SETTINGS), "rules of the measurement": __doc__,
               "before 2025-10-01": {year.name: stretch(year, True) for year in years},
               "from 2025-10-01 on": {year.name: stretch(year, False) for year in years},
               "the crash": {year.name: crash_of(year) for year in years}, "broken feeds": faults}
    page = write_report(options.home / "reports", "drift", content, plots_of(years), rows)
    console = Console()
    show(console, years, rows)
    console.print(f"report: {page}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
