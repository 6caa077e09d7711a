"""Step: what the candidates are and did on later bars, as runs in MLflow: the home's, or a server's by its URL."""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

from ci.pipeline.forward import TESTED
from ci.pipeline.settings import PipelineSettings
from ci.pipeline.step import Away, Say, again, command, read_note
from train.tracking import Tracker

EXPERIMENT = "ci_pipeline"
QUICK = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}  # we are patient ourselves


def run(settings: PipelineSettings, say: Say) -> str:
    logging.getLogger("alembic").setLevel(logging.WARNING)
    for name, value in QUICK.items():
        os.environ.setdefault(name, value)
    tested = read_note(settings.home, TESTED, "forward")
    runs = again(lambda: logged(settings, tested), settings.patience_s, say)
    where = settings.mlflow_url or f"the home's MLflow, {settings.home / 'mlflow'}"
    return f"{len(runs)} runs of {EXPERIMENT} in {where}"


def logged(settings: PipelineSettings, tested: list[dict[str, Any]]) -> list[str]:
    """Ids of the runs; a candidate with the same figures is one run, however often the step is repeated."""
    try:
        tracker = Tracker(settings.home, EXPERIMENT, settings.mlflow_url)
        return [_logged(tracker, settings, one) for one in tested]
    except Exception as error:  # MLflow's errors and those of its connections share no base class
        if settings.mlflow_url:
            raise Away(f"MLflow at {settings.mlflow_url}: {type(error).__name__}: {error}"[:500]) from error
        raise


def _logged(tracker: Tracker, settings: PipelineSettings, one: dict[str, Any]) -> str:
    job = f"{one['policy_id'][:32]}-{(one.get('played') or {}).get('until_ms', 0)}"
    if known := tracker.known(one["alias"], job):
        return known
    played = one.get("played") or {}
    figures = {name: float(value) for name, value in played.items() if isinstance(value, int | float)}
    return tracker.log(
        one["alias"], time.time_ns() // 1_000_000,
        {"coins": settings.coins, "lookback": settings.lookback, "market": settings.market, "min_pf": settings.min_pf,
         "max_dd": settings.max_dd, "strict": settings.strict},
        {"passed": float(one["passed"]), **figures},
        {f"{one['head']}.pt": Path(one["path"]).read_bytes(), "forward_test.json": json.dumps(one, indent=1).encode()},
        {"job": job, "policy_id": one["policy_id"], "passed": str(one["passed"]).lower()})


main = command(run, "Write the candidates' figures and files to MLflow.")

if __name__ == "__main__":
    main()
