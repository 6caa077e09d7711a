from __future__ import annotations

import json
import threading
from collections.abc import Callable

import pytest
from followed import Followed
from hyperliquid_server import HyperliquidServer
from hyperliquid_wire import level, made_candles, trade_rows
from waiting import eventually

from feature_repo.feeds.connection import ConnectionSettings
from feature_repo.feeds.hyperliquid_live import HyperliquidLive, LiveSettings
from feature_repo.feeds.hyperliquid_rest import HyperliquidRest
from policies.errors import InvalidInput, UnknownEntity

SECOND, MINUTE, HOUR = 1_000, 60_000, 3_600_000
T0 = 1_750_000_020_000 // HOUR * HOUR
SYMBOLS = ("BTC", "kPEPE")
Follow = Callable[..., Followed]


def counted(followed: Followed, name: str) -> int:
    return followed.live.counters().get(name, 0)


def test_trades_are_all_there_once_in_order_though_messages_repeat_and_cross(venue: HyperliquidServer,
                                                                             follow: Follow) -> None:
    venue.trades["BTC"] = trade_rows("BTC", T0 + 1, 200)
    venue.repeats, venue.reorder = 3, True
    followed = follow()
    venue.advance(T0 + 150 * SECOND)
    eventually(lambda: len(followed.live.recent_trades("BTC", 0)) == 200, "all trades")
    eventually(lambda: counted(followed, "repeated_trades") == 400, "all repeats")
    trades = followed.live.recent_trades("BTC", 0)
    assert [one.time_ms for one in trades] == [row["time"] for row in venue.trades["BTC"]]
    assert [one.trade_id for one in trades] == [row["tid"] for row in venue.trades["BTC"]]
    assert followed.live.recent_trades("BTC", trades[150].time_ms) == trades[150:]


def test_of_trades_during_a_cut_the_latest_ten_are_repaired_and_older_ones_are_lost(venue: HyperliquidServer,
                                                                                    follow: Follow) -> None:
    rows = venue.trades["BTC"] = trade_rows("BTC", T0 + 1, 90, every_ms=1_000)
    followed = follow()
    live = followed.live
    eventually(lambda: live.trades_unbroken_since("BTC") == T0, "subscribed to trades")
    venue.advance(rows[29]["time"])
    eventually(lambda: len(followed.live.recent_trades("BTC", 0)) == 30, "the trades before the cut")
    venue.refuse_connections = 10**6
    venue.cut()
    eventually(lambda: live.trades_unbroken_since("BTC") is None, "the cut was noticed")
    venue.advance(rows[59]["time"])
    venue.refuse_connections = 0
    eventually(followed.connected, "connected again")
    eventually(lambda: live.trades_unbroken_since("BTC") == rows[59]["time"], "subscribed to trades again")
    venue.advance(rows[-1]["time"])
    eventually(lambda: len(followed.live.recent_trades("BTC", 0)) >= 70, "the trades after the cut")
    assert [one.trade_id for one in followed.live.recent_trades("BTC", 0)] == [
        row["tid"] for row in rows[:30] + rows[50:]]


def test_book_quote_and_mid_are_the_latest_ones(venue: HyperliquidServer, follow: Follow) -> None:
    for place in range(20):
        bid, ask, time_ms = level(100 + place, 1), level(100.5 + place, 2), T0 + 1 + place * SECOND
        venue.books["BTC"].append({"coin": "BTC", "time": time_ms, "levels": [[bid], [ask]]})
        venue.quotes["BTC"].append({"coin": "BTC", "time": time_ms, "bbo": [bid, ask]})
    venue.reorder = True
    followed = follow()
    live = followed.live
    assert (live.latest_book("kPEPE"), live.latest_quote("kPEPE"), live.mid("kPEPE")) == (None, None, None)
    venue.advance(T0 + 30 * SECOND)
    eventually(lambda: live.mid("BTC") is not None, "the mid")
    book, quote, mid = live.latest_book("BTC"), live.latest_quote("BTC"), live.mid("BTC")
    assert book is not None and quote is not None and mid is not None  # noqa: PT018
    assert (book.bids.tolist(), book.asks.tolist()) == ([[119.0, 1.0]], [[119.5, 2.0]])
    assert (quote.bid_price, quote.ask_price, mid.price) == (119.0, 119.5, 119.25)


def test_feed_that_dies_is_seen_by_its_age_while_others_stay_young(venue: HyperliquidServer, follow: Follow) -> None:
    for place in range(200):
        quote = [level(100, 1), level(101, 1)]
        venue.quotes["BTC"].append({"coin": "BTC", "time": T0 + 1 + place * SECOND, "bbo": quote})
        if place < 20:
            venue.books["BTC"].append({"coin": "BTC", "time": T0 + 1 + place * SECOND, "levels": [[quote[0]], []]})
    followed = follow()
    for second in (20, 180):
        venue.advance(T0 + second * SECOND)
        followed.read_all()
    ages = followed.live.ages(venue.now_ms)
    assert ages["bbo", "BTC"] == 0
    assert ages["l2Book", "BTC"] == 160 * SECOND
    assert ages["l2Book", "kPEPE"] == 180 * SECOND
    assert ages["trades", "BTC"] == 180 * SECOND


