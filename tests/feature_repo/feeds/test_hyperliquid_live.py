from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest
from followed import Followed
from hyperliquid_server import HyperliquidServer
from hyperliquid_wire import candle_row, made_candles
from waiting import eventually

from feature_repo.feeds.hyperliquid_live import LiveSettings

SECOND, MINUTE, HOUR = 1_000, 60_000, 3_600_000
T0 = 1_750_000_020_000 // HOUR * HOUR
SYMBOLS = ("BTC", "kPEPE")
Follow = Callable[..., Followed]


def asked(venue: HyperliquidServer, kind: str) -> int:
    return [request["type"] for request in venue.requests].count(kind)


def counted(followed: Followed, name: str) -> int:
    return followed.live.counters().get(name, 0)


def test_standing_connection_brings_each_candle_at_its_close_without_a_question(venue: HyperliquidServer,
                                                                                follow: Follow) -> None:
    followed = follow()
    for minute in range(1, 31):
        followed.past_close(T0 + minute * MINUTE)
        eventually(lambda m=minute: followed.candles_until(T0 + m * MINUTE), "the candle that just closed")  # type: ignore[misc]
    followed.check(T0)
    assert asked(venue, "candleSnapshot") == 0
    assert counted(followed, "live_rows") == 60
    assert counted(followed, "connections") == 1


def test_history_comes_before_what_is_live_and_both_join_without_a_seam(venue: HyperliquidServer,
                                                                        follow: Follow) -> None:
    venue.most_candles = 5_000
    from_ms = T0 - 80 * MINUTE + 5
    followed = follow(from_ms=from_ms)
    for minute in range(1, 20):
        venue.advance(T0 + minute * MINUTE + 100)
    venue.advance(T0 + 20 * MINUTE + 5 * SECOND)
    eventually(lambda: followed.candles_until(T0 + 20 * MINUTE), "all candles")
    eventually(lambda: bool(followed.take().funding["BTC"]) and bool(followed.funding["kPEPE"]), "funding")
    followed.check(from_ms)
    assert followed.candles["BTC", "1m"][0].open_time_ms == T0 - 79 * MINUTE
    assert counted(followed, "backfilled_rows") == 2 * 79


@pytest.mark.parametrize("seed", range(4))
def test_whatever_fails_it_ends_with_exactly_the_rows_that_the_venue_held(venue: HyperliquidServer, follow: Follow,
                                                                          seed: int) -> None:
    rng = random.Random(seed)
    from_ms = T0 - 60 * MINUTE
    followed = follow(from_ms=from_ms)
    stop_ms = T0 + 100 * MINUTE + 5 * SECOND
    while venue.now_ms < stop_ms:
        fault = rng.random()
        if fault < 0.05:
            venue.cut()
        elif fault < 0.10:
            venue.cut_after = rng.randrange(8)
        elif fault < 0.15:
            venue.refuse(rng.randrange(1, 4), rng.choice([429, 500, 503]), rng.choice([None, "0"]))
        elif fault < 0.20:
            venue.refuse_connections = rng.randrange(1, 4)
        elif fault < 0.25:
            venue.send_text(rng.choice(["{", "[]", '{"channel": "candle", "data": {"s": "BTC"}}', "7"]))
        elif fault < 0.40:
            eventually(followed.connected, "connected again")
        venue.repeats = rng.choice([1, 1, 2])
        # A cut between two messages that changed places would lose the earlier one unseen; no client can tell.
        venue.reorder = venue.cut_after is None and rng.random() < 0.5
        venue.advance(min(stop_ms, venue.now_ms + rng.randrange(5, 90) * SECOND))
        followed.take()
        followed.read_all()
    eventually(lambda: followed.candles_until(T0 + 100 * MINUTE), "all candles")
    eventually(lambda: all(rows[-1].time_ms > T0 + HOUR for rows in followed.take().funding.values()), "funding")
    followed.check(from_ms)
    assert len(followed.candles["BTC", "1m"]) == 160
    assert counted(followed, "connections") > 1
    assert counted(followed, "repaired_rows") > 0
    assert counted(followed, "absent_candles") == 0


