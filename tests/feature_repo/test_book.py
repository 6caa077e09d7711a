from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from feature_repo.book import (
    FLOW_WINDOW_MS,
    Books,
    Quotes,
    Trades,
    depth_features,
    flow_features,
    quote_features,
    sampled,
)
from feature_repo.features import DEPTH, FLOW, GROUPS, QUOTE
from feature_repo.frames import GroupFrame
from policies.errors import InvalidInput

NOW = 1_700_000_000_000
NAN = math.nan
BOTH_SIDED = ["spread_bps", "imbalance_1", "microprice_bps"]


def quotes(*rows: tuple[int, float, float, float, float]) -> Quotes:
    """rows: (ms after NOW, bid price, bid size, ask price, ask size)."""
    values = np.array([row[1:] for row in rows], np.float64).reshape(len(rows), 4)
    return Quotes("BTC", np.array([NOW + row[0] for row in rows], np.int64), *values.T)


def side(*levels: tuple[float, float]) -> tuple[list[float], list[float]]:
    return [price for price, _ in levels], [size for _, size in levels]


def book(bids: list[tuple[float, float]], asks: list[tuple[float, float]], levels: int = 20) -> Books:
    padded = [np.array([[pair[what] for pair in one] + [NAN] * (levels - len(one))]) for one in (bids, asks)
              for what in (0, 1)]
    return Books("BTC", np.array([NOW], np.int64), *padded)


def trades(*rows: tuple[int, float, float, bool]) -> Trades:
    """rows: (ms after NOW, price, size, whether bought)."""
    columns = [np.array([row[i] for row in rows], kind) for i, kind in ((1, np.float64), (2, np.float64), (3, bool))]
    return Trades("BTC", np.array([NOW + row[0] for row in rows], np.int64), *columns)


def random_quotes(count: int, seed: int = 0) -> Quotes:
    """Some crossed, some one-sided, some at the same time as the one before."""
    rng = np.random.default_rng(seed)
    bid = 100 + rng.normal(0, 1, count)
    ask = bid + rng.normal(0.02, 0.01, count)
    columns = [bid, rng.exponential(5, count) + 0.01, ask, rng.exponential(5, count) + 0.01]
    for first in (0, 2):
        gone = rng.random(count) < 0.1
        columns[first][gone] = columns[first + 1][gone] = NAN
    return Quotes("BTC", NOW + np.cumsum(rng.integers(0, 900, count)), *columns)


def random_books(count: int, seed: int = 0) -> Books:
    rng = np.random.default_rng(seed)
    depth = rng.integers(0, 21, (2, count, 1))
    columns = []
    for one, sign in enumerate((-1, 1)):
        price = 100 + sign * np.cumsum(rng.exponential(0.1, (count, 20)), axis=1)
        beyond = np.arange(20) >= depth[one]
        columns += [np.where(beyond, NAN, price), np.where(beyond, NAN, rng.exponential(5, (count, 20)) + 0.01)]
    return Books("BTC", NOW + np.cumsum(rng.integers(0, 900, count)), *columns)


def random_trades(count: int, seed: int = 0) -> Trades:
    rng = np.random.default_rng(seed)
    times = NOW + np.cumsum(rng.choice([0, 0, 40, 700, 70_000], count, p=[0.4, 0.2, 0.2, 0.19, 0.01]))
    price, size = 100 + rng.normal(0, 1, count), rng.exponential(3, count) + 1e-4
    return Trades("BTC", times, price, size, rng.random(count) < 0.6)


def row(frame: GroupFrame, place: int = -1) -> dict[str, float]:
    return dict(zip(GROUPS[frame.group].names, frame.values[place].tolist(), strict=True))


def same(one: GroupFrame, other: GroupFrame) -> bool:
    """To the last bit."""
    return (one.event_time_ms.tolist() == other.event_time_ms.tolist()
            and one.values.tobytes() == other.values.tobytes())


def test_quote_row_is_what_hand_computation_gives() -> None:
    frame = quote_features(quotes((7, 99.0, 3.0, 101.0, 1.0)))
    assert frame.group == QUOTE
    assert frame.event_time_ms.tolist() == [NOW + 7]
    assert row(frame) == pytest.approx({
        "best_bid": 99.0, "best_ask": 101.0, "bid_size": 3.0, "ask_size": 1.0, "spread_bps": 200.0, "imbalance_1": 0.5,
        "microprice_bps": 50.0})  # (99 * 1 + 101 * 3) / 4 = 100.5 against a mid of 100


