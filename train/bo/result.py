"""What the optimisation leaves: the start for the hub, runs in MLflow, a report, a table for the terminal."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from reports.report import Plot, write_report
from train.bo.job import Optimised
from train.bo.judged import BOOTSTRAP, Figures, Judged, later_difference
from train.bo.rules import RULES
from train.tracking import Tracker

EXPERIMENT = "bo"
START_FILE = Path("models") / "param_start.json"
COLUMNS = ("strategy", "bucket", "signals", "middle tp/sl %", "chosen tp/sl/offset %", "searched: middle",
           "searched: chosen", "later trades", "later: middle", "later: chosen")


def write_start(home: Path, optimised: Optimised) -> Path:
    """HOME/models/param_start.json: a reader sees the old file or the new one, whole."""
    path = home / START_FILE
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_bytes(optimised.start.canonical_json())
    os.replace(part, path)
    return path


def differences(optimised: Optimised) -> list[dict[str, Any]]:
    """Mean reward of a trade on the later bars, chosen less middle: of each strategy, and of all of them."""
    told = []
    for strategy in (*RULES, "all"):
        rows = [row for row in optimised.rows if row.chosen is not None and strategy in (row.strategy, "all")]
        if rows:
            mean, interval = later_difference(rows)
            told.append({"strategy": strategy, "buckets": len(rows), "difference": mean,
                         "low": _finite(interval.low), "high": _finite(interval.high), "level": interval.level})
    return told


def passed(optimised: Optimised) -> bool:
    """Whether trades at all choices together earn more than at the middle of the grid on the later bars, interval and
    all."""
    whole = [row for row in differences(optimised) if row["strategy"] == "all"]
    return bool(whole) and whole[0]["low"] is not None and whole[0]["low"] > 0


def table_of(optimised: Optimised) -> Table:
    later = (optimised.later_ms[1] - optimised.later_ms[0]) / 86_400_000
    shown = Table(*COLUMNS, title="mean reward of a trade in risk units, after costs "
                                  f"({BOOTSTRAP.level:.0%} interval); later bars: {later:.1f} days")
    for row in rows_of(optimised.rows):
        shown.add_row(*(str(row[column]) for column in COLUMNS))
    return shown


def rows_of(rows: Sequence[Judged]) -> list[dict[str, Any]]:
    """The table's cells, as text."""
    return [dict(zip(COLUMNS, (
        row.strategy, row.bucket, row.signals, _levels(row.middle[:2]), "-" if row.chosen is None else
        _levels(row.chosen), _shown(row.searched["middle"]), _shown(row.searched["chosen"]),
        f"{row.later['middle'].trades} / {row.later['chosen'].trades}", _shown(row.later["middle"], True),
        _shown(row.later["chosen"], True)), strict=True)) for row in rows]


def sentences_of(optimised: Optimised) -> list[str]:
    said = [f"{one['strategy']}: chosen less middle on later bars {one['difference']:+.3f} risk units a trade "
            f"({_or_dash(one['low'])} to {_or_dash(one['high'])})"
            for one in differences(optimised)]
    points = sum(row.points for row in optimised.rows)
    better = sum(1 for row in optimised.rows if row.chosen and (row.later["chosen"].expectancy or 0.0)
                 > (row.later["middle"].expectancy or 0.0))
    return [*said, f"{points} points were looked at for {len(optimised.rows)} buckets; on later bars {better} of them "
            "are above the middle of the grid"]


def write_page(home: Path, optimised: Optimised, notes: Mapping[str, Any]) -> Path:
    """HOME/reports/bo.json and its page."""
    settings = optimised.settings
    content = {
        "difference_on_later_bars": differences(optimised), "table": rows_of(optimised.rows),
        "rules": {name: RULES[name].text for name in settings.strategies}
        | {"arbitrage": "none: bars of one symbol do not hold the prices of two venues"},
        "start": {"id": optimised.start.start_id, "file": str(START_FILE)}, "job": _parameters(optimised),
        "passed": passed(optimised), "failed": dict(optimised.failed),
        "judged": [_told(row) for row in optimised.rows], **notes}
    return write_report(home / "reports", EXPERIMENT, content, [_plot(optimised)])


def log_to_mlflow(home: Path, optimised: Optimised, now_ms: int) -> dict[str, str]:
    """One run for the job and one below it for each search; ids by name. What is there already is not written again."""
    tracker, runs = Tracker(home, EXPERIMENT), {}
    whole = f"bo_{optimised.key[:6]}"
    told = differences(optimised)
    runs[whole] = tracker.known(whole, optimised.key) or tracker.log(
        whole, now_ms, _parameters(optimised),
        {f"later_difference_{one['strategy']}": one["difference"] for one in told}
        | {"buckets": float(len(optimised.rows)), "passed": float(passed(optimised))},
        {"param_start.json": optimised.start.canonical_json()},
        {"job": optimised.key, "role": "job", "start_id": optimised.start.start_id})
    for row in optimised.rows:
        name = f"{row.strategy}.{row.bucket}"
        runs[name] = tracker.known(name, optimised.key) or tracker.log(
            name, now_ms, {**_parameters(optimised), "chosen": row.chosen, "middle": row.middle}, _metrics(row), {},
            {"job": optimised.key}, runs[whole])
    return runs


def _metrics(row: Judged) -> dict[str, float]:
    named = {f"{when}_{which}_{name}": value for when, by in (("searched", row.searched), ("later", row.later))
             for which, figures in by.items() for name, value in asdict(figures).items()}
    return {name: float(value) for name, value in {**named, "signals": row.signals, "points": row.points,
                                                   "advantage": row.advantage}.items() if value is not None}


def _told(row: Judged) -> dict[str, Any]:
    return {name: value for name, value in asdict(row).items() if name != "blocks"}


def _parameters(optimised: Optimised) -> dict[str, object]:
    settings = optimised.settings
    return {"coins": ",".join(settings.symbols), "lookback": settings.lookback_bars, "trials": settings.trials,
            "seed": settings.seed, "strategies": ",".join(settings.strategies), "horizon_bars": settings.horizon_bars,
            "key": optimised.key, "searched_from_ms": optimised.searched_ms[0],
            "later_from_ms": optimised.later_ms[0], "later_until_ms": optimised.later_ms[1]}


def _plot(optimised: Optimised) -> Plot:
    hours = optimised.settings.block_bars / 60
    series = {}
    for which in ("middle", "chosen"):
        rows = [row.blocks[which][0] for row in optimised.rows if row.chosen is not None]
        sums = np.cumsum(np.sum(rows, axis=0)) if rows else np.zeros(0)
        series[which] = [(hours * (place + 1), float(value)) for place, value in enumerate(sums)]
    return Plot("later bars: rewards of all trades, summed; fewer trades lose less where trading loses", "hour",
                "risk units", series)


def _levels(levels: Sequence[float]) -> str:
    return " / ".join(f"{100 * value:.3g}" for value in levels)


def _shown(figures: Figures, interval: bool = False) -> str:
    if figures.expectancy is None:
        return "-"
    mean = f"{figures.expectancy:+.3f}"
    return f"{mean} ({_or_dash(figures.low)} to {_or_dash(figures.high)})" if interval else mean


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3f}"


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
