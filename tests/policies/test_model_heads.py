"""Heads of trained models: served answers equal the training side's, and files of other shapes are refused."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest
import safetensors.numpy
from numpy.typing import NDArray
from small_models import small_trees

from policies.bundle import Bundle, Manifest, make_bundle
from policies.checks import check_agreement, check_policy
from policies.errors import BundleRefused
from policies.heads import PredictionFailed, load_head

Build = Callable[..., Bundle]
Tensors = dict[str, NDArray[np.float32]]
TREES = ("ret_1", "ret_15", "vol", "funding_rate")


def softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(scores)
    return powers / powers.sum(axis=1, keepdims=True)


def tensors_of(bundle: Bundle) -> Tensors:
    return safetensors.numpy.load(bundle.files["weights.safetensors"])


def test_trees_answer_as_their_onnx_export(trees: tuple[bytes, bytes], trees_bundle: Build) -> None:
    rows = np.random.default_rng(6).normal(size=(1_000, 4))
    rows[::7, 3] = np.nan
    session = onnxruntime.InferenceSession(trees[1], providers=["CPUExecutionProvider"])
    answers = session.run(["probabilities"], {session.get_inputs()[0].name: rows.astype(np.float32)})[0]
    expected = np.array([[row[place] for place in range(3)] for row in answers])
    assert check_agreement(load_head(trees_bundle()).predict, rows, expected, 1e-5) == []


def test_trees_refuse_a_required_feature_that_is_missing_and_answer_without_an_optional_one(
        trees_bundle: Build) -> None:
    head = load_head(trees_bundle())
    assert head.predict([0.1, 0.2, 0.3, np.nan]).sum() == pytest.approx(1.0)
    with pytest.raises(PredictionFailed, match="vol"):
        head.predict([0.1, 0.2, np.nan, 0.4])


def test_trees_of_another_width_are_refused(trees: tuple[bytes, bytes]) -> None:
    for features in (TREES[:3], (*TREES, "more")):
        with pytest.raises(BundleRefused, match=r"model\.cbm"):
            load_head(make_bundle(Manifest("catboost_classifier", "t", features), {"model.cbm": trees[0]}))


@pytest.mark.parametrize("classes", [2, 4])
def test_trees_of_another_number_of_classes_are_refused(trees_bundle: Build, classes: int) -> None:
    with pytest.raises(BundleRefused, match="three classes"):
        load_head(trees_bundle(small_trees(4, classes)[0]))


@pytest.mark.parametrize("kept", [0, 3, 50, 1_000, -300, -40, -8, -1])
def test_damaged_trees_are_refused(trees: tuple[bytes, bytes], trees_bundle: Build,
                                   kept: int) -> None:
    with pytest.raises(BundleRefused, match="cannot be opened"):
        load_head(trees_bundle(trees[0][:kept]))


def test_a_linear_head_is_softmax_of_standardised_features(softmax_bundle: Build) -> None:
    rows = np.random.default_rng(4).normal(size=(50, 4))
    t = tensors_of(softmax_bundle())
    expected = softmax((rows - t["mean"]) / t["scale"] @ t["weights"] + t["bias"])
    assert check_agreement(load_head(softmax_bundle()).predict, rows, expected, 1e-5) == []


def test_a_missing_optional_feature_counts_as_its_mean(softmax_bundle: Build) -> None:
    head, mean = load_head(softmax_bundle()), float(tensors_of(softmax_bundle())["mean"][3])
    np.testing.assert_allclose(head.predict([0.1, 0.2, 0.3, np.nan]), head.predict([0.1, 0.2, 0.3, mean]), atol=1e-6)


def test_an_extreme_number_is_cut_and_answered(softmax_bundle: Build) -> None:
    head = load_head(softmax_bundle())
    np.testing.assert_array_equal(head.predict([1e30, 0, 0, 0]), head.predict([1e6, 0, 0, 0]))


def wrong(name: str, values: NDArray[Any] | None) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        del tensors[name]
        if values is not None:
            tensors[name] = values

    return change


@pytest.mark.parametrize(("change", "reason"), [
    (wrong("bias", None), "absent"), (wrong("bias", np.zeros(4, np.float32)), "bias"),
    (wrong("bias", np.zeros(3, np.float64)), "F64"), (wrong("weights", np.zeros((3, 4), np.float32)), "weights"),
    (wrong("bias", np.array([0, np.nan, 0], np.float32)), "not finite"),
    (wrong("scale", np.array([1, 1, 1, np.inf], np.float32)), "not finite"),
    (wrong("scale", np.array([1, 1, 1, 0], np.float32)), "> 0"),
    (lambda tensors: tensors.update(more=np.zeros(1, np.float32)), "more")])
def test_tensors_that_are_not_the_architectures_are_refused(softmax_bundle: Build, change: Callable[[Tensors], None],
                                                            reason: str) -> None:
    tensors = tensors_of(softmax_bundle())
    change(tensors)
    with pytest.raises(BundleRefused, match=reason):
        load_head(softmax_bundle(tensors))


@pytest.mark.parametrize("raw", [b"", b"1234", struct.pack("<Q", 2) + b"{}", struct.pack("<Q", 2**40) + b"{",
                                 struct.pack("<Q", 100) + b"{}", b"\x80\x04." + b"x" * 20])
def test_a_file_that_holds_no_tensors_is_refused(raw: bytes) -> None:
    manifest = Manifest("linear_softmax", "junk", ("a",))
    with pytest.raises(BundleRefused, match=r"weights\.safetensors"):
        load_head(make_bundle(manifest, {"weights.safetensors": raw}))


def test_every_kind_is_sound_and_takes_no_inputs_by_name(softmax_bundle: Build, trees_bundle: Build) -> None:
    for build in (softmax_bundle, trees_bundle):
        assert check_policy(load_head(build())) == []
        with pytest.raises(BundleRefused, match="inputs must be empty"):
            load_head(build(inputs={"momentum": "ret_1"}))


def test_a_linear_head_takes_arrays_too(softmax_bundle: Build) -> None:
    head = load_head(softmax_bundle(arrays={"window": 10}, required_groups=("bars", "window")))
    assert head.width == 14
    assert check_policy(head) == []