@pytest.mark.parametrize(("bid", "ask"), [(101.0, 99.0), (100.0, 100.0), (100.0, NAN), (NAN, 100.0), (NAN, NAN)])
def test_without_two_sides_that_are_apart_there_is_no_number_that_needs_both(bid: float, ask: float) -> None:
    sizes = [NAN if math.isnan(price) else 2.0 for price in (bid, ask)]
    values = row(quote_features(quotes((0, 99.0, 1.0, 101.0, 1.0), (5, bid, sizes[0], ask, sizes[1]))))
    assert all(math.isnan(values[name]) for name in BOTH_SIDED)
    assert [values["best_bid"], values["best_ask"], values["bid_size"], values["ask_size"]] == pytest.approx(
        [bid, ask, *sizes], nan_ok=True)


def test_depth_row_is_what_hand_computation_gives() -> None:
    bids = [(100.0 - i, 1.0 + i) for i in range(20)]
    asks = [(101.0 + i, 2.0) for i in range(3)]
    frame = depth_features(book(bids, asks))
    assert frame.group == DEPTH
    b5, b20 = (sum(price * size for price, size in bids[:k]) for k in (5, 20))
    a = 2.0 * (101 + 102 + 103)
    assert row(frame) == pytest.approx({
        "bid_depth_5": b5, "ask_depth_5": a, "bid_depth_20": b20, "ask_depth_20": a, "imbalance_5": (b5 - a) / (b5 + a),
        "imbalance_20": (b20 - a) / (b20 + a)})


def test_book_whose_sides_are_crossed_or_absent_has_no_imbalance() -> None:
    crossed = row(depth_features(book([(101.0, 1.0)], [(100.0, 2.0)])))
    assert (crossed["bid_depth_5"], crossed["ask_depth_20"]) == (101.0, 200.0)
    absent = row(depth_features(book([(100.0, 1.0)], [])))
    assert absent["bid_depth_20"] == 100.0
    assert math.isnan(absent["ask_depth_5"])
    assert math.isnan(absent["ask_depth_20"])
    for values in (crossed, absent):
        assert math.isnan(values["imbalance_5"])
        assert math.isnan(values["imbalance_20"])


def test_one_quote_or_book_at_a_time_gives_the_rows_of_the_history_to_the_last_bit() -> None:
    for history, features in ((random_quotes(400), quote_features), (random_books(400), depth_features)):
        whole = features(history)
        for place, at in enumerate(sampled(history.event_time_ms, every_ms=1)):
            assert same(features(history.take(np.array([at]))), whole.slice(place, place + 1))


def test_flow_row_is_what_hand_computation_gives() -> None:
    frame = flow_features(trades((0, 100.0, 1.0, True), (10, 100.0, 3.0, False), (60_000, 50.0, 4.0, True)))
    assert frame.group == FLOW
    assert frame.values == pytest.approx(np.array([[1.0, 100.0], [-0.5, 400.0], [-0.2, 500.0]]))


def test_trade_is_counted_for_less_than_60_s() -> None:
    edge = flow_features(trades((0, 100.0, 1.0, True), (59_999, 1.0, 1.0, True), (60_000, 1.0, 1.0, True)))
    assert edge.values[:, 1].tolist() == [100.0, 101.0, 2.0]


def test_trades_received_together_are_in_one_row() -> None:
    frame = flow_features(trades((3, 100.0, 1.0, True), (3, 100.0, 1.0, False), (3, 100.0, 2.0, True)))
    assert frame.event_time_ms.tolist() == [NOW + 3]
    assert frame.values.tolist() == [[0.5, 400.0]]


def test_flow_is_what_brute_force_gives() -> None:
    history = random_trades(3_000)
    usd = history.price * history.size
    frame = flow_features(history)
    for time_ms, values in zip(frame.event_time_ms, frame.values, strict=True):
        inside = (history.event_time_ms > time_ms - FLOW_WINDOW_MS) & (history.event_time_ms <= time_ms)
        bought, sold = math.fsum(usd[inside & history.is_buy]), math.fsum(usd[inside & ~history.is_buy])
        assert values == pytest.approx([(bought - sold) / (bought + sold), bought + sold], rel=1e-12, abs=1e-12)
    assert (np.abs(frame.values[:, 0]) <= 1).all()


def test_flow_of_the_last_minute_alone_is_the_row_of_the_history_to_the_last_bit() -> None:
    history = random_trades(3_000)
    whole = flow_features(history)
    for place, time_ms in enumerate(whole.event_time_ms):
        first, end = np.searchsorted(history.event_time_ms, [time_ms - FLOW_WINDOW_MS, time_ms], "right")
        alone = flow_features(history.take(np.arange(first, end)))
        assert same(alone.slice(len(alone) - 1, len(alone)), whole.slice(place, place + 1))


def test_sample_is_the_last_row_of_its_bucket_with_its_own_time() -> None:
    times = np.array([0, 4_999, 5_000, 5_000, 5_001, 20_000], np.int64)
    assert sampled(times, every_ms=5_000).tolist() == [1, 4, 5]
    assert sampled(times, every_ms=1).tolist() == [0, 1, 3, 4, 5]
    assert sampled(times[:0]).tolist() == []
    with pytest.raises(InvalidInput, match="every_ms"):
        sampled(times, every_ms=0)


