"""A small classifier in each format of weights, and bundles around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from numpy.typing import NDArray
from onnx import ModelProto
from small_models import linear_classifier, linear_tensors, small_trees

from policies.bundle import Bundle, Manifest, make_bundle

FEATURES = ("ret_1", "ret_15", "vol", "funding_rate")


@pytest.fixture
def onnx_model() -> ModelProto:
    return linear_classifier(len(FEATURES))


@pytest.fixture
def onnx_bundle() -> Callable[..., Bundle]:
    """With arrays, the default model is as wide as they make it."""

    def build(model: ModelProto | None = None, **changes: Any) -> Bundle:
        manifest = Manifest(**{"kind": "onnx_classifier", "alias": "linear_v1", "features": FEATURES, **changes})
        return make_bundle(manifest, {"model.onnx": (model or linear_classifier(manifest.width)).SerializeToString()})

    return build


@pytest.fixture
def momentum_bundle() -> Callable[..., Bundle]:
    def build(**changes: Any) -> Bundle:
        return make_bundle(Manifest(**{"kind": "momentum_rule", "alias": "momentum_v1", "features": FEATURES,
                                       "inputs": {"momentum": "ret_15"}, **changes}), {})

    return build


@pytest.fixture
def softmax_bundle() -> Callable[..., Bundle]:
    def build(tensors: dict[str, NDArray[np.float32]] | None = None, **changes: Any) -> Bundle:
        manifest = Manifest(**{"kind": "linear_softmax", "alias": "softmax_v1", "features": FEATURES,
                               "optional_features": FEATURES[3:], **changes})
        content = safetensors.numpy.save(linear_tensors(manifest.width) if tensors is None else tensors)
        return make_bundle(manifest, {"weights.safetensors": content})

    return build


@pytest.fixture
def trees() -> tuple[bytes, bytes]:
    """A small CatBoost classifier of FEATURES in its own format and as ONNX; the last feature may be NaN."""
    return small_trees(len(FEATURES))


@pytest.fixture
def trees_bundle(trees: tuple[bytes, bytes]) -> Callable[..., Bundle]:
    def build(content: bytes | None = None, **changes: Any) -> Bundle:
        manifest = Manifest(**{"kind": "catboost_classifier", "alias": "trees_v1", "features": FEATURES,
                               "optional_features": FEATURES[3:], **changes})
        return make_bundle(manifest, {"model.cbm": trees[0] if content is None else content})

    return build
