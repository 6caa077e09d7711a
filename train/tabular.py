"""What the learners of tables share: their part of a row, its names, and one scaling, in numpy and in ONNX.

A table is a row without its raw window. Optional numbers may be missing: they count as the training mean, which after
scaling is 0; that they were missing is a feature of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from policies.errors import InvalidInput
from policies.heads import CLASSES
from train.learners import ROWS, SCORES, Labelled, Layout

OPSET, IR_VERSION = 20, 10
CLIP = 10.0  # standard deviations
TABLE = "table"


@dataclass(frozen=True)
class Scaling:
    """z = (x - mean) * factor, clipped to +-CLIP, 0 where x is NaN. mean, factor: float32 (F,).

    factor is one over the training deviation, and 0 for a column that never changed or was never there: a model that
    could learn nothing of it must not meet it for the first time when it is served.
    """

    mean: NDArray[np.float32]
    factor: NDArray[np.float32]

    @classmethod
    def of(cls, table: NDArray[np.float32]) -> Scaling:
        """From the training rows (N, F), NaN left out."""
        values = table.astype(np.float64)
        known = np.isfinite(values)
        count = np.maximum(known.sum(axis=0), 1)
        mean = np.where(known, values, 0.0).sum(axis=0) / count
        deviation = np.sqrt((np.where(known, values - mean, 0.0) ** 2).sum(axis=0) / count)
        least = 1e-6 * np.maximum(np.abs(mean), 1e-6)  # below it float32 holds rounding, not change
        factor = np.where(deviation > least, 1.0 / np.maximum(deviation, 1e-30), 0.0)
        return cls(mean.astype(np.float32), factor.astype(np.float32))

    def applied(self, table: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, F), finite, as the graph computes it."""
        scaled = (table.astype(np.float32) - self.mean) * self.factor
        return np.clip(np.where(np.isnan(scaled), np.float32(0), scaled), -CLIP, CLIP).astype(np.float32)

    def nodes(self, given: str, result: str) -> tuple[list[NodeProto], list[TensorProto]]:
        """The same as ONNX nodes from value `given` to value `result`, with their constants."""
        constants = {"scaling_mean": self.mean, "scaling_factor": self.factor, "scaling_zero": np.float32(0),
                     "scaling_low": np.float32(-CLIP), "scaling_high": np.float32(CLIP)}
        nodes = [helper.make_node("Sub", [given, "scaling_mean"], ["scaling_centred"]),
                 helper.make_node("Mul", ["scaling_centred", "scaling_factor"], ["scaling_scaled"]),
                 helper.make_node("IsNaN", ["scaling_scaled"], ["scaling_missing"]),
                 helper.make_node("Where", ["scaling_missing", "scaling_zero", "scaling_scaled"], ["scaling_whole"]),
                 helper.make_node("Clip", ["scaling_whole", "scaling_low", "scaling_high"], [result])]
        return nodes, constant_tensors(constants)


def table_of(values: NDArray[np.float32], layout: Layout) -> NDArray[np.float32]:
    """The columns (N, F) that a learner of tables reads of rows (N, layout.width)."""
    if values.ndim != 2 or values.shape[1] != layout.width:
        raise InvalidInput("values", f"rows of {layout.width} numbers", values.shape)
    return np.ascontiguousarray(values[:, layout.tabular], dtype=np.float32)


def table_names(layout: Layout) -> tuple[str, ...]:
    return (*layout.features, *(f"embedding_{place}" for place in range(layout.embedding)))


def table_graph(layout: Layout, nodes: Sequence[NodeProto], constants: Sequence[TensorProto],
                domains: Mapping[str, int] | None = None) -> ModelProto:
    """A graph from rows to `scores`, whose `nodes` start at the value TABLE. domains: others than the standard one."""
    first = layout.tabular.stop
    cut = constant_tensors({"table_start": np.array([0]), "table_stop": np.array([first]), "table_axis": np.array([1])})
    cut_node = helper.make_node("Slice", [ROWS, *(tensor.name for tensor in cut)], [TABLE])
    graph = helper.make_graph(
        [cut_node, *nodes], "graph", [helper.make_tensor_value_info(ROWS, TensorProto.FLOAT, ["N", layout.width])],
        [helper.make_tensor_value_info(SCORES, TensorProto.FLOAT, ["N", len(CLASSES)])], [*cut, *constants])
    opsets = [helper.make_opsetid(domain, version) for domain, version in {"": OPSET, **(domains or {})}.items()]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)


def constant_tensors(arrays: Mapping[str, Any]) -> list[TensorProto]:
    return [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()]


def require_every_class(name: str, rows: Labelled) -> None:
    """InvalidInput unless there is a row of each class: what was never seen cannot be learnt."""
    counts = np.bincount(rows.classes, minlength=len(CLASSES))
    if len(counts) != len(CLASSES) or not counts.all():
        raise InvalidInput(f"{name}.classes", "at least one row of short, flat and long", counts.tolist())


def shares(names: Sequence[str], weights: NDArray[np.float64]) -> dict[str, float]:
    """Weights as shares that sum to 1, by name; {} if there is no weight at all."""
    total = float(weights.sum())
    return {name: float(weight / total) for name, weight in zip(names, weights, strict=True)} if total > 0 else {}