def test_of_equal_times_the_last_quote_wins() -> None:
    frame = quote_features(quotes((3, 99.0, 1.0, 101.0, 1.0), (3, 98.0, 1.0, 101.0, 1.0)))
    assert frame.values[:, 0].tolist() == [98.0]


@pytest.mark.parametrize("every_ms", [1_000, 60_000])
def test_samples_are_rows_of_the_whole_history(every_ms: int) -> None:
    for history, features in ((random_quotes(300), quote_features), (random_books(300), depth_features),
                              (random_trades(300), flow_features)):
        whole, few = features(history), features(history, every_ms)
        places = np.searchsorted(whole.event_time_ms, few.event_time_ms)
        assert 1 < len(few) < len(whole)
        assert same(few, GroupFrame(whole.group, whole.event_time_ms[places], whole.values[places]))


@pytest.mark.parametrize("seed", range(3))
def test_no_row_depends_on_anything_later(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for make, features in ((random_quotes, quote_features), (random_books, depth_features),
                           (random_trades, flow_features)):
        history = make(300, seed)
        cut_ms = int(history.event_time_ms[150])
        later = history.event_time_ms > cut_ms
        times = np.where(later, history.event_time_ms + rng.integers(1, 10**6), history.event_time_ms)
        changed = {name: np.where(later.reshape(-1, *[1] * (getattr(history, name).ndim - 1)),
                                  getattr(history, name) * 3, getattr(history, name))
                   for name in ("bid_size", "ask_price", "price") if hasattr(history, name)}
        known, garbled = features(history), features(replace(history, event_time_ms=times, **changed))
        count = known.until(cut_ms)
        assert garbled.until(cut_ms) == count > 50
        assert same(known.slice(0, count), garbled.slice(0, count))
        assert not same(known, garbled)


def test_nothing_in_gives_nothing_out() -> None:
    for history, features in ((random_quotes(1), quote_features), (random_books(1), depth_features),
                              (random_trades(1), flow_features)):
        assert len(features(history.take(np.empty(0, np.int64)))) == 0


@pytest.mark.parametrize(("column", "value"), [
    ("bid_price", 0.0), ("bid_price", -1.0), ("ask_price", math.inf), ("ask_size", 1e16), ("bid_size", 0.0),
    ("bid_price", NAN), ("ask_size", NAN),  # a price without a size, a size without a price
])
def test_quote_that_cannot_be_is_refused_by_row_column_and_value(column: str, value: float) -> None:
    fine = quotes(*[(i, 99.0, 1.0, 101.0, 1.0) for i in range(4)])
    broken = getattr(fine, column).copy()
    broken[2] = value
    with pytest.raises(InvalidInput, match=r"quotes\.BTC\[2\]\.(bid|ask)_") as refused:
        replace(fine, **{column: broken})
    assert refused.value.value in (repr(value), "1.0", "99.0", "101.0")


@pytest.mark.parametrize(("column", "place", "value", "named"), [
    ("bid_price", (1, 1), 100.0, r"books\.BTC\[1, 1\]\.bid_price"),  # not worse than the best
    ("ask_price", (1, 2), 102.0, r"books\.BTC\[1, 2\]\.ask_price"),
    ("ask_price", (1, 1), NAN, r"books\.BTC\[1, 1\]\.ask_"),
    ("bid_size", (0, 2), -1.0, r"books\.BTC\[0, 2\]\.bid_size"),
])
def test_book_that_cannot_be_is_refused(column: str, place: tuple[int, int], value: float, named: str) -> None:
    one = book([(100.0, 1.0), (99.0, 1.0), (98.0, 1.0)], [(101.0, 1.0), (102.0, 1.0), (103.0, 1.0)], levels=3)
    fine = one.take(np.array([0, 0]))
    broken = getattr(fine, column).copy()
    broken[place] = value
    with pytest.raises(InvalidInput, match=named):
        replace(fine, **{column: broken})


def test_level_after_a_missing_one_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"\[0, 2\]\.bid_price"):
        book([(100.0, 1.0), (NAN, NAN), (98.0, 1.0)], [(101.0, 1.0)])


@pytest.mark.parametrize("change", [
    {"price": np.array([1.0, NAN])}, {"size": np.array([1.0, 0.0])}, {"size": np.array([1.0])},
    {"event_time_ms": np.array([2, 1], np.int64)}, {"event_time_ms": np.array([1.0, 2.0])},
    {"is_buy": np.array([1, 0])},
])
def test_trade_that_cannot_be_is_refused(change: dict[str, Any]) -> None:
    fine = trades((0, 100.0, 1.0, True), (1, 100.0, 1.0, True))
    with pytest.raises(InvalidInput, match=next(iter(change))):
        replace(fine, **change)
