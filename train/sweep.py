"""A search over the settings of one learner: Optuna proposes, Ray Tune runs, ASHA ends what falls behind.

Trials run one after another unless `parallel` says otherwise: what ASHA ends depends on who finished before, and the
same seed and rows are to give the same search. Several searches may run side by side. A search that was interrupted is
begun anew with the same seed: trials that had come to their end are kept in `folder` and only told again, step by step,
so that Optuna and ASHA come to the same conclusions.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge

from policies.errors import HubError, InvalidInput
from train.learners import Heard, Setting, Space
from train.steps import key_of

RESULT, RECORDS = "trial.json", "finished"
FINISHED, PRUNED, FAILED = "finished", "pruned", "failed"
# What a fit is heard to lose on the way may be of another kind than the loss of its end. ASHA compares the first among
# themselves; to Optuna a trial that was ended early is worse than any that came to its end.
ENDED_EARLY = 1_000.0
_NUMBER_OF_TRIAL = re.compile(r"^trial_[0-9a-f]{12}_[0-9a-f]{8}_(\d+)_")  # the name of its folder; Tune counts from 1

# Runs one trial: (settings, heard) -> (validation loss, whatever else is to be remembered of it, as plain JSON).
Objective = Callable[[Mapping[str, Setting], Heard], tuple[float, dict[str, Any]]]


@dataclass(frozen=True)
class SweepSettings:
    """grace: steps that every trial may make. parallel: trials at once; more than 1 is quicker and not repeatable."""

    trials: Annotated[int, Ge(1)] = 4
    seed: int = 7
    grace: Annotated[int, Ge(1)] = 4
    reduction: Annotated[int, Ge(2)] = 3
    parallel: Annotated[int, Ge(1)] = 1


@dataclass(frozen=True)
class Trial:
    """One setting that was tried. loss: of validation; where it was pruned, the last one heard; None if it failed."""

    number: int
    settings: Mapping[str, Setting]
    state: str
    steps: int
    loss: float | None
    found: dict[str, Any] = field(default_factory=dict)


class TrialFailed(HubError):
    """No trial of a search came to an end."""

    code = "trial_failed"


def search(objective: Objective, space: Mapping[str, Space], first: Mapping[str, Setting], settings: SweepSettings,
           folder: Path) -> list[Trial]:
    """Every trial, in the order in which they were proposed; `first` is the first. Ray must be connected.

    folder: of this search alone. Searches side by side need folders of different names: Tune stages by name.
    """
    if set(first) != set(space):
        raise InvalidInput("first", f"a value for each of {', '.join(sorted(space))}", sorted(first))
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search import ConcurrencyLimiter
    from ray.tune.search.optuna import OptunaSearch

    where = folder.resolve()
    shutil.rmtree(where / where.name, ignore_errors=True)  # of an interrupted search; Tune forgets what ASHA knew of it
    trainable = tune.with_parameters(_named_for(where), objective=objective, records=where / RECORDS)
    proposer = OptunaSearch(_distributions(space), metric="loss", mode="min", seed=settings.seed,
                            points_to_evaluate=[dict(first)])
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1}),
        tune_config=tune.TuneConfig(
            num_samples=settings.trials, metric=None, mode=None,
            search_alg=ConcurrencyLimiter(proposer, settings.parallel, batch=True),
            scheduler=ASHAScheduler(time_attr="step", metric="heard", mode="min", max_t=10_000,
                                    grace_period=settings.grace, reduction_factor=settings.reduction)),
        run_config=tune.RunConfig(name=where.name, storage_path=str(where), verbose=0))
    grid = tuner.fit()
    trials = sorted((_trial_of(grid[place]) for place in range(len(grid))), key=lambda trial: trial.number)
    if not any(trial.state == FINISHED for trial in trials):
        reason = next((trial.found["reason"] for trial in trials if trial.state == FAILED), "").strip().splitlines()
        raise TrialFailed(f"none of {len(trials)} trials came to an end; Tune's record is in {where}; the first failed "
                          f"with: {reason[-1] if reason else 'nothing that it said'}")
    return trials


def best_of(trials: list[Trial]) -> Trial:
    """The finished trial with the least loss; the first of equals."""
    return min((trial for trial in trials if trial.state == FINISHED and trial.loss is not None),
               key=lambda trial: (trial.loss, trial.number))


def _named_for(folder: Path) -> Callable[..., None]:
    """`_run_trial` under a name of its own: Tune keeps functions and their parameters by name, for a whole cluster."""
    def run(config: dict[str, Any], objective: Objective, records: Path) -> None:
        _run_trial(config, objective, records)

    run.__name__ = run.__qualname__ = f"trial_{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}"
    return run


def _run_trial(config: dict[str, Any], objective: Objective, records: Path) -> None:
    """In a worker of its own. The last report carries what was found as a checkpoint: Tune's log is for numbers."""
    from ray import tune

    last = (0, 0.0)

    def heard(step: int, loss: float) -> None:
        nonlocal last
        last = step, float(loss)
        tune.report({"step": step, "heard": last[1], "loss": ENDED_EARLY + last[1], "done_well": False})

    loss, found = _recorded(objective, records / f"{key_of(config)}.json")(config, heard)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / RESULT).write_text(json.dumps(found, allow_nan=False))
        tune.report({"step": last[0] + 1, "heard": last[1], "loss": float(loss), "done_well": True},
                    checkpoint=tune.Checkpoint.from_directory(folder))


def _recorded(objective: Objective, path: Path) -> Objective:
    """The objective, kept when it has come to its end; one that is kept already is told again, not run again."""
    def run(settings: Mapping[str, Setting], heard: Heard) -> tuple[float, dict[str, Any]]:
        if not path.exists():
            told: list[tuple[int, float]] = []

            def hears(step: int, loss: float) -> None:
                told.append((step, float(loss)))
                heard(step, loss)

            loss, found = objective(settings, hears)
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            part = path.with_suffix(f".{os.getpid()}.part")
            part.write_text(json.dumps({"told": told, "loss": float(loss), "found": found}, allow_nan=False))
            os.replace(part, path)
            return loss, found
        past = json.loads(path.read_bytes())
        for step, loss in past["told"]:
            heard(step, loss)
        return past["loss"], past["found"]

    return run


def _trial_of(result: Any) -> Trial:
    named = _NUMBER_OF_TRIAL.search(Path(result.path).name)
    number = int(named[1]) - 1 if named else -1
    metrics = result.metrics or {}
    settings = dict(result.config or {})
    if result.error is not None or "loss" not in metrics:
        reason = str(result.error)[-2_000:]  # a trace ends with what happened
        return Trial(number, settings, FAILED, int(metrics.get("step", 0)), None, {"reason": reason})
    steps, loss = int(metrics["step"]), float(metrics["loss"])
    if not metrics.get("done_well"):
        return Trial(number, settings, PRUNED, steps, float(metrics["heard"]))
    with result.checkpoint.as_directory() as folder:
        found = json.loads(Path(os.path.join(folder, RESULT)).read_bytes())
    return Trial(number, settings, FINISHED, steps - 1, loss, found)


def _distributions(space: Mapping[str, Space]) -> dict[str, Any]:
    import optuna.distributions as of

    return {name: of.CategoricalDistribution(dimension.choices) if dimension.choices
            else of.IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log) if dimension.whole
            else of.FloatDistribution(dimension.low, dimension.high, log=dimension.log)
            for name, dimension in space.items()}
