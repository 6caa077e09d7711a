"""Do embeddings help? The same heads with and without the masked auto-encoder's, walk-forward, over many seeds.

    python -m ci.experiments.embeddings --seeds 5 --home var          (HUB_DATA_DIR=folder of recorded bars)

A seed is a whole search: its own encoder, its own trainings, the same bars and folds. The figure is the profit factor
of the head with embeddings against that of its twin without, each over the trades of all folds; the interval is over
seeds. Killed and started again, it goes on where it was. The table is what it is: nothing is asserted here.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from scipy.stats import t as student

from ci.experiments.searches import Search, found_by, quiet, searching
from reports.report import BenchRow, write_report
from train.candidates import Retrained
from train.retrain_settings import RetrainSettings
from train.training_set import open_market

TWINS = (("catboost_mae", "catboost"), ("linear_mae", "linear"))
SYMBOLS = ("SOL", "BTC")
WORK = "embeddings help"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Profit factor with and without embeddings")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--lookback", type=int, default=25_200)
    parser.add_argument("--home", type=Path, default=Path("var"), help="the report goes to HOME/reports")
    options = parser.parse_args(arguments)
    quiet()
    console = Console(width=140)
    market = open_market("files" if os.environ.get("HUB_DATA_DIR") else "generated", os.environ.get("HUB_DATA_DIR"),
                         SYMBOLS, 7, 1.0, 43_200)
    console.print(market.describe(), highlight=False, soft_wrap=True)
    settings = RetrainSettings(SYMBOLS, lookback_bars=options.lookback, trials=1,
                               heads=tuple(name for twin in TWINS for name in twin))
    searches = [Search(f"seed_{seed}", market, replace(settings, seed=seed)) for seed in range(1, options.seeds + 1)]
    with searching() as pool:
        rows = [row for search, found in found_by(searches, options.home / "experiments" / "embeddings", pool,
                                                  console.print) for row in rows_of(search.settings.seed, found)]
    console.print(table_of(rows))
    summary = [summary_of(name, plain, rows) for name, plain in TWINS]
    for line in summary:
        console.print(f"{line.work}: {line.detail['said']}; aim: {line.aim}", highlight=False, soft_wrap=True)
    write_report(options.home / "reports", "embeddings", {"seeds": rows, "market": market.describe()}, (), summary)
    return 0


def rows_of(seed: int, found: Retrained) -> list[dict[str, Any]]:
    """A row for each pair of twins."""
    heads = {candidate.name: candidate.judgement.head for candidate in found.candidates}
    overall = next((row for row in found.reconstruction if row["channel"] == "overall"), {})
    return [{"seed": seed, "head": name, "trades": heads[name].trades, "profit_factor": heads[name].profit_factor,
             "twin": plain, "twin_trades": heads[plain].trades, "twin_profit_factor": heads[plain].profit_factor,
             "gain_percent": 100 * (heads[name].profit_factor / heads[plain].profit_factor - 1),
             "drawdown_percent": heads[name].max_drawdown_percent,
             "twin_drawdown_percent": heads[plain].max_drawdown_percent,
             "reconstruction_gain": overall.get("gain_over_mean")} for name, plain in TWINS]


def summary_of(name: str, plain: str, rows: Sequence[dict[str, Any]]) -> BenchRow:
    """Mean gain over seeds with its 95 % interval (Student's t: seeds are few)."""
    own = [row for row in rows if row["head"] == name]
    gains = [row["gain_percent"] for row in own if math.isfinite(row["gain_percent"])]
    low, high = interval_of(gains)
    mean = statistics.mean(gains) if gains else math.nan
    said = f"{mean:+.1f} % profit factor over {len(gains)} seeds (95 %: {low:+.1f} to {high:+.1f})"
    return BenchRow(f"{WORK}: {name} against {plain}", _finite(mean), "% of profit factor", plain, 0.0, None, None,
                    None, "+5-8 %, or the honest figure", bool(low > 0) if gains else None,
                    detail={"said": said, "interval_95": [_finite(low), _finite(high)],
                            "with": statistics.mean(row["profit_factor"] for row in own),
                            "without": statistics.mean(row["twin_profit_factor"] for row in own)})


def interval_of(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Of the mean, by Student's t; NaN to NaN for fewer than two."""
    if len(values) < 2:
        return math.nan, math.nan
    half = float(student.ppf((1 + level) / 2, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values) - half, statistics.mean(values) + half


def table_of(rows: Sequence[dict[str, Any]]) -> Table:
    shown = Table("seed", "head", "trades", "PF", "DD %", "twin", "trades", "PF", "DD %", "gain %")
    for row in rows:
        shown.add_row(str(row["seed"]), row["head"], str(row["trades"]), f"{row['profit_factor']:.3f}",
                      f"{row['drawdown_percent']:.2f}", row["twin"], str(row["twin_trades"]),
                      f"{row['twin_profit_factor']:.3f}", f"{row['twin_drawdown_percent']:.2f}",
                      f"{row['gain_percent']:+.1f}")
    return shown


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


if __name__ == "__main__":
    raise SystemExit(main())
