"""Small classifiers in each format of weights: what tests serve, and what the hostile ones are made of."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from policies.bundle import Bundle, Manifest, make_bundle


def linear_classifier(features: int, seed: int = 0) -> ModelProto:
    """softmax(x W + b) over short, flat, long."""
    weights = np.random.default_rng(seed).normal(size=(features, 3)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["xw"]), helper.make_node("Add", ["xw", "b"], ["scores"]),
             helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1)]
    graph = helper.make_graph(
        nodes, "classifier", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, features])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 3])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(np.zeros(3, np.float32), "b")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def with_steps_before(model: ModelProto, steps: list[Any], output: str, **constants: NDArray[Any]) -> ModelProto:
    """A linear classifier that multiplies `output` of these nodes, which may read `x`, in place of `x`."""
    model.graph.node[0].input[0] = output
    for node in reversed(steps):
        model.graph.node.insert(0, node)
    model.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in constants.items())
    return model


def burdened(model: ModelProto, side: int, times: int) -> ModelProto:
    """The same answers, after a square of numbers was made out of nothing and multiplied by itself some times."""
    value = numpy_helper.from_array(np.array([1e-9], np.float32))
    # Times a number of the row, so that it can't be worked out once for all rows.
    steps = [helper.make_node("ConstantOfShape", ["size"], ["much"], value=value),
             helper.make_node("ReduceMax", ["x"], ["of_row"], keepdims=0),
             helper.make_node("Mul", ["much", "of_row"], ["much_0"]),
             *(helper.make_node("MatMul", [f"much_{i}", f"much_{i}"], [f"much_{i + 1}"]) for i in range(times)),
             helper.make_node("ReduceMax", [f"much_{times}"], ["most"], keepdims=0),
             helper.make_node("Mul", ["most", "zero"], ["nothing"]),
             helper.make_node("Add", ["x", "nothing"], ["x_after"])]
    return with_steps_before(model, steps, "x_after", size=np.array([side, side], np.int64), zero=np.float32(0))


def linear_tensors(width: int, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """The tensors of a linear_softmax head."""
    rng = np.random.default_rng(seed)
    return {"mean": rng.normal(size=width).astype(np.float32), "scale": np.full(width, 2.0, np.float32),
            "weights": rng.normal(size=(width, 3)).astype(np.float32), "bias": np.zeros(3, np.float32)}


def linear_actor(seed: int = 0, last: str = "Tanh") -> ModelProto:
    """action = tanh(observation W), or another operator in place of tanh."""
    weights = np.random.default_rng(seed).normal(size=(100, 3)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["observation", "w"], ["scores"]),
             helper.make_node(last, ["scores"], ["action"])]
    graph = helper.make_graph(
        nodes, "actor", [helper.make_tensor_value_info("observation", TensorProto.FLOAT, [None, 100])],
        [helper.make_tensor_value_info("action", TensorProto.FLOAT, [None, 3])],
        [numpy_helper.from_array(weights, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def actor_tensors(seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """How the features of an actor are standardised."""
    return {"mean": np.random.default_rng(seed).normal(size=60).astype(np.float32), "scale": np.full(60, 2, np.float32)}


def actor_bundle(model: ModelProto | None = None, tensors: dict[str, NDArray[np.float32]] | None = None,
                 **changes: Any) -> Bundle:
    """Of 60 features, the last of which may be missing."""
    features = tuple(f"feature_{number}" for number in range(60))
    manifest = Manifest(**{"kind": "onnx_actor", "alias": "actor_v1", "features": features,
                           "optional_features": features[-1:], **changes})
    return make_bundle(manifest, {
        "model.onnx": (model or linear_actor()).SerializeToString(),
        "weights.safetensors": safetensors.numpy.save(actor_tensors() if tensors is None else tensors)})


@cache
def small_trees(features: int, classes: int = 3) -> tuple[bytes, bytes]:
    """A CatBoost classifier in its own format and as ONNX. It has seen NaN in the last feature only."""
    import catboost

    rng = np.random.default_rng(3)
    rows = rng.normal(size=(400, features))
    rows[rng.random(len(rows)) < 0.2, -1] = np.nan
    labels = np.where(rows[:, 0] > 0.5, classes - 1, np.where(rows[:, 1] > 0.5, 0, np.arange(len(rows)) % classes))
    model = catboost.CatBoostClassifier(iterations=20, depth=3, loss_function="MultiClass", random_seed=1, verbose=0,
                                        thread_count=1, allow_writing_files=False).fit(rows, labels)
    with tempfile.TemporaryDirectory() as folder:
        for name, form in (("model.cbm", "cbm"), ("model.onnx", "onnx")):
            model.save_model(Path(folder) / name, format=form)
        return (Path(folder) / "model.cbm").read_bytes(), (Path(folder) / "model.onnx").read_bytes()