def test_silent_connection_is_given_up_and_made_anew(venue: HyperliquidServer, follow: Follow) -> None:
    impatient = LiveSettings(first_pause_s=0.01, longest_pause_s=0.02, look_s=0.01,
                             connection=ConnectionSettings(5.0, ping_s=0.05, silence_s=0.3))
    followed = follow(impatient)
    venue.silent = True
    venue.advance(T0 + 3 * MINUTE)
    eventually(lambda: venue.connections >= 3, "connections that were given up")
    assert "silent" in followed.live.last_problem
    venue.silent = False
    eventually(followed.connected, "subscribed again")
    venue.advance(T0 + 4 * MINUTE + 3 * SECOND)
    eventually(lambda: followed.candles_until(T0 + 4 * MINUTE), "all candles")
    followed.check(T0)


def test_quiet_connection_that_answers_pings_stands(venue: HyperliquidServer, follow: Follow) -> None:
    impatient = LiveSettings(look_s=0.01, connection=ConnectionSettings(5.0, ping_s=0.05, silence_s=0.4))
    followed = follow(impatient)
    before = counted(followed, "messages")
    eventually(lambda: counted(followed, "messages") >= before + 15, "pongs over more than the silence allowed")
    assert venue.connections == 1


@pytest.mark.parametrize("text", [
    "", "{", "7", "null", "[]", '"x"', "{}", '{"channel": 7}', '{"channel": "l2Book"}',
    '{"channel": "trades", "data": 3}', '{"channel": "trades", "data": [{"coin": "BTC", "px": "NaN"}]}',
    '{"channel": "candle", "data": {"s": "BTC", "i": "1m"}}', '{"channel": "l2Book", "data": {"coin": "BTC"}}',
    '{"channel": "bbo", "data": {"coin": "BTC", "time": 5, "bbo": [{"px": "-2", "sz": "1"}, {"px": "1", "sz": "1"}]}}',
    '{"channel": "allMids", "data": {"mids": {"BTC": "high"}}}', '{"channel": "subscriptionResponse", "data": 1}'])
def test_malformed_message_is_counted_and_the_feed_goes_on(venue: HyperliquidServer, follow: Follow,
                                                           text: str) -> None:
    followed = follow()
    venue.send_text(text)
    eventually(lambda: counted(followed, "malformed") == 1, "the malformed message")
    followed.past_close(T0 + MINUTE)
    eventually(lambda: followed.candles_until(T0 + MINUTE), "the first candle")
    followed.check(T0)
    assert venue.connections == 1


def test_good_trades_of_a_message_with_a_bad_one_are_kept(venue: HyperliquidServer, follow: Follow) -> None:
    rows = trade_rows("BTC", T0 + 1, 3)
    followed = follow()
    venue.send_text(json.dumps({"channel": "trades", "data": [rows[0], {**rows[1], "sz": "0"}, rows[2]]}))
    eventually(lambda: counted(followed, "malformed") == 1, "the bad trade")
    eventually(lambda: len(followed.live.recent_trades("BTC", 0)) == 2, "the good ones")


def test_refusals_and_what_was_not_asked_for_are_counted(venue: HyperliquidServer, follow: Follow) -> None:
    followed = follow()
    venue.send_text('{"channel": "error", "data": "Invalid subscription"}')
    venue.send_text(json.dumps({"channel": "candle", "data": made_candles("DOGE", "1m", T0, 1)[0]}))
    venue.send_text('{"channel": "news", "data": 1}')
    eventually(lambda: counted(followed, "unexpected") == 2, "two messages that nobody asked for")
    assert counted(followed, "refused") == 1
    assert "Invalid subscription" in followed.live.last_problem


def test_server_that_refuses_connections_is_tried_until_it_accepts(venue: HyperliquidServer, follow: Follow) -> None:
    venue.refuse_connections = 4
    followed = follow()
    assert (venue.refuse_connections, counted(followed, "connections")) == (0, 1)
    assert "503" in followed.live.last_problem


def test_stop_ends_its_threads_and_leaves_what_waits(venue: HyperliquidServer, follow: Follow) -> None:
    followed = follow(from_ms=T0 - 10 * MINUTE)
    eventually(lambda: followed.live.wait_for_rows(1.0), "rows")
    eventually(lambda: counted(followed, "backfilled_rows") == 18, "all but the youngest")
    followed.live.stop()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("hyperliquid-") and
                thread.name != "hyperliquid-server"]
    venue.advance(T0 + 5 * MINUTE)
    assert len(followed.live.take_candles("BTC")) == 9
    assert followed.live.take_candles("BTC") == []


def test_what_cannot_be_followed_is_refused_at_once(venue: HyperliquidServer, follow: Follow) -> None:
    rest = HyperliquidRest(SYMBOLS, venue.url)
    with pytest.raises(UnknownEntity, match="DOGE"):
        HyperliquidLive(("DOGE",), rest)
    with pytest.raises(InvalidInput, match="intervals"):
        HyperliquidLive(SYMBOLS, rest, settings=LiveSettings(("7m",)))
    with pytest.raises(InvalidInput, match="ws_url"):
        HyperliquidLive(SYMBOLS, rest, "http://x")
    followed = follow()
    with pytest.raises(InvalidInput, match="once"):
        followed.live.start()
    with pytest.raises(UnknownEntity, match="5m"):
        followed.live.take_candles("BTC", "5m")
