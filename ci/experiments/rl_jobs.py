"""Reinforcement-learning jobs as experiments run them, and whom they are compared with on the same later bars."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from feature_repo.features import DECISION_V1
from feature_repo.market import Market, replay_range
from feature_repo.store import OFFLINE_ONLY, FeatureRepo
from policies.head import Levels
from train.backtest import BacktestReport, backtest_probabilities
from train.cluster import ray_cluster
from train.examples import Examples, build_examples
from train.learners import Layout
from train.rl.evaluate import Act, constant, play, stretches_in
from train.rl.job import RlCandidate, RlJob
from train.rl.market_rows import TimeRange
from train.rl.rows import JobRows
from train.rl.settings import RlSettings
from train.supervised import PLANS, fit_head, learner_of

Say = Callable[[str], None]
SIZES, PLACES = (-1.0, -0.5, 0.0, 0.5, 1.0), (-1.0, -0.8, -0.4, 0.0, 1.0)  # of a constant action; stop and target
WINDOW_BARS = 10  # the least that rows can have; no head here looks at it


@dataclass(frozen=True)
class RlRun:
    """One job. name: of its folder and in what is said of it."""

    name: str
    market: Market
    settings: RlSettings


@contextmanager
def training() -> Iterator[None]:
    """One Ray for as long as jobs run."""
    with ray_cluster():
        yield


def trained_by(runs: Sequence[RlRun], folder: Path, say: Say) -> Iterator[tuple[RlRun, RlJob, RlCandidate]]:
    """Each run with its finished job. What was finished before an interruption is read, not made again."""
    for number, run in enumerate(runs):
        home = folder / run.name
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        until_ms = replay_range(run.market, run.settings.symbols)[1]
        repo = FeatureRepo(home, OFFLINE_ONLY, run.market.origin)
        job = RlJob(run.market, repo, home, run.settings, until_ms)
        say(f"({number + 1}/{len(runs)}) {run.name}: {len(job.finished_steps)} of {len(job.steps)} steps are done")
        yield run, job, job.run()


@dataclass(frozen=True)
class BestConstant:
    """The constant action that earned most bar by bar in the training range, of all on the grid."""

    action: tuple[float, float, float]
    training_percent: float

    @property
    def act(self) -> Act:
        return constant(*self.action)


def best_constant(rows: JobRows, settings: RlSettings) -> BestConstant:
    """Flat is on the grid."""
    market = rows.market
    stretches = stretches_in(market, rows.ranges.training, settings.env.episode_bars)
    earned = {(size, stop, target): play(constant(size, stop, target), market, stretches,
                                         settings.env).figures()["net_return_percent"]
              for size, stop, target in itertools.product(SIZES, PLACES, PLACES)
              if size or stop == target == PLACES[0]}
    action = max(earned, key=lambda one: (earned[one], -abs(one[0])))
    return BestConstant(action, earned[action])


@dataclass(frozen=True)
class SupervisedPeer:
    """A supervised head fitted on the training range, its levels chosen on the validation range."""

    name: str
    report: BacktestReport


def supervised_peer(plan: str, rows: JobRows, settings: RlSettings, seed: int, most_rows: int = 12_000
                    ) -> SupervisedPeer:
    """Its trades in the test range, one slot of each symbol."""
    ranges, brackets = rows.ranges, settings.brackets
    examples = build_examples(rows.bars, rows.rows, DECISION_V1.names, DECISION_V1.may_be_missing, WINDOW_BARS,
                              brackets, settings.env.costs)
    layout = examples.layout(False, False)
    learner = learner_of(PLANS[plan], "small")
    fit = examples.labelled(_thinned(_rows_in(examples, ranges.training), most_rows), layout)
    chosen_on = examples.labelled(_rows_in(examples, ranges.validation), layout)
    head = fit_head(learner, fit, chosen_on, layout, learner.defaults(), seed)
    levels = Levels(**head.parameters(brackets))
    times = {}
    values = {}
    for name, run in rows.bars.items():
        own = rows.rows[name]
        inside = (own.event_time_ms >= ranges.test.start_ms) & (own.event_time_ms < ranges.test.stop_ms)
        times[name] = own.event_time_ms[inside]
        values[name] = head.probabilities(_seen(own.values[inside], layout))
        assert run.symbol == name
    return SupervisedPeer(plan, backtest_probabilities(levels, rows.bars, times, values, brackets.horizon_bars,
                                                       settings.env.costs))


def _rows_in(examples: Examples, within: TimeRange) -> NDArray[np.int64]:
    """Rows of a range whose labels are known within it."""
    return np.flatnonzero((examples.event_time_ms >= within.start_ms) & (examples.known_ms <= within.stop_ms))


def _thinned(places: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    return places[np.linspace(0, len(places) - 1, min(most, len(places))).astype(np.int64)]


def _seen(values: NDArray[np.float64], layout: Layout) -> NDArray[np.float32]:
    assert values.shape[1] == layout.width
    return values.astype(np.float32)
