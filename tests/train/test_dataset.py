"""Labels are the engine's own fills, and no slice of time sees into another."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest

from policies.bars import Bars
from policies.errors import InvalidInput
from policies.fills import BracketTrade, Costs, bar_at
from policies.types import Action, Direction
from train.dataset import (
    FLAT,
    LONG,
    SHORT,
    Brackets,
    Dataset,
    FeatureRows,
    build_dataset,
    label_rows,
    rows_by_symbol,
    split_by_time,
)

MINUTE = 60_000
BRACKETS = Brackets(horizon_bars=5, tp_pct=0.004, sl_pct=0.003)


def walk(symbol: str = "BTC", n: int = 300, seed: int = 0) -> Bars:
    rng = np.random.default_rng(seed)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 0.002, n)))
    opens = np.concatenate([[100.0], close[:-1]])
    high, low = np.maximum(opens, close) * 1.0005, np.minimum(opens, close) * 0.9995
    return Bars(symbol, MINUTE, np.arange(n, dtype=np.int64) * MINUTE, opens, high, low, close, np.ones(n))


def every_bar(bars: Bars, seed: int = 0) -> FeatureRows:
    return FeatureRows(bars.close_time_ms, np.random.default_rng(seed).normal(size=(len(bars), 3)))


def test_a_label_is_what_each_side_would_have_earned() -> None:
    bars = walk()
    dataset = label_rows(bars, every_bar(bars), BRACKETS, Costs())
    assert len(dataset) >= len(bars) - BRACKETS.horizon_bars
    for place in range(0, len(dataset) - 6, 7):
        entry = int(dataset.event_time_ms[place]) // MINUTE
        for direction, expected in ((Direction.LONG, dataset.long_return), (Direction.SHORT, dataset.short_return)):
            action = Action(direction, 0.1, BRACKETS.leverage, BRACKETS.tp_pct, BRACKETS.sl_pct)
            trade = BracketTrade(action, entry * MINUTE, 100.0, 1_000.0, BRACKETS.horizon_bars, MINUTE)
            closed = next(c for i in range(entry, len(bars)) if (c := trade.step(bar_at(bars, i))))
            assert expected[place] == closed.net_return_on_margin


def test_the_class_is_the_side_that_earns_more_or_flat_if_neither_earns() -> None:
    bars = walk()
    dataset = label_rows(bars, every_bar(bars), BRACKETS, Costs())
    for long, short, label in zip(dataset.long_return, dataset.short_return, dataset.classes, strict=True):
        assert label == (FLAT if max(long, short) <= 0 else LONG if long >= short else SHORT)
    assert set(dataset.classes) == {SHORT, FLAT, LONG}


def test_a_row_whose_trade_would_cross_a_gap_or_the_end_is_left_out() -> None:
    bars = walk()
    kept = np.r_[0:100, 150:300]
    gappy = Bars("BTC", MINUTE, *(getattr(bars, name)[kept] for name in
                                  ("open_time_ms", "open", "high", "low", "close", "volume")))
    dataset = label_rows(gappy, every_bar(gappy), BRACKETS, Costs())
    whole = label_rows(bars, every_bar(bars), BRACKETS, Costs())
    assert 100 * MINUTE not in dataset.event_time_ms
    assert dataset.event_time_ms.max() < 300 * MINUTE
    shared = np.isin(whole.event_time_ms, dataset.event_time_ms)
    assert shared.sum() == len(dataset)
    np.testing.assert_array_equal(whole.long_return[shared], dataset.long_return)


def test_rows_without_a_required_feature_are_left_out_and_optional_ones_may_be_missing() -> None:
    bars = walk()
    rows = every_bar(bars)
    rows.values[10, 0] = rows.values[20, 2] = np.nan
    dataset = build_dataset({"BTC": bars}, {"BTC": rows}, np.array([True, True, False]), BRACKETS, Costs())
    assert 11 * MINUTE not in dataset.event_time_ms
    assert 21 * MINUTE in dataset.event_time_ms


def two_symbols() -> Dataset:
    bars = {"BTC": walk("BTC", seed=1), "ETH": walk("ETH", seed=2)}
    return build_dataset(bars, {s: every_bar(b) for s, b in bars.items()}, np.ones(3, bool), BRACKETS, Costs())


def test_rows_are_in_the_order_of_time_then_symbol() -> None:
    dataset = two_symbols()
    order = list(zip(dataset.event_time_ms.tolist(), dataset.symbol.tolist(), strict=True))
    assert order == sorted(order)
    assert set(dataset.symbol) == {"BTC", "ETH"}


def test_no_label_of_a_slice_looks_into_the_next_one() -> None:
    embargo_ms = (BRACKETS.horizon_bars + 1) * MINUTE
    slices = split_by_time(two_symbols(), (0.5, 0.3, 0.2), embargo_ms)
    assert all(map(len, slices))
    for earlier, later in itertools.pairwise(slices):
        assert earlier.event_time_ms.max() + embargo_ms <= later.event_time_ms.min()


def test_without_an_embargo_the_slices_lose_only_rows_on_the_edges() -> None:
    dataset = two_symbols()
    slices = split_by_time(dataset, (0.5, 0.5), 0)
    assert sum(map(len, slices)) - len(dataset) in (0, 2)


@pytest.mark.parametrize("shares", [(), (0.5, 0.4), (1.2, -0.2), (float("nan"),)])
def test_senseless_shares_are_refused(shares: tuple[float, ...]) -> None:
    with pytest.raises(InvalidInput, match="shares"):
        split_by_time(two_symbols(), shares, 0)


def test_a_training_frame_becomes_rows_in_the_order_of_time() -> None:
    frame = pd.DataFrame({"symbol": ["B", "A", "A"], "b": [1.0, 2.0, 3.0], "a": [4.0, 5.0, np.nan],
                          "event_timestamp": pd.to_datetime([3_000, 2_000, 1_000], unit="ms", utc=True)})
    rows = rows_by_symbol(frame, ("a", "b"))
    assert rows["A"].event_time_ms.tolist() == [1_000, 2_000]
    np.testing.assert_array_equal(rows["A"].values, [[np.nan, 3.0], [5.0, 2.0]])
    assert rows["B"].values.tolist() == [[4.0, 1.0]]
