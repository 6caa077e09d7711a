"""Does reinforcement learning learn what is there? And what does it earn on recorded bars?

    python -m ci.experiments.rl --seeds 5 --home var          (HUB_DATA_DIR=folder of recorded bars)

Planted: each seed is a market of its own with the planted edge. PPO and SAC against the constant action, flat
included, that earned most in the training range; all play the same later bars, bar by bar with every cost. The
settings were tuned on the markets 1, 2 and 101 to 105 (docs/decisions/0020); the claim is about others. Recorded:
each seed is a training; the table is what it is, and nothing is asserted. Killed and started again, it goes on where
it was.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ci.experiments.embeddings import interval_of
from ci.experiments.rl_jobs import RlRun, best_constant, supervised_peer, trained_by, training
from ci.experiments.searches import quiet
from reports.report import BenchRow, write_report
from train.rl.evaluate import held_long, stretches_in
from train.rl.job import RlJob
from train.rl.settings import ALGOS, RlSettings
from train.rl.training import figures_of
from train.training_set import open_market

PLANTED_COINS, RECORDED_COINS = ("BTC", "ETH"), ("BTC", "ETH", "SOL", "HYPE")
FIRST_MARKET = 201  # seeds of markets; 1, 2 and 101 to 105 were tuned on
MARGIN = 0.5  # percent of equity over the test range, by which the best constant action is to be beaten
PEERS = ("linear", "catboost")

Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="PPO and SAC against constant actions and supervised heads")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200_000)
    parser.add_argument("--lookback", type=int, default=25_200)
    parser.add_argument("--algos", default=",".join(ALGOS))
    parser.add_argument("--home", type=Path, default=Path("var"), help="the report goes to HOME/reports")
    options = parser.parse_args(arguments)
    quiet()
    console, algos = Console(width=140), tuple(options.algos.split(","))
    folder = options.home / "experiments" / "rl"
    with training():
        planted = [row for run, job, _ in trained_by(planted_runs(options, algos), folder, console.print)
                   for row in [planted_row(run, job)]]
        console.print(table_of(planted))
        recorded = recorded_rows(options, algos, folder, console)
    summary = [margin_of(algo, planted) for algo in algos]
    if recorded:
        console.print(recorded_table(recorded))
    for line in summary:
        console.print(f"{line.work}: {line.detail['said']}; aim: {line.aim}", highlight=False, soft_wrap=True)
    write_report(options.home / "reports", "rl", {"planted": planted, "recorded": recorded}, (), summary)
    return 0 if all(line.met for line in summary) else 1


def planted_runs(options: argparse.Namespace, algos: Sequence[str]) -> list[RlRun]:
    return [RlRun(f"planted_{FIRST_MARKET + number}_{algo}",
                  open_market("generated", None, PLANTED_COINS, FIRST_MARKET + number, 1.0, 43_200),
                  RlSettings(PLANTED_COINS, algo, options.steps, options.lookback, seed=FIRST_MARKET + number))
            for algo in algos for number in range(options.seeds)]


def planted_row(run: RlRun, job: RlJob) -> Row:
    """A trained actor and the best constant action on the test range of one market."""
    rows, settings = job.rows, run.settings
    actor = figures_of(job.actor(settings.seed).act, rows.market, rows.ranges.test, settings)
    constant = best_constant(rows, settings)
    peer = figures_of(constant.act, rows.market, rows.ranges.test, settings)
    return {"market": settings.seed, "algo": settings.algo, **_shown(actor),
            "constant": list(constant.action), "constant_played_percent": peer["played_net_return_percent"],
            "margin_percent": actor["played_net_return_percent"] - peer["played_net_return_percent"],
            "constant_served_percent": peer["served_net_return_percent"],
            "served_margin_percent": actor["served_net_return_percent"] - peer["served_net_return_percent"]}


def margin_of(algo: str, rows: Sequence[Row]) -> BenchRow:
    """Mean margin over markets with its 95 % interval. It must also earn more than nothing: a constant action that was
    the best may lose later.
    """
    own = [row for row in rows if row["algo"] == algo]
    margins, earned = ([row[name] for row in own] for name in ("margin_percent", "played_percent"))
    low, high = interval_of(margins)
    least, most = interval_of(earned)
    mean = statistics.mean(margins) if margins else math.nan
    served = [row["served_margin_percent"] for row in own]
    said = (f"{mean:+.2f} % of equity over the test range more than the best constant action, {len(margins)} markets "
            f"(95 %: {low:+.2f} to {high:+.2f}); than flat {statistics.mean(earned) if earned else math.nan:+.2f} % "
            f"({least:+.2f} to {most:+.2f}); as served, than the constant "
            f"{statistics.mean(served) if served else math.nan:+.2f} %")
    return BenchRow(f"RL finds the planted signal: {algo}", _finite(mean), "% of equity", "best constant action", 0.0,
                    None, None, None, f"95 % intervals above 0, against flat too, mean >= {MARGIN:g} %",
                    bool(min(low, least) > 0 and mean >= MARGIN) if len(margins) > 1 else None,
                    detail={"said": said, "interval_95": [_finite(low), _finite(high)], "margins": margins,
                            "served_margins": served})


def recorded_rows(options: argparse.Namespace, algos: Sequence[str], folder: Path, console: Console) -> list[Row]:
    """Every training, and whom it is compared with, on the later part of the recorded bars; [] without any."""
    data_dir = os.environ.get("HUB_DATA_DIR")
    if not data_dir:
        console.print("HUB_DATA_DIR is not set: the part on recorded bars is left out")
        return []
    market = open_market("files", data_dir, RECORDED_COINS, 7, 1.0, 43_200)
    runs = [RlRun(f"recorded_{algo}", market, RlSettings(RECORDED_COINS, algo, options.steps, options.lookback,
                                                         seed=1, seeds=options.seeds)) for algo in algos]
    found: list[Row] = []
    for number, (run, job, _) in enumerate(trained_by(runs, folder, console.print)):
        rows, settings = job.rows, run.settings
        if not number:
            found += _peers(job, run.settings, options.seeds)
        for seed in job.seeds:
            figures = figures_of(job.actor(seed).act, rows.market, rows.ranges.test, settings)
            found.append({"name": settings.algo, "seed": seed, **_shown(figures)})
    return found


def _peers(job: RlJob, settings: RlSettings, seeds: int) -> list[Row]:
    rows = job.rows
    stretches = stretches_in(rows.market, rows.ranges.test, settings.env.episode_bars)
    found: list[Row] = [{"name": "flat", "seed": None, "played_percent": 0.0, "played_fall_percent": 0.0,
                         "served_percent": 0.0, "served_trades": 0.0, "served_profit_factor": None,
                         "served_fall_percent": 0.0}]
    held = held_long(rows.market, stretches, settings.env).figures()
    found.append({"name": "buy and hold", "seed": None, "played_percent": held["net_return_percent"],
                  "played_fall_percent": held["max_drawdown_percent"]})
    constant = best_constant(rows, settings)
    figures = figures_of(constant.act, rows.market, rows.ranges.test, settings)
    found.append({"name": f"best constant {constant.action}", "seed": None, **_shown(figures)})
    for plan in PEERS:
        for seed in range(1, seeds + 1 if plan != "linear" else 2):
            metrics = supervised_peer(plan, rows, settings, seed).report.metrics()
            found.append({"name": plan, "seed": seed, "played_percent": None, "played_fall_percent": None,
                          "served_percent": metrics["net_return_percent"], "served_trades": metrics["trades"],
                          "served_profit_factor": metrics.get("profit_factor"),
                          "served_fall_percent": metrics["max_drawdown_percent"]})
    return found


def _shown(figures: Mapping[str, float]) -> Row:
    return {"played_percent": figures["played_net_return_percent"],
            "played_fall_percent": figures["played_max_drawdown_percent"],
            "served_percent": figures["served_net_return_percent"], "served_trades": figures["served_trades"],
            "served_profit_factor": figures.get("served_profit_factor"),
            "served_fall_percent": figures["served_max_drawdown_percent"]}


def table_of(rows: Sequence[Row]) -> Table:
    names = ("played_percent", "played_fall_percent", "constant_played_percent", "margin_percent", "served_percent",
             "served_trades", "served_profit_factor", "served_margin_percent")
    shown = Table("market", "algo", *(name.replace("_percent", " %").replace("_", " ") for name in names),
                  title="planted signal, later bars, costs in")
    for row in rows:
        shown.add_row(str(row["market"]), row["algo"], *(_cell(row.get(name)) for name in names))
    return shown


def recorded_table(rows: Sequence[Row]) -> Table:
    """Means over the seeds of each name."""
    names = ("played_percent", "played_fall_percent", "served_percent", "served_trades", "served_profit_factor",
             "served_fall_percent")
    shown = Table("who", "seeds", *(name.replace("_percent", " %").replace("_", " ") for name in names),
                  title="recorded bars, later part, costs in; means over seeds, lowest to highest in brackets")
    for name in dict.fromkeys(row["name"] for row in rows):
        own = [row for row in rows if row["name"] == name]
        cells = []
        for column in names:
            values = [row[column] for row in own if row.get(column) is not None]
            spread = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
            cells.append("-" if not values else f"{statistics.mean(values):.2f}{spread}")
        shown.add_row(name, str(len(own)), *cells)
    return shown


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.2f}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


if __name__ == "__main__":
    raise SystemExit(main())
