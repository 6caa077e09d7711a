"""What was chosen against the middle of the grid: on the bars that were searched, and on later ones, with intervals.

All in risk units after costs: 1 is what a stop without costs would lose. Intervals are bootstrapped over blocks of
time, all symbols together. The searched bars flatter what was chosen on them; only the later ones say something.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feature_repo.features import MINUTE_MS
from policies.keyed_random import generator
from router.param_start import FoundLevels, ParamStart
from train.bo.entries import Earned
from train.bo.search import Levels, Problem, best_of
from train.intervals import (
    BlockGrid,
    BootstrapSettings,
    Interval,
    Track,
    drawn_blocks,
    expectancy_interval,
    times_drawn,
    track_of,
)

Floats = NDArray[np.float64]

BOOTSTRAP = BootstrapSettings(resamples=1_000)


@dataclass(frozen=True)
class Figures:
    """Of one choice of levels on one stretch of bars."""

    trades: int
    expectancy: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Judged:
    """One strategy in one bucket. signals: on the searched bars. chosen: None if no levels traded enough.

    searched, later: by "chosen" and "middle". sd: of a trade of the chosen levels. advantage, advantage_se: of chosen
    over middle, a trade; all three on the searched bars. points: how many were looked at. blocks: of the later bars, by
    "chosen" and "middle", (2, T) sums of rewards and numbers of trades.
    """

    strategy: str
    bucket: str
    signals: int
    middle: Levels
    chosen: Levels | None
    searched: Mapping[str, Figures]
    later: Mapping[str, Figures]
    sd: float
    advantage: float
    advantage_se: float
    points: int
    blocks: Mapping[str, Floats]

    @property
    def found(self) -> FoundLevels | None:
        """As a start holds it."""
        own = self.searched["chosen"]
        if self.chosen is None or own.expectancy is None:
            return None
        return FoundLevels(*self.chosen, trades=own.trades, mean_reward=own.expectancy, sd=self.sd,
                           advantage=self.advantage, advantage_se=self.advantage_se)


def judge(problem: Problem, trials: Sequence[Mapping[str, Any]], later_ms: tuple[int, int]) -> list[Judged]:
    """One for each bucket. trials: of `search.searched`. later_ms: bars that no trial has seen."""
    return [_judged(problem, bucket, trials, later_ms) for bucket in problem.buckets]


def _judged(problem: Problem, bucket: str, trials: Sequence[Mapping[str, Any]], later_ms: tuple[int, int]) -> Judged:
    chosen = best_of(trials, bucket)
    wanted, figures, parts = np.array([problem.start, chosen or problem.start]), {}, {}
    for name, span_ms in (("searched", problem.span_ms), ("later", later_ms)):
        both = problem.earned(bucket, wanted, span_ms)
        parts[name] = both.of(0), both.of(1)
        figures[name] = {which: _figures(problem, part, span_ms)
                         for which, part in zip(("middle", "chosen"), parts[name], strict=True)}
    advantage, error = _advantage(*parts["searched"])
    tracks = [_track(problem, part, later_ms) for part in parts["later"]]
    blocks = {which: np.array([track.returns, track.counts])
              for which, track in zip(("middle", "chosen"), tracks, strict=True)}
    return Judged(problem.strategy, bucket, problem.buckets[bucket], problem.start, chosen, figures["searched"],
                  figures["later"], _sd(parts["searched"][1]), advantage, error,
                  sum(int(trial["found"].get(bucket, {}).get("points", 0)) for trial in trials),
                  blocks)


def start_of(rows: Sequence[Judged], made: Mapping[str, Any]) -> ParamStart:
    """What the hub takes: every choice, whatever became of it later, since the later bars are for judging only."""
    levels: dict[str, dict[str, FoundLevels]] = {}
    for row in rows:
        if row.found is not None:
            levels.setdefault(row.strategy, {})[row.bucket] = row.found
    return ParamStart(levels, made)


def later_difference(rows: Sequence[Judged]) -> tuple[float, Interval]:
    """Mean reward of a trade on the later bars, chosen less middle, and a bootstrapped interval (percentiles).

    Of trades, not of time: levels that trade less would look better wherever trading loses. Buckets are weighted by the
    middle's trades, so that it does not count either in which of them more is traded.
    """
    blocks = {which: np.stack([row.blocks[which] for row in rows]) for which in ("chosen", "middle")}
    whole = np.ones((1, blocks["middle"].shape[2]))
    places = drawn_blocks(whole.shape[1], BOOTSTRAP, generator(0, "bo", whole.shape[1]))
    tail = (1 - BOOTSTRAP.level) / 2
    low, high = np.quantile(_differences(blocks, times_drawn(places)), [tail, 1 - tail])
    return float(_differences(blocks, whole)[0]), Interval(float(low), float(high), BOOTSTRAP.level)


def _differences(blocks: Mapping[str, Floats], drawn: Floats) -> Floats:
    """(resamples,). blocks: (buckets, 2, T). drawn: (resamples, T). A bucket in which one side has no trade says 0."""
    sums = {which: np.einsum("bkt,rt->kbr", part, drawn) for which, part in blocks.items()}
    with np.errstate(invalid="ignore", divide="ignore"):
        means = {which: part[0] / part[1] for which, part in sums.items()}
        each = np.nan_to_num(means["chosen"] - means["middle"], nan=0.0, posinf=0.0, neginf=0.0)
    weight = sums["middle"][1]
    found: Floats = (weight * each).sum(axis=0) / np.maximum(weight.sum(axis=0), 1.0)
    return found


def _figures(problem: Problem, trades: Earned, span_ms: tuple[int, int]) -> Figures:
    track = _track(problem, trades, span_ms)
    if track.trades == 0:
        return Figures(0, None, None, None)
    places = drawn_blocks(len(track.grid), BOOTSTRAP, generator(0, "bo", len(track.grid)))
    interval = expectancy_interval(track, times_drawn(places), BOOTSTRAP.level)
    return Figures(track.trades, track.expectancy, _finite(interval.low), _finite(interval.high))


def _track(problem: Problem, trades: Earned, span_ms: tuple[int, int]) -> Track:
    return track_of(BlockGrid(*span_ms, problem.settings.block_bars * MINUTE_MS), trades.entry_ms, trades.reward)


def _advantage(middle: Earned, chosen: Earned) -> tuple[float, float]:
    """(difference of the mean rewards, its standard error as if the two had nothing in common: rather too large)."""
    if min(len(middle.reward), len(chosen.reward)) < 2:
        return 0.0, 1.0
    error = math.hypot(*(_sd(one) / math.sqrt(len(one.reward)) for one in (middle, chosen)))
    return float(chosen.reward.mean() - middle.reward.mean()), error


def _sd(trades: Earned) -> float:
    return float(trades.reward.std(ddof=1)) if len(trades.reward) > 1 else 0.0


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

