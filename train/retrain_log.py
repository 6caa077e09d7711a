"""What a search leaves for people: runs in MLflow with figures and pictures, a report, a table for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from policies.bundle import pack_bundle
from policies.embedder import version_of
from reports.report import Plot, write_report
from train.candidates import Candidate, Retrained
from train.jobs import Arrays
from train.plots import calibration_png, drawdown_png, equity_png, importances_png, search_png
from train.supervised import PLANS
from train.tracking import Tracker

EXPERIMENT = "retrain_sup"
COLUMNS = ("head", "baseline", "trades", "profit factor", "other seeds", "drawdown %", "expectancy bp",
           "deflated Sharpe", "PBO", "served ms", "training s", "passed")


def log_to_mlflow(home: Path, retrained: Retrained, now_ms: int) -> dict[str, str]:
    """One run for the search and one below it for each candidate and the embedder; ids by name. A search that is there
    already is not written again.
    """
    tracker = Tracker(home, EXPERIMENT)
    runs: dict[str, str] = {}
    whole = f"search_{retrained.key[:6]}"
    runs[whole] = tracker.known(whole, retrained.job) or tracker.log(
        whole, now_ms, _parameters(retrained),
        {"trials_counted": float(retrained.trials), "candidates": float(len(retrained.candidates)),
         "passed": float(sum(one.passed for one in retrained.candidates))},
        {"equity.png": equity_png("walk-forward", {c.name: _curve(c.trades) for c in retrained.candidates}),
         "sweep.png": search_png("searches, crosses were ended early", _losses(retrained))},
        {"job": retrained.job, "role": "search"})
    for candidate in retrained.candidates:
        runs[candidate.name] = tracker.known(candidate.name, retrained.job) or tracker.log(
            candidate.name, now_ms, {**_parameters(retrained), **_settings(candidate)}, figures(candidate),
            _pictures(candidate, retrained),
            {"job": retrained.job, "policy_id": candidate.bundle.policy_id, "kind": candidate.bundle.manifest.kind,
             "passed": str(candidate.passed).lower()}, runs[whole])
    if retrained.embedder is not None:
        runs["embedder"] = tracker.known("embedder", retrained.key) or tracker.log(
            "embedder", now_ms, {"version": version_of(retrained.embedder.policy_id)},
            {f"{row['channel']}_{name}": float(row[name]) for row in retrained.reconstruction
             for name in ("mae", "mean", "interpolation", "gain_over_mean", "gain_over_interpolation")},
            {f"{retrained.embedder.manifest.alias}.pt": pack_bundle(retrained.embedder)},
            {"job": retrained.key, "policy_id": retrained.embedder.policy_id, "kind": "window_encoder"}, runs[whole])
    return runs


def figures(candidate: Candidate) -> dict[str, float]:
    """Every figure of a judgement that is a number, by its name in MLflow."""
    judgement = candidate.judgement
    head = judgement.head
    found: dict[str, float | None] = {
        "trades": float(head.trades), "profit_factor": head.profit_factor,
        "profit_factor_low": head.profit_factor_interval.low, "profit_factor_high": head.profit_factor_interval.high,
        "max_drawdown_percent": head.max_drawdown_percent, "expectancy": head.expectancy,
        "expectancy_low": head.expectancy_interval.low, "expectancy_high": head.expectancy_interval.high,
        "sharpe_per_block": head.sharpe, "deflated_sharpe": judgement.deflated_sharpe,
        "probabilistic_sharpe": judgement.probabilistic_sharpe, "overfitting": judgement.overfitting,
        "loss_probability": judgement.loss_probability, "trials": float(judgement.trials),
        "baseline_difference": judgement.difference, "served_ms": candidate.served_ms,
        "served_difference": max((float(fold["served"]["largest_difference"]) for fold in candidate.folds
                                  if "served" in fold), default=None),
        "training_s": candidate.training_s, "passed": float(candidate.passed)}
    # Rounded, since MLflow's table cuts 5e-17 to 5 and a few dots.
    return {name: round(figure, 9) for name, figure in found.items() if figure is not None and math.isfinite(figure)}


def table_of(retrained: Retrained) -> Table:
    """For a terminal, best first."""
    settings, grid = retrained.settings, retrained.grid
    days = (grid.stop_ms - grid.start_ms) / 86_400_000
    shown = Table(*COLUMNS, title=f"walk-forward over {days:.1f} days, {settings.folds} folds, {settings.seeds} "
                                  f"seed{'s' if settings.seeds > 1 else ''}; {retrained.trials} trials counted")
    for row in rows_of(retrained):
        shown.add_row(*(str(row[column]) for column in COLUMNS))
    return shown


def sentences_of(retrained: Retrained) -> list[str]:
    """What the table has no column for."""
    said = []
    differences = [found["served_difference"] for found in map(figures, retrained.candidates)
                   if "served_difference" in found]
    if differences:
        said.append(f"served answers differ from the training framework's by at most {max(differences):.1g}")
    overall = next((row for row in retrained.reconstruction if row["channel"] == "overall"), None)
    if overall is not None:
        gains = [_gain(overall, guess, name) for guess, name in (("mean", "copying the mean"),
                                                                 ("interpolation", "linear interpolation"))]
        said.append(f"the masked auto-encoder's error on hidden later bars is {', '.join(gains)}")
    return said


def rows_of(retrained: Retrained) -> list[dict[str, Any]]:
    """The table's cells, as text."""
    return [_row(candidate) for candidate in retrained.candidates]


