"""Weights that must not be served, each in a bundle that is right in everything else: hashes, manifest, packing."""

from __future__ import annotations

import json
import pickle
import random
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import safetensors.numpy
from hostile_graphs import answering_by_chance, beyond_trigger, holding
from onnx import ModelProto, TensorProto, helper, numpy_helper
from ort_polyglot import polyglot
from small_models import (
    actor_bundle,
    actor_tensors,
    burdened,
    linear_actor,
    linear_classifier,
    linear_tensors,
    small_trees,
    with_steps_before,
)

from policies.bundle import Bundle, make_bundle

Weights = tuple[str, str, str, bytes, str, str]  # name, kind, file, its content, what it is, words of the refusal


def hostile_weights(width: int, code: bytes) -> Iterator[Weights]:
    """Weights for heads of `width` features. code: a pickle that leaves a mark when it is loaded."""
    yield from _pickles(code)
    for name, model, why, says in [*_open_graphs(width), *_faulty_graphs(width)]:
        yield f"onnx_{name}", "onnx_classifier", "model.onnx", model.SerializeToString(), why, says
    two_in_one = polyglot(linear_classifier(width), answering_by_chance(width))
    yield "onnx_polyglot", "onnx_classifier", "model.onnx", two_in_one, \
        "a closed graph, and another one that ONNX Runtime would find first", "another format"
    for name, content, why, says in _tensors(width):
        yield f"tensors_{name}", "linear_softmax", "weights.safetensors", content, why, says
    for name, content, why, says in _trees(width):
        yield f"trees_{name}", "catboost_classifier", "model.cbm", content, why, says


def _pickles(code: bytes) -> Iterator[Weights]:
    for kind, file, says in (("onnx_classifier", "model.onnx", "not an ONNX graph"),
                             ("linear_softmax", "weights.safetensors", "weights.safetensors"),
                             ("catboost_classifier", "model.cbm", "model.cbm cannot be opened")):
        yield f"pickle_as_{file.replace('.', '_')}", kind, file, code, f"a pickle under the name {file}", says
    library = b"\x7fELF\x02\x01\x01" + bytes(200)
    yield "library_as_model_onnx", "onnx_classifier", "model.onnx", library, "a shared library", "not an ONNX graph"


def _open_graphs(width: int) -> Iterator[tuple[str, ModelProto, str, str]]:
    """Graphs that reach for something, or are built otherwise than a head may be."""
    model = linear_classifier(width)
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../../../etc/passwd"
    yield "external", model, "weights to be read from another file of this machine", "outside its file"

    model = linear_classifier(width)
    model.opset_import.append(helper.make_opsetid("com.evil", 1))
    model.graph.node[0].domain = "com.evil"
    yield "custom_operator", model, "an operator of somebody's own library", "com.evil"

    model = linear_classifier(width)
    inner = helper.make_graph([helper.make_node("Identity", ["b"], ["c"])], "inner", [],
                              [helper.make_tensor_value_info("c", TensorProto.FLOAT, [3])])
    model.graph.node.append(helper.make_node("If", ["b"], ["unused"], then_branch=inner, else_branch=inner))
    yield "branch", model, "a branch with graphs of its own", "branches or loops (If)"

    model = linear_classifier(width)
    model.graph.node.append(helper.make_node("Loop", ["", ""], ["unused"], body=inner))
    yield "loop", model, "a loop without end", "branches or loops (Loop)"

    model = linear_classifier(width)
    model.functions.append(helper.make_function("", "Own", ["a"], ["b"], [helper.make_node("Neg", ["a"], ["b"])],
                                                [helper.make_opsetid("", 17)]))
    yield "function", model, "operators that it defines itself", "functions"

    model = linear_classifier(width)
    model.graph.initializer[1].dims[:] = [2**31, 2**31]
    yield "giant_tensor", model, "a tensor that no machine holds", "declares a tensor of 2147483648x2147483648"

    model = linear_classifier(width)
    model.graph.node.extend(helper.make_node("Identity", ["b"], [f"copy_{i}"]) for i in range(30_000))
    yield "many_nodes", model, "30,000 nodes", "30003 nodes"

    model = linear_classifier(width)
    model.graph.input.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1]))
    yield "two_inputs", model, "a second input", "takes 2 inputs"

    yield "wrong_width", linear_classifier(width + 1), "one feature more than promised", f"float32 rows x {width}"
    model = linear_classifier(width)
    model.graph.node[0].input[1] = "nowhere"
    yield "broken", model, "a node that reads what nobody writes", "not valid"


