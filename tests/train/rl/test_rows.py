"""Ranges and rows of a job: nothing of one range lies in another, and what is kept is what was given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rl_rows import rows_folder, small_rows

from policies.errors import InvalidInput
from train.rl.rows import load_rows, ranges_of


def test_ranges_follow_each_other_with_an_embargo_between() -> None:
    rows = small_rows()
    training, validation, test = rows.ranges.training, rows.ranges.validation, rows.ranges.test
    gap_ms = 16 * 60_000
    assert validation.start_ms - training.stop_ms == test.start_ms - validation.stop_ms == gap_ms
    run = rows.bars["BTC"]
    assert (training.start_ms, test.stop_ms) == (run.open_time_ms[0], run.close_time_ms[-1])
    length = test.stop_ms - training.start_ms
    assert (test.stop_ms - test.start_ms) / length == pytest.approx(0.25, abs=1e-3)


def test_too_few_bars_for_three_ranges_are_refused() -> None:
    bars = {name: run.slice(0, 100) for name, run in small_rows(2_000).bars.items()}
    with pytest.raises(InvalidInput, match="LOOKBACK"):
        ranges_of(bars, 0.15, 0.25, 16)


def test_the_standardisation_is_fitted_on_the_training_range_only() -> None:
    rows = small_rows()
    own = np.concatenate([part.values[part.event_time_ms <= rows.ranges.training.stop_ms]
                          for part in rows.rows.values()])
    assert rows.standard.mean[0] == pytest.approx(own[:, 0].mean(), abs=1e-4)
    assert rows.standard.scale[0] == pytest.approx(own[:, 0].std(), rel=1e-4)


def test_what_is_kept_gives_the_same_market(tmp_path: Path) -> None:
    rows, again = small_rows(), load_rows(rows_folder(tmp_path / "job"))
    assert again.ranges == rows.ranges
    for one, other in zip(rows.market, again.market, strict=True):
        assert one.symbol == other.symbol
        assert one.features.tobytes() == other.features.tobytes()
        assert one.bars.close.tobytes() == other.bars.close.tobytes()
        assert (one.known == other.known).all()
