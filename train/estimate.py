"""How long a search will take, before it starts and while it runs: measured seconds of each kind of step, scaled.

The figures are medians on two cores for 12,000 rows to fit on; they are for the clock on the wall, nothing depends on
them. Steps run side by side, so what is left is the sum over the cores.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from train.retrain_settings import RetrainSettings
from train.supervised import ENSEMBLE

# Seconds of one fit with its export and test; a trial is a fit in a process of its own.
FIT_S: Mapping[str, Mapping[str, float]] = {
    "small": {"linear": 2.0, "catboost": 6.0, "tabnet": 25.0, "timesnet": 30.0},
    "full": {"linear": 20.0, "catboost": 60.0, "tabnet": 7_000.0, "timesnet": 30_000.0}}
TRIAL_S = 6.0  # to start one
EMBEDDER_S = {"small": 100.0, "full": 40_000.0}
ROWS_S, EMBEDDED_S, ENSEMBLE_S = 15.0, 10.0, 10.0  # for 2 x 25,200 bars
MEASURED_BARS = 50_400
ALONE = ("rows", "embedder", "rows_embedded")  # steps beside which no other runs


def seconds_of(step: str, settings: RetrainSettings) -> float:
    """Of a step by its name, alone on one core; the embedder uses all."""
    kind, *rest = step.split(".")
    bars = settings.lookback_bars * len(settings.symbols) / MEASURED_BARS
    size = min(1.0, bars) if settings.size == "small" else bars
    if rest and rest[0] == ENSEMBLE:  # nothing is fitted, but its members answer row by row
        return ENSEMBLE_S * bars
    if kind in ("fit", "final", "sweep"):
        one = FIT_S[settings.size][rest[0].removesuffix("_mae")] * size
        return settings.trials * (one + TRIAL_S) if kind == "sweep" else one
    return {"rows": ROWS_S * bars, "embedder": EMBEDDER_S[settings.size], "rows_embedded": EMBEDDED_S * bars}[kind]


def seconds_left(steps: Iterable[str], settings: RetrainSettings, cores: int) -> float:
    """Of these steps; what cannot be shared out keeps its own length."""
    shared, alone = [], 0.0
    for step in steps:
        if step in ALONE:
            alone += seconds_of(step, settings)
        else:
            shared.append(seconds_of(step, settings))
    return alone + max(sum(shared) / max(1, cores), max(shared, default=0.0))


def described(seconds: float) -> str:
    """45 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5_400 else f"{seconds / 3_600:.1f} h"
