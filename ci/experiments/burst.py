"""Does sizing by reinforcement learning help where markets burst? A supervised head's trades, with and without it.

    python -m ci.experiments.burst --seeds 5 --home var          (HUB_DATA_DIR=folder of recorded bars)

A supervised head trades later bars. Of its trades those count that are entered while the volatility of the last two
hours is in the top quarter of what the symbol showed in the training range. (The highest bucket of `router.params` is
fixed in percent: on the generated market nearly every bar lies in it, on calm recordings hardly any.)

With sizing, each is multiplied by what `policies.sizing` makes of the actor's size in its direction at that moment;
costs are in, and scale with it. Sizing can only take away, so two figures are told: the mean return of a trade, and
the mean return per unit of what was risked, which alone says whether the right trades were made smaller. A seed is a
training of both; the jobs are those of `ci.experiments.rl`, and are not made twice.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from ci.experiments.embeddings import interval_of
from ci.experiments.rl import FIRST_MARKET, PLANTED_COINS, RECORDED_COINS
from ci.experiments.rl_jobs import RlRun, supervised_peer, trained_by, training
from ci.experiments.searches import quiet
from feature_repo.features import DECISION_V1
from policies.actor import flat_position, observations, standardised
from policies.sizing import rl_size_factor
from reports.report import BenchRow, write_report
from train.backtest import BacktestTrade
from train.rl.evaluate import Act
from train.rl.rows import JobRows
from train.rl.settings import PPO, RlSettings
from train.training_set import open_market

WEIGHTS = (0.25, 1.0)
HEAD = "catboost"
WORK = "sizing by RL helps"
VOLATILITY, BURST_SHARE = DECISION_V1.names.index("log_vol_120"), 0.25

Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Expectancy in burst regimes with and without sizing by RL")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200_000)
    parser.add_argument("--lookback", type=int, default=25_200)
    parser.add_argument("--home", type=Path, default=Path("var"), help="the report goes to HOME/reports")
    options = parser.parse_args(arguments)
    quiet()
    console, folder = Console(width=140), options.home / "experiments" / "rl"
    rows: list[Row] = []
    with training():
        for run, job, _ in trained_by(_runs(options), folder, console.print):
            for seed in job.seeds:
                trades = supervised_peer(HEAD, job.rows, run.settings, seed).report.trades
                rows += rows_of(run.name.split("_")[0], seed, trades, job.actor(seed).act, job.rows)
    console.print(table_of(rows))
    kinds = list(dict.fromkeys(row["market"] for row in rows))
    summary = [summary_of(kind, weight, rows) for kind in kinds for weight in WEIGHTS]
    for line in summary:
        console.print(f"{line.work}: {line.detail['said']}; aim: {line.aim}", highlight=False, soft_wrap=True)
    write_report(options.home / "reports", "burst", {"seeds": rows}, (), summary)
    return 0


def _runs(options: argparse.Namespace) -> list[RlRun]:
    """The same jobs as those of `ci.experiments.rl`."""
    runs = [RlRun(f"planted_{FIRST_MARKET + number}_{PPO}",
                  open_market("generated", None, PLANTED_COINS, FIRST_MARKET + number, 1.0, 43_200),
                  RlSettings(PLANTED_COINS, PPO, options.steps, options.lookback, seed=FIRST_MARKET + number))
            for number in range(options.seeds)]
    data_dir = os.environ.get("HUB_DATA_DIR")
    if data_dir:
        runs.append(RlRun(f"recorded_{PPO}", open_market("files", data_dir, RECORDED_COINS, 7, 1.0, 43_200),
                          RlSettings(RECORDED_COINS, PPO, options.steps, options.lookback, seed=1,
                                     seeds=options.seeds)))
    return runs


def rows_of(market: str, seed: int, trades: Sequence[BacktestTrade], act: Act, rows: JobRows) -> list[Row]:
    """One row for each weight: the same trades in bursts, sized and not."""
    earned, sizes = burst_trades(trades, act, rows)
    found = []
    for weight in WEIGHTS:
        factors = np.array([rl_size_factor(weight, size) for size in sizes.tolist()])
        found.append({"market": market, "seed": seed, "weight": weight, **expectancies(earned, factors)})
    return found


def burst_trades(trades: Sequence[BacktestTrade], act: Act, rows: JobRows
                 ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Net returns over equity of the trades that were entered in bursts, and the actor's size in their direction."""
    bursts = {name: burst_from(rows, name) for name in rows.rows}
    earned, sizes = [], []
    for trade in trades:
        own = rows.rows[trade.symbol]
        place = int(np.searchsorted(own.event_time_ms, trade.entry_time_ms))  # decided at the close that opens it
        if own.values[place, VOLATILITY] > bursts[trade.symbol]:
            seen = observations(standardised(own.values[place], rows.standard.mean, rows.standard.scale),
                                flat_position())
            earned.append(trade.net_return)
            sizes.append(trade.direction.sign * float(act(seen[None])[0, 0]))
    return np.array(earned, np.float64), np.array(sizes, np.float64)


