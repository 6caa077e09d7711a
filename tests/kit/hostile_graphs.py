"""Graphs that pass for heads while nobody asks them the right thing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper
from small_models import linear_classifier, with_steps_before


def beyond_trigger(width: int) -> Iterator[tuple[str, ModelProto, str, str]]:
    """Graphs that do something else when a feature is above a million, which none is while they are checked."""
    trigger = [helper.make_node("ReduceMax", ["x"], ["top"], keepdims=0),
               helper.make_node("Greater", ["top", "million"], ["go"])]
    million = np.float32(1e6)

    steps = [*trigger, helper.make_node("Dropout", ["x", "ratio", "go"], ["y"])]
    model = with_steps_before(linear_classifier(width), steps, "y", million=million, ratio=np.float32(0.5))
    yield "chance_on_some_rows", model, "an answer by chance to some rows", "uses 'Dropout'"

    steps = [*trigger, helper.make_node("Cast", ["go"], ["one"], to=TensorProto.FLOAT),
             helper.make_node("Mul", ["one", "far"], ["corner"]),
             helper.make_node("Add", ["corner", "near"], ["region"]),
             helper.make_node("RoiAlign", ["image", "region", "which"], ["found"], sampling_ratio=0),
             helper.make_node("ReduceMax", ["found"], ["most"], keepdims=0),
             helper.make_node("Add", ["x", "most"], ["y"])]
    model = with_steps_before(
        linear_classifier(width), steps, "y", million=million, far=np.array([[0, 0, 9e3, 9e3]], np.float32),
        near=np.array([[0, 0, 2, 2]], np.float32), image=np.zeros((1, 1, 4, 4), np.float32), which=np.array([0]))
    yield "region_on_some_rows", model, "a region of any size for some rows", "uses 'RoiAlign'"

    model = with_steps_before(linear_classifier(width), [*trigger, *dividing("go")], "y", million=million, **DIVIDED)
    yield "division_on_some_rows", model, "a division that ends the process for some rows", "divides whole numbers"


def holding(mebibytes: int, width: int) -> ModelProto:
    """A graph of a few hundred bytes that keeps this much memory, made once, when it is opened."""
    steps = [helper.make_node("ConstantOfShape", ["count"], ["kept"]),
             helper.make_node("ReduceMax", ["x"], ["top"], keepdims=0),
             helper.make_node("Greater", ["top", "million"], ["go"]),
             helper.make_node("Cast", ["go"], ["place"], to=TensorProto.INT64),
             helper.make_node("Gather", ["kept", "place"], ["nothing"]),
             helper.make_node("Add", ["x", "nothing"], ["y"])]
    return with_steps_before(linear_classifier(width), steps, "y", million=np.float32(1e6),
                             count=np.array([mebibytes * 2**18]))


# The least whole number of 64 bits, which has no positive counterpart: divided by -1 it ends a process.
DIVIDED = {"least": np.array(-2**63), "nothing": np.float32(0), "minus_two": np.array(-2), "plain": np.array(1)}


def dividing(go: str) -> list[Any]:
    """y is x, after the least whole number was divided by 1, or by -1 where `go` is true."""
    return [helper.make_node("Cast", [go], ["one_or_none"], to=TensorProto.INT64),
            helper.make_node("Mul", ["one_or_none", "minus_two"], ["less"]),
            helper.make_node("Add", ["plain", "less"], ["divisor"]),
            helper.make_node("Div", ["least", "divisor"], ["quotient"]),
            helper.make_node("Cast", ["quotient"], ["figure"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["figure", "nothing"], ["zero"]), helper.make_node("Add", ["x", "zero"], ["y"])]


def answering_by_chance(width: int) -> ModelProto:
    noise = [helper.make_node("RandomNormalLike", ["x"], ["noise"]), helper.make_node("Add", ["x", "noise"], ["noisy"])]
    return with_steps_before(linear_classifier(width), noise, "noisy")
