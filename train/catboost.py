"""Gradient-boosted trees by CatBoost, served as one ONNX node."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from catboost import CatBoostClassifier
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper

from policies.bundle import ONNX_FILE
from train.learners import SCORES, Heard, Labelled, Layout, Setting, Space
from train.tabular import TABLE, require_every_class, shares, table_graph, table_names, table_of

HEARD_EVERY = 10  # trees
TREES = "TreeEnsembleClassifier"


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
