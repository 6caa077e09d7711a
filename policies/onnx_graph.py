"""What an ONNX graph must be before it is opened: closed, of standard operators, of finite numbers and fixed sizes,
rows in, rows out.

A graph is plain numbers and operators, but it may name files to read weights from, libraries' own operators, loops, or
operators that draw at random. None of them is needed to answer a row: only the operators in OPERATORS are served.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, numpy_helper

from policies.errors import BundleRefused, one_line
from policies.onnx_division import require_no_whole_division
from policies.onnx_sizes import require_fixed_sizes

ALSO_STANDARD = "ai.onnx"  # another name of the domain ""
DOMAINS = frozenset({"", ALSO_STANDARD, "ai.onnx.ml"})
PROBABILITIES, EMBEDDING, ACTIONS = "probabilities", "embedding", "action"
MAX_NODES = 20_000
MAX_TENSOR_NUMBERS = 2**24  # of one tensor: 64 MiB of float32
OTHER_FORMAT, OTHER_FORMAT_AT = b"ORTM", 4  # by this mark ONNX Runtime knows its own format, which is not looked into
# What answers a row: the same numbers for the same row, in time and memory that follow from shapes alone. Operators
# that draw at random, handle text, sequences, images or sound, search for as many results as they find, or walk over
# regions that the fed numbers name, are not here; nor is what a newer library brings, until somebody has looked at it.
_STANDARD = """
    Abs Acos Acosh Add And Asin Asinh Atan Atanh Ceil Clip Cos Cosh Div Equal Erf Exp Floor Greater GreaterOrEqual
    IsInf IsNaN Less LessOrEqual Log Max Mean Min Mod Mul Neg Not Or Pow Reciprocal Round Sign Sin Sinh Sqrt Sub Sum
    Tan Tanh Where Xor
    Conv ConvInteger ConvTranspose Einsum Gemm MatMul MatMulInteger QLinearConv QLinearMatMul
    AveragePool GlobalAveragePool GlobalLpPool GlobalMaxPool LpPool MaxPool
    BatchNormalization GroupNormalization InstanceNormalization LRN LayerNormalization LpNormalization
    MeanVarianceNormalization RMSNormalization
    ArgMax ArgMin CumSum ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
    ReduceSum ReduceSumSquare TopK
    Concat Constant ConstantOfShape DepthToSpace Expand EyeLike Flatten Gather GatherElements GatherND Identity OneHot
    Pad Range Reshape ScatterElements ScatterND Shape Size Slice SpaceToDepth Split Squeeze Tile Transpose Trilu
    Unsqueeze
    Celu Elu Gelu HardSigmoid HardSwish Hardmax LeakyRelu LogSoftmax Mish PRelu Relu Selu Shrink Sigmoid Softmax
    Softplus Softsign Swish ThresholdedRelu
    Cast CastLike DequantizeLinear DynamicQuantizeLinear QuantizeLinear
    GRU LSTM RNN"""
_ML = """
    ArrayFeatureExtractor Binarizer FeatureVectorizer Imputer LinearClassifier LinearRegressor Normalizer OneHotEncoder
    Scaler TreeEnsemble TreeEnsembleClassifier TreeEnsembleRegressor"""
OPERATORS: Mapping[str, frozenset[str]] = {"": frozenset(_STANDARD.split()), "ai.onnx.ml": frozenset(_ML.split())}
MOST_NAMED = 12  # operators, in the refusal of another


def require_closed_graph(content: bytes, width: int, output: str = PROBABILITIES) -> None:
    """BundleRefused unless the graph takes float32 (rows, width) and answers float32 `output`, and is closed."""
    if content[OTHER_FORMAT_AT:].startswith(OTHER_FORMAT):
        raise BundleRefused(f"not only an ONNX graph: its bytes carry the mark of another format, "
                            f"{OTHER_FORMAT.decode()}")
    try:
        model = onnx.load_model_from_string(content)
    except (DecodeError, ValueError, RecursionError) as error:
        raise BundleRefused(f"not an ONNX graph: {one_line(error)}") from error
    _require_standard(model)
    _require_plain_nodes(model)
    for tensor in _tensors(model):
        _require_own_numbers(tensor)
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise BundleRefused(f"the ONNX graph is not valid: {one_line(error)}") from error
    for tensor in _tensors(model):
        _require_finite(tensor)
    _require_signature(model, width, output)
    fed = [value.name for value in model.graph.input]
    require_fixed_sizes(model.graph.node, fed)
    require_no_whole_division(model, fed)


def _require_standard(model: ModelProto) -> None:
    unknown = sorted({field.field_number for field in UnknownFieldSet(model)})
    if unknown:
        raise BundleRefused(f"the ONNX model holds fields that ONNX does not know, number "
                            f"{', '.join(map(str, unknown[:5]))}")
    foreign = sorted({entry.domain for entry in [*model.opset_import, *model.graph.node]} - DOMAINS)
    if foreign:
        raise BundleRefused(f"the ONNX graph uses operators of {', '.join(foreign)!r:.200}; only the standard ones are "
                            f"served")
    if model.functions or model.training_info:
        raise BundleRefused("the ONNX graph brings functions or training steps of its own")
    if len(model.graph.node) > MAX_NODES:
        raise BundleRefused(f"the ONNX graph has {len(model.graph.node)} nodes; at most {MAX_NODES} are served")


def _require_plain_nodes(model: ModelProto) -> None:
    for node in model.graph.node:
        if any(a.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) or a.g.node or a.graphs
               for a in node.attribute):
            raise BundleRefused(f"the ONNX graph branches or loops ({node.op_type:.50})")
        _require_served(node)
        for attribute in node.attribute:
            if not all(map(math.isfinite, (attribute.f, *attribute.floats))):
                raise BundleRefused(f"the ONNX graph holds a number that is not finite: {attribute.name:.50} of "
                                    f"{node.op_type:.50}")


def _require_served(node: NodeProto) -> None:
    served = OPERATORS["" if node.domain == ALSO_STANDARD else node.domain]
    if node.op_type not in served:
        named = ", ".join(sorted(served)[:MOST_NAMED])
        raise BundleRefused(f"the ONNX graph uses {node.op_type!r:.50}, which is not among the {len(served)} operators "
                            f"that are served: {named} and others of deterministic arithmetic")


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    yield from model.graph.initializer
    sparse = list(model.graph.sparse_initializer)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("sparse_tensor"):
                sparse.append(attribute.sparse_tensor)
            sparse += attribute.sparse_tensors
    for entry in sparse:
        yield from (entry.values, entry.indices)


def _require_own_numbers(tensor: TensorProto) -> None:
    """Refused: weights kept elsewhere, and sizes that no bundle can hold."""
    if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
        raise BundleRefused("the ONNX graph reads weights from outside its file")
    if any(size < 0 for size in tensor.dims) or math.prod(tensor.dims) > MAX_TENSOR_NUMBERS:
        shape = "x".join(map(str, tensor.dims))
        raise BundleRefused(f"the ONNX graph declares a tensor of {shape:.100}; one has at most "
                            f"{MAX_TENSOR_NUMBERS} numbers")


def _require_finite(tensor: TensorProto) -> None:
    if tensor.data_type == TensorProto.STRING:
        return
    try:
        values = numpy_helper.to_array(tensor)
        finite = bool(np.all(np.isfinite(values.astype(np.float64))))
    except (ValueError, TypeError, KeyError) as error:
        raise BundleRefused(f"the ONNX graph's tensor {tensor.name!r:.50} cannot be read: {one_line(error)}") from error
    if not finite:
        raise BundleRefused(f"the ONNX graph holds weights that are not finite: {tensor.name!r:.50}")


def _require_signature(model: ModelProto, width: int, output: str) -> None:
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1:
        raise BundleRefused(f"the ONNX graph takes {len(inputs)} inputs; one is served, the feature vector")
    tensor = inputs[0].type.tensor_type
    shape = tensor.shape.dim
    if tensor.elem_type != TensorProto.FLOAT or len(shape) != 2 or shape[1].dim_value != width \
            or shape[0].dim_value > 1:
        described = "x".join(str(d.dim_value or d.dim_param or "?") for d in shape)
        raise BundleRefused(f"the ONNX graph takes {described:.100}; the manifest promises float32 rows x {width}")
    outputs = {value.name: value.type.tensor_type for value in model.graph.output}
    if output not in outputs or outputs[output].elem_type != TensorProto.FLOAT:
        raise BundleRefused(f"the ONNX graph has no float32 output `{output}` among {sorted(outputs)!s:.200}")
