"""Refusals may be shown anywhere, whatever they quote."""

from __future__ import annotations

import pickle

import onnx
import pytest
from onnx import ModelProto

from policies.errors import BundleRefused
from policies.onnx_graph import require_closed_graph


def test_a_refusal_is_one_printable_line_of_bounded_length() -> None:
    assert str(BundleRefused("a\x1b[2J\n\n b\u202e\ud800 c")) == "a?[2J b?? c"
    assert len(str(BundleRefused("long " * 10_000))) == 2_000
    assert str(BundleRefused(ValueError("two\nlines"))) == "two lines"


def test_a_refusal_is_the_same_in_another_process() -> None:
    again = pickle.loads(pickle.dumps(BundleRefused("why")))
    assert (type(again), str(again)) == (BundleRefused, "why")


def test_what_a_graph_calls_its_parts_moves_nobodys_cursor(onnx_model: ModelProto) -> None:
    node = onnx_model.graph.node.add()
    node.op_type = "X\x1b[2J\nregistered ok"
    attribute = node.attribute.add()
    attribute.name, attribute.type = "g", onnx.AttributeProto.GRAPH
    with pytest.raises(BundleRefused, match="branches or loops") as refused:
        require_closed_graph(onnx_model.SerializeToString(), 4)
    assert str(refused.value).isprintable()
