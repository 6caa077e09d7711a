"""The pieces of a search that run on workers: a sweep, a fit with its test, an ensemble with its test.

Each is a function of its arguments and of the material on disk alone, so it may run anywhere and be made again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies.bundle import Manifest, pack_bundle, read_bundle
from policies.fills import Costs
from policies.head import Head
from policies.heads import Levels, load_head
from train.backtest import BacktestReport, backtest_probabilities
from train.calibration import expected_calibration_error, reliability
from train.dataset import Brackets
from train.examples import every, spread
from train.intervals import BlockGrid, Track, track_of
from train.learners import Heard, Setting
from train.levels import chosen_directions
from train.material import Material, load_material
from train.signals import Signals, backtest_signals
from train.supervised import (
    CHECKED_ROWS,
    PLANS,
    FittedHead,
    bundle_of,
    fit_head,
    learner_of,
    require_served_as_trained,
)
from train.sweep import FINISHED, SweepSettings, search
from train.sweep import Trial as Tried
from train.trials import End, Target, Trial, TrialBook
from train.walk_forward import Fold, Split, final_fit, folds

BUNDLE = "bundle.pt"
TRADE_COLUMNS = ("entry_time_ms", "exit_time_ms", "net_return", "direction", "symbol")
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Task:
    """What all jobs of one search share. folder, material: where its examples are. home: of the book of trials.
    fit_rows: at most, evenly spread; validation has a quarter of that. fold_count, embargo_ms: of the walk-forward.
    data: digest of all bars and rows. code: version of the sources.
    """

    folder: Path
    material: str
    home: Path
    size: str
    fit_rows: int
    brackets: Brackets
    costs: Costs
    grid: BlockGrid
    target: Target
    fold_count: int
    embargo_ms: int
    template: Manifest
    data: str
    code: str
    embedding_version: str = "none"

    @property
    def folds(self) -> tuple[Fold, ...]:
        """Made anew where they are needed: their places are many, and follow from the examples."""
        return _folds(self.folder, self.material, self.fold_count, self.embargo_ms)

    def split(self, number: int | None) -> Split:
        """A fold by its number, or for None the final split over all rows."""
        if number is not None:
            return self.folds[number]
        examples = self.load().examples
        return final_fit(examples.event_time_ms, examples.known_ms, embargo_ms=self.embargo_ms)

    def scheme(self, plan: str) -> dict[str, Any]:
        """What else than its settings a trial's figures depend on, for the book of trials."""
        seen: dict[str, Any] = {"tests_ms": [[fold.test_start_ms, fold.test_stop_ms] for fold in self.folds],
                                "fit_rows": self.fit_rows, "data": self.data}
        examples = self.load().examples
        if plan not in PLANS or learner_of(PLANS[plan], self.size).uses_window:
            seen["window_bars"] = examples.window_bars
        if plan not in PLANS or PLANS[plan].embedding:
            seen["embedding"] = self.embedding_version
        return seen

    def load(self) -> Material:
        return load_material(self.folder, self.material)


@dataclass(frozen=True)
class Made:
    """What a job hands back: plain JSON, arrays and files by name."""

    result: dict[str, Any]
    arrays: Arrays = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class TrySettings:
    """The objective of a sweep: fitted once, before the first test; then what it would have earned over all tests."""

    plan: str
    task: Task
    seed: int

    def __call__(self, settings: Mapping[str, Setting], heard: Heard) -> tuple[float, dict[str, Any]]:
        with TrialBook(self.task.home) as book:
            trial = trial_of(self.plan, self.task, settings, self.seed)
            book.begin(self.task.target, trial, _now_ms())
            head = _fitted(self.plan, self.task, self.task.folds[0], settings, self.seed, heard)
            tests = np.concatenate([fold.test for fold in self.task.folds])
            track = track_of_trades(self.task.grid, trade_arrays(_tested(head, self.task, tests)))
            end = End(FINISHED, head.validation_log_loss, self.task.grid, track.returns)
            book.record(self.task.target, trial, end, _now_ms())
        return head.validation_log_loss, {"trades": track.trades, "levels_tried": head.levels.count,
                                          "seconds": head.seconds}


