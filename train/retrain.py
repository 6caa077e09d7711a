"""The search for better supervised heads: one job from bars to judged candidates, that may be interrupted anywhere.

    rows and labels ─ embedder ─ a sweep of each learner ─ walk-forward fits ─ ensemble ─ final fits ─ judgement

Whatever is chosen is chosen on validation rows; the test ranges of the walk-forward are what is judged, with every
trial counted that was ever run for the same target. The embedder learns from bars before the first test only. Steps
are kept under HOME/retrain/KEY, and the key names settings, code, bars and rows: the same call goes on where an
interrupted one was, and a finished one gives the same candidates again. What depends on which heads could be made is
kept under their names, so that a head that fails once and is made the next time changes what it must.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feature_repo.features import DECISION_V1
from feature_repo.market import Market
from feature_repo.store import FeatureRepo
from policies.bundle import Bundle, Manifest, make_bundle, pack_bundle, read_bundle
from policies.embedder import load_embedder, version_of
from policies.ensemble import make_ensemble
from policies.keyed_random import generator
from policies.learned_weights import learned_weights
from train.candidates import Candidate, Retrained, plain, ranked
from train.examples import build_examples
from train.intervals import BlockGrid
from train.jobs import (
    BUNDLE,
    Arrays,
    Made,
    Task,
    ensemble_test,
    fit_and_test,
    joined_trades,
    sweep,
    track_of_trades,
    trial_of,
)
from train.joined import Joined
from train.judgement import Taken, judge, passes, taken_from
from train.locked import locked
from train.mae_export import export_encoder
from train.mae_report import reconstruction_report
from train.mae_training import pretrain
from train.mae_windows import whole_windows
from train.material import Material, keep_material, load_material
from train.pool import Job, Pool
from train.retrain_settings import LEAST_BARS, RetrainSettings
from train.steps import Steps, key_of
from train.supervised import ENSEMBLE, PLANS
from train.sweep import FINISHED, SweepSettings, Trial, best_of
from train.tracking import code_version
from train.training_set import bars_until, bracket_name, keep_labels, span_of
from train.trials import End, Target, TrialBook
from train.walk_forward import folds

BLOCK_BARS = 240  # of time, for intervals, Sharpe ratios and PBO: many horizons long, as `judgement_power` measured
ROWS, EMBEDDED, EMBEDDER, TAKEN = "rows", "rows_embedded", "embedder", "taken"
PACKED = "bundle.pt"
REPORT_BLOCK = 24  # windows

Told = Callable[[str, float], None]  # (step, share of it that is done, 0..1)


class Retraining:
    """One job. until_ms: no bar that closes later is seen; None: all bars. home: HUB_HOME. told: hears of progress."""

    def __init__(self, market: Market, repo: FeatureRepo, home: Path, settings: RetrainSettings, until_ms: int | None,
                 pool: Pool, told: Told = lambda step, share: None) -> None:
        home = home.resolve()  # workers have working folders of their own
        self._market, self._repo, self._home = market, repo, home
        self._settings, self._pool, self.told = settings, pool, told
        self._bars = bars_until(market, settings.symbols, until_ms, settings.lookback_bars, LEAST_BARS)
        self._joined = Joined(market, repo, self._bars)
        self._code = code_version()
        self._failed: dict[str, str] = {}

    @cached_property
    def key(self) -> str:
        return key_of(asdict(self._settings), self._code, self._market.origin, self._joined.digest)

    @property
    def bars_of(self) -> dict[str, int]:
        """How many bars there are of each symbol: not always as many as were asked for."""
        return {symbol: len(run) for symbol, run in self._bars.items()}

    @cached_property
    def steps(self) -> tuple[str, ...]:
        """Names of all steps, in the order in which they begin."""
        settings = self._settings
        fits = [_fit_name(plan, seed, fold) for plan in settings.plans for seed, fold in self._seeds_and_folds]
        tests = [_fit_name(ENSEMBLE, seed, fold) for seed, fold in self._seeds_and_folds]
        return (ROWS, *((EMBEDDER, EMBEDDED) if settings.embeds else ()), *map(_sweep_name, settings.swept), *fits,
                *(tests if settings.members else ()), *map(_final_name, settings.plans))

    @property
    def finished_steps(self) -> tuple[str, ...]:
        return tuple(step for step in self.steps if self._steps.has(step))

    def run(self) -> Retrained:
        """UnderWay if another process is at the same search: both would write one embedder's checkpoint."""
        with locked(self._steps.folder / "lock", f"the same search, {self.key},"):
            return self._run()

    def _run(self) -> Retrained:
        task, embedder = self._task()
        tried = self._sweeps(task)
        chosen = {PLANS[name].learner: best_of(list(trials)).settings for name, trials in tried.items()}
        self._fits(task, chosen)
        if self._members:
            self._ensemble_tests(task)
        self._finals(task, chosen)
        taken = self._taken(task, chosen)
        candidates = [self._judged(name, task, taken) for name in self._made_heads]
        candidates.sort(key=lambda one: (not one.passed, *ranked(one.judgement), one.name))
        report = self._steps.result(EMBEDDER)["reconstruction"] if embedder is not None else []
        return Retrained(self.key, self._settings, tuple(candidates), {n: tuple(t) for n, t in tried.items()}, embedder,
                         tuple(report), task.grid, taken.count, dict(self._failed))

    @property
    def _plans(self) -> tuple[str, ...]:
        return tuple(plan for plan in self._settings.plans if plan not in self._failed)

    @property
    def _members(self) -> tuple[str, ...]:
        members = tuple(plan for plan in self._settings.members if plan not in self._failed)
        return members if len(members) > 1 and ENSEMBLE not in self._failed else ()

    @property
    def _made_heads(self) -> tuple[str, ...]:
        return (*self._plans, ENSEMBLE) if self._members else self._plans

    # -- what is learnt from ----------------------------------------------------------------------------------------

    @cached_property
    def _steps(self) -> Steps:
        return Steps(self._home / "retrain" / self.key)

    def _task(self) -> tuple[Task, Bundle | None]:
        settings = self._settings
        embargo_ms = (settings.brackets.horizon_bars + 1) * self._interval_ms
        examples = self._rows().examples
        cuts = folds(examples.event_time_ms, examples.known_ms, settings.folds, embargo_ms=embargo_ms)
        task = Task(self._steps.folder, ROWS, self._home, settings.size, settings.fit_rows, settings.brackets,
                    settings.costs, BlockGrid(cuts[0].test_start_ms, cuts[-1].test_stop_ms,
                                              BLOCK_BARS * self._interval_ms),
                    Target(settings.symbols, self._interval_ms, settings.brackets, settings.costs, self._market.origin),
                    settings.folds, embargo_ms, self._template(), self._joined.digest, self._code)
        if not settings.embeds:
            return task, None
        embedder = self._embedder(cuts[0].test_start_ms)
        if not self._steps.has(EMBEDDED):
            whole = replace(self._rows(), examples=examples.with_embedding(load_embedder(embedder)))
            keep_material(self._steps, EMBEDDED, whole)
        self.told(EMBEDDED, 1.0)
        return replace(task, material=EMBEDDED, embedding_version=version_of(embedder.policy_id)), embedder

    def _rows(self) -> Material:
        if not self._steps.has(ROWS):
            settings = self._settings
            examples = build_examples(self._bars, self._joined.rows, DECISION_V1.names, DECISION_V1.may_be_missing,
                                      settings.window_bars, settings.brackets, settings.costs)
            keep_labels(self._repo, examples.labels(), bracket_name(settings.brackets, settings.costs))
            keep_material(self._steps, ROWS, Material(examples, self._bars))
        self.told(ROWS, 1.0)
        return load_material(self._steps.folder, ROWS)

    def _embedder(self, until_ms: int) -> Bundle:
        if not self._steps.has(EMBEDDER):
            settings = self._settings.embedder
            pretrained = pretrain(self._bars, until_ms, settings, self._steps.scratch(EMBEDDER),
                                  lambda step, steps, loss: self.told(EMBEDDER, step / steps))
            later = self._later_windows(until_ms, settings.seq_len)
            block = min(REPORT_BLOCK, len(later) // 2)
            report = reconstruction_report(pretrained.model, later, constant=pretrained.constant,
                                           block=block) if block else []
            bundle = export_encoder(pretrained, f"mae_{self.key[:6]}", {"market": self._market.describe()})
            self._steps.keep(EMBEDDER, {"reconstruction": [dict(row) for row in report]},
                             files={PACKED: pack_bundle(bundle)})
        self.told(EMBEDDER, 1.0)
        return read_bundle(self._steps.file(EMBEDDER, PACKED))

    def _later_windows(self, from_ms: int, length: int) -> NDArray[np.float32]:
        """Windows that share no bar and begin at or after from_ms, those of all symbols in the order of time."""
        parts = [whole_windows(run, length, from_ms, every=length) for run in self._bars.values()]
        order = np.argsort(np.concatenate([np.arange(len(part)) for part in parts]), kind="stable")
        return np.concatenate(parts)[order]

    def _template(self) -> Manifest:
        settings, first = self._settings, next(iter(self._bars.values()))
        return Manifest(
            kind="onnx_classifier", alias="template", features=DECISION_V1.names, feature_service=DECISION_V1.name,
            required_groups=DECISION_V1.required_groups, optional_groups=DECISION_V1.optional_groups,
            optional_features=DECISION_V1.may_be_missing, files={"model.onnx": "0" * 64},
            trained_on={"market": self._market.describe(), "symbols": list(settings.symbols),
                        "code_version": self._code, "retraining": self.key, "costs": asdict(settings.costs),
                        "bars": {**span_of(self._bars), "each": len(first)}})

    # -- what is computed elsewhere ---------------------------------------------------------------------------------

    def _sweeps(self, task: Task) -> dict[str, list[Trial]]:
        settings = SweepSettings(self._settings.trials, self._settings.seed)
        jobs: dict[str, Job] = {
            _sweep_name(plan): (sweep, (plan, task, settings, self._steps.under_way(_sweep_name(plan))))
            for plan in reversed(self._settings.swept)}  # the slowest first
        self._made(jobs, lambda trials: Made({"trials": [asdict(trial) for trial in trials]}), waits=True)
        lost = {PLANS[plan].learner for plan in self._settings.swept if not self._steps.has(_sweep_name(plan))}
        for plan in self._settings.plans:
            if PLANS[plan].learner in lost:
                self._failed.setdefault(plan, f"the search of its learner, {PLANS[plan].learner}, failed")
        return {plan: [Trial(**trial) for trial in self._steps.result(_sweep_name(plan))["trials"]]
                for plan in self._settings.swept if self._steps.has(_sweep_name(plan))}

    def _fits(self, task: Task, chosen: Mapping[str, Mapping[str, Any]]) -> None:
        self._made({
            _fit_name(plan, seed, number): (fit_and_test, (plan, task, number, chosen[PLANS[plan].learner],
                                                           self._settings.seed + seed))
            for plan in reversed(self._plans) for seed, number in self._seeds_and_folds})

    def _finals(self, task: Task, chosen: Mapping[str, Mapping[str, Any]]) -> None:
        """Over all rows, with what was chosen; the figures are of the walk-forward, not of these weights."""
        self._made({_final_name(plan): (fit_and_test, (plan, task, None, chosen[PLANS[plan].learner],
                                                       self._settings.seed))
                    for plan in reversed(self._plans)})

    def _ensemble_tests(self, task: Task) -> None:
        jobs: dict[str, Job] = {}
        for seed, number in self._seeds_and_folds:
            members = [read_bundle(self._steps.file(_fit_name(plan, seed, number), BUNDLE)) for plan in self._members]
            bundle = self._ensemble(task, seed, number, members)
            jobs[self._test_name(ENSEMBLE, seed, number)] = (ensemble_test, (task, number, pack_bundle(bundle)))
        self._made(jobs)

    def _test_name(self, head: str, seed: int, fold: int) -> str:
        """Of the step that holds a head's trades in the test of a fold; an ensemble's depend on its members."""
        name = _fit_name(head, seed, fold)
        every = head != ENSEMBLE or self._members == self._settings.members
        return name if every else f"{name}.{key_of(self._members)}"

    def _ensemble(self, task: Task, seed: int, number: int, members: list[Bundle]) -> Bundle:
        """Weights by what each member would have earned on the fold's validation rows, all symbols of a moment together
        and one moment in a horizon. The members' levels were chosen on the same rows, which flatters all of them.
        """
        earned = np.column_stack([self._steps.arrays(_fit_name(plan, seed, number))["earned"]
                                  for plan in self._members])
        times, moment = np.unique(task.load().examples.event_time_ms[task.folds[number].validation],
                                  return_inverse=True)
        each = np.stack([np.bincount(moment, column) / np.bincount(moment) for column in earned.T], axis=1)
        apart = _one_in(times, self._settings.brackets.horizon_bars * self._interval_ms)
        named = [make_bundle(replace(member.manifest, alias=plan), member.files)
                 for plan, member in zip(self._members, members, strict=True)]
        return make_ensemble(f"{ENSEMBLE}_{self.key[:6]}", named, learned_weights(each[apart]).tolist(),
                             trained_on={**task.template.trained_on, "weights_from_moments": len(apart)})

    def _made(self, jobs: Mapping[str, Job], made_of: Callable[[Any], Made] = lambda made: made,
              waits: bool = False) -> None:
        """Do what is not done yet, and keep each as it ends. A head of which one fails is left out from then on; its
        baseline cannot be."""
        for name in jobs:
            self.told(name, 1.0 if self._steps.has(name) else 0.0)
        for name, result in self._pool.each({n: job for n, job in jobs.items() if not self._steps.has(n)}, waits):
            head = name.split(".")[1]
            if isinstance(result, Exception):
                if head == "linear":
                    raise result
                self._failed.setdefault(head, f"{name}: {type(result).__name__}: {result}"[:1_000])
                continue
            made = made_of(result)
            self._steps.keep(name, made.result, made.arrays, made.files)
            self.told(name, 1.0)

    @property
    def _seeds_and_folds(self) -> list[tuple[int, int]]:
        return [(seed, fold) for seed in range(self._settings.seeds) for fold in range(self._settings.folds)]

    # -- what it is worth -------------------------------------------------------------------------------------------

    def _trades(self, name: str, seed: int) -> Arrays:
        """Of one head and seed, over all folds."""
        return joined_trades([self._steps.arrays(self._test_name(name, seed, fold))
                              for fold in range(self._settings.folds)])

    def _taken(self, task: Task, chosen: Mapping[str, Mapping[str, Any]]) -> Taken:
        """Everything tried for this target until now, the walk-forward heads too, since one of them is about to be
        chosen. Kept, so that a finished search gives the same answer whatever is tried later.
        """
        kept = f"{TAKEN}.{key_of(self._made_heads)}"
        if not self._steps.has(kept):
            with TrialBook(self._home) as book:
                for name in self._made_heads:
                    for seed in range(self._settings.seeds):
                        self._count(book, name, seed, task, chosen)
                taken = taken_from(book, task.target, task.grid)
            self._steps.keep(kept, {"count": taken.count},
                             {"sharpes": taken.sharpes, "performance": taken.performance})
        arrays = self._steps.arrays(kept)
        return Taken(int(self._steps.result(kept)["count"]), np.array(arrays["sharpes"]),
                     np.array(arrays["performance"]))

    def _count(self, book: TrialBook, name: str, seed: int, task: Task,
               chosen: Mapping[str, Mapping[str, Any]]) -> None:
        settings: Mapping[str, Any] = {plan: dict(chosen[PLANS[plan].learner]) for plan in self._members}
        if name in PLANS:
            settings = chosen[PLANS[name].learner]
        end = End(FINISHED, None, task.grid, track_of_trades(task.grid, self._trades(name, seed)).returns)
        trial = trial_of(name, task, settings, self._settings.seed + seed, "walk-forward")
        book.record(task.target, trial, end, time.time_ns() // 1_000_000)

    def _judged(self, name: str, task: Task, taken: Taken) -> Candidate:
        settings = self._settings
        baseline = None if name == "linear" else PLANS[name].baseline if name in PLANS else "linear"
        if baseline in self._failed:
            baseline = "linear"
        tracks = [track_of_trades(task.grid, self._trades(name, seed)) for seed in range(settings.seeds)]
        against = None if baseline is None else track_of_trades(task.grid, self._trades(baseline, 0))
        judgement = judge(tracks[0], against, taken, [settings.seed], settings.folds,
                          generator(settings.seed, "judgement", name))
        passed, missed = passes(judgement)
        results = [self._steps.result(self._test_name(name, seed, fold)) for seed, fold in self._seeds_and_folds]
        if name == ENSEMBLE:
            bundle, served_ms = self._final_ensemble(task)
        else:
            final = self._steps.result(_final_name(name))
            bundle = read_bundle(self._steps.file(_final_name(name), BUNDLE))
            results, served_ms = [*results, final], float(final["served"]["served_ms"])
        by_seed = tuple(track.profit_factor for track in tracks)
        manifest = replace(bundle.manifest, alias=f"{name}_{self.key[:6]}", trained_on={
            **bundle.manifest.trained_on, "judgement": plain(judgement), "passed": passed, "missed": list(missed),
            "profit_factor_by_seed": [factor if np.isfinite(factor) else None for factor in by_seed],
            "judged": "walk-forward of the same settings; the weights here are fitted on all rows"})
        return Candidate(name, baseline, judgement, passed, missed, self._trades(name, 0), by_seed, tuple(results),
                         make_bundle(manifest, bundle.files), served_ms, sum(float(r["seconds"]) for r in results))

    def _final_ensemble(self, task: Task) -> tuple[Bundle, float]:
        """The final heads with the weights of the last fold."""
        members = [read_bundle(self._steps.file(_final_name(plan), BUNDLE)) for plan in self._members]
        bundle = self._ensemble(task, 0, self._settings.folds - 1, members)
        return bundle, sum(float(self._steps.result(_final_name(plan))["served"]["served_ms"])
                           for plan in self._members)

    @property
    def _interval_ms(self) -> int:
        return next(iter(self._bars.values())).interval_ms


def _one_in(times_ms: NDArray[np.int64], apart_ms: int) -> list[int]:
    """Places of times, rising, the first and then each that lies at least apart_ms behind the last one taken."""
    places, free_from_ms = [], int(times_ms[0]) if len(times_ms) else 0
    for place, time_ms in enumerate(times_ms.tolist()):
        if time_ms >= free_from_ms:
            places.append(place)
            free_from_ms = time_ms + apart_ms
    return places


def _sweep_name(plan: str) -> str:
    return f"sweep.{plan}"


def _fit_name(plan: str, seed: int, fold: int) -> str:
    return f"fit.{plan}.{seed}.{fold}"


def _final_name(plan: str) -> str:
    return f"final.{plan}"
