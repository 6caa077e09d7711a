"""While a graph answers, and only then, numbers too small to be normal are zero: they take tens of times as long."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from onnx import helper
from small_models import linear_classifier, with_steps_before

from policies.denormals import ADJUSTABLE, denormals_as_zero
from policies.onnx_graph import PROBABILITIES
from policies.onnx_session import OnnxFunction

pytestmark = pytest.mark.skipif(not ADJUSTABLE, reason="only on x86-64")


def tiny() -> float:
    return float(np.array([1e-30], np.float32)[0] * np.array([1e-10], np.float32)[0])


def test_it_holds_until_the_block_ends_however_it_ends() -> None:
    assert tiny() > 0
    with denormals_as_zero():
        assert tiny() == 0
        with ThreadPoolExecutor(1) as pool:
            pool.submit(tiny).result()
        assert tiny() == 0
    assert tiny() > 0
    with pytest.raises(ZeroDivisionError), denormals_as_zero():
        1 / 0  # noqa: B018
    assert tiny() > 0


def test_a_graph_answers_so_in_whatever_thread_it_is_asked() -> None:
    steps = [helper.make_node("Mul", ["x", "small"], ["gone"]), helper.make_node("Mul", ["gone", "large"], ["y"])]
    model = with_steps_before(linear_classifier(4), steps, "y", small=np.float32(1e-40), large=np.float32(1e30))
    model.graph.node[-1].CopyFrom(helper.make_node("Mul", ["scores", "large"], [PROBABILITIES]))
    function = OnnxFunction(model.SerializeToString(), 4, PROBABILITIES, "model.onnx")
    rows = np.ones((1, 4), np.float32)
    with ThreadPoolExecutor(1) as pool:
        for answer in (function(rows), pool.submit(function, rows).result()):
            assert np.array_equal(answer, np.zeros((1, 3)))
    assert tiny() > 0