def trial_of(plan: str, task: Task, settings: Mapping[str, Any], seed: int, part: str = "sweep") -> Trial:
    """What the book of trials knows it by; `plan` may be an ensemble.

    Pairs of levels are not counted: they are compared on validation rows, on which nothing is judged.
    """
    version = learner_of(PLANS[plan], task.size).version if plan in PLANS else "1"
    return Trial(f"{plan} {version} {part}", dict(settings), seed, task.scheme(plan), task.code)


def sweep(plan: str, task: Task, settings: SweepSettings, folder: Path) -> list[Tried]:
    """Every trial of one learner's search; the pruned and the failed are in the book of trials as well."""
    learner = learner_of(PLANS[plan], task.size)
    tried = search(TrySettings(plan, task, settings.seed), learner.space(), learner.defaults(), settings, folder)
    with TrialBook(task.home) as book:
        for trial in tried:
            if trial.state != FINISHED:
                book.record(task.target, trial_of(plan, task, trial.settings, settings.seed),
                            End(trial.state, trial.loss), _now_ms())
    return tried


def fit_and_test(plan: str, task: Task, number: int | None, settings: Mapping[str, Setting], seed: int) -> Made:
    """A head of a fold with its test, or (None) of the final split, as a bundle that was served and compared.

    Of a fold, `earned` is what each validation row would have paid on margin, 0 where the head stayed flat.
    """
    examples, split = task.load().examples, task.split(number)
    head = _fitted(plan, task, split, settings, seed, lambda step, loss: None)
    bundle = bundle_of(head, task.template, task.brackets, task.embedding_version)
    later = split.test if isinstance(split, Fold) else split.validation
    served = require_served_as_trained(bundle, head, examples.seen(spread(later, CHECKED_ROWS), head.layout))
    result: dict[str, Any] = {
        "validation_log_loss": head.validation_log_loss, "seconds": head.seconds, "steps": head.fitted.steps,
        "importances": dict(head.fitted.importances), "levels": dict(head.levels.chosen), "served": served,
        "settings": dict(settings), "seed": seed}
    arrays: Arrays = {}
    if isinstance(split, Fold):
        arrays = trade_arrays(_tested(head, task, split.test))
        arrays["earned"] = _earned(head, task, split.validation)
        probabilities = head.probabilities(examples.seen(split.test, head.layout))
        result |= _calibration(probabilities, examples.classes[split.test])
    return Made(result, arrays, {BUNDLE: pack_bundle(bundle)})


def ensemble_test(task: Task, number: int, packed: bytes) -> Made:
    """Trades of an ensemble on a fold's test rows, by its own rule."""
    started = time.perf_counter()
    bundle, fold = read_bundle(packed), task.folds[number]
    head = load_head(bundle)
    assert isinstance(head, Head)
    examples, arrays = task.load().examples, bundle.manifest.arrays
    layout = examples.layout("market_embedding" in arrays, "window" in arrays)
    actions = [head.decide(row).action for row in examples.seen(fold.test, layout).astype(np.float64)]
    signals = Signals(np.array([action.direction.sign for action in actions], np.int64),
                      *(np.array([getattr(action, name) for action in actions], np.float64)
                        for name in ("size_fraction", "leverage", "tp_pct", "sl_pct")))
    report = backtest_signals(task.load().bars, examples.symbol[fold.test], examples.event_time_ms[fold.test], signals,
                              task.brackets.horizon_bars, task.costs)
    return Made({"seconds": time.perf_counter() - started}, trade_arrays(report))


