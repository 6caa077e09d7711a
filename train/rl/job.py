"""A reinforcement-learning job from bars to one judged candidate, that may be interrupted anywhere.

    rows and ranges ─ a training of each seed, chosen on the validation range ─ judgement on the test range

Steps are kept under HOME/retrain_rl/KEY, and the key names settings, code, bars and what was loaded: the same call goes
on where an interrupted one was, a training from its last look.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feature_repo.features import DECISION_V1
from feature_repo.market import Market
from feature_repo.store import FeatureRepo
from policies.bundle import Bundle
from policies.keyed_random import generator
from train.candidates import plain
from train.intervals import BlockGrid, Track
from train.jobs import Arrays, track_of_trades, trade_arrays
from train.joined import Joined
from train.judgement import Judgement, judge, passes, taken_from
from train.locked import locked
from train.retrain import BLOCK_BARS
from train.rl.evaluate import rows_within, serve
from train.rl.export import CHECKED_ROWS, DeterministicActor, actor_bundle, actor_of, require_acts_as_trained
from train.rl.loaded import SEEN, Loaded
from train.rl.market_rows import Standard, TimeRange
from train.rl.offline import add_episodes
from train.rl.rows import ROWS, JobRows, keep_rows, load_rows, ranges_of
from train.rl.settings import RlSettings
from train.rl.training import Trained, figures_of, remembers, train
from train.steps import Steps, key_of
from train.tracking import code_version
from train.training_set import bars_until, span_of
from train.trials import FINISHED, End, Target, Trial, TrialBook

EMBARGO_BARS = 16  # a served trade's horizon and one

Told = Callable[[int, Mapping[str, Any]], None]  # (seed, look)


@dataclass(frozen=True)
class RlCandidate:
    """The best training on the validation range, judged on the test range. test: figures there. trades: as served.
    by_seed: result of each training. largest_difference: of an action, served against RLlib's. episodes: of the hub
    that SAC remembered from the start.
    """

    name: str
    bundle: Bundle
    judgement: Judgement
    passed: bool
    missed: tuple[str, ...]
    trades: Arrays
    test: Mapping[str, float]
    by_seed: tuple[Mapping[str, Any], ...]
    seed: int
    largest_difference: float
    trials: int
    episodes: int


class RlJob:
    """until_ms: no bar that closes later is seen; None: all bars. home: HUB_HOME. loaded: what is gone on with.
    episodes: whether SAC remembers the hub's own from the start. told: hears of every look.

    InvalidInput for too few bars, or if what is loaded has seen some of the test range.
    """

    def __init__(self, market: Market, repo: FeatureRepo, home: Path, settings: RlSettings, until_ms: int | None,
                 loaded: Loaded | None = None, episodes: bool = False,
                 told: Told = lambda seed, look: None) -> None:
        home = home.resolve()  # workers have working folders of their own
        self._market, self._home, self._settings = market, home, settings
        self._loaded, self._episodes, self.told = loaded, episodes, told
        self.bars = bars_until(market, settings.symbols, until_ms, settings.lookback_bars)
        self._joined = Joined(market, repo, self.bars)
        self._ranges = ranges_of(self.bars, settings.validation_share, settings.test_share, EMBARGO_BARS)
        self._seen = {market.origin: self._ranges.validation.stop_ms}
        if loaded is not None:
            loaded.require_unseen(market.origin, self._ranges.test.start_ms)
            self._seen = _later(self._seen, loaded.seen_until_ms)
        self._code = code_version()
        self.key = key_of(asdict(settings), asdict(settings.own), self._code, market.origin, self._joined.digest,
                          loaded.key if loaded else "", episodes)
        self._steps = Steps(home / "retrain_rl" / self.key)
        self._added = 0

    @cached_property
    def steps(self) -> tuple[str, ...]:
        return (ROWS, *map(_train_name, self.seeds))

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(self._settings.seed + number for number in range(self._settings.seeds))

    @property
    def finished_steps(self) -> tuple[str, ...]:
        return tuple(step for step in self.steps if self._steps.has(step))

    def run(self) -> RlCandidate:
        """UnderWay if another process is at the same job: both would write one training's checkpoint."""
        with locked(self._steps.folder / "lock", f"the same training, {self.key},"):
            return self._run()

    def _run(self) -> RlCandidate:
        rows = self._rows()
        for seed in self.seeds:
            self._train(seed)
        results = {seed: self._steps.result(_train_name(seed)) for seed in self.seeds}
        chosen = max(self.seeds, key=lambda seed: (results[seed]["best"]["figure"], -seed))
        return self._judged(rows, chosen, results)

    def last_checkpoint(self, seed: int) -> Path:
        """Of a training, under way or done; `make retrain_rl LOAD=...` goes on from it."""
        return self._steps.folder / f"{_train_name(seed)}.last"

    def actor(self, seed: int) -> DeterministicActor:
        return actor_of(self._module(seed), self._settings.algo)

    @property
    def rows(self) -> JobRows:
        return load_rows(self._steps.folder)

    def _rows(self) -> JobRows:
        if not self._steps.has(ROWS):
            rows = self._joined.rows
            standard = self._loaded.standard if self._loaded else Standard.fitted(list(rows.values()),
                                                                                 self._ranges.training)
            keep_rows(self._steps, JobRows(self.bars, rows, self._ranges, standard))
        return self.rows

    def _train(self, seed: int) -> None:
        name = _train_name(seed)
        if self._steps.has(name):
            return
        trained = train(self._settings, self._steps.folder, seed, self.last_checkpoint(seed), self._prepare,
                        lambda look: self.told(seed, look),
                        {"market": self._market.origin, "symbols": list(self._settings.symbols), SEEN: self._seen})
        self._steps.keep(name, _told(trained, self._added), trained.module)

    def _prepare(self, algorithm: Any, begins: bool) -> None:
        """What a training begins with: weights and memory of what was loaded, then the hub's own episodes."""
        if begins and self._loaded is not None:
            self._loaded.into(algorithm)
        experience = remembers(algorithm)
        if begins and self._episodes and experience is not None:
            rows = self.rows
            self._added = add_episodes(experience, self._home, self._settings.env, rows.standard,
                                       rows.ranges.training, self._settings.symbols)

    def _module(self, seed: int) -> dict[str, NDArray[Any]]:
        return {name: np.array(values) for name, values in self._steps.arrays(_train_name(seed)).items()}

    # -- what it is worth -------------------------------------------------------------------------------------------

    def _judged(self, rows: JobRows, chosen: int, results: Mapping[int, Mapping[str, Any]]) -> RlCandidate:
        settings, actor = self._settings, self.actor(chosen)
        market, test = rows.market, rows.ranges.test
        grid = BlockGrid(test.start_ms, test.stop_ms, BLOCK_BARS * market[0].bars.interval_ms)
        tracks = {seed: self._track(seed, grid, rows) for seed in self.seeds}
        target = Target(settings.symbols, market[0].bars.interval_ms, settings.brackets, settings.env.costs,
                        self._market.origin)
        with TrialBook(self._home) as book:
            for seed, track in tracks.items():
                self._count(book, target, seed, End(FINISHED, -results[seed]["best"]["figure"], grid, track.returns))
            taken = taken_from(book, target, grid)
        judgement = judge(tracks[chosen], None, taken, [chosen], 1, generator(chosen, "judgement", settings.algo))
        passed, missed = passes(judgement)
        figures = figures_of(actor.act, market, test, settings)
        trades = trade_arrays(serve(actor.act, market, test, settings.env, settings.brackets))
        bundle = self._bundle(actor, rows, {
            "judgement": plain(judgement), "passed": passed, "missed": list(missed), "seed": chosen,
            "test": _finite(figures), "validation": _finite(results[chosen]["best"]), "steps": results[chosen]["steps"],
            "judged": "these weights on bars later than all that they were trained and chosen on"})
        difference = require_acts_as_trained(bundle, self._rebuilt(chosen), _raw(rows, test))
        return RlCandidate(settings.algo, bundle, judgement, passed, missed, trades, figures,
                           tuple({"seed": seed, **results[seed]} for seed in self.seeds), chosen, difference,
                           taken.count, int(results[chosen]["episodes"]))

    def _track(self, seed: int, grid: BlockGrid, rows: JobRows) -> Track:
        """Of the served trades in the test range."""
        settings = self._settings
        report = serve(self.actor(seed).act, rows.market, rows.ranges.test, settings.env, settings.brackets)
        return track_of_trades(grid, trade_arrays(report))

    def _count(self, book: TrialBook, target: Target, seed: int, end: End) -> None:
        settings, now_ms = self._settings, time.time_ns() // 1_000_000
        trial = Trial(f"rl {settings.algo} {settings.size}", {
            "steps": settings.steps, "steps_per_update": settings.steps_per_update, "env": asdict(settings.env),
            "evaluations": settings.evaluations, "patience": settings.patience, "loaded": self._loaded is not None,
            "episodes": self._episodes}, seed, {"key": self.key}, self._code)
        book.record(target, trial, end, now_ms)

    def _rebuilt(self, seed: int) -> Any:
        """RLlib's own module with the weights of a training."""
        from train.rl.algorithms import module_with

        return module_with(self._settings, self._module(seed))

    def _bundle(self, actor: DeterministicActor, rows: JobRows, judged: Mapping[str, Any]) -> Bundle:
        settings, first = self._settings, next(iter(self.bars.values()))
        return actor_bundle(f"{settings.algo}_{self.key[:6]}", actor, rows.standard, settings.env.limits, {
            "market": self._market.describe(), "origin": self._market.origin, "symbols": list(settings.symbols),
            "code_version": self._code, "retrain_rl": self.key, "algo": settings.algo,
            "size": settings.size, "costs": asdict(settings.env.costs),
            "env": {"episode_bars": settings.env.episode_bars, "drawdown_penalty": settings.env.drawdown_penalty,
                    "reward_clip": settings.env.reward_clip},
            "ranges": {name: {"from_ms": part.start_ms, "until_ms": part.stop_ms}
                       for name, part in vars(rows.ranges).items()}, SEEN: dict(self._seen),
            "bars": {**span_of(self.bars), "each": len(first)},
            "loaded": "" if self._loaded is None else self._loaded.described, **judged})


