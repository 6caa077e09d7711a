"""ONNX graphs: closed, of standard operators and finite numbers, one row in; anything else is refused by its reason."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx.defs
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from policies.errors import BundleRefused
from policies.onnx_graph import DOMAINS, EMBEDDING, MAX_NODES, OPERATORS, require_closed_graph


def external(model: ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"


def external_in_attribute(model: ModelProto) -> None:
    tensor = helper.make_tensor("t", TensorProto.FLOAT, [1], [0.0])
    tensor.data_location = TensorProto.EXTERNAL
    model.graph.node.append(helper.make_node("Constant", [], ["unused"], value=tensor))


def foreign_operator(model: ModelProto) -> None:
    model.graph.node[0].domain = "com.evil"


def foreign_import(model: ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.evil", 1))


def loop(model: ModelProto) -> None:
    body = helper.make_graph([], "body", [], [])
    model.graph.node.append(helper.make_node("Loop", ["", ""], ["unused"], body=body))


def other_width(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 5


def no_probabilities(model: ModelProto) -> None:
    model.graph.output[0].name = model.graph.node[2].output[0] = "something"


def broken(model: ModelProto) -> None:
    model.graph.node[1].input[0] = "nowhere"


def by_chance(model: ModelProto) -> None:
    model.graph.node.append(helper.make_node("RandomNormalLike", ["b"], ["unused"]))


def too_many_nodes(model: ModelProto) -> None:
    model.graph.node.extend(helper.make_node("Identity", ["b"], [f"copy_{i}"]) for i in range(MAX_NODES))


def giant(model: ModelProto) -> None:
    model.graph.initializer[1].dims[:] = [2**40, 2**20]


def nan_weight(model: ModelProto) -> None:
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.array([0, np.nan, 0], np.float32), "b"))


def infinite_constant(model: ModelProto) -> None:
    tensor = numpy_helper.from_array(np.array([np.inf], np.float32))
    model.graph.node.append(helper.make_node("Constant", [], ["unused"], value=tensor))


def infinite_attribute(model: ModelProto) -> None:
    model.graph.node.append(helper.make_node("Elu", ["b"], ["unused"], alpha=float("inf")))


def functions(model: ModelProto) -> None:
    model.functions.append(helper.make_function("", "Own", ["a"], ["b"], [helper.make_node("Neg", ["a"], ["b"])],
                                                [helper.make_opsetid("", 17)]))


def two_inputs(model: ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1]))


def sparse_nan(model: ModelProto) -> None:
    values = helper.make_tensor("sparse", TensorProto.FLOAT, [1], [math.nan])
    places = helper.make_tensor("places", TensorProto.INT64, [1], [0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [3]))


@pytest.mark.parametrize(("change", "reason"), [
    (external, "outside its file"), (external_in_attribute, "outside its file"), (foreign_operator, "com.evil"),
    (foreign_import, "com.evil"), (loop, "loops"), (other_width, "promises float32 rows x 4"),
    (no_probabilities, "probabilities"), (broken, "not valid"), (by_chance, "uses 'Random"), (too_many_nodes, "nodes"),
    (giant, "declares a tensor"), (nan_weight, "not finite"), (infinite_constant, "not finite"),
    (infinite_attribute, "not finite"), (functions, "functions"), (two_inputs, "2 inputs"), (sparse_nan, "not finite")])
def test_an_open_or_odd_onnx_graph_is_refused(onnx_model: ModelProto, change: Callable[[ModelProto], None],
                                              reason: str) -> None:
    require_closed_graph(onnx_model.SerializeToString(), 4)
    change(onnx_model)
    with pytest.raises(BundleRefused, match=reason):
        require_closed_graph(onnx_model.SerializeToString(), 4)


@pytest.mark.parametrize("raw", [b"\xff" * 100, b"", b"\x80\x04.", b"\x00" * 50])
def test_bytes_that_are_no_graph_are_refused(raw: bytes) -> None:
    with pytest.raises(BundleRefused, match="ONNX"):
        require_closed_graph(raw, 4)


def test_the_output_that_is_asked_for_must_be_there(onnx_model: ModelProto) -> None:
    with pytest.raises(BundleRefused, match="no float32 output `embedding`"):
        require_closed_graph(onnx_model.SerializeToString(), 4, EMBEDDING)


UNSERVED = ["Dropout", "RoiAlign", "Resize", "Multinomial", "NonZero", "Unique", "NonMaxSuppression", "StringConcat",
            "TfIdfVectorizer", "Scan", "SequenceConstruct", "Attention", "GridSample", "NoSuchOperator"]


@pytest.mark.parametrize("operator", UNSERVED)
def test_an_operator_that_is_not_on_the_list_is_named_with_some_that_are(onnx_model: ModelProto,
                                                                         operator: str) -> None:
    onnx_model.graph.node.append(helper.make_node(operator, ["b"], ["unused"]))
    with pytest.raises(BundleRefused, match=f"uses '{operator}', which is not among .* served: Abs, Acos, Acosh"):
        require_closed_graph(onnx_model.SerializeToString(), 4)


def test_an_operator_is_served_in_its_own_domain_only(onnx_model: ModelProto) -> None:
    onnx_model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    onnx_model.graph.node[2].domain = "ai.onnx.ml"
    with pytest.raises(BundleRefused, match=r"uses 'Softmax', which is not among .* served: ArrayFeatureExtractor"):
        require_closed_graph(onnx_model.SerializeToString(), 4)


def test_no_operator_that_the_standard_calls_random_is_on_the_list() -> None:
    chance = onnx.defs.OpSchema.NodeDeterminism.NonDeterministic
    random = {(schema.domain, schema.name) for schema in onnx.defs.get_all_schemas_with_history()
              if schema.node_determinism == chance}
    assert {("", "Dropout"), ("", "RandomNormal")} <= random
    assert random.isdisjoint((domain, name) for domain, names in OPERATORS.items() for name in names)
    assert OPERATORS.keys() < DOMAINS
