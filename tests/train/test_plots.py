"""Pictures of a training: whole PNG files, the same for the same figures, also where there is nothing to show."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import pytest
from matplotlib.axes import Axes

from train import plots
from train.plots import calibration_png, drawdown_png, equity_png, importances_png, search_png

TIMES = np.arange(50, dtype=np.int64) * 60_000
RETURNS = np.random.default_rng(1).normal(0, 0.01, 50)
NOTHING = (np.empty(0, np.int64), np.empty(0))

PICTURES: dict[str, Callable[[], bytes]] = {
    "equity": lambda: equity_png("a title", {"a": (TIMES, RETURNS), "b": (TIMES[:9], RETURNS[:9])}),
    "equity of nobody": lambda: equity_png("a title", {}),
    "equity without a trade": lambda: equity_png("a title", {"a": NOTHING}),
    "drawdown": lambda: drawdown_png("a title", {"a": (TIMES, RETURNS)}),
    "drawdown without a trade": lambda: drawdown_png("a title", {"a": NOTHING}),
    "calibration": lambda: calibration_png("a title", [0.1, 0.5], [0.2, 0.4], [100, 3]),
    "calibration of nothing": lambda: calibration_png("a title", [], [], []),
    "importances": lambda: importances_png("a title", {f"feature_{n}": 1 / (n + 1) for n in range(70)}),
    "search": lambda: search_png("a title", {"a": [(0, 1.0, "finished"), (1, 1.2, "pruned")], "b": [(0, 2.0, "pruned")],
                                             "c": []}),
}


@pytest.mark.parametrize("name", PICTURES)
def test_every_picture_is_a_png_and_the_same_again(name: str) -> None:
    picture = PICTURES[name]()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", picture[16:24])
    assert width == round(plots.WIDTH_IN * plots.DOTS_PER_IN)
    assert height > 100
    assert b"IEND" in picture[-12:]
    assert PICTURES[name]() == picture


def drawn(monkeypatch: pytest.MonkeyPatch, picture: Callable[[], bytes]) -> Axes:
    """The axes of a picture."""
    kept = []
    figure = plots._figure
    monkeypatch.setattr(plots, "_figure", lambda *given, **more: kept.append(figure(*given, **more)) or kept[-1])
    picture()
    return kept[0][1]


def test_equity_is_the_running_sum_in_percent(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = drawn(monkeypatch, PICTURES["equity"]).get_lines()
    assert np.allclose(lines[0].get_ydata(), 100 * np.cumsum(RETURNS))


def test_drawdown_is_never_above_nothing_and_counts_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    axes = drawn(monkeypatch, lambda: drawdown_png("", {"a": (TIMES[:3], np.array([-0.02, 0.03, -0.01]))}))
    assert np.allclose(axes.get_lines()[0].get_ydata(), [-2.0, 0.0, -1.0])


def test_the_most_important_comes_first_and_only_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [label.get_text() for label in drawn(monkeypatch, PICTURES["importances"]).get_yticklabels()]
    assert len(names) == plots.MOST_BARS
    assert names[-1] == "feature_0"