def test_candle_that_was_open_during_a_cut_is_not_taken_from_what_was_last_heard(venue: HyperliquidServer,
                                                                                 follow: Follow) -> None:
    followed = follow()
    venue.advance(T0 + 30 * SECOND)
    followed.read_all()
    venue.hold_answers(True)
    venue.cut()
    venue.advance(T0 + 70 * SECOND)
    eventually(followed.connected, "connected again")
    for second in (85, 86):
        venue.advance(T0 + second * SECOND)
        followed.read_all()
    eventually(lambda: asked(venue, "candleSnapshot") == 1, "the question for the first candle")
    assert followed.take().candles["BTC", "1m"] == []
    venue.hold_answers(False)
    eventually(lambda: followed.candles_until(T0 + MINUTE), "the first candle")
    followed.check(T0)
    assert counted(followed, "repaired_rows") == 2


def test_minute_without_a_trade_is_fetched(venue: HyperliquidServer, follow: Follow) -> None:
    for symbol in SYMBOLS:
        last = venue.candles[symbol, "1m"][89]
        venue.candles[symbol, "1m"][90:] = [candle_row(symbol, "1m", T0 + place * MINUTE, *[float(last["c"])] * 4, 0.0)
                                             for place in range(5)]
    followed = follow()
    venue.advance(T0 + 3 * MINUTE + 2 * SECOND)
    eventually(lambda: followed.candles_until(T0 + 3 * MINUTE), "candles without a trade")
    followed.check(T0)


def test_several_intervals_are_followed_each_by_itself(venue: HyperliquidServer, follow: Follow) -> None:
    for symbol in SYMBOLS:
        venue.candles[symbol, "5m"] = made_candles(symbol, "5m", T0 - 30 * MINUTE, 40)
    followed = follow(LiveSettings(("1m", "5m"), first_pause_s=0.01, longest_pause_s=0.05, look_s=0.01),
                      from_ms=T0 - 20 * MINUTE)
    venue.advance(T0 + 15 * MINUTE + 30 * SECOND)
    eventually(lambda: followed.candles_until(T0 + 15 * MINUTE), "all candles")
    followed.check(T0 - 20 * MINUTE)
    assert {key: len(rows) for key, rows in followed.candles.items()} == {
        (symbol, interval): count for symbol in SYMBOLS for interval, count in (("1m", 35), ("5m", 7))}


def test_questions_that_fail_for_long_are_asked_again_until_they_are_answered(venue: HyperliquidServer,
                                                                              follow: Follow) -> None:
    venue.refuse(12, 500)
    followed = follow(from_ms=T0 - 30 * MINUTE, retry_for_s=0.0)
    eventually(lambda: counted(followed, "failed_questions") >= 12, "every refusal met")
    venue.advance(T0 + 2 * MINUTE + 3 * SECOND)
    eventually(lambda: followed.candles_until(T0 + 2 * MINUTE), "all candles")
    eventually(lambda: all(followed.take().funding.values()), "funding")
    followed.check(T0 - 30 * MINUTE)
    assert "500" in followed.live.last_problem


def recorded(folder: Path, source: str, symbol: str) -> list[dict[str, Any]]:
    """6,000 minutes of one market, in the wire shape, under the name of `symbol`."""
    table = duckdb.sql(f"SELECT epoch_ms(timestamp), open, high, low, close, volume FROM "
                       f"'{folder}/hyperliquid/{source}_1m_20250721_20250726.parquet' "
                       f"WHERE timestamp >= '2025-07-21 20:00:00Z' ORDER BY 1 LIMIT 6000")
    return [candle_row(symbol, "1m", *row) for row in table.fetchall()]


@pytest.mark.skipif("HUB_DATA_DIR" not in os.environ, reason="needs recorded candles: HUB_DATA_DIR is not set")
def test_recorded_days_come_through_cuts_whole(venue: HyperliquidServer, follow: Follow) -> None:
    folder = Path(os.environ["HUB_DATA_DIR"])
    for symbol, source in (("BTC", "BTC"), ("kPEPE", "SOL")):
        venue.candles[symbol, "1m"] = recorded(folder, source, symbol)
        venue.funding[symbol] = []
    first_ms = venue.candles["BTC", "1m"][0]["t"]
    from_ms = first_ms + 1_000 * MINUTE
    venue.now_ms = first_ms + 5_500 * MINUTE
    followed = follow(from_ms=from_ms)
    for place in range(1, 50):
        venue.advance(first_ms + (5_500 + 10 * place) * MINUTE + 3 * SECOND)
        followed.take()
        if place % 7 == 0:
            venue.cut()
    stop_ms = first_ms + 5_990 * MINUTE
    eventually(lambda: followed.candles_until(stop_ms), "all recorded candles")
    followed.check(from_ms)
    assert [len(rows) for rows in followed.candles.values()] == [4_990, 4_990]
