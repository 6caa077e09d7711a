"""A torch module as a closed ONNX graph: standard operators only, any number of rows, the same bytes each time.

Serving never imports torch. What is served is this graph, and what it answers must be what the module answered.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from onnx import ModelProto, TensorProto, helper
from torch import nn

from policies.errors import InvalidInput
from train.learners import ROWS, SCORES
from train.tabular import CLIP, Scaling

OPSET = 20
ROW_AXIS = "N"
TRACED_ROWS = 3  # neither 0 nor 1: the tracer would take those for fixed sizes


def closed_graph(module: nn.Module, width: int, input_name: str = ROWS, output_name: str = SCORES) -> ModelProto:
    """The module in evaluation mode as ONNX: float32 (N, width) in, float32 (N, anything) out; weights are inside.

    The module itself stays as it is, on its device and in its mode. Its `forward` takes one tensor, treats each row by
    itself, and must not ask how many rows there are (no `chunk` by size, no custom autograd function). Raises
    torch.onnx.OnnxExporterError where it cannot be traced and InvalidInput where its answer is not float32 (N, k).
    """
    traced = copy.deepcopy(module).to("cpu").eval()
    rows = torch.zeros(TRACED_ROWS, width)
    with torch.no_grad():
        answer = traced(rows)
    if not isinstance(answer, torch.Tensor) or answer.dtype != torch.float32 or answer.ndim != 2 \
            or len(answer) != TRACED_ROWS:
        raise InvalidInput("module", "a module that answers float32 (N, k) to float32 (N, width)", type(answer))
    with _quiet():
        program = torch.onnx.export(
            traced, (rows,), dynamo=True, verbose=False, opset_version=OPSET, input_names=[input_name],
            output_names=[output_name], dynamic_shapes=({0: torch.export.Dim(ROW_AXIS)},))
    if program is None:
        raise InvalidInput("module", "a module that torch can export", type(module).__name__)
    return _stripped(program.model_proto, {input_name: width, output_name: answer.shape[1]})


class Scaled(nn.Module):
    """A `train.tabular.Scaling` as a module: (N, F) with NaN in, (N, F) finite out."""

    mean: torch.Tensor
    factor: torch.Tensor

    def __init__(self, scaling: Scaling) -> None:
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(scaling.mean.copy()))
        self.register_buffer("factor", torch.from_numpy(scaling.factor.copy()))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        scaled = (rows - self.mean) * self.factor
        return torch.clamp(torch.where(torch.isnan(scaled), torch.zeros_like(scaled), scaled), -CLIP, CLIP)


def _stripped(model: ModelProto, widths: dict[str, int]) -> ModelProto:
    """The graph without the tracer's notes: they name files, lines and torch's version, and change with them."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for node in graph.node:
        node.ClearField("name")
    graph.ClearField("value_info")
    graph.name = "graph"
    for field in ("producer_name", "producer_version", "domain", "model_version"):
        model.ClearField(field)
    for values in (graph.input, graph.output):
        declared = [helper.make_tensor_value_info(value.name, TensorProto.FLOAT, [ROW_AXIS, widths[value.name]])
                    for value in values]
        del values[:]
        values.extend(declared)
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the tracer's remarks on libraries that are not installed out of the log, errors in."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)
