from __future__ import annotations

import numpy as np
import pytest

from feature_repo.feeds.candle_follower import CandleFollower
from feature_repo.feeds.events import Candle

MINUTE = 60_000
T0 = 1_750_000_020_000


def state(place: int, trades: int = 3) -> Candle:
    return Candle("BTC", MINUTE, T0 + place * MINUTE, 100.0, 101.0, 99.0, 100.0 + trades / 10, float(trades), trades)


def places(candles: list[Candle]) -> list[int]:
    return [(candle.open_time_ms - T0) // MINUTE for candle in candles]


def after(place: int, ms: int) -> int:
    """So many ms after this candle's close."""
    return T0 + (place + 1) * MINUTE + ms


@pytest.fixture
def follower() -> CandleFollower:
    return CandleFollower(MINUTE, T0, settle_ms=500, grace_ms=2_000, absent_after_ms=120_000)


def test_candle_is_handed_out_once_when_a_newer_one_is_seen_and_it_had_time_to_settle(follower: CandleFollower) -> None:
    follower.see(state(0), after(0, -1))
    assert follower.ready(after(0, 5_000)) == []
    follower.see(state(1, 1), after(0, 50))
    assert follower.ready(after(0, 549)) == []
    assert follower.ready(after(0, 550)) == [state(0)]
    assert follower.ready(after(0, 550)) == []


def test_backlog_that_comes_late_has_time_to_settle_too(follower: CandleFollower) -> None:
    now = after(0, 30_000)
    for one in (state(0, 2), state(1, 1), state(0, 3)):
        follower.see(one, now)
        assert follower.ready(now) == []
    assert follower.ready(now + 500) == [state(0, 3)]


def test_older_candles_do_not_wait_for_the_newest_to_settle(follower: CandleFollower) -> None:
    for place in range(4):
        follower.see(state(place), after(3, 0))
    assert places(follower.ready(after(3, 0))) == [0, 1]
    assert places(follower.ready(after(3, 500))) == [2]


def test_last_state_counts_whatever_the_order_of_messages(follower: CandleFollower) -> None:
    for one in (state(0, 1), state(0, 3), state(1, 1), state(0, 2), state(0, 3)):
        follower.see(one, after(0, 10))
    assert follower.ready(after(0, 600)) == [state(0, 3)]


def test_state_after_the_hand_out_is_counted_and_changes_nothing(follower: CandleFollower) -> None:
    follower.see(state(0, 2), after(0, -1))
    follower.see(state(1, 1), after(0, 1))
    assert follower.ready(after(0, 600)) == [state(0, 2)]
    follower.see(state(0, 2), after(0, 610))
    assert follower.late == 0
    follower.see(state(0, 3), after(0, 620))
    assert follower.late == 1
    assert follower.ready(after(0, 700)) == []


def test_candle_that_was_open_when_the_connection_was_cut_is_fetched(follower: CandleFollower) -> None:
    follower.see(state(0, 2), after(0, -9))
    follower.cut()
    follower.see(state(1, 3), after(1, -9))
    follower.see(state(2, 1), after(1, 9))
    assert follower.ready(after(1, 1_999)) == []
    assert follower.missing(after(0, 1_999)) is None
    assert follower.missing(after(0, 2_000)) == (T0, T0 + MINUTE)
    assert follower.fetched(T0, [state(0, 3)], after(1, 1_999)) == [state(0, 3)]
    assert follower.ready(after(1, 1_999)) == [state(1, 3)]


def test_nothing_newer_is_handed_out_before_the_gap_is_repaired(follower: CandleFollower) -> None:
    for place in range(3, 7):
        follower.see(state(place), after(place - 1, 9))
    now = after(5, 3_000)
    assert follower.ready(now) == []
    assert follower.missing(now) == (T0, T0 + 6 * MINUTE)
    assert places(follower.fetched(T0, [state(place) for place in range(3)], now)) == [0, 1, 2]
    assert places(follower.ready(now)) == [3, 4, 5]


def test_quiet_minute_is_fetched_though_no_newer_candle_was_seen(follower: CandleFollower) -> None:
    assert follower.missing(after(0, 2_000)) == (T0, T0 + MINUTE)
    assert follower.fetched(T0, [state(0, 0)], after(0, 2_100)) == [state(0, 0)]


def test_what_the_history_does_not_have_yet_is_asked_for_again(follower: CandleFollower) -> None:
    follower.see(state(1), after(0, 9))
    now = after(0, 3_000)
    assert follower.fetched(T0, [], now) == []
    assert follower.missing(now) == (T0, T0 + MINUTE)


def test_what_the_history_never_has_is_given_up_and_counted(follower: CandleFollower) -> None:
    for place in (2, 3):
        follower.see(state(place), after(place - 1, 9))
    now = after(0, 120_000)
    assert follower.fetched(T0, [], now - 1) == []
    assert follower.fetched(T0, [], now) == []
    assert follower.absent == 2
    assert places(follower.ready(after(3, 0))) == [2]
    assert places(follower.fetched(T0 + 3 * MINUTE, [state(5)], after(5, 2_000))) == [5]
    assert follower.absent == 4


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_messages_cuts_and_fetches_ends_with_every_candle_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    follower = CandleFollower(MINUTE, T0)
    out: list[Candle] = []
    for now in range(T0, T0 + 60 * MINUTE, 5_000):
        newest = (now - T0) // MINUTE
        for place in (newest - 1, newest):
            share = min(1.0, (now - T0 - place * MINUTE) / MINUTE)
            if place >= 0 and rng.random() < 0.7:
                follower.see(state(place, int(9 * share)), now)
        if rng.random() < 0.1:
            follower.cut()
            continue
        if (now - T0) % MINUTE >= 55_000:  # a standing connection says the last of a candle
            follower.see(state(newest, 9), now)
        out += follower.ready(now)
        if rng.random() < 0.2 and (span := follower.missing(now)) is not None:
            first, stop = ((one - T0) // MINUTE for one in span)
            out += follower.fetched(span[0], [state(place, 9) for place in range(first, stop)], now)
    assert places(out) == list(range(len(out)))
    assert len(out) >= 50
    assert follower.absent == 0