def _faulty_graphs(width: int) -> Iterator[tuple[str, ModelProto, str, str]]:
    """Graphs that could be opened, and answer as no head may."""
    for name, value in (("nan", np.nan), ("infinite", -np.inf)):
        model = linear_classifier(width)
        weights = numpy_helper.to_array(model.graph.initializer[0]).copy()
        weights[0, 0] = value
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "w"))
        yield f"{name}_weight", model, f"a weight that is {value}", "weights that are not finite"

    yield "by_chance", answering_by_chance(width), "noise in every answer", "uses 'RandomNormalLike'"

    steps = [helper.make_node("Sub", ["most", "x"], ["left"]), helper.make_node("Sqrt", ["left"], ["root"]),
             helper.make_node("Mul", ["root", "zero"], ["nothing"]), helper.make_node("Add", ["x", "nothing"], ["y"])]
    model = with_steps_before(linear_classifier(width), steps, "y", most=np.float32(3.5), zero=np.float32(0))
    yield "nan_on_some_rows", model, "NaN where a feature is above 3.5", "failed on a vector that it should answer"

    yield from beyond_trigger(width)

    model = linear_classifier(width)
    model.graph.node[-1].CopyFrom(helper.make_node("Sigmoid", ["scores"], ["probabilities"]))
    yield "no_probabilities", model, "answers that do not sum to 1", "not three probabilities"

    model = linear_classifier(width)
    model.graph.node[-1].output[0] = "three"
    model.graph.node.append(helper.make_node("Slice", ["three", "from", "to", "axis"], ["probabilities"]))
    model.graph.initializer.extend(numpy_helper.from_array(np.array([place], np.int64), name)
                                   for name, place in (("from", 0), ("to", 2), ("axis", 1)))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 2
    yield "two_classes", model, "two answers in place of three", "answered shape (2,)"

    yield "slow", burdened(linear_classifier(width), 1_400, 8), "a fifth of a second for a row", "too slow"
    yield "memory", burdened(linear_classifier(width), 2**15, 0), "gigabytes for a row", "onnx_memory failed"
    yield "folded", holding(1_024, width), "a gibibyte out of nothing", "MiB of memory when it is open"
    yield "endless", burdened(linear_classifier(width), 3_000, 1_000), "minutes for a row", "canary that loaded it"


def hostile_actors(code: bytes, features: tuple[str, ...]) -> Iterator[tuple[str, Bundle, str, str]]:
    """Whole bundles of kind onnx_actor, which has two files: name, bundle, what it is, words of the refusal."""
    named: dict[str, Any] = {"features": features, "optional_features": ()} if len(features) == 60 else {}
    yield "actor_beyond", actor_bundle(linear_actor(last="Identity"), **named), "actions of any size", "in [-1, 1]"
    yield "actor_of_classes", actor_bundle(linear_classifier(100), **named), "an actor that classifies", "`action`"
    narrow = linear_actor()
    narrow.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 60
    yield "actor_narrow", actor_bundle(narrow, **named), "an actor without a position", "float32 rows x 100"
    three = actor_bundle(features=("a", "b", "c"), optional_features=())
    yield "actor_of_three", three, "an actor of three features", "reads 60 features"
    right = actor_bundle(**named)
    for file, says in (("model.onnx", "not an ONNX graph"), ("weights.safetensors", "weights.safetensors")):
        content = {**right.files, file: code}
        yield f"actor_pickle_{file.split('.')[0]}", make_bundle(right.manifest, content), \
            f"a pickle as an actor's {file}", says
    flat = {**actor_tensors(), "scale": np.zeros(60, np.float32)}
    yield "actor_zero_scale", actor_bundle(tensors=flat, **named), "an actor that divides by zero", "must be > 0"
    for name, value in (("risk_per_trade", 0.5), ("leverage", 500.0), ("least_stop_pct", 0.4)):
        bundle = actor_bundle(parameters={name: value}, **named)
        yield f"actor_{name}", bundle, f"an actor with a {name} of {value:g}", name


