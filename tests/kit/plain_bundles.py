"""Two small bundles that are quickly made: a momentum rule, and a linear classifier as an ONNX graph."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from feature_repo.features import DECISION_V1
from policies.bundle import Bundle, Manifest, make_bundle

_SERVED: dict[str, Any] = {
    "features": DECISION_V1.names, "required_groups": DECISION_V1.required_groups,
    "optional_groups": DECISION_V1.optional_groups, "optional_features": DECISION_V1.may_be_missing}


@cache
def momentum_bundle(alias: str = "momentum_v1", threshold: float = 0.2, **manifest: Any) -> Bundle:
    return make_bundle(Manifest(kind="momentum_rule", alias=alias, inputs={"momentum": "ret_15"},
                                parameters={"threshold": threshold}, **{**_SERVED, **manifest}), {})


@cache
def onnx_bundle(alias: str = "linear_v1", seed: int = 0, most_ret_1: float = 1e30) -> Bundle:
    """softmax(x W) over short, flat, long, missing values read as 0; NaN probabilities where ret_1 > most_ret_1."""
    count = len(DECISION_V1)
    weights = np.random.default_rng(seed).normal(size=(count, 3)).astype(np.float32)
    first = np.zeros((count, 1), np.float32)
    first[DECISION_V1.names.index("ret_1")] = 1.0
    constants = {"w": weights, "first": first, "zeros": np.zeros((1, count), np.float32),
                 "most": np.full((1, 1), most_ret_1, np.float32), "zero": np.zeros((1, 1), np.float32)}
    steps = [("IsNaN", ["x"], "missing"), ("Where", ["missing", "zeros", "x"], "known"),
             ("MatMul", ["known", "w"], "scores"), ("MatMul", ["known", "first"], "ret_1"),
             ("Sub", ["most", "ret_1"], "left"), ("Sqrt", ["left"], "root"), ("Mul", ["root", "zero"], "nothing"),
             ("Add", ["scores", "nothing"], "checked")]
    nodes = [helper.make_node(kind, inputs, [output]) for kind, inputs, output in steps]
    nodes.append(helper.make_node("Softmax", ["checked"], ["probabilities"], axis=1))
    graph = helper.make_graph(
        nodes, "classifier", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, count])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 3])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    manifest = Manifest(kind="onnx_classifier", alias=alias, parameters={"max_p_flat": 0.9}, **_SERVED)
    return make_bundle(manifest, {"model.onnx": model.SerializeToString()})