def _raw(rows: JobRows, within: TimeRange) -> NDArray[np.float64]:
    """(CHECKED_ROWS, 60) raw features, evenly spread over the range and all symbols."""
    parts = []
    for one in rows.market:
        known = rows.rows[one.symbol]
        times = one.bars.close_time_ms[rows_within(one, within)]
        parts.append(known.values[np.isin(known.event_time_ms, times)])
    whole = np.concatenate(parts)
    required = [name not in DECISION_V1.may_be_missing for name in DECISION_V1.names]
    whole = whole[np.isfinite(whole[:, required]).all(axis=1)]
    return whole[np.linspace(0, len(whole) - 1, CHECKED_ROWS).astype(np.int64)]


def _later(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    """By name, the later of both times."""
    return {name: max(times[name] for times in (one, other) if name in times) for name in {**one, **other}}


def _told(trained: Trained, episodes: int) -> dict[str, Any]:
    return {"looks": [_finite(look) for look in trained.looks], "best": _finite(trained.best), "steps": trained.steps,
            "updates": trained.updates, "seconds": round(trained.seconds, 1), "episodes": episodes}


def _finite(figures: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON: what is no number is null."""
    return {name: None if isinstance(value, float) and not np.isfinite(value) else value
            for name, value in figures.items()}


def _train_name(seed: int) -> str:
    return f"train.{seed}"