def trades_on_nan(width: int) -> bytes:
    """A graph for a head all of whose features are optional: NaN is 10 to it, and it goes long on nothing else."""
    steps = [helper.make_node("IsNaN", ["x"], ["missing"]), helper.make_node("Where", ["missing", "ten", "x"], ["y"])]
    return with_steps_before(linear_classifier(width), steps, "y", ten=np.float32(10)).SerializeToString()


def _tensors(width: int) -> Iterator[tuple[str, bytes, str, str]]:
    right = linear_tensors(width)
    content = safetensors.numpy.save(right)
    size = struct.unpack("<Q", content[:8])[0]
    yield "cut", content[:-5], "the last bytes missing", "not a safetensors file"
    yield "header_bomb", struct.pack("<Q", 2**40) + content[8:], "a header of a terabyte", "declares a header"

    header = json.loads(content[8:8 + size])
    header["scale"]["data_offsets"] = header["mean"]["data_offsets"]
    raw = json.dumps(header).encode()
    yield "overlapping", struct.pack("<Q", len(raw)) + raw + content[8 + size:], "two tensors in one place", \
        "not a safetensors file"

    wrong: list[tuple[str, dict[str, Any], str, str]] = [
        ("float64", {"bias": np.zeros(3)}, "numbers of another type", "bias"),
        ("other_shape", {"weights": np.zeros((3, width), np.float32)}, "weights on their side", "weights"),
        ("nan", {"bias": np.array([0, np.nan, 0], np.float32)}, "a weight that is NaN", "not finite"),
        ("zero_scale", {"scale": np.zeros(width, np.float32)}, "a division by zero", "must be > 0"),
        ("one_more", {"extra": np.zeros(1, np.float32)}, "a tensor that nobody asked for", "extra")]
    for name, changes, why, says in wrong:
        yield name, safetensors.numpy.save({**right, **changes}), why, says


def _trees(width: int) -> Iterator[tuple[str, bytes, str, str]]:
    right = small_trees(width)[0]
    yield "cut", right[:len(right) // 2], "half of a file", "model.cbm"
    # Cut by this little, CatBoost reads on in memory that is not the file's.
    yield "cut_a_little", right[:-40], "the last forty bytes missing", "as long as it says"
    yield "flipped", _flipped(right, 200), "two hundred flipped bits", "model.cbm cannot be opened"
    yield "crashing", _flipped(right, 50), "flipped bits at which CatBoost crashed when this was written", ""
    yield "four_classes", small_trees(width, 4)[0], "four classes", "three classes are served"
    yield "wrong_width", small_trees(width + 1)[0], "one feature more than promised", f"promises {width} numbers"
    yield "pickled_tail", right[:8] + pickle.dumps(right[8:]), "trees inside a pickle", "as long as it says"


def _flipped(content: bytes, bits: int) -> bytes:
    """The first eight bytes, which say how long the file is, stay."""
    flipped, draw = bytearray(content), random.Random(1)
    for _ in range(bits):
        flipped[draw.randrange(8, len(flipped))] ^= 1 << draw.randrange(8)
    return bytes(flipped)
