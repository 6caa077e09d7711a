"""Whether an ONNX graph divides whole numbers that follow from what it is fed.

The processor answers such a division with a signal that ends the process when the least whole number is divided by -1:
ONNX Runtime looks for a divisor of 0 only. A canary does not meet those numbers by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx.shape_inference
from onnx import ModelProto, NodeProto, TensorProto

from policies.errors import BundleRefused, one_line
from policies.onnx_sizes import fed_inputs

NOT_WHOLE = frozenset({TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16})


def require_no_whole_division(model: ModelProto, fed: Sequence[str]) -> None:
    """BundleRefused if a division by or of a number that follows from `fed` is not known to be one of floats."""
    divisions = list(_fed_divisions(model, fed))
    kinds = _kinds(model) if divisions else {}
    for node, following in divisions:
        if not all(kinds.get(name) in NOT_WHOLE for name in following):
            raise BundleRefused(f"the ONNX graph divides whole numbers that it is fed ({node.op_type}); divide floats")


def _fed_divisions(model: ModelProto, fed: Sequence[str]) -> Iterator[tuple[NodeProto, set[str]]]:
    for node, following in fed_inputs(model.graph.node, fed):
        if node.op_type in ("Div", "Mod") and following:
            yield node, following


def _kinds(model: ModelProto) -> dict[str, int]:
    """Element types by tensor, as far as they follow from operators and inputs: what a model says of itself is not
    asked."""
    bare = ModelProto()
    bare.CopyFrom(model)
    bare.graph.ClearField("value_info")
    try:
        graph = onnx.shape_inference.infer_shapes(bare).graph
    except Exception as error:  # its errors share no base class
        raise BundleRefused(f"the ONNX graph is not valid: {one_line(error)}") from error
    return {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)}
