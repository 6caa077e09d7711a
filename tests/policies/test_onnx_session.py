"""What ONNX Runtime opens is the graph that was looked at, and nothing else that the same bytes may be."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from hostile_graphs import answering_by_chance
from ort_polyglot import polyglot
from small_models import linear_classifier

from policies import onnx_session
from policies.errors import BundleRefused
from policies.onnx_graph import PROBABILITIES, require_closed_graph
from policies.onnx_session import OnnxFunction

WIDTH = 4
ROW = np.ones((1, WIDTH), np.float32)
TWO_IN_ONE = polyglot(linear_classifier(WIDTH), answering_by_chance(WIDTH))


def test_left_to_guess_the_runtime_would_open_the_graph_that_nobody_has_looked_at() -> None:
    session = onnxruntime.InferenceSession(TWO_IN_ONE, providers=["CPUExecutionProvider"])
    first, second = (session.run([PROBABILITIES], {"x": ROW})[0] for _ in range(2))
    assert not np.array_equal(first, second)


def test_even_if_the_check_let_it_pass_the_runtime_opens_the_graph_that_was_checked(
        monkeypatch: pytest.MonkeyPatch) -> None:
    honest = OnnxFunction(linear_classifier(WIDTH).SerializeToString(), WIDTH, PROBABILITIES, "model.onnx")
    monkeypatch.setattr(onnx_session, "require_closed_graph", lambda *_: None)
    opened = OnnxFunction(TWO_IN_ONE, WIDTH, PROBABILITIES, "model.onnx")
    assert np.array_equal(opened(ROW), honest(ROW))


def test_bytes_with_the_mark_of_another_format_or_with_unknown_fields_are_refused() -> None:
    with pytest.raises(BundleRefused, match="mark of another format, ORTM"):
        require_closed_graph(TWO_IN_ONE, WIDTH)
    unmarked = TWO_IN_ONE[:4] + b"ORTX" + TWO_IN_ONE[8:]
    with pytest.raises(BundleRefused, match="does not know, number 1, 10, 15"):
        require_closed_graph(unmarked, WIDTH)
    with pytest.raises(BundleRefused, match="number 15"):
        require_closed_graph(linear_classifier(WIDTH).SerializeToString() + b"\x7a\x01x", WIDTH)
