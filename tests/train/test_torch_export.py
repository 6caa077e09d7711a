"""A torch module as a closed graph: it answers what the module does, and is the same bytes in every process."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from labelled_rows import served_scores
from onnx import ModelProto
from torch import nn

from policies.errors import InvalidInput
from policies.onnx_graph import DOMAINS
from train.tabular import Scaling
from train.torch_export import Scaled, closed_graph

WIDTH = 6
EXPORTED_ELSEWHERE = """
import hashlib, sys
sys.path[:0] = {path!r}
import importlib.util
spec = importlib.util.spec_from_file_location("tests_of_export", {file!r})
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)
print(hashlib.sha256(tests.exported()).hexdigest())
"""


class Network(nn.Module):
    """Scaling, a batch norm, a residual and an attention over parts of the row: what the learners are made of."""

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(3)
        self.scaled = Scaled(Scaling.of(rng.normal(2, 3, size=(100, WIDTH)).astype(np.float32)))
        self.first, self.norm = nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH)
        self.attention = nn.TransformerEncoderLayer(2, 1, 4, batch_first=True)
        self.last = nn.Linear(WIDTH, 3)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        scaled = self.scaled(rows)
        kept = scaled + torch.relu(self.norm(self.first(scaled)))
        return self.last(self.attention(kept.reshape(-1, 3, 2)).reshape(-1, WIDTH))


def network() -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        module = Network()
        module(torch.randn(64, WIDTH))  # running statistics
    return module


def exported() -> bytes:
    return closed_graph(network(), WIDTH).SerializeToString(deterministic=True)


@pytest.fixture(scope="module")
def graph() -> ModelProto:
    return onnx.load_model_from_string(exported())


def test_the_graph_answers_what_the_module_does_for_one_row_and_for_many(graph: ModelProto) -> None:
    rows = np.random.default_rng(0).normal(2, 3, size=(200, WIDTH)).astype(np.float32)
    rows[::3, 2] = np.nan
    with torch.no_grad():
        expected = network().eval()(torch.from_numpy(rows)).numpy()
    np.testing.assert_allclose(served_scores(graph, rows), expected, atol=1e-5)


def test_the_graph_is_closed_and_tells_nothing_of_where_it_was_made(graph: ModelProto) -> None:
    onnx.checker.check_model(graph, full_check=True)
    assert {entry.domain for entry in [*graph.opset_import, *graph.graph.node]} <= DOMAINS
    assert not graph.functions
    assert not any(attribute.HasField("g") for node in graph.graph.node for attribute in node.attribute)
    assert not any(tensor.external_data for tensor in graph.graph.initializer)
    content = graph.SerializeToString()
    for trace in (b"torch", b"train/", b".py", b"pkg.", torch.__version__.encode()):
        assert trace not in content


def test_the_graph_is_the_same_bytes_in_another_process(graph: ModelProto) -> None:
    code = EXPORTED_ELSEWHERE.format(path=sys.path, file=__file__)
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300,
                               env={**os.environ, "PYTHONHASHSEED": "1"})
    assert elsewhere.stdout.strip() == hashlib.sha256(graph.SerializeToString(deterministic=True)).hexdigest()


def test_the_module_stays_as_it_was() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    graph = closed_graph(module, 2, "windows", "embedding")
    assert module.training
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert [value.name for value in (*graph.graph.input, *graph.graph.output)] == ["windows", "embedding"]
    assert [dim.dim_param or dim.dim_value for dim in graph.graph.output[0].type.tensor_type.shape.dim] == ["N", 2]


@pytest.mark.parametrize("module", [nn.Flatten(0), nn.Linear(4, 2).double(), nn.LSTM(4, 2)])
def test_a_module_that_does_not_answer_rows_with_rows_is_refused(module: nn.Module) -> None:
    with pytest.raises((InvalidInput, RuntimeError)):
        closed_graph(module, 4)


def test_scaling_in_torch_is_scaling_in_numpy() -> None:
    rng = np.random.default_rng(0)
    table = rng.normal(size=(50, 4)).astype(np.float32) * [1e-4, 1, 1e4, 0]
    table[::4, 1] = np.nan
    scaling = Scaling.of(table.astype(np.float32))
    rows = np.vstack([table, 1e6 * table]).astype(np.float32)
    np.testing.assert_array_equal(Scaled(scaling)(torch.from_numpy(rows)).numpy(), scaling.applied(rows))
