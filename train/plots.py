"""Pictures of a training for MLflow and the report, as PNG: equity, drawdown, calibration, importances, the search."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

WIDTH_IN, HEIGHT_IN, DOTS_PER_IN = 8.0, 3.6, 110
MOST_BARS = 20  # importances that are shown


def equity_png(title: str, curves: Mapping[str, tuple[NDArray[np.int64], NDArray[np.float64]]]) -> bytes:
    """curves: by name, exit times in ms, rising, and net returns over equity, trade by trade; drawn as running sums."""
    figure, axes = _figure(title, "", "net return over equity, %")
    for name, (times_ms, returns) in curves.items():
        axes.step(times_ms.astype("datetime64[ms]"), 100.0 * np.cumsum(returns), where="post", label=name)
    axes.axhline(0.0, color="0.6", linewidth=0.8)
    return _png(figure, legend=bool(curves))


def drawdown_png(title: str, curves: Mapping[str, tuple[NDArray[np.int64], NDArray[np.float64]]]) -> bytes:
    """As `equity_png`, the distance from the highest point so far."""
    figure, axes = _figure(title, "", "drawdown, % of equity")
    for name, (times_ms, returns) in curves.items():
        sums = np.concatenate([[0.0], np.cumsum(returns)])
        below = (sums - np.maximum.accumulate(sums))[1:]
        axes.step(times_ms.astype("datetime64[ms]"), 100.0 * below, where="post", label=name)
    return _png(figure, legend=bool(curves))


def calibration_png(title: str, said: Sequence[float], happened: Sequence[float], rows: Sequence[int]) -> bytes:
    """said: mean probability of a bin, 0..1. happened: share of its rows that were of the class. rows: of the bin."""
    figure, axes = _figure(title, "probability that was said", "share that happened")
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.8)
    axes.scatter(said, happened, s=8 + 200 * np.asarray(rows, dtype=float) / max([1, *rows]))
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    return _png(figure)


def importances_png(title: str, importances: Mapping[str, float]) -> bytes:
    """The largest shares."""
    largest = sorted(importances.items(), key=lambda item: (-item[1], item[0]))[:MOST_BARS][::-1]
    figure, axes = _figure(title, "share", "", height_in=1.2 + 0.22 * len(largest))
    axes.barh([name for name, _ in largest], [share for _, share in largest])
    return _png(figure)


def search_png(title: str, losses: Mapping[str, Sequence[tuple[int, float, str]]]) -> bytes:
    """losses: by learner, (number of the trial, validation loss, state)."""
    figure, axes = _figure(title, "trial", "validation log loss")
    for name, trials in losses.items():
        points = [(number, loss) for number, loss, _ in trials]
        axes.plot(*zip(*points, strict=True), marker="o", label=name) if points else None
        ended = [(number, loss) for number, loss, state in trials if state == "pruned"]
        if ended:
            axes.scatter(*zip(*ended, strict=True), marker="x", s=80, color="0.3", zorder=3)
    axes.xaxis.get_major_locator().set_params(integer=True)
    return _png(figure, legend=bool(losses))


def _figure(title: str, x_label: str, y_label: str, height_in: float = HEIGHT_IN) -> tuple[Figure, Any]:
    figure = Figure(figsize=(WIDTH_IN, height_in), dpi=DOTS_PER_IN, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.3)
    return figure, axes


def _png(figure: Figure, legend: bool = False) -> bytes:
    if legend:
        figure.axes[0].legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": ""})
    return buffer.getvalue()
