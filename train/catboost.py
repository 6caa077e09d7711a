"""Gradient-boosted trees: the learner, and the first trained head made with it.

Trees are fitted on one slice of time; a later one stops the boosting early, calibrates the scores and chooses when the
head trades at all (`min_conf`, `max_p_flat`). What it is worth must therefore be measured on a third, later still.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
from annotated_types import Ge, Gt, Le
from catboost import CatBoostClassifier
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper

from policies.bundle import ONNX_FILE, Bundle, Manifest, make_bundle
from policies.errors import BundleRefused
from policies.heads import load_head
from train.calibration import fit_calibration
from train.dataset import Brackets, Dataset
from train.learners import SCORES, Heard, Labelled, Layout, Setting, Space
from train.levels import choose_levels
from train.softmax import log_loss
from train.tabular import TABLE, require_every_class, shares, table_graph, table_names, table_of

SERVED_TOLERANCE = 1e-5
HEARD_EVERY = 10  # trees
TREES = "TreeEnsembleClassifier"


@dataclass(frozen=True)
class CatBoostSettings:
    depth: Annotated[int, Ge(1), Le(10)] = 5
    iterations: Annotated[int, Ge(1), Le(300)] = 300
    learning_rate: Annotated[float, Gt(0), Le(1)] = 0.1
    early_stopping_rounds: Annotated[int, Ge(1)] = 30
    thread_count: Annotated[int, Ge(1)] = 2
    seed: int = 7


@dataclass(frozen=True)
class Trained:
    """A trained bundle and figures of its training."""

    bundle: Bundle
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class FittedCatBoost:
    """scores = the trees' sums for each class, before the softmax."""

    layout: Layout
    model: CatBoostClassifier

    @property
    def steps(self) -> int:
        return int(self.model.tree_count_)

    @property
    def importances(self) -> Mapping[str, float]:
        """By how much the answers change with each input, as CatBoost counts it from the trees alone."""
        return shares(table_names(self.layout), np.asarray(self.model.get_feature_importance(), dtype=np.float64))

    def scores(self, values: NDArray[np.float32]) -> NDArray[np.float64]:
        return self.model.predict(table_of(values, self.layout), prediction_type="RawFormulaVal")

    def graph(self) -> ModelProto:
        return table_graph(self.layout, [_tree_node(self.model)], [], {"ai.onnx.ml": 2})


class CatBoostLearner:
    """Boosting stops when `early_stopping_rounds` trees in a row did not better the validation loss; the trees up to
    the best are kept. threads: of the fit; they do not change the trees.
    """

    name, version, uses_window = "catboost", "catboost-1", False

    def __init__(self, iterations: int = 300, early_stopping_rounds: int = 30, threads: int = 2) -> None:
        self._fixed = {"iterations": iterations, "thread_count": threads, "loss_function": "MultiClass",
                       "allow_writing_files": False, "verbose": False}
        self._early_stopping_rounds = early_stopping_rounds

    def space(self) -> Mapping[str, Space]:
        return {"depth": Space(2, 8, whole=True), "learning_rate": Space(0.02, 0.3, log=True),
                "l2_leaf_reg": Space(1.0, 100.0, log=True)}

    def defaults(self) -> Mapping[str, Setting]:
        return {"depth": 5, "learning_rate": 0.1, "l2_leaf_reg": 3.0}

    def fit(self, fit: Labelled, validation: Labelled, layout: Layout, settings: Mapping[str, Setting], seed: int,
            heard: Heard) -> FittedCatBoost:
        """`heard` is told the multiclass log loss every HEARD_EVERY trees."""
        require_every_class("fit", fit)
        model = CatBoostClassifier(
            depth=int(settings["depth"]), learning_rate=float(settings["learning_rate"]),
            l2_leaf_reg=float(settings["l2_leaf_reg"]), random_seed=seed, **self._fixed)
        told = _Told(heard)
        model.fit(table_of(fit.values, layout), fit.classes,
                  eval_set=(table_of(validation.values, layout), validation.classes),
                  early_stopping_rounds=self._early_stopping_rounds, callbacks=[told])
        if told.raised is not None:
            raise told.raised
        return FittedCatBoost(layout, model)


