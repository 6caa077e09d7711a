"""The benchmark of backtests: its rows, and that it measures nothing where the engines disagree.

The first test takes as long as vectorbt needs to compile.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from ci.bench import backtest
from ci.bench.backtest import EQUAL, WORK, Task, ours, quiet_bars, run, tasks
from ci.bench.load import NotMeasured


def test_a_row_compares_all_sides_on_equal_equity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backtest, "tasks", lambda *given: tasks(*given)[1:])  # the other needs as long once more
    (row,) = run(lambda text: None, rounds=1, columns=3, bars=2_000)
    assert row.work == f"{WORK}, 3 parameter sets x 2,000 bars, signals with stop and target"
    assert row.figure is not None
    assert row.peer_figure is not None
    assert row.ratio_to_peer == pytest.approx(row.peer_figure / row.figure)
    assert row.peer == "vectorbt from_signals"
    assert max(row.detail["largest_difference_of_equity"].values()) <= EQUAL
    assert "backtesting.py, one column only" in row.runs


def test_the_faster_of_two_ways_is_the_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    def two_ways(task: Task) -> dict:
        return {"vectorbt slow": lambda: np.sort(np.stack([ours(task)()] * 9), axis=1)[0] * 0 + ours(task)(),
                "vectorbt quick": ours(task)}

    monkeypatch.setattr(backtest, "vectorbt", two_ways)
    rows = run(lambda text: None, rounds=1, columns=2, bars=5_000)
    assert [row.work for row in rows] == [f"{WORK}, 2 parameter sets x 5,000 bars, signals",
                                          f"{WORK}, 2 parameter sets x 5,000 bars, signals with stop and target"]
    for row in rows:
        slow = row.runs["vectorbt slow"] if row.peer == "vectorbt quick" else row.runs["vectorbt quick"]
        assert row.peer_figure is not None
        assert row.peer_figure <= np.median(slow)


def test_engines_that_disagree_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def off_by_a_millionth(task: Task) -> dict:
        return {"vectorbt from_signals": lambda: ours(task)() * (1 + 1e-6)}

    monkeypatch.setattr(backtest, "vectorbt", off_by_a_millionth)
    with pytest.raises(NotMeasured, match="equity differs"):
        run(lambda text: None, rounds=1, columns=2, bars=1_000)


@pytest.mark.parametrize("other", [np.full((1, 3), 2.0), np.array([[1.0, 1.0, math.nan]])])
def test_another_shape_or_a_number_that_is_none_is_a_difference(other: np.ndarray) -> None:
    found = backtest._difference(np.ones((1, 3)), other)
    assert not found <= EQUAL
    assert not backtest._difference(np.ones((2, 3)), np.ones((1, 3))) <= EQUAL


def test_signals_meet_bars_in_which_the_price_stands_still_and_bars_have_no_gaps() -> None:
    bars = quiet_bars(3_000, 5)
    bars.check()
    np.testing.assert_array_equal(bars.open[1:], bars.close[:-1])
    for task in tasks(4, 3_000, 4):
        meets = ~np.isnan(task.signals).all(axis=0)
        assert meets.sum() > 80
        np.testing.assert_array_equal(task.bars.high[meets], task.bars.low[meets])
