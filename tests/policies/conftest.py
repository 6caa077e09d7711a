"""A small classifier in ONNX and bundles around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from policies.bundle import Bundle, Manifest, make_bundle

FEATURES = ("ret_1", "ret_15", "vol", "funding_rate")


def linear_classifier(features: int = len(FEATURES), seed: int = 0) -> ModelProto:
    """softmax(x W + b) over short, flat, long."""
    weights = np.random.default_rng(seed).normal(size=(features, 3)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["xw"]), helper.make_node("Add", ["xw", "b"], ["scores"]),
             helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1)]
    graph = helper.make_graph(
        nodes, "classifier", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, features])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 3])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(np.zeros(3, np.float32), "b")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


@pytest.fixture
def onnx_model() -> ModelProto:
    return linear_classifier()


@pytest.fixture
def onnx_bundle() -> Callable[..., Bundle]:
    def build(model: ModelProto | None = None, **changes: Any) -> Bundle:
        manifest = Manifest(**{"kind": "onnx_classifier", "alias": "linear_v1", "features": FEATURES, **changes})
        return make_bundle(manifest, {"model.onnx": (model or linear_classifier()).SerializeToString()})

    return build


@pytest.fixture
def momentum_bundle() -> Callable[..., Bundle]:
    def build(**changes: Any) -> Bundle:
        return make_bundle(Manifest(**{"kind": "momentum_rule", "alias": "momentum_v1", "features": FEATURES,
                                       "inputs": {"momentum": "ret_15"}, **changes}), {})

    return build
