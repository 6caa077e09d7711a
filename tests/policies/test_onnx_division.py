"""Whole numbers that follow from the fed ones are not divided; floats and sizes are."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hostile_graphs import DIVIDED, dividing
from onnx import NodeProto, TensorProto, helper
from small_models import linear_classifier, with_steps_before

from policies.errors import BundleRefused
from policies.onnx_graph import require_closed_graph

WIDTH = 4
RUN = """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.stdin.buffer.read(), providers=["CPUExecutionProvider"])
for top in (1.0, 2e6):
    session.run(None, {"x": numpy.full((1, 4), top, numpy.float32)})
    print(top, flush=True)
"""
TRIGGER = [helper.make_node("ReduceMax", ["x"], ["top"], keepdims=0),
           helper.make_node("Greater", ["top", "million"], ["go"])]


def checked(steps: list[NodeProto], **constants: Any) -> bytes:
    content = with_steps_before(linear_classifier(WIDTH), steps, "y", **constants).SerializeToString()
    require_closed_graph(content, WIDTH)
    return content


def test_a_division_of_whole_numbers_would_end_the_process_that_serves() -> None:
    model = with_steps_before(linear_classifier(WIDTH), [*TRIGGER, *dividing("go")], "y", million=np.float32(1e6),
                              **DIVIDED)
    ended = subprocess.run([sys.executable, "-c", RUN], input=model.SerializeToString(), capture_output=True,
                           check=False, timeout=60)
    assert (ended.returncode, ended.stdout) == (-signal.SIGFPE, b"1.0\n")
    with pytest.raises(BundleRefused, match=r"divides whole numbers that it is fed \(Div\)"):
        require_closed_graph(model.SerializeToString(), WIDTH)


@pytest.mark.parametrize("operator", ["Div", "Mod"])
def test_neither_a_fed_divisor_nor_a_fed_dividend_may_be_whole(operator: str) -> None:
    whole = helper.make_node("Cast", ["x"], ["n"], to=TensorProto.INT32)
    back = helper.make_node("Cast", ["m"], ["y"], to=TensorProto.FLOAT)
    for inputs in (["n", "three"], ["three", "n"]):
        with pytest.raises(BundleRefused, match=rf"\({operator}\)"):
            checked([whole, helper.make_node(operator, inputs, ["m"]), back], three=np.array(3, np.int32))


def test_what_a_graph_says_of_its_own_types_is_not_believed() -> None:
    whole = helper.make_node("Cast", ["x"], ["n"], to=TensorProto.INT64)
    model = with_steps_before(linear_classifier(WIDTH), [whole, helper.make_node("Div", ["n", "n"], ["m"]),
                                                         helper.make_node("Cast", ["m"], ["y"], to=1)], "y")
    model.graph.value_info.append(helper.make_tensor_value_info("n", TensorProto.FLOAT, [1, WIDTH]))
    with pytest.raises(BundleRefused, match="divides whole numbers"):
        require_closed_graph(model.SerializeToString(), WIDTH)


def test_floats_are_divided_and_so_are_sizes() -> None:
    checked([helper.make_node("Div", ["x", "three"], ["y"])], three=np.float32(3))
    checked([helper.make_node("Mod", ["x", "three"], ["y"], fmod=1)], three=np.float32(3))
    checked([helper.make_node("Shape", ["x"], ["shape"]), helper.make_node("Div", ["shape", "one"], ["size"]),
             helper.make_node("Expand", ["x", "size"], ["y"])], one=np.array([1, 1], np.int64))
