"""Sizing in bursts: what is counted, what it is multiplied by, and that right sizing shows and wrong sizing too."""

from __future__ import annotations

import numpy as np
import pytest
from rl_rows import small_rows

from ci.experiments.burst import burst_from, burst_trades, expectancies, rows_of, summary_of, table_of
from feature_repo.features import DECISION_V1
from policies.actor import standardised
from policies.types import Direction
from train.backtest import BacktestTrade
from train.rl.evaluate import constant

ROWS = small_rows()
VOLATILITY = DECISION_V1.names.index("log_vol_120")
TRAINING = ROWS.rows["BTC"].event_time_ms <= ROWS.ranges.training.stop_ms


def trades(direction: Direction = Direction.LONG) -> list[BacktestTrade]:
    """One at every 20th row of BTC, of alternating outcome."""
    times = ROWS.rows["BTC"].event_time_ms[::20]
    return [BacktestTrade("BTC", direction, int(time), int(time) + 60_000, "target", 1e-3 * (-1) ** place, 0.0)
            for place, time in enumerate(times)]


def test_only_trades_that_are_entered_in_the_highest_volatility_count() -> None:
    given = trades()
    earned, sizes = burst_trades(given, constant(0.6, 0, 0), ROWS)
    own = ROWS.rows["BTC"]
    limit = np.quantile(own.values[TRAINING, VOLATILITY], 0.75)
    wild = [own.values[np.searchsorted(own.event_time_ms, trade.entry_time_ms), VOLATILITY] > limit for trade in given]
    assert burst_from(ROWS, "BTC") == limit
    assert 0 < sum(wild) < len(given)
    assert earned.tolist() == [trade.net_return for trade, counts in zip(given, wild, strict=True) if counts]
    assert sizes == pytest.approx(0.6)


def test_the_size_is_that_of_the_moment_of_the_decision_in_the_trades_direction() -> None:
    seen: list[np.ndarray] = []

    def listening(rows: np.ndarray) -> np.ndarray:
        seen.append(rows[0, :60].copy())
        return np.array([[0.5, 0.0, 0.0]])

    given = trades(Direction.SHORT)
    _, sizes = burst_trades(given, listening, ROWS)
    assert sizes == pytest.approx(-0.5)
    own = ROWS.rows["BTC"]
    at_entry = own.values[np.isin(own.event_time_ms, [trade.entry_time_ms for trade in given])]
    known = {row.tobytes() for row in standardised(at_entry, ROWS.standard.mean, ROWS.standard.scale)}
    assert seen
    assert {row.tobytes() for row in seen} <= known


def test_right_sizing_raises_what_a_unit_earns_and_wrong_sizing_lowers_it() -> None:
    earned = np.array([2e-3, -1e-3, 2e-3, -1e-3])
    right, wrong = np.array([1.0, 0.5, 1.0, 0.5]), np.array([0.5, 1.0, 0.5, 1.0])
    assert expectancies(earned, np.ones(4))["unit_bp"] == pytest.approx(5.0)
    assert expectancies(earned, right)["unit_bp"] == pytest.approx(10.0)
    assert expectancies(earned, right)["with_bp"] == pytest.approx(7.5)
    assert expectancies(earned, wrong)["unit_bp"] == pytest.approx(0.0)
    assert expectancies(earned[:0], right[:0])["trades"] == 0
    assert expectancies(earned, np.zeros(4))["unit_bp"] is None


def test_the_summary_is_over_seeds_and_says_when_nothing_can_be_told() -> None:
    rows = [row for seed in (1, 2, 3) for row in rows_of("planted", seed, trades(), constant(0.1 * seed, 0, 0), ROWS)]
    assert [row["weight"] for row in rows] == [0.25, 1.0] * 3
    found = summary_of("planted", 1.0, rows)
    assert "over 3 seeds" in found.detail["said"]
    assert found.met is False  # the same factor everywhere changes nothing per unit
    assert summary_of("recorded", 1.0, rows).met is None
    assert table_of(rows).row_count == 6
