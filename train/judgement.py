"""What a trained head is worth, judged for what it is: the best of everything that was tried, on one stretch of time.

`judge` gathers the figures, `passes` holds them against demands. The demands are chosen so that a head without an edge
passes in at most 5 % of cases, selection of the best of many correlated trials and heavy tails included;
`ci.experiments.judgement_power` measures that, and how often a head with an edge is seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt, Le, Lt
from numpy.typing import NDArray

from policies.errors import InvalidInput
from train.intervals import (
    BlockGrid,
    BootstrapSettings,
    Interval,
    Track,
    drawn_blocks,
    expectancy_interval,
    mean_interval,
    profit_factor_interval,
    times_drawn,
)
from train.overfitting import (
    MOST_PARTS,
    autocorrelation,
    backtest_overfitting,
    deflated_sharpe,
    effective_trials,
    minimum_track_record,
    moments,
    probabilistic_sharpe,
    sharpe_ratios,
)
from train.trials import Target, TrialBook

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class JudgementSettings:
    """What `passes` asks for, all of it at once.

    least_deflated_sharpe: confidence that the true Sharpe ratio exceeds what the best of as many worthless trials
    would show. most_loss_probability: share of ways to cut the time in which choosing the best trial lost money on the
    other half. most_overfitting: PBO up to which the rank of the chosen is believed; above it, the loss probability
    decides alone. The lower ends of the intervals (level of `bootstrap`) of the profit factor and of the paired
    difference to the baseline must exceed 1 and 0, and the difference must reach least_deflated_sharpe as well.
    """

    least_trades: Annotated[int, Ge(1)] = 100
    least_blocks: Annotated[int, Ge(8)] = 24
    least_deflated_sharpe: Annotated[float, Gt(0), Lt(1)] = 0.95
    most_overfitting: Annotated[float, Ge(0), Le(1)] = 0.2
    most_loss_probability: Annotated[float, Ge(0), Le(1)] = 0.2
    overfitting_parts: Annotated[int, Ge(2), Le(MOST_PARTS)] = 12
    bootstrap: BootstrapSettings = field(default_factory=BootstrapSettings)


@dataclass(frozen=True)
class Figures:
    """Of one head on one grid. expectancy: mean net return of a trade over equity. sharpe: per block, NaN without
    spread. Intervals are NaN to NaN where there is nothing to tell them from.
    """

    trades: int
    profit_factor: float
    profit_factor_interval: Interval
    expectancy: float
    expectancy_interval: Interval
    max_drawdown_percent: float
    sharpe: float


@dataclass(frozen=True)
class Taken:
    """What a head was the best of. count: all trials ever, with or without figures, at least 1. sharpes: (M,) per
    block, of those that have one. performance: (T, N) block returns of those on the head's own grid.
    """

    count: int
    sharpes: Floats
    performance: Floats


def taken_from(book: TrialBook, target: Target, grid: BlockGrid) -> Taken:
    """Everything that the book knows of a target, for a head on this grid."""
    # Sharpe ratios of longer or shorter tracks spread less or more than those of this one, so only its own grid's tell
    # what chance would show. All are counted; last, since others may be writing. Trials that earned exactly the same,
    # as another seed of a learner that draws nothing, say nothing new of how far chance spreads.
    performance = _different(book.performance(target, grid).returns)
    return Taken(max(1, book.count(target)), sharpe_ratios(performance), performance)


def _different(columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """(T, N) without the columns that equal an earlier one."""
    return columns[:, np.sort(np.unique(columns, axis=1, return_index=True)[1])]


@dataclass(frozen=True)
class Judgement:
    """A head's figures, its baseline's, and what is left after all trials are counted.

    probabilistic_sharpe: confidence in an edge if nothing else had been tried. deflated_sharpe: the same after
    `trials`; deflated_sharpe_effective: after `effective_trials` instead, to compare. least_blocks: minimum track
    record length at the undeflated Sharpe ratio. overfitting, loss_probability: None if there was nothing to choose,
    or no common grid to look at the choice on.
    block_autocorrelation: of the head's returns from one block to the next. Confidences and intervals take blocks as
    independent; well above 2 / sqrt(blocks) they are too sure, and longer blocks are called for.
    difference: mean over blocks of the head's less the baseline's net return, over equity; None without a baseline.
    difference_deflated_sharpe: confidence that the difference is more than the best of all trials would show against
    this baseline if each were only as good as it.
    """

    head: Figures
    blocks: int
    block_ms: int
    trials: int
    trials_with_figures: int
    effective_trials: float
    probabilistic_sharpe: float
    deflated_sharpe: float
    deflated_sharpe_effective: float
    least_blocks: float
    overfitting: float | None
    loss_probability: float | None
    block_autocorrelation: float
    seeds: tuple[int, ...]
    folds: int
    baseline: Figures | None = None
    difference: float | None = None
    difference_interval: Interval | None = None
    difference_deflated_sharpe: float | None = None


def judge(head: Track, baseline: Track | None, taken: Taken, seeds: Sequence[int], folds: int,
          rng: np.random.Generator, settings: JudgementSettings | None = None) -> Judgement:
    """head, baseline: tracks on one grid, which covers the test ranges of all folds. seeds: those of the trainings that
    the track comes from. The same generator state gives the same judgement.
    """
    settings = settings or JudgementSettings()
    if not taken.count >= max(1, len(taken.sharpes), taken.performance.shape[1]):
        raise InvalidInput("taken.count", ">= 1 and >= the trials that have figures", taken.count)
    if baseline is not None and baseline.grid != head.grid:
        raise InvalidInput("baseline.grid", "the head's", baseline.grid)
    if len(taken.performance) != len(head.grid):
        raise InvalidInput("taken.performance", f"{len(head.grid)} blocks, as the head's grid", taken.performance.shape)
    drawn = times_drawn(drawn_blocks(len(head.grid), settings.bootstrap, rng))
    level = settings.bootstrap.level
    of, parts = moments(head.returns), min(settings.overfitting_parts, len(head.grid) // 4 * 2)
    effective = effective_trials(taken.count, taken.performance)
    chosen = backtest_overfitting(taken.performance, parts) if parts >= 2 else None
    against = None if baseline is None else _against(head, baseline, taken, drawn, level)
    return Judgement(
        head=_figures(head, drawn, level), blocks=len(head.grid), block_ms=head.grid.block_ms, trials=taken.count,
        trials_with_figures=len(taken.sharpes), effective_trials=effective,
        probabilistic_sharpe=probabilistic_sharpe(of),
        deflated_sharpe=deflated_sharpe(of, taken.count, taken.sharpes),
        deflated_sharpe_effective=deflated_sharpe(of, effective, taken.sharpes),
        least_blocks=minimum_track_record(of), overfitting=chosen.probability if chosen else None,
        loss_probability=chosen.loss_probability if chosen else None,
        block_autocorrelation=autocorrelation(head.returns), seeds=tuple(seeds), folds=folds,
        baseline=None if baseline is None else _figures(baseline, drawn, level),
        difference=against.mean if against else None, difference_interval=against.interval if against else None,
        difference_deflated_sharpe=against.deflated_sharpe if against else None)


def passes(judgement: Judgement, settings: JudgementSettings | None = None) -> tuple[bool, tuple[str, ...]]:
    """Whether it may be handed over, and every demand that it misses, in a sentence. NaN misses a demand."""
    settings = settings or JudgementSettings()
    head, interval = judgement.head, judgement.difference_interval
    low = head.profit_factor_interval.low
    demands = [
        (head.trades >= settings.least_trades, f"{head.trades} trades, at least {settings.least_trades} are asked for"),
        (judgement.blocks >= settings.least_blocks,
         f"{judgement.blocks} blocks of time, at least {settings.least_blocks} are asked for"),
        (judgement.deflated_sharpe >= settings.least_deflated_sharpe,
         f"deflated Sharpe {judgement.deflated_sharpe:.3f} after {judgement.trials} trials, at least "
         f"{settings.least_deflated_sharpe:g} is asked for"),
        (low > 1, f"profit factor {head.profit_factor:.2f} may be as low as {low:.2f}, above 1 is asked for"),
        (_choice_holds(judgement, settings), _choice_shown(judgement, settings)),
        (_beats_baseline(judgement, settings), "not shown better than the baseline: paired difference per block "
         f"{_shown(judgement.difference)}, low end {_shown(interval.low if interval else None)}, deflated Sharpe "
         f"{_shown(judgement.difference_deflated_sharpe)}")]
    missed = tuple(sentence for met, sentence in demands if not met)
    return not missed, missed


@dataclass(frozen=True)
class _Difference:
    mean: float
    interval: Interval
    deflated_sharpe: float


def _against(head: Track, baseline: Track, taken: Taken, drawn: Floats, level: float) -> _Difference:
    """Paired by block. The best of many trials beats a baseline of the same worth by selection alone: without
    deflation one in five does (best of 20). So all trials are set against the baseline.
    """
    difference = head.returns - baseline.returns
    sharpes = sharpe_ratios(taken.performance - baseline.returns[:, None])
    return _Difference(float(difference.mean()), mean_interval(difference, drawn, level),
                       deflated_sharpe(moments(difference), taken.count, sharpes))


def _beats_baseline(judgement: Judgement, settings: JudgementSettings) -> bool:
    interval, confidence = judgement.difference_interval, judgement.difference_deflated_sharpe
    if interval is None or confidence is None:
        return judgement.baseline is None
    return interval.low > 0 and confidence >= settings.least_deflated_sharpe


def _choice_holds(judgement: Judgement, settings: JudgementSettings) -> bool:
    if judgement.overfitting is None or judgement.loss_probability is None:
        return judgement.trials_with_figures < 2  # else there was a choice that could not be looked at
    return (judgement.overfitting <= settings.most_overfitting
            or judgement.loss_probability <= settings.most_loss_probability)


def _choice_shown(judgement: Judgement, settings: JudgementSettings) -> str:
    return (f"choosing the best trial did not hold: PBO {_shown(judgement.overfitting)}, and it lost money in "
            f"{_shown(judgement.loss_probability)} of the ways to cut the time; at most {settings.most_overfitting:g} "
            f"or {settings.most_loss_probability:g} is asked for")


def _figures(track: Track, drawn: Floats, level: float) -> Figures:
    return Figures(track.trades, track.profit_factor, profit_factor_interval(track, drawn, level), track.expectancy,
                   expectancy_interval(track, drawn, level), track.max_drawdown_percent, moments(track.returns).sharpe)


def _shown(figure: float | None) -> str:
    return "unknown" if figure is None or math.isnan(figure) else f"{figure:.3g}"
