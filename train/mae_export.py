"""The trained encoder as an inert bundle: a graph from a raw window to its embedding, with the whitening inside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from feature_repo.features import WINDOW
from policies.bundle import ONNX_FILE, WINDOW_ENCODER, Bundle, Manifest, make_bundle
from policies.errors import InvalidInput
from train.mae import TimeSeriesMAE
from train.mae_training import Pretrained, encoded
from train.torch_export import closed_graph

OUTPUT = "embedding"


class WindowEncoder(nn.Module):
    """forward: float32 (N, seq_len * channels) -> (N, embedding); nothing is hidden."""

    mean: Tensor
    matrix: Tensor

    def __init__(self, model: TimeSeriesMAE, mean: NDArray[np.float32], matrix: NDArray[np.float32]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.from_numpy(mean.copy()))
        self.register_buffer("matrix", torch.from_numpy(matrix.copy()))

    def forward(self, flat: Tensor) -> Tensor:
        pooled = self.model.encode(flat.reshape(-1, self.model.seq_len, self.model.channels))
        whitened: Tensor = (pooled - self.mean) @ self.matrix
        return whitened


def embed(pretrained: Pretrained, windows: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, embedding) as the training framework computes it; the served graph must answer the same."""
    apart = encoded(pretrained.model, windows) - pretrained.mean
    return (apart @ pretrained.matrix).astype(np.float32)


def export_encoder(pretrained: Pretrained, alias: str = "mae_v1",
                   trained_on: Mapping[str, Any] | None = None) -> Bundle:
    """The window_encoder bundle; the same training gives the same bytes, so the same id.

    trained_on: what the caller knows beside what the training does, such as where the bars came from.
    """
    model, size = pretrained.model, pretrained.settings.embedding
    if model.scaling != "bars":
        raise InvalidInput("scaling", "bars: a served window is one of bars", model.scaling)
    width = model.seq_len * model.channels
    graph = closed_graph(WindowEncoder(model, pretrained.mean, pretrained.matrix), width, WINDOW, OUTPUT)
    manifest = Manifest(kind=WINDOW_ENCODER, alias=alias, features=(), required_groups=(WINDOW,),
                        arrays={WINDOW: width}, parameters={"size": size},
                        trained_on={**pretrained.trained_on, **(trained_on or {})})
    return make_bundle(manifest, {ONNX_FILE: graph.SerializeToString(deterministic=True)})
