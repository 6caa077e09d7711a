"""The search for better supervised heads: one job from bars to judged candidates, that may be interrupted anywhere.

    rows and labels ─ embedder ─ a sweep of each learner ─ walk-forward fits ─ ensemble ─ final fits ─ judgement

Whatever is chosen is chosen on validation rows; the test ranges of the walk-forward are what is judged, with every
trial counted that was ever run for the same target. The embedder learns from bars before the first test only. Steps
are kept under HOME/retrain/KEY, and the key names settings, code and bars: the same call goes on where an interrupted
one was, and a finished one gives the same candidates again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feature_repo.features import DECISION_V1
from feature_repo.market import Market
from feature_repo.store import FeatureRepo
from policies.bars import Bars
from policies.bundle import Bundle, Manifest, make_bundle, pack_bundle, read_bundle
from policies.embedder import NO_EMBEDDING, load_embedder, version_of
from policies.ensemble import make_ensemble
from policies.keyed_random import generator
from policies.learned_weights import learned_weights
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
from train.judgement import Judgement, Taken, judge, passes
from train.mae_export import export_encoder
from train.mae_report import reconstruction_report
from train.mae_training import pretrain
from train.mae_windows import whole_windows
from train.material import BAR_COLUMNS, Material, keep_material, load_material
from train.pool import Job, Pool
from train.retrain_settings import RetrainSettings
from train.steps import Steps, key_of
from train.supervised import ENSEMBLE, PLANS
from train.sweep import FINISHED, SweepSettings, Trial, best_of
from train.tracking import code_version
from train.training_set import bars_until, bracket_name, joined_rows, keep_labels
from train.trials import End, Target, TrialBook
from train.walk_forward import Fold, final_fit, folds

BLOCK_BARS = 240  # of time, for intervals, Sharpe ratios and PBO: many horizons long, as `judgement_power` measured
ROWS, EMBEDDED, EMBEDDER = "rows", "rows_embedded", "embedder"
PACKED = "bundle.pt"

Told = Callable[[str, float], None]  # (step, share of it that is done, 0..1)


@dataclass(frozen=True)
class Candidate:
    """One judged head. baseline: whom it was compared with. trades: of the walk-forward. folds: results of its fits.
    bundle: of the final fit, with the judgement in its manifest. training_s: of all its fits.
    """

    name: str
    baseline: str | None
    judgement: Judgement
    passed: bool
    missed: tuple[str, ...]
    trades: Arrays
    folds: tuple[Mapping[str, Any], ...]
    bundle: Bundle
    served_ms: float
    training_s: float


@dataclass(frozen=True)
class Retrained:
    """candidates: best first. sweeps: by learner's plain head. embedder: None if no head uses one; reconstruction: how
    well it guesses hidden bars, see `train.mae_report`. trials: counted for the target, ever.
    """

    key: str
    settings: RetrainSettings
    candidates: tuple[Candidate, ...]
    sweeps: Mapping[str, tuple[Trial, ...]]
    embedder: Bundle | None
    reconstruction: tuple[Mapping[str, Any], ...]
    grid: BlockGrid
    trials: int


class Retraining:
    """One job. until_ms: no bar that closes later is seen; None: all bars. home: HUB_HOME. told: hears of progress."""

    def __init__(self, market: Market, repo: FeatureRepo, home: Path, settings: RetrainSettings, until_ms: int | None,
                 pool: Pool, told: Told = lambda step, share: None) -> None:
        self._market, self._repo, self._home = market, repo, home
        self._settings, self._pool, self.told = settings, pool, told
        self._bars = bars_until(market, settings.symbols, until_ms, settings.lookback_bars)
        self._code = code_version()
        self.key = key_of(asdict(settings), self._code, market.origin,
                          {symbol: _digest(run) for symbol, run in self._bars.items()})
        self._steps = Steps(home / "retrain" / self.key)

    @cached_property
    def steps(self) -> tuple[str, ...]:
        """Names of all steps, in the order in which they begin."""
        settings = self._settings
        fits = [_fit_name(plan, seed, fold) for plan in settings.plans for seed in range(settings.seeds)
                for fold in range(settings.folds)]
        tests = [f"{ENSEMBLE}.{seed}.{fold}" for seed in range(settings.seeds) for fold in range(settings.folds)]
        return (ROWS, *((EMBEDDER, EMBEDDED) if settings.embeds else ()), *map(_sweep_name, settings.swept), *fits,
                *(tests if settings.members else ()), *map(_final_name, settings.plans))

    @property
    def finished_steps(self) -> tuple[str, ...]:
        return tuple(step for step in self.steps if self._steps.has(step))

    def run(self) -> Retrained:
        task, embedder = self._task()
        tried = self._sweeps(task)
        chosen = {PLANS[name].learner: best_of(list(trials)).settings for name, trials in tried.items()}
        self._fits(task, chosen)
        if self._settings.members:
            self._ensemble_tests(task)
        self._finals(task, chosen)
        trades = self._trades()
        self._count(task, trades, chosen)
        candidates = [self._judged(name, task, trades) for name in trades]
        candidates.sort(key=lambda one: (not one.passed, *_ranked(one.judgement), one.name))
        with TrialBook(self._home) as book:
            counted = book.count(task.target)
        report = self._steps.result(EMBEDDER)["reconstruction"] if embedder is not None else []
        return Retrained(self.key, self._settings, tuple(candidates), {n: tuple(t) for n, t in tried.items()}, embedder,
                         tuple(report), task.grid, counted)

    # -- what is learnt from ----------------------------------------------------------------------------------------

    def _task(self) -> tuple[Task, Bundle | None]:
        settings, name = self._settings, ROWS
        examples = self._rows().examples
        embargo_ms = (settings.brackets.horizon_bars + 1) * self._interval_ms
        cuts = tuple(folds(examples.event_time_ms, examples.known_ms, settings.folds, embargo_ms=embargo_ms))
        embedder, version = None, NO_EMBEDDING
        if settings.embeds:
            embedder = self._embedder(cuts[0].test_start_ms)
            version, name = version_of(embedder.policy_id), EMBEDDED
            if not self._steps.has(name):
                whole = replace(self._rows(), examples=examples.with_embedding(load_embedder(embedder)))
                keep_material(self._steps, name, whole)
            self.told(name, 1.0)
        grid = BlockGrid(cuts[0].test_start_ms, cuts[-1].test_stop_ms, BLOCK_BARS * self._interval_ms)
        target = Target(settings.symbols, self._interval_ms, settings.brackets, settings.costs, self._market.origin)
        return Task(self._steps.folder, name, self._home, settings.size, settings.fit_rows, settings.brackets,
                    settings.costs, grid, target, cuts, self._template(), self._code, version), embedder

    def _rows(self) -> Material:
        if not self._steps.has(ROWS):
            settings = self._settings
            self._repo.apply()
            rows = joined_rows(self._market, self._repo, self._bars, lambda line: None)
            examples = build_examples(self._bars, rows, DECISION_V1.names, DECISION_V1.may_be_missing,
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
            report = reconstruction_report(pretrained.model, self._later_windows(until_ms, settings.seq_len),
                                           constant=pretrained.constant)
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
                        "bars": {"from_ms": int(first.open_time_ms[0]), "until_ms": int(first.close_time_ms[-1]),
                                 "each": len(first)}})

    # -- what is computed elsewhere ---------------------------------------------------------------------------------

    def _sweeps(self, task: Task) -> dict[str, list[Trial]]:
        settings = SweepSettings(self._settings.trials, self._settings.seed)
        jobs: dict[str, Job] = {
            _sweep_name(plan): (sweep, (plan, task, settings, self._steps.scratch(_sweep_name(plan))))
            for plan in reversed(self._settings.swept)}  # the slowest first
        self._made(jobs, lambda trials: Made({"trials": [asdict(trial) for trial in trials]}), waits=True)
        return {plan: [Trial(**trial) for trial in self._steps.result(_sweep_name(plan))["trials"]]
                for plan in self._settings.swept}

    def _fits(self, task: Task, chosen: Mapping[str, Mapping[str, Any]]) -> None:
        jobs: dict[str, Job] = {
            _fit_name(plan, seed, number): (fit_and_test, (plan, task, fold, chosen[PLANS[plan].learner],
                                                           self._settings.seed + seed))
            for plan in reversed(self._settings.plans) for seed in range(self._settings.seeds)
            for number, fold in enumerate(task.folds)}
        self._made(jobs)

    def _finals(self, task: Task, chosen: Mapping[str, Mapping[str, Any]]) -> None:
        """Over all rows, with what was chosen; the figures are of the walk-forward, not of these weights."""
        examples = self._rows().examples
        embargo_ms = (self._settings.brackets.horizon_bars + 1) * self._interval_ms
        whole = final_fit(examples.event_time_ms, examples.known_ms, embargo_ms=embargo_ms)
        self._made({_final_name(plan): (fit_and_test, (plan, task, whole, chosen[PLANS[plan].learner],
                                                       self._settings.seed))
                    for plan in reversed(self._settings.plans)})

    def _ensemble_tests(self, task: Task) -> None:
        jobs: dict[str, Job] = {}
        for seed in range(self._settings.seeds):
            for number, fold in enumerate(task.folds):
                bundle = self._ensemble(task, seed, number, fold, [
                    read_bundle(self._steps.file(_fit_name(plan, seed, number), BUNDLE))
                    for plan in self._settings.members])
                jobs[f"{ENSEMBLE}.{seed}.{number}"] = (ensemble_test, (task, fold, pack_bundle(bundle)))
        self._made(jobs)

    def _ensemble(self, task: Task, seed: int, number: int, fold: Fold, members: list[Bundle]) -> Bundle:
        """Weights by what each member would have earned on the fold's validation rows, one in a horizon."""
        apart = self._settings.brackets.horizon_bars * len(self._settings.symbols)
        earned = np.column_stack([self._steps.arrays(_fit_name(plan, seed, number))["earned"]
                                  for plan in self._settings.members])
        named = [make_bundle(replace(member.manifest, alias=plan), member.files)
                 for plan, member in zip(self._settings.members, members, strict=True)]
        weights = learned_weights(earned[::apart])
        return make_ensemble(f"{ENSEMBLE}_{self.key[:6]}", named, weights.tolist(),
                             trained_on={**self._template().trained_on, "weights_from_rows": len(earned[::apart])})

    def _made(self, jobs: Mapping[str, Job], made_of: Callable[[Any], Made] = lambda made: made,
              waits: bool = False) -> None:
        """Do what is not done yet, and keep each as it ends."""
        for name in jobs:
            self.told(name, 1.0 if self._steps.has(name) else 0.0)
        for name, result in self._pool.each({n: job for n, job in jobs.items() if not self._steps.has(n)}, waits):
            made = made_of(result)
            self._steps.keep(name, made.result, made.arrays, made.files)
            self.told(name, 1.0)

    # -- what it is worth -------------------------------------------------------------------------------------------

    def _trades(self) -> dict[str, Arrays]:
        """Of each head, over all folds, its seeds side by side."""
        settings = self._settings
        names = {plan: [_fit_name(plan, seed, fold) for seed in range(settings.seeds) for fold in range(settings.folds)]
                 for plan in settings.plans}
        if settings.members:
            names[ENSEMBLE] = [f"{ENSEMBLE}.{seed}.{fold}" for seed in range(settings.seeds)
                               for fold in range(settings.folds)]
        return {name: joined_trades([self._steps.arrays(step) for step in steps], settings.seeds)
                for name, steps in names.items()}

    def _count(self, task: Task, trades: Mapping[str, Arrays], chosen: Mapping[str, Mapping[str, Any]]) -> None:
        """The walk-forward heads are trials too: one of them is about to be chosen."""
        now_ms = int(task.grid.stop_ms)  # the book's times are for people; this keeps a repeated job the same
        with TrialBook(self._home) as book:
            for name, arrays in trades.items():
                settings = chosen[PLANS[name].learner] if name in PLANS else {"of": "+".join(self._settings.members)}
                trial = trial_of(name, task, settings, self._settings.seed, f"walk-forward x{self._settings.seeds}")
                key = book.begin(task.target, trial, now_ms)
                book.end(key, End(FINISHED, None, task.grid, track_of_trades(task.grid, arrays).returns), now_ms)

    def _judged(self, name: str, task: Task, trades: Mapping[str, Arrays]) -> Candidate:
        settings = self._settings
        baseline = None if name == "linear" else PLANS[name].baseline if name in PLANS else "linear"
        with TrialBook(self._home) as book:
            taken = Taken(book.count(task.target), book.sharpes(task.target, task.grid.block_ms),
                          book.performance(task.target, task.grid).returns)
        seeds = [settings.seed + seed for seed in range(settings.seeds)]
        judgement = judge(track_of_trades(task.grid, trades[name]),
                          None if baseline is None else track_of_trades(task.grid, trades[baseline]), taken, seeds,
                          settings.folds, generator(settings.seed, "judgement", name))
        passed, missed = passes(judgement)
        if name == ENSEMBLE:
            bundle, results, served_ms = self._final_ensemble(task)
        else:
            final = self._steps.result(_final_name(name))
            bundle = read_bundle(self._steps.file(_final_name(name), BUNDLE))
            results = [self._steps.result(_fit_name(name, seed, fold)) for seed in range(settings.seeds)
                       for fold in range(settings.folds)]
            results, served_ms = [*results, final], float(final["served"]["served_ms"])
        manifest = replace(bundle.manifest, alias=f"{name}_{self.key[:6]}", trained_on={
            **bundle.manifest.trained_on, "judgement": plain(judgement), "passed": passed, "missed": list(missed),
            "judged": "walk-forward of the same settings; the weights here are fitted on all rows"})
        return Candidate(name, baseline, judgement, passed, missed, trades[name], tuple(results),
                         make_bundle(manifest, bundle.files), served_ms, sum(float(r["seconds"]) for r in results))

    def _final_ensemble(self, task: Task) -> tuple[Bundle, list[Mapping[str, Any]], float]:
        """The final heads with the weights of the last fold, whose validation rows are the latest that nobody saw."""
        last = self._settings.folds - 1
        members = [read_bundle(self._steps.file(_final_name(plan), BUNDLE)) for plan in self._settings.members]
        bundle = self._ensemble(task, 0, last, task.folds[last], members)
        served_ms = sum(float(self._steps.result(_final_name(plan))["served"]["served_ms"])
                        for plan in self._settings.members)
        return bundle, [self._steps.result(f"{ENSEMBLE}.{seed}.{fold}") for seed in range(self._settings.seeds)
                        for fold in range(self._settings.folds)], served_ms

    @property
    def _interval_ms(self) -> int:
        return next(iter(self._bars.values())).interval_ms


def plain(judgement: Judgement) -> dict[str, Any]:
    """As JSON that a manifest may hold: figures that are none are null."""
    def cleaned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: cleaned(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [cleaned(inner) for inner in value]
        return None if isinstance(value, float) and not np.isfinite(value) else value

    found: dict[str, Any] = cleaned(asdict(judgement))
    return found


def _ranked(judgement: Judgement) -> tuple[float, float]:
    """The less the better: by confidence after all trials, then by what the profit factor is at least; NaN is last."""
    confidence, least = judgement.deflated_sharpe, judgement.head.profit_factor_interval.low
    return (-round(confidence, 3) if np.isfinite(confidence) else 1.0, -least if np.isfinite(least) else 1.0)


def _digest(bars: Bars) -> str:
    whole = hashlib.sha256()
    for column in BAR_COLUMNS:
        values = getattr(bars, column)
        whole.update(b"-" if values is None else np.ascontiguousarray(values).tobytes())
    return whole.hexdigest()


def _sweep_name(plan: str) -> str:
    return f"sweep.{plan}"


def _fit_name(plan: str, seed: int, fold: int) -> str:
    return f"fit.{plan}.{seed}.{fold}"


def _final_name(plan: str) -> str:
    return f"final.{plan}"
