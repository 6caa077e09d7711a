"""What an ONNX graph must be before it is opened: closed, of standard operators, one row of features in.

A graph is plain numbers and operators, but it may name files to read weights from, libraries' own operators and loops.
None of them is needed to classify a row, so each is refused.
"""

from __future__ import annotations

import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, ModelProto, TensorProto

from policies.errors import BundleRefused

DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml"})
PROBABILITIES = "probabilities"


def require_closed_graph(content: bytes, features: int) -> None:
    """BundleRefused unless the graph takes float32 (rows, features) and answers float32 `probabilities`."""
    try:
        model = onnx.load_model_from_string(content)
    except (DecodeError, ValueError, RecursionError) as error:
        raise BundleRefused(f"not an ONNX graph: {error}") from error
    foreign = sorted({entry.domain for entry in [*model.opset_import, *model.graph.node]} - DOMAINS)
    if foreign:
        raise BundleRefused(f"the ONNX graph uses operators of {', '.join(foreign)}; only the standard ones are served")
    if model.functions or model.training_info:
        raise BundleRefused("the ONNX graph brings functions or training steps of its own")
    for node in model.graph.node:
        if any(a.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for a in node.attribute):
            raise BundleRefused(f"the ONNX graph branches or loops ({node.op_type})")
    if any(t.data_location == TensorProto.EXTERNAL or t.external_data for t in _tensors(model)):
        raise BundleRefused("the ONNX graph reads weights from outside its file")
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise BundleRefused(f"the ONNX graph is not valid: {error}") from error
    _require_signature(model, features)


def _tensors(model: ModelProto) -> list[TensorProto]:
    found = list(model.graph.initializer)
    sparse = list(model.graph.sparse_initializer)
    for node in model.graph.node:
        for attribute in node.attribute:
            found += [attribute.t, *attribute.tensors]
            sparse += [attribute.sparse_tensor, *attribute.sparse_tensors]
    return found + [part for tensor in sparse for part in (tensor.values, tensor.indices)]


def _require_signature(model: ModelProto, features: int) -> None:
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1:
        raise BundleRefused(f"the ONNX graph takes {len(inputs)} inputs; one is served, the feature vector")
    tensor = inputs[0].type.tensor_type
    shape = tensor.shape.dim
    if tensor.elem_type != TensorProto.FLOAT or len(shape) != 2 or shape[1].dim_value != features \
            or shape[0].dim_value > 1:
        described = "x".join(str(d.dim_value or d.dim_param or "?") for d in shape)
        raise BundleRefused(f"the ONNX graph takes {described}; the manifest promises float32 rows x {features}")
    outputs = {value.name: value.type.tensor_type for value in model.graph.output}
    if PROBABILITIES not in outputs or outputs[PROBABILITIES].elem_type != TensorProto.FLOAT:
        raise BundleRefused(f"the ONNX graph has no float32 output `{PROBABILITIES}` among {sorted(outputs)}")
