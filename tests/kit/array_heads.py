"""Heads that take numbers of array groups besides the features."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from feature_repo.features import DECISION_V1
from policies.bundle import Bundle, Manifest, make_bundle
from policies.types import NO_EMBEDDING


def array_bundle(alias: str, arrays: Mapping[str, int], embedding_version: str = NO_EMBEDDING, seed: int = 0,
                 arrays_alone: bool = True) -> Bundle:
    """softmax(row W) over short, flat, long; missing features read as 0.

    arrays_alone: the features have no weight, so that an answer shows what the arrays were.
    """
    width = len(DECISION_V1) + sum(arrays.values())
    weights = np.random.default_rng(seed).normal(size=(width, 3)).astype(np.float32) / np.float32(10)
    if arrays_alone:
        weights[:len(DECISION_V1)] = 0.0
    constants = {"w": weights, "zeros": np.zeros((1, width), np.float32)}
    steps = [("IsNaN", ["x"], "missing"), ("Where", ["missing", "zeros", "x"], "known"),
             ("MatMul", ["known", "w"], "scores")]
    nodes = [helper.make_node(kind, inputs, [output]) for kind, inputs, output in steps]
    nodes.append(helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1))
    graph = helper.make_graph(
        nodes, "classifier", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, width])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 3])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    manifest = Manifest(
        kind="onnx_classifier", alias=alias, features=DECISION_V1.names,
        required_groups=(*DECISION_V1.required_groups, *sorted(arrays)), optional_groups=DECISION_V1.optional_groups,
        optional_features=DECISION_V1.may_be_missing, embedding_version=embedding_version, arrays=dict(arrays))
    return make_bundle(manifest, {"model.onnx": model.SerializeToString()})
