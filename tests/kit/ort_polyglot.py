"""Bytes that are two models: an ONNX graph to a reader of protobuf, another one in ONNX Runtime's own format to it.

ONNX Runtime takes bytes for its own format, a flatbuffer, if `ORTM` stands at the fifth of them. A flatbuffer begins
with the place of its root table and a protobuf with any field, so both can begin with the same bytes.
"""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path

import onnxruntime
from onnx import ModelProto

PADDED_FIELD, LAST_FIELD = b"RT", b"\x7a"  # fields 10 and 15 of a ModelProto, which mean nothing
# Where the root table lies. To protobuf its four bytes are `model_version` 0, and the beginning of a field of one byte,
# the O, under a number that has no such field.
ROOT = 0x28 | 0x0A << 16 | 1 << 24


def polyglot(shown: ModelProto, hidden: ModelProto) -> bytes:
    """A model that protobuf reads as `shown`, and ONNX Runtime, when it is left to guess the format, as `hidden`."""
    inner = _in_own_format(hidden)
    head = struct.pack("<I", ROOT) + b"O" + PADDED_FIELD + b"M" + bytes(PADDED_FIELD[1] - 1) + shown.SerializeToString()
    base = -(-(ROOT + 4_096) // 16) * 16  # of the inner flatbuffer; before it, its root table again
    table = _moved_root(inner, base)
    filling = base + len(inner) - len(head) - len(LAST_FIELD) - 4
    content = bytearray(head + LAST_FIELD + _varint(filling) + bytes(filling))
    content[ROOT:ROOT + len(table)] = table
    content[base:] = inner
    return bytes(content)


def _in_own_format(model: ModelProto) -> bytes:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.save_model_format", "ORT")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.ort"
        options.optimized_model_filepath = str(path)
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return path.read_bytes()


def _moved_root(inner: bytes, base: int) -> bytes:
    """The root table of a flatbuffer that begins at `base`, as it must be at ROOT, then its list of fields."""
    root = struct.unpack_from("<I", inner)[0]
    fields_at = root - struct.unpack_from("<i", inner, root)[0]
    places = struct.unpack_from(f"<{(struct.unpack_from('<H', inner, fields_at)[0] - 4) // 2}H", inner, fields_at + 4)
    size = 4 + 4 * len(places)
    table = bytearray(struct.pack("<i", -size) + bytes(size - 4))
    fields = struct.pack("<HH", 4 + 2 * len(places), size)
    for number, place in enumerate(places):
        own = 4 + 4 * number
        fields += struct.pack("<H", own if place else 0)
        if place:  # of another table, told as the way from here to there
            there = base + root + place + struct.unpack_from("<I", inner, root + place)[0]
            struct.pack_into("<I", table, own, there - (ROOT + own))
    return bytes(table) + fields


def _varint(number: int) -> bytes:
    """In four bytes."""
    return bytes([number & 0x7f | 0x80, number >> 7 & 0x7f | 0x80, number >> 14 & 0x7f | 0x80, number >> 21])
