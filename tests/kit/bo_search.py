"""A search for levels that needs neither Optuna nor Ray."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from train.sweep import FINISHED, SweepSettings, Trial


def random_points(objective: Callable[..., Any], space: Mapping[str, Any], first: Mapping[str, Any],
                  settings: SweepSettings, folder: Path) -> list[Trial]:
    """In place of Optuna and Tune: the first point, then draws."""
    rng, trials = np.random.default_rng(settings.seed), []
    for number in range(settings.trials):
        drawn = {name: float(np.exp(rng.uniform(np.log(one.low), np.log(one.high)))) for name, one in space.items()}
        chosen = dict(first) if number == 0 else drawn
        loss, found = objective(chosen, lambda step, value: None)
        trials.append(Trial(number, chosen, FINISHED, 1, loss, found))
    return trials
