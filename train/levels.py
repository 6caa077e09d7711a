"""When a head trades at all: the least confidence and the greatest probability of flat, chosen on validation rows.

Each pair is a trial like any other: the best of them flatters itself, so whoever judges the head must count all.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policies.errors import InvalidInput
from policies.heads import CLASSES
from train.dataset import FLAT, LONG, SHORT

MIN_CONF_TRIALS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75)
MAX_P_FLAT_TRIALS = (0.2, 0.3, 1.0)
LEAST_TRADES = 30  # on the validation slice, for a trial to be chosen
AIMED_PROFIT_FACTOR = 2.5  # the ladder asks for 2, and the best of many trials flatters itself

Trial = dict[str, float]


@dataclass(frozen=True)
class ChosenLevels:
    """The chosen pair with its figures, and every pair that was tried, in order."""

    chosen: Trial
    trials: tuple[Trial, ...]

    @property
    def min_conf(self) -> float:
        return self.chosen["min_conf"]

    @property
    def max_p_flat(self) -> float:
        return self.chosen["max_p_flat"]

    @property
    def count(self) -> int:
        """How many trials this choice adds to those of the training."""
        return len(self.trials)


def choose_levels(probabilities: NDArray[np.float64], long_return: NDArray[np.float64],
                  short_return: NDArray[np.float64]) -> ChosenLevels:
    """The levels for rows with these probabilities (N, 3) and net returns on margin (N,) of a long and of a short."""
    trials = level_trials(probabilities, long_return, short_return)
    return ChosenLevels(choose_trial(trials), tuple(trials))


def chosen_directions(probabilities: NDArray[np.float64], min_conf: float, max_p_flat: float) -> NDArray[np.int64]:
    """(N,) +1, -1 or 0: the rule of `policies.heads` over many rows at once."""
    p_short, p_flat, p_long = probabilities[:, SHORT], probabilities[:, FLAT], probabilities[:, LONG]
    directed = p_short + p_long
    confidence = np.maximum(p_short, p_long) / np.where(directed > 0, directed, 1.0)
    trades = (p_long != p_short) & (confidence >= min_conf) & (p_flat <= max_p_flat)
    return np.where(trades, np.sign(p_long - p_short), 0.0).astype(np.int64)


def level_trials(probabilities: NDArray[np.float64], long_return: NDArray[np.float64],
                 short_return: NDArray[np.float64]) -> list[Trial]:
    """For each pair of levels: trades, their mean net return on margin, that mean in standard errors (`score`), and the
    profit factor (0 if there is no loss to divide by).

    Every row counts as a trade of its own, so trades overlap: scores compare trials, they prove nothing.
    """
    if not (probabilities.shape == (len(long_return), len(CLASSES)) and len(short_return) == len(long_return)):
        raise InvalidInput("probabilities", "(N, 3) with N returns of a long and of a short",
                           (probabilities.shape, len(long_return), len(short_return)))
    trials = []
    for min_conf, max_p_flat in itertools.product(MIN_CONF_TRIALS, MAX_P_FLAT_TRIALS):
        directions = chosen_directions(probabilities, min_conf, max_p_flat)
        earned = np.where(directions > 0, long_return, short_return)[directions != 0]
        trials.append({"min_conf": min_conf, "max_p_flat": max_p_flat, **_figures(earned)})
    return trials


def choose_trial(trials: Sequence[Trial]) -> Trial:
    """The best score among trials with enough trades and the aimed profit factor; the first of equals.

    Where none has that profit factor, the best score with enough trades; where none has enough, the one with most.
    """
    enough = [trial for trial in trials if trial["trades"] >= LEAST_TRADES]
    if not enough:
        return max(trials, key=lambda trial: trial["trades"])
    aimed = [trial for trial in enough if trial["profit_factor"] >= AIMED_PROFIT_FACTOR]
    return max(aimed or enough, key=lambda trial: trial["score"])


def _figures(earned: NDArray[np.float64]) -> Trial:
    error = float(earned.std() / np.sqrt(len(earned))) if len(earned) > 1 else 0.0
    mean = float(earned.mean()) if len(earned) else 0.0
    loss = -float(earned[earned < 0].sum())
    return {"trades": float(len(earned)), "mean": mean, "score": mean / error if error > 0 else 0.0,
            "profit_factor": float(earned[earned > 0].sum()) / loss if loss > 0 else 0.0}
