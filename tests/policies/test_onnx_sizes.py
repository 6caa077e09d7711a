"""Graphs whose sizes follow the fed numbers are refused; those whose sizes follow shapes or constants are served."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx.defs
import pytest
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper
from small_models import burdened, linear_classifier, with_steps_before

from policies.errors import BundleRefused
from policies.onnx_graph import OPERATORS, require_closed_graph
from policies.onnx_sizes import SIZED_BY, require_fixed_sizes

WIDTH = 4
ONE, MANY = np.array([1], np.int64), np.zeros((1, 64), np.float32)


def node(kind: str, inputs: str, output: str = "y", **attributes: Any) -> NodeProto:
    return helper.make_node(kind, inputs.split(), [output], **attributes)


def refused(steps: list[NodeProto], **constants: NDArray[Any]) -> None:
    """The nodes' last answer is reduced and added to the row, so that the whole graph is valid."""
    after = [node("Cast", steps[-1].output[0], "floats", to=1), node("ReduceMax", "floats", "top", keepdims=0),
             node("Add", "x top", "row")]
    model = with_steps_before(linear_classifier(WIDTH), [*steps, *after], "row", **constants)
    with pytest.raises(BundleRefused, match="decide a size"):
        require_closed_graph(model.SerializeToString(), WIDTH)


SIZE = [node("ReduceMax", "x", "top_x", axes=[1], keepdims=0), node("Cast", "top_x", "n", to=7)]  # (1,) of int64


def test_a_size_that_is_one_of_the_fed_numbers_is_refused() -> None:
    pair = [*SIZE, node("Concat", "n n", "nn", axis=0)]
    refused([*pair, node("ConstantOfShape", "nn")])
    refused([*pair, node("Expand", "x nn")])
    refused([*pair, node("Tile", "many nn")], many=MANY)
    refused([*pair, node("Reshape", "many nn")], many=MANY)
    refused([*pair, node("Concat", "nn nn", "pads", axis=0), node("Pad", "x pads")])
    refused([*SIZE, helper.make_node("TopK", ["many", "n"], ["y", "places"])], many=MANY)
    refused([*SIZE, node("Slice", "many one n one")], many=MANY, one=ONE)
    refused([*SIZE, node("Slice", "many n end one")], many=MANY, one=ONE, end=np.array([9], np.int64))
    refused([*SIZE, node("Squeeze", "n", "scalar"), node("Range", "zero scalar step")], zero=np.int64(0),
            step=np.int64(1))
    refused([*SIZE, node("Squeeze", "n", "scalar"), node("Trilu", "many scalar")], many=MANY)


def test_a_size_that_came_a_long_way_from_a_fed_number_is_refused() -> None:
    way = [*SIZE, node("Mul", "n zero", "n0"), node("Where", "always one n0", "one_or_so"),
           node("Concat", "one_or_so one", "nn", axis=0), node("Identity", "nn", "size")]
    refused([*way, node("ConstantOfShape", "size")], zero=np.array([0], np.int64), one=ONE,
            always=np.array([True]))


def test_sizes_of_shapes_and_constants_are_served() -> None:
    """As exporters write them: the size of a batch is read off the row, whose shape is known."""
    steps = [node("Shape", "x", "shape"), node("Gather", "shape zero", "rows"),
             node("Concat", "rows one", "size", axis=0), node("Expand", "c size", "wide"),
             node("ConstantOfShape", "size", "nothing"),
             node("Reshape", "nothing shape_1", "flat"), node("ReduceMax", "flat", "top", keepdims=0),
             node("Slice", "x from to axes", "part"), node("Add", "x top", "x1"), node("Add", "x1 wide", "row")]
    model = with_steps_before(
        linear_classifier(WIDTH), steps, "row", zero=np.array([0], np.int64), one=ONE, c=np.zeros((1, 1), np.float32),
        shape_1=np.array([-1], np.int64), axes=ONE, to=np.array([2], np.int64), **{"from": np.array([0], np.int64)})
    require_closed_graph(model.SerializeToString(), WIDTH)
    require_closed_graph(burdened(linear_classifier(WIDTH), 8, 2).SerializeToString(), WIDTH)


def test_a_size_given_by_a_constant_node_is_served() -> None:
    size = node("Constant", "", "size", value=numpy_helper.from_array(np.array([1, WIDTH], np.int64)))
    model = with_steps_before(linear_classifier(WIDTH), [size, node("Expand", "x size", "row")], "row")
    require_closed_graph(model.SerializeToString(), WIDTH)


def test_a_missing_optional_input_is_no_fed_number() -> None:
    require_fixed_sizes([helper.make_node("Pad", ["x", "pads", ""], ["y"])], ["x"])
    require_fixed_sizes([helper.make_node("Clip", ["x", ""], ["y", ""]),
                         helper.make_node("Pad", ["x", "pads", "", ""], ["z"])], ["x"])


# Integers that say which number is taken, not how many; and a bias.
WHICH = {"ArrayFeatureExtractor", "Gather", "GatherElements", "GatherND", "QLinearConv", "ScatterElements", "ScatterND"}


def test_every_served_operator_that_takes_integers_only_was_looked_at() -> None:
    """A size is a tensor of integers, so a new place for one, in an operator that is served, shows here."""
    unknown, seen = set(), set()
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.name not in OPERATORS.get(schema.domain, ()):
            continue
        seen.add(schema.name)
        kinds = {c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints}
        sizing = SIZED_BY.get(schema.name, (1,) if schema.name.startswith("Reduce") else ())
        for place, given in enumerate(schema.inputs):
            allowed = kinds.get(given.type_str, {given.type_str})
            if allowed <= {"tensor(int64)", "tensor(int32)"} and schema.name not in WHICH and place not in sizing:
                unknown.add((schema.name, given.name))
    assert unknown == set()
    assert seen == {name for names in OPERATORS.values() for name in names} >= SIZED_BY.keys() | WHICH
