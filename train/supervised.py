"""One supervised head, from rows to a bundle: fit, calibrate, choose when to trade, export, compare.

    learner's scores  ->  calibrated probabilities of (short, flat, long)  ->  the rule of policies.heads  ->  Action

The score of a family means what it likes. The calibration, fitted on validation rows, makes probabilities of it, and
those are what the one rule of all heads reads: trade the more probable direction at the manifest's levels if its
confidence is at least `min_conf` and flat is at most `max_p_flat`, both chosen on the same validation rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feature_repo.windows import CHANNELS
from policies.bundle import ONNX_FILE, Bundle, Manifest, make_bundle
from policies.checks import check_agreement
from policies.errors import BundleRefused, InvalidInput
from policies.heads import load_head
from train.calibration import Calibration, fit_calibration, log_loss
from train.catboost import CatBoostLearner
from train.dataset import Brackets
from train.learners import Fitted, Heard, Labelled, Layout, Learner, Setting
from train.levels import ChosenLevels, choose_levels
from train.linear import LinearLearner
from train.tabnet import TabNetLearner
from train.timesnet_learner import TimesNetLearner

SERVED_TOLERANCE = 1e-4
CHECKED_ROWS = 1_000
WINDOW, EMBEDDING = "window", "market_embedding"  # array groups


@dataclass(frozen=True)
class HeadPlan:
    """A kind of head. learner: who fits it. embedding: whether it sees the market's. baseline: whom it must beat."""

    name: str
    learner: str
    embedding: bool = False
    baseline: str = "linear"


PLANS = {plan.name: plan for plan in (
    HeadPlan("linear", "linear"), HeadPlan("catboost", "catboost"), HeadPlan("tabnet", "tabnet"),
    HeadPlan("timesnet", "timesnet"), HeadPlan("linear_mae", "linear", embedding=True),
    HeadPlan("catboost_mae", "catboost", embedding=True, baseline="catboost"))}
ENSEMBLE = "ensemble"  # of the others, made when they are

# By learner, how it is made for a size.
_MAKERS: Mapping[str, Callable[[str], Learner]] = {
    "linear": lambda size: LinearLearner(), "catboost": lambda size: CatBoostLearner(),
    "tabnet": partial(TabNetLearner), "timesnet": partial(TimesNetLearner)}


def learner_of(plan: HeadPlan, size: str) -> Learner:
    """size: small or full, of families that differ by it."""
    return _MAKERS[plan.learner](size)


def layout_of(plan: HeadPlan, learner: Learner, features: Sequence[str], optional: Sequence[str], embedding: int,
              window_bars: int) -> Layout:
    """What this head sees of rows that have an embedding of that size and windows of that many bars."""
    return Layout(tuple(features), tuple(optional), embedding if plan.embedding else 0,
                  window_bars if learner.uses_window else 0)


@dataclass(frozen=True)
class FittedHead:
    """A fitted family with its calibration and levels. validation_log_loss: of the calibrated probabilities."""

    fitted: Fitted
    layout: Layout
    settings: Mapping[str, Setting]
    calibration: Calibration
    levels: ChosenLevels
    validation_log_loss: float
    seconds: float

    def probabilities(self, values: NDArray[np.float32]) -> NDArray[np.float64]:
        """(N, 3) of rows (N, layout.width), as the training framework computes them."""
        return self.calibration.probabilities(self.fitted.scores(values))

    def parameters(self, brackets: Brackets) -> dict[str, float]:
        """The manifest's levels."""
        return {"leverage": brackets.leverage, "tp_pct": brackets.tp_pct, "sl_pct": brackets.sl_pct,
                "min_conf": self.levels.min_conf, "max_p_flat": self.levels.max_p_flat}


def fit_head(learner: Learner, fit: Labelled, validation: Labelled, layout: Layout, settings: Mapping[str, Setting],
             seed: int, heard: Heard = lambda step, loss: None) -> FittedHead:
    """Fit on `fit`; stop early, calibrate and choose levels on `validation`."""
    for name, part in (("fit", fit), ("validation", validation)):
        counts = np.bincount(part.classes, minlength=3)
        if not counts.all():
            raise InvalidInput(f"{name}.classes", "at least one row of short, flat and long", counts.tolist())
    started = time.perf_counter()
    fitted = learner.fit(fit, validation, layout, settings, seed, heard)
    scores = fitted.scores(validation.values)
    calibration = fit_calibration(scores, validation.classes)
    probabilities = calibration.probabilities(scores)
    levels = choose_levels(probabilities, validation.returns[:, 0], validation.returns[:, 1])
    return FittedHead(fitted, layout, dict(settings), calibration, levels,
                      float(log_loss(probabilities, validation.classes)), time.perf_counter() - started)


def bundle_of(head: FittedHead, template: Manifest, brackets: Brackets, embedding_version: str = "none") -> Bundle:
    """The head as an inert bundle. template: alias, features, groups, and what `trained_on` the caller knows."""
    arrays = {EMBEDDING: head.layout.embedding, WINDOW: head.layout.window_bars * len(CHANNELS)}
    arrays = {group: numbers for group, numbers in arrays.items() if numbers}
    manifest = replace(
        template, kind="onnx_classifier", parameters=head.parameters(brackets), arrays=arrays, files={},
        required_groups=(*template.required_groups, *sorted(arrays)),
        embedding_version=embedding_version if head.layout.embedding else "none",
        trained_on={**template.trained_on, "settings": dict(head.settings), "steps": head.fitted.steps,
                    "brackets": asdict(brackets), "validation_log_loss": head.validation_log_loss,
                    "levels_tried": [dict(trial) for trial in head.levels.trials]})
    graph = head.calibration.append_to(head.fitted.graph())
    return make_bundle(manifest, {ONNX_FILE: graph.SerializeToString(deterministic=True)})


def require_served_as_trained(bundle: Bundle, head: FittedHead, values: NDArray[np.float32]) -> dict[str, Any]:
    """BundleRefused unless served answers equal the framework's to SERVED_TOLERANCE on these rows; else how it went:
    rows compared, the largest difference, and the median time of an answer in ms."""
    served = load_head(bundle)
    rows = values.astype(np.float64)
    trained = head.probabilities(values)
    findings = check_agreement(served.predict, rows, trained, SERVED_TOLERANCE)
    if findings:
        raise BundleRefused(f"{bundle.manifest.alias}: " + "; ".join(findings))
    answers, times_ms = [], []
    for row in rows:
        started = time.perf_counter()
        answers.append(served.predict(row))
        times_ms.append(1_000 * (time.perf_counter() - started))
    return {"rows": len(rows), "largest_difference": float(np.abs(np.array(answers) - trained).max()),
            "served_ms": float(np.median(times_ms))}
