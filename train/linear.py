"""The linear baseline: multinomial logistic regression on scaled features. Every other head must beat it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, helper

from policies.errors import InvalidInput
from policies.heads import CLASSES
from train.learners import SCORES, Heard, Labelled, Layout, Setting, Space
from train.softmax import fit_softmax, log_loss, softmax
from train.tabular import (
    TABLE,
    Scaling,
    constant_tensors,
    require_every_class,
    shares,
    table_graph,
    table_names,
    table_of,
)

SCALED = "scaled"


@dataclass(frozen=True)
class FittedLinear:
    """weights: float32 (3, F), of scaled features. bias: float32 (3,)."""

    layout: Layout
    scaling: Scaling
    weights: NDArray[np.float32]
    bias: NDArray[np.float32]
    steps: int

    @property
    def importances(self) -> Mapping[str, float]:
        """By how much the weights of the classes lie apart, features being of one scale."""
        return shares(table_names(self.layout), self.weights.astype(np.float64).std(axis=0))

    def scores(self, values: NDArray[np.float32]) -> NDArray[np.float64]:
        scaled = self.scaling.applied(table_of(values, self.layout)).astype(np.float64)
        return scaled @ self.weights.T.astype(np.float64) + self.bias

    def graph(self) -> ModelProto:
        nodes, constants = self.scaling.nodes(TABLE, SCALED)
        nodes.append(helper.make_node("Gemm", [SCALED, "weights", "bias"], [SCORES], transB=1))
        return table_graph(self.layout, nodes,
                           [*constants, *constant_tensors({"weights": self.weights, "bias": self.bias})])


class LinearLearner:
    """scores = logits, less their mean in each row."""

    name, version, uses_window = "linear", "linear-1", False

    def space(self) -> Mapping[str, Space]:
        return {"l2": Space(1e-4, 1.0, log=True)}

    def defaults(self) -> Mapping[str, Setting]:
        return {"l2": 0.03}

    def fit(self, fit: Labelled, validation: Labelled, layout: Layout, settings: Mapping[str, Setting], seed: int,
            heard: Heard) -> FittedLinear:
        """There is one best model, so the seed is not used; nothing stops early, and `heard` is told the end."""
        require_every_class("fit", fit)
        l2 = float(settings["l2"])
        if not 0 < l2 < np.inf:
            raise InvalidInput("settings.l2", "> 0", l2)
        table = table_of(fit.values, layout)
        scaling = Scaling.of(table)
        found = fit_softmax(scaling.applied(table).astype(np.float64), fit.classes, l2,
                            np.zeros((len(CLASSES), table.shape[1])))
        weights = (found.weights - found.weights.mean(axis=0)).astype(np.float32)
        bias = (found.bias - found.bias.mean()).astype(np.float32)
        fitted = FittedLinear(layout, scaling, weights, bias, found.iterations)
        heard(1, log_loss(softmax(fitted.scores(validation.values)), validation.classes))
        return fitted
