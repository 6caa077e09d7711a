"""The one report of a night: HOME/reports/nightly.json, its page, and a run of the experiment `nightly` in MLflow."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from policies.bundle import read_bundle
from reports.report import Plot, write_report
from train.commands import NOT_PASSED
from train.nightly.night import DONE, FAILED, Ended, Night
from train.nightly.run import all_well
from train.steps import key_of
from train.tracking import Tracker

REPORT = EXPERIMENT = "nightly"


def report_of(night: Night, ended: Mapping[str, Ended], settings: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Everything there is to know of a night, as plain JSON. seconds: of this run."""
    return {"night": night.name, "all_well": all_well(ended), "seconds": round(seconds, 1),
            "steps": [asdict(how) for how in ended.values()], "candidates": _candidates(night, ended),
            "registered": _left(night, ended, "register", "registered.json"),
            "param_start": _left(night, ended, "param_start", "param_started.json"),
            "drift": _left(night, ended, "drift", "drift.json").get("symbols", []), "settings": dict(settings)}


def plots_of(night: Night, ended: Mapping[str, Ended], before: Mapping[str, Sequence[float]]) -> list[Plot]:
    """Drift by day, and how long the steps took night by night. before: seconds of earlier nights."""
    drift = _left(night, ended, "drift", "drift.json").get("figures", {})
    shown = {symbol: [(float(day), figure) for day, figure in days if figure is not None]
             for symbol, days in drift.items()}
    took = {name: [*before.get(name, ()), how.seconds] for name, how in ended.items() if how.exit_code is not None}
    length = max(map(len, took.values()), default=0)
    nights = {name: [(float(length - len(line) + place), value) for place, value in enumerate(line)]
              for name, line in took.items()}
    plots = [Plot("Drift of each day against the 90 days before it", "days since 1970", "nats", shown)] \
        if any(shown.values()) else []
    return [*plots, Plot("Seconds of each step, night by night; the last one is this", "night", "seconds", nights)]


def write_night(night: Night, report: Mapping[str, Any], plots: Sequence[Plot]) -> Path:
    """The path of the page."""
    return write_report(night.home / "reports", REPORT, report, plots)


def log_night(night: Night, report: Mapping[str, Any], now_ms: int) -> str:
    """The MLflow run of this night with the report attached; of the same report only once."""
    told = {name: value for name, value in report.items() if name != "seconds"}  # of this run; told again, it is less
    tracker, job = Tracker(night.home, EXPERIMENT), key_of(night.name, told)
    known = tracker.known(night.name, job)
    if known:
        return known
    folder = night.home / "reports"
    steps, candidates = report["steps"], report["candidates"]
    metrics = {f"seconds_{one['step']}": float(one["seconds"]) for one in steps if one["exit_code"] is not None}
    metrics |= {"seconds": float(report["seconds"]), "candidates": float(len(candidates)),
                "candidates_passed": float(sum(one["forward"] == "passed" for one in candidates)),
                "steps_failed": float(sum(one["state"] == FAILED for one in steps))}
    metrics |= {f"drift_{row['symbol']}": float(row["figure"]) for row in report["drift"]
                if row["figure"] is not None}
    return tracker.log(night.name, now_ms, report["settings"], metrics,
                       {f"{REPORT}{end}": (folder / f"{REPORT}{end}").read_bytes() for end in (".json", ".html")},
                       {"job": job, "all_well": str(report["all_well"]).lower(),
                        "registered": str(report["registered"].get("alias", ""))})


def table_of(report: Mapping[str, Any]) -> Table:
    """For a terminal: the steps."""
    shown = Table("step", "state", "seconds", "said", title=f"night {report['night']}")
    for one in report["steps"]:
        shown.add_row(one["step"], one["state"], "-" if one["exit_code"] is None else f"{one['seconds']:.0f}",
                      one["said"][:110])
    return shown


def candidates_table(report: Mapping[str, Any]) -> Table:
    """For a terminal: what was made, and what came of it."""
    names = ("name", "made_by", "judged", "deflated_sharpe", "forward", "forward_trades", "forward_profit_factor",
             "forward_drawdown_percent", "registered")
    shown = Table(*(name.replace("_", " ") for name in names))
    for one in report["candidates"]:
        shown.add_row(*(_shown(one[name]) for name in names))
    return shown


def _candidates(night: Night, ended: Mapping[str, Ended]) -> list[dict[str, Any]]:
    registered = _left(night, ended, "register", "registered.json")
    forward = {found["path"]: found for name, path in _files(night, ended, "forward").items()
               if name.startswith("forward_") for found in [json.loads(path.read_bytes())]}
    rows = []
    for step in ended:
        for name, path in _files(night, ended, step).items():
            if name.startswith("candidate_"):
                row = _candidate(path, step, forward.get(str(path)))
                taken = registered.get("policy_id") == row["policy_id"]
                rows.append({**row, "registered": "yes" if taken else "no"})
    return rows


def _candidate(path: Path, step: str, played: Mapping[str, Any] | None) -> dict[str, Any]:
    """One row: its judgement from the manifest, and its forward test. None where there is no figure."""
    bundle = read_bundle(path)
    told = bundle.manifest.trained_on
    judgement = told.get("judgement")
    figures = (((played or {}).get("report") or {}).get("played")) or {}
    state = "not played" if played is None else "passed" if played["passed"] else \
        "not passed" if played["exit_code"] == NOT_PASSED else "could not be played"
    return {"name": path.stem.removeprefix("candidate_"), "alias": bundle.manifest.alias,
            "policy_id": bundle.policy_id, "made_by": step,
            "judged": {True: "passed", False: "not passed"}.get(told.get("passed"), "-"),  # type: ignore[arg-type]
            "deflated_sharpe": judgement.get("deflated_sharpe") if isinstance(judgement, Mapping) else None,
            "forward": state, "forward_trades": figures.get("trades"),
            "forward_profit_factor": figures.get("profit_factor"),
            "forward_drawdown_percent": figures.get("max_drawdown_percent"),
            "why": "; ".join(((played or {}).get("report") or {}).get("missed", []))}


def _files(night: Night, ended: Mapping[str, Ended], step: str) -> dict[str, Path]:
    return night.files(step) if step in ended and ended[step].exit_code is not None else {}


def _left(night: Night, ended: Mapping[str, Ended], step: str, file: str) -> dict[str, Any]:
    """What a step that is done left as JSON; empty if it is not."""
    if step not in ended or ended[step].state != DONE or file not in night.files(step):
        return {}
    found: dict[str, Any] = json.loads(night.files(step)[file].read_bytes())
    return found


def _shown(value: Any) -> str:
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