def trade_arrays(report: BacktestReport) -> Arrays:
    """Trades in the order of their exits: times in ms, net return over equity, direction +1 or -1, symbol."""
    trades = report.trades
    return {"entry_time_ms": np.array([trade.entry_time_ms for trade in trades], np.int64),
            "exit_time_ms": np.array([trade.exit_time_ms for trade in trades], np.int64),
            "net_return": np.array([trade.net_return for trade in trades], np.float64),
            "direction": np.array([trade.direction.sign for trade in trades], np.int8),
            "symbol": np.array([trade.symbol for trade in trades], np.str_)}


def joined_trades(parts: Sequence[Arrays]) -> Arrays:
    """The trades of several folds, in the order of their exits.

    Each fold's test begins with free slots. What is entered while the slot of its symbol still holds a trade of the
    fold before is left out, as the slot could not hold both.
    """
    whole = {name: np.concatenate([part[name] for part in parts]) for name in TRADE_COLUMNS}
    kept, free_from_ms = np.ones(len(whole["symbol"]), bool), dict[str, int]()
    for place in np.argsort(whole["entry_time_ms"], kind="stable").tolist():
        symbol, entry_ms = str(whole["symbol"][place]), int(whole["entry_time_ms"][place])
        kept[place] = entry_ms >= free_from_ms.get(symbol, entry_ms)
        if kept[place]:
            free_from_ms[symbol] = int(whole["exit_time_ms"][place])
    whole = {name: column[kept] for name, column in whole.items()}
    order = np.lexsort((whole["symbol"], whole["exit_time_ms"]))
    return {name: column[order] for name, column in whole.items()}


def track_of_trades(grid: BlockGrid, trades: Arrays) -> Track:
    return track_of(grid, trades["entry_time_ms"], trades["net_return"])


def _fitted(name: str, task: Task, split: Split, settings: Mapping[str, Setting], seed: int,
            heard: Heard) -> FittedHead:
    plan, examples = PLANS[name], task.load().examples
    learner = learner_of(plan, task.size)
    layout = examples.layout(plan.embedding, learner.uses_window)
    fit = examples.labelled(every(split.fit, task.fit_rows), layout)
    validation = examples.labelled(every(split.validation, max(1, task.fit_rows // 4)), layout)
    return fit_head(learner, fit, validation, layout, settings, seed, heard)


def _tested(head: FittedHead, task: Task, rows: NDArray[np.int64]) -> BacktestReport:
    material = task.load()
    examples, levels = material.examples, Levels(**head.parameters(task.brackets))
    own = {symbol: rows[examples.symbol[rows] == symbol] for symbol in material.bars}
    return backtest_probabilities(
        levels, material.bars, {symbol: np.array(examples.event_time_ms[part]) for symbol, part in own.items()},
        {symbol: head.probabilities(examples.seen(part, head.layout)) for symbol, part in own.items()},
        task.brackets.horizon_bars, task.costs)


def _earned(head: FittedHead, task: Task, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    examples = task.load().examples
    directions = chosen_directions(head.probabilities(examples.seen(rows, head.layout)), head.levels.min_conf,
                                   head.levels.max_p_flat)
    long, short = examples.returns[rows].T
    return np.select([directions > 0, directions < 0], [long, short], 0.0)


def _calibration(probabilities: NDArray[np.float64], classes: NDArray[np.int64]) -> dict[str, Any]:
    bins = [bin_ for bin_ in reliability(probabilities, classes) if bin_.rows]
    return {"calibration_error": expected_calibration_error(probabilities, classes),
            "calibration": {"said": [bin_.mean_probability for bin_ in bins],
                            "happened": [bin_.frequency for bin_ in bins], "rows": [bin_.rows for bin_ in bins]}}


@lru_cache(2)
def _folds(folder: Path, material: str, count: int, embargo_ms: int) -> tuple[Fold, ...]:
    examples = load_material(folder, material).examples
    return tuple(folds(examples.event_time_ms, examples.known_ms, count, embargo_ms=embargo_ms))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