class _Told:
    """CatBoost's callback. An error of `heard` must not cross its C++: it ends the boosting and is kept for after."""

    def __init__(self, heard: Heard) -> None:
        self._heard = heard
        self.raised: BaseException | None = None

    def after_iteration(self, info: Any) -> bool:
        """Whether to go on."""
        if info.iteration % HEARD_EVERY:
            return True
        try:
            self._heard(info.iteration, float(info.metrics["validation"]["MultiClass"][-1]))
        except BaseException as error:  # raised again by the fit
            self.raised = error
            return False
        return True


def train_catboost(fit: Dataset, validation: Dataset, template: Manifest, brackets: Brackets,
                   settings: CatBoostSettings) -> Trained:
    """The same data and settings give the same bundle, byte for byte.

    template: alias, features, groups and whatever `trained_on` the caller knows; kind and levels are set here.
    """
    layout = Layout(template.features, template.optional_features)
    learnt, checked = _labelled(fit), _labelled(validation)
    require_every_class("validation", checked)
    learner = CatBoostLearner(settings.iterations, settings.early_stopping_rounds, settings.thread_count)
    chosen_settings = {**learner.defaults(), "depth": settings.depth, "learning_rate": settings.learning_rate}
    fitted = learner.fit(learnt, checked, layout, chosen_settings, settings.seed, lambda step, loss: None)
    scores = fitted.scores(checked.values)
    calibration = fit_calibration(scores, checked.classes)
    probabilities = calibration.probabilities(scores)
    levels = choose_levels(probabilities, validation.long_return, validation.short_return)
    manifest = replace(
        template, kind="onnx_classifier",
        parameters={"leverage": brackets.leverage, "tp_pct": brackets.tp_pct, "sl_pct": brackets.sl_pct,
                    "min_conf": levels.min_conf, "max_p_flat": levels.max_p_flat},
        trained_on={**template.trained_on, "settings": asdict(settings), "brackets": asdict(brackets),
                    "fit": _span(fit), "validation": _span(validation), "trees": fitted.steps,
                    "trials": list(levels.trials)},
        files={})
    graph = calibration.append_to(fitted.graph())
    bundle = make_bundle(manifest, {ONNX_FILE: graph.SerializeToString(deterministic=True)})
    _require_served_as_trained(bundle, probabilities[:200], validation.values[:200])
    metrics = {"trees": float(fitted.steps), "validation_log_loss": log_loss(probabilities, validation.classes),
               **{f"validation_{name}": value for name, value in levels.chosen.items()}}
    return Trained(bundle, metrics)


def _tree_node(model: CatBoostClassifier) -> NodeProto:
    """The model's trees as one node from TABLE to SCORES.

    CatBoost's own export ends in probabilities in a map from class names, and carries the time of training. All are
    dropped, the last because a bundle's id must depend on nothing but what was learnt.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ONNX_FILE
        model.save_model(str(path), format="onnx")
        graph = onnx.load_model(str(path), load_external_data=False).graph
    trees = next(node for node in graph.node if node.op_type == TREES)
    kept = [attribute for attribute in trees.attribute if attribute.name != "post_transform"]
    node = helper.make_node(TREES, [TABLE], ["label", SCORES], domain="ai.onnx.ml")
    node.attribute.extend([*kept, helper.make_attribute("post_transform", "NONE")])
    return node


def _labelled(dataset: Dataset) -> Labelled:
    """In float32, what serving feeds the graph with, so that no value falls on another side of a split."""
    return Labelled(dataset.values.astype(np.float32), dataset.classes.astype(np.int64),
                    np.column_stack([dataset.long_return, dataset.short_return]))


def _require_served_as_trained(bundle: Bundle, trained: NDArray[np.float64], values: NDArray[np.float64]) -> None:
    worst = float(np.abs(load_head(bundle).predict(values) - trained).max())
    if not worst <= SERVED_TOLERANCE:
        raise BundleRefused(f"{bundle.manifest.alias}: served and trained probabilities differ by {worst:.2g}, "
                            f"more than {SERVED_TOLERANCE:g}")


def _span(dataset: Dataset) -> dict[str, Any]:
    return {"rows": len(dataset), "from_ms": int(dataset.event_time_ms[0]), "until_ms": int(dataset.event_time_ms[-1])}