def burst_from(rows: JobRows, symbol: str) -> float:
    """The volatility above which it bursts: the upper quartile of the training range."""
    own, training_range = rows.rows[symbol], rows.ranges.training
    return float(np.quantile(own.values[own.event_time_ms <= training_range.stop_ms, VOLATILITY], 1 - BURST_SHARE))


def expectancies(earned: NDArray[np.float64], factors: NDArray[np.float64]) -> dict[str, Any]:
    """In basis points of equity a trade; `unit` is per trade of full size."""
    if not len(earned):
        return {"trades": 0, "without_bp": None, "with_bp": None, "unit_bp": None, "mean_factor": None}
    return {"trades": len(earned), "without_bp": 1e4 * float(earned.mean()),
            "with_bp": 1e4 * float((earned * factors).mean()),
            "unit_bp": 1e4 * float((earned * factors).sum() / factors.sum()) if factors.sum() > 0 else None,
            "mean_factor": float(factors.mean())}


def summary_of(market: str, weight: float, rows: Sequence[Row]) -> BenchRow:
    """Change of the expectancy per unit of size, with its 95 % interval over seeds."""
    own = [row for row in rows if row["market"] == market and row["weight"] == weight and row["unit_bp"] is not None]
    changes = [row["unit_bp"] - row["without_bp"] for row in own]
    totals = [row["with_bp"] - row["without_bp"] for row in own]
    base = statistics.mean(row["without_bp"] for row in own) if own else math.nan
    low, high = interval_of(changes)
    mean = statistics.mean(changes) if changes else math.nan
    share = 100 * mean / abs(base) if base else math.nan
    said = (f"per unit of size {mean:+.3f} bp ({share:+.0f} %) on {base:+.3f} bp over {len(own)} seeds (95 %: "
            f"{low:+.3f} to {high:+.3f} bp); per trade {statistics.mean(totals) if totals else math.nan:+.3f} bp")
    return BenchRow(f"{WORK}: {market}, weight {weight:g}", _finite(share), "% of expectancy per unit of size",
                    "no sizing", 0.0, None, None, None, "+10-15 %, or the honest figure",
                    bool(low > 0) if len(changes) > 1 else None,
                    detail={"said": said, "interval_95_bp": [_finite(low), _finite(high)]})


def table_of(rows: Sequence[Row]) -> Table:
    names = ("trades", "without_bp", "with_bp", "unit_bp", "mean_factor")
    shown = Table("market", "seed", "weight", *(name.replace("_", " ") for name in names),
                  title=f"trades of {HEAD} entered in bursts, later bars, costs in")
    for row in rows:
        shown.add_row(row["market"], str(row["seed"]), f"{row['weight']:g}",
                      *("-" if row[name] is None else f"{row[name]:.3g}" for name in names))
    return shown


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


if __name__ == "__main__":
    raise SystemExit(main())
