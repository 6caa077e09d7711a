"""Small window encoders, for tests of what is done with embeddings."""

from __future__ import annotations

from functools import cache

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from feature_repo.windows import CHANNELS
from policies.bundle import Bundle, Manifest, make_bundle

BARS, SIZE = 60, 4


@cache
def encoder_bundle(seed: int = 0, bars: int = BARS, size: int = SIZE, most: float = 1e30) -> Bundle:
    """tanh(window W), another W for each seed; not a number where the newest volume exceeds `most`."""
    count = bars * len(CHANNELS)
    weights = np.random.default_rng(seed).normal(size=(count, size)).astype(np.float32) / np.float32(count)
    newest = np.zeros((count, 1), np.float32)
    newest[-1] = 1.0
    constants = {"w": weights, "newest": newest, "most": np.full((1, 1), most, np.float32),
                 "zero": np.zeros((1, 1), np.float32)}
    steps = [("MatMul", ["window", "w"], "sums"), ("MatMul", ["window", "newest"], "volume"),
             ("Sub", ["most", "volume"], "left"), ("Sqrt", ["left"], "root"), ("Mul", ["root", "zero"], "nothing"),
             ("Add", ["sums", "nothing"], "checked"), ("Tanh", ["checked"], "embedding")]
    nodes = [helper.make_node(kind, inputs, [output]) for kind, inputs, output in steps]
    graph = helper.make_graph(
        nodes, "encoder", [helper.make_tensor_value_info("window", TensorProto.FLOAT, [None, count])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [None, size])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    manifest = Manifest(kind="window_encoder", alias=f"encoder_{seed}", features=(), required_groups=("window",),
                        arrays={"window": count}, parameters={"size": float(size)})
    return make_bundle(manifest, {"model.onnx": model.SerializeToString()})