def write_page(home: Path, retrained: Retrained, notes: Mapping[str, Any]) -> Path:
    """HOME/reports/retrain_sup.json and its page."""
    curves = {c.name: [(t / 3_600_000, float(s)) for t, s in zip(
        c.trades["exit_time_ms"], 100 * np.cumsum(c.trades["net_return"]), strict=True)] for c in retrained.candidates}
    content = {
        "heads": [_told(candidate) for candidate in retrained.candidates],
        "table": rows_of(retrained), "sweeps": {name: [
            {"number": t.number, "state": t.state, "steps": t.steps, "loss": t.loss, "settings": dict(t.settings)}
            for t in trials] for name, trials in retrained.sweeps.items()},
        "reconstruction": [dict(row) for row in retrained.reconstruction], "search": _parameters(retrained),
        "failed": dict(retrained.failed), **notes}
    plot = Plot("walk-forward: net return over equity, percent", "hour", "percent", curves)
    return write_report(home / "reports", "retrain_sup", content, [plot])


def _row(candidate: Candidate) -> dict[str, Any]:
    judgement, head = candidate.judgement, candidate.judgement.head
    interval = head.profit_factor_interval
    seeds = " ".join(f"{factor:.2f}" for factor in candidate.by_seed[1:])
    return dict(zip(COLUMNS, (
        candidate.name, candidate.baseline or "-", head.trades,
        f"{head.profit_factor:.2f} ({interval.low:.2f} to {interval.high:.2f})", seeds or "-",
        f"{head.max_drawdown_percent:.2f}",
        f"{1e4 * head.expectancy:+.2f}", f"{judgement.deflated_sharpe:.3f}",
        "-" if judgement.overfitting is None else f"{judgement.overfitting:.2f}", f"{candidate.served_ms:.3f}",
        f"{candidate.training_s:.0f}", "yes" if candidate.passed else "no"), strict=True))


def _told(candidate: Candidate) -> dict[str, Any]:
    by_seed = [factor if math.isfinite(factor) else None for factor in candidate.by_seed]
    return {**figures(candidate), "head": candidate.name, "baseline": candidate.baseline,
            "policy_id": candidate.bundle.policy_id, "missed": list(candidate.missed), "profit_factor_by_seed": by_seed}


def _gain(row: Mapping[str, Any], guess: str, name: str) -> str:
    gain, low, high = (100 * float(row[f"{part}_over_{guess}"]) for part in ("gain", "low", "high"))
    return f"{gain:.1f} % (95 %: {low:.1f} to {high:.1f}) less than {name}"


def _pictures(candidate: Candidate, retrained: Retrained) -> dict[str, bytes]:
    name, curve = candidate.name, {candidate.name: _curve(candidate.trades)}
    baseline = next((one for one in retrained.candidates if one.name == candidate.baseline), None)
    if baseline is not None:
        curve[baseline.name] = _curve(baseline.trades)
    files = {f"{candidate.bundle.manifest.alias}.pt": pack_bundle(candidate.bundle),
             "equity.png": equity_png(f"{name}: walk-forward after costs", curve),
             "drawdown.png": drawdown_png(f"{name}: walk-forward", curve)}
    bins = [fold["calibration"] for fold in candidate.folds if "calibration" in fold]
    if bins:
        said, happened, rows = ([value for one in bins for value in one[key]] for key in ("said", "happened", "rows"))
        files["calibration.png"] = calibration_png(f"{name}: test rows, every class", said, happened, rows)
    importances = candidate.folds[-1].get("importances") if candidate.folds else None
    if importances:
        files["importances.png"] = importances_png(f"{name}: final fit", importances)
    if name in PLANS and (trials := _losses(retrained).get(_swept(retrained, name))):
        files["sweep.png"] = search_png(f"{name}: search", {name: trials})
    return files


def _swept(retrained: Retrained, name: str) -> str:
    """Whose search its settings come from."""
    return next((plain for plain in retrained.sweeps if PLANS[plain].learner == PLANS[name].learner), "")


def _losses(retrained: Retrained) -> dict[str, list[tuple[int, float, str]]]:
    return {name: [(t.number, t.loss, t.state) for t in trials if t.loss is not None]
            for name, trials in retrained.sweeps.items()}


def _curve(trades: Arrays) -> tuple[Any, Any]:
    return trades["exit_time_ms"], trades["net_return"]


def _parameters(retrained: Retrained) -> dict[str, object]:
    settings = retrained.settings
    return {"coins": ",".join(settings.symbols), "window": settings.window_bars, "lookback": settings.lookback_bars,
            "heads": ",".join(settings.heads), "trials": settings.trials, "seeds": settings.seeds,
            "folds": settings.folds, "size": settings.size, "seed": settings.seed, "key": retrained.key,
            "test_from_ms": retrained.grid.start_ms, "test_until_ms": retrained.grid.stop_ms}


def _settings(candidate: Candidate) -> dict[str, object]:
    found = candidate.folds[0].get("settings", {}) if candidate.folds else {}
    return {**{f"setting_{name}": value for name, value in found.items()}, **candidate.bundle.manifest.parameters}
