"""What a reinforcement-learning job leaves for people: a run in MLflow, a page, a table for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from policies.bundle import pack_bundle
from reports.report import Plot, write_report
from train.plots import drawdown_png, equity_png
from train.rl.job import RlCandidate
from train.rl.settings import RlSettings
from train.rl.training import updates_of
from train.tracking import Tracker

EXPERIMENT = "retrain_rl"


def figures(candidate: RlCandidate) -> dict[str, float]:
    """Every figure that is a number, by its name in MLflow."""
    judgement = candidate.judgement
    best = next(one["best"] for one in candidate.by_seed if one["seed"] == candidate.seed)
    head = judgement.head
    found: dict[str, Any] = {
        "trades": float(head.trades), "profit_factor": head.profit_factor,
        "profit_factor_low": head.profit_factor_interval.low, "profit_factor_high": head.profit_factor_interval.high,
        "expectancy": head.expectancy, "expectancy_low": head.expectancy_interval.low,
        "expectancy_high": head.expectancy_interval.high, "max_drawdown_percent": head.max_drawdown_percent,
        "sharpe_per_block": head.sharpe, "deflated_sharpe": judgement.deflated_sharpe, "trials": candidate.trials,
        "largest_difference": candidate.largest_difference, "passed": float(candidate.passed),
        **{f"test_{name}": value for name, value in candidate.test.items()},
        **{f"validation_{name}": best[name] for name in ("figure", "steps", "played_net_return_percent",
                                                         "served_net_return_percent")}}
    return {name: round(float(value), 9) for name, value in found.items()
            if value is not None and math.isfinite(value)}


def log_to_mlflow(home: Path, candidate: RlCandidate, settings: RlSettings, key: str, now_ms: int) -> str:
    """The run's id. A job that is there already is not written again."""
    tracker, name = Tracker(home, EXPERIMENT), candidate.bundle.manifest.alias
    trades = candidate.trades
    curve = {candidate.name: (trades["exit_time_ms"], trades["net_return"])}
    return tracker.known(name, key) or tracker.log(
        name, now_ms, parameters(settings), figures(candidate),
        {f"{name}.pt": pack_bundle(candidate.bundle), "equity.png": equity_png("test range, as served", curve),
         "drawdown.png": drawdown_png("test range, as served", curve)},
        {"job": key, "policy_id": candidate.bundle.policy_id, "kind": candidate.bundle.manifest.kind,
         "passed": str(candidate.passed).lower()})


def write_page(home: Path, candidate: RlCandidate, settings: RlSettings, notes: Mapping[str, Any]) -> Path:
    """HOME/reports/retrain_rl.json and its page."""
    looks = {f"seed {one['seed']}": [(look["steps"] / 1_000, look["figure"]) for look in one["looks"]]
             for one in candidate.by_seed}
    rewards = {f"seed {one['seed']}": [(look["steps"] / 1_000, look["reward"]) for look in one["looks"]
                                       if look["reward"] is not None] for one in candidate.by_seed}
    curve = [(t / 3_600_000, float(s)) for t, s in zip(
        candidate.trades["exit_time_ms"], 100 * np.cumsum(candidate.trades["net_return"]), strict=True)]
    plots = [Plot("validation figure: mean of both net returns, percent", "thousand steps", "percent", looks),
             Plot("reward of an episode while exploring", "thousand steps", "trade risks", rewards),
             Plot("test range as served: net return over equity, percent", "hour", "percent", {candidate.name: curve})]
    content = {"candidate": {"name": candidate.name, "alias": candidate.bundle.manifest.alias,
                             "policy_id": candidate.bundle.policy_id, **figures(candidate),
                             "missed": list(candidate.missed)},
               "settings": {**parameters(settings), "updates": updates_of(settings)},
               "seeds": [{name: one[name] for name in ("seed", "steps", "updates", "seconds", "episodes")}
                         | {"best": one["best"]} for one in candidate.by_seed], **notes}
    return write_report(home / "reports", "retrain_rl", content, plots)


def table_of(candidate: RlCandidate) -> Table:
    """For a terminal: one row of each seed on the validation range, the chosen one on the test range."""
    shown = Table("seed", "range", "every bar %", "fall %", "served %", "trades", "profit factor", "fall %",
                  "steps", title=f"{candidate.bundle.manifest.alias}: net return over equity, costs in")
    for one in candidate.by_seed:
        shown.add_row(str(one["seed"]), "validation", *_cells(one["best"]), f"{one['best']['steps']:,}")
    shown.add_row(str(candidate.seed), "test", *_cells(candidate.test), "-")
    return shown


def parameters(settings: RlSettings) -> dict[str, object]:
    own = {f"{settings.algo}_{name}": value for name, value in vars(settings.own).items()}
    return {"coins": ",".join(settings.symbols), "algo": settings.algo, "steps": settings.steps,
            "lookback": settings.lookback_bars, "size": settings.size, "seed": settings.seed, "seeds": settings.seeds,
            "steps_per_update": settings.steps_per_update, "episode_bars": settings.env.episode_bars,
            "drawdown_penalty": settings.env.drawdown_penalty, "reward_clip": settings.env.reward_clip, **own}


def _cells(figures: Mapping[str, Any]) -> list[str]:
    factor = figures.get("served_profit_factor")
    return [f"{figures['played_net_return_percent']:+.2f}", f"{figures['played_max_drawdown_percent']:.2f}",
            f"{figures['served_net_return_percent']:+.2f}", f"{figures['served_trades']:.0f}",
            "-" if factor is None else f"{factor:.2f}", f"{figures['served_max_drawdown_percent']:.2f}"]
