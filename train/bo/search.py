"""The search for the levels of one strategy: Optuna proposes target and stop, the backtest answers for every bucket.

One search serves all buckets of a strategy: what steers it is their mean, weighted by signals, and each bucket then
takes the best of all that was looked at. A search of its own for each would mostly pay for starting trials.

A trial looks at a block of points at once: the proposed target and stop and their neighbours, each with every limit
offset. An offset's score in a bucket is the mean over the block of mean reward less its standard error, so a lone lucky
point does not win. The best offset is the trial's in that bucket.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.bo.entries import Earned, earned, load_signals
from train.bo.rules import RULES
from train.bo.settings import BoSettings
from train.learners import Heard, Setting, Space
from train.sweep import FINISHED, SweepSettings, Trial, search

NEIGHBOUR = 1.12  # ratio of a block's neighbouring targets, and stops: half a step of the grid
TOO_FEW = 10.0  # loss of levels that hardly trade; no mean reward is as bad

Search = Callable[..., list[Trial]]
Levels = tuple[float, float, float]  # tp_pct, sl_pct, limit_offset_pct


@dataclass(frozen=True)
class Problem:
    """folder, material: where the signals are. buckets: with their numbers of signals. span_ms: what may be looked at.
    """

    folder: Path
    material: str
    strategy: str
    buckets: Mapping[str, int]
    span_ms: tuple[int, int]
    settings: BoSettings

    def earned(self, bucket: str, points: NDArray[np.float64], span_ms: tuple[int, int] | None = None) -> Earned:
        """points: (P, 3). span_ms: another stretch than the one that is searched."""
        own = self.settings
        return earned(load_signals(self.folder, self.material), self.strategy, bucket, span_ms or self.span_ms, points,
                      own.horizon_bars, own.leverage, own.costs)

    @property
    def start(self) -> Levels:
        """Target, stop and limit offset that the search starts with, and is held against."""
        middle = self.settings.middle
        return middle["tp_pct"], middle["sl_pct"], RULES[self.strategy].offsets[0]

    def __call__(self, settings: Mapping[str, Setting], heard: Heard) -> tuple[float, dict[str, Any]]:
        """The objective of `train.sweep.search`: (loss, what was found in each bucket)."""
        tp_pct, sl_pct = float(settings["tp_pct"]), float(settings["sl_pct"])
        found = {bucket: self.looked_at(bucket, tp_pct, sl_pct) for bucket in self.buckets}
        losses = [-one["score"] if "score" in one else TOO_FEW for one in found.values()]
        return float(np.average(losses, weights=list(self.buckets.values()))), found

    def looked_at(self, bucket: str, tp_pct: float, sl_pct: float) -> dict[str, Any]:
        """points: how many. trades: of each offset. score, limit_offset_pct: of the best one, if any trades enough."""
        offsets, block = RULES[self.strategy].offsets, self._block(tp_pct, sl_pct)
        points = np.array([(tp, sl, offset) for offset in offsets for tp, sl in block])
        figures = self.earned(bucket, points).figures
        trades, mean, sd = (figure.reshape(len(offsets), len(block)) for figure in figures)
        with np.errstate(invalid="ignore", divide="ignore"):
            score = (mean - sd / np.sqrt(trades)).mean(axis=1)
        enough = (trades[:, 0] >= self.settings.least_trades) & np.isfinite(score)
        found: dict[str, Any] = {"points": len(points), "trades": [int(count) for count in trades[:, 0]]}
        if not enough.any():
            return found
        best = int(np.where(enough, score, -math.inf).argmax())
        return {**found, "score": float(score[best]), "limit_offset_pct": offsets[best]}

    def _block(self, tp_pct: float, sl_pct: float) -> list[tuple[float, float]]:
        """The proposed point first, then its neighbours, those beyond the grid's ranges at their ends."""
        ranges = self.settings.ranges

        def near(name: str, value: float) -> list[float]:
            low, high = ranges[name]
            return [value, max(low, value / NEIGHBOUR), min(high, value * NEIGHBOUR)]

        return [(tp, sl) for tp in near("tp_pct", tp_pct) for sl in near("sl_pct", sl_pct)]


def searched(problem: Problem, folder: Path, run: Search = search) -> list[dict[str, Any]]:
    """Every trial of one search, as plain JSON. folder: of this search alone."""
    own = problem.settings
    space = {name: Space(low, high, log=True) for name, (low, high) in own.ranges.items()}
    # Every trial ends with its first and only step: there is nothing for ASHA to end early.
    trials = run(problem, space, own.middle, SweepSettings(own.trials, own.seed), folder)
    return [asdict(trial) for trial in trials]


def best_of(trials: Sequence[Mapping[str, Any]], bucket: str) -> Levels | None:
    """The levels with the best score in this bucket, the first of equals; None if none traded enough."""
    scored = [(trial["found"][bucket]["score"], -trial["number"], trial) for trial in trials
              if trial["state"] == FINISHED and "score" in trial["found"].get(bucket, {})]
    if not scored:
        return None
    best = max(scored, key=lambda one: one[:2])[2]
    settings = best["settings"]
    return float(settings["tp_pct"]), float(settings["sl_pct"]), float(best["found"][bucket]["limit_offset_pct"])
