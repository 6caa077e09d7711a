from __future__ import annotations

import copy
import json
import math
import os
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from hyperliquid_wire import level, made_candles

from feature_repo.feeds import events
from feature_repo.feeds.events import Funding, MalformedMessage, Mid, Quote, Trade

T0 = 1_750_000_020_000
BOOK = {"coin": "BTC", "time": T0, "levels": [[level(10, 1), level(9, 2)], [level(11, 3), level(12, 4)]]}
QUOTE = {"coin": "BTC", "time": T0, "bbo": [level(10, 1), level(11, 3)]}
TRADE = {"coin": "BTC", "side": "A", "px": "10.5", "sz": "0.25", "time": T0, "hash": "0x0", "tid": 77}
FUNDING = {"coin": "BTC", "fundingRate": "-0.0001", "premium": "0", "time": T0}


def test_wire_is_read_as_it_is_meant() -> None:
    assert events.funding(FUNDING) == Funding("BTC", T0, -0.0001)
    assert events.trade(TRADE, 5) == Trade("BTC", T0, 5, 10.5, 0.25, "sell", 77)
    assert events.trade({**TRADE, "side": "B"}, 5).side == "buy"
    assert events.quote(QUOTE, 5) == Quote("BTC", T0, 5, 10.0, 1.0, 11.0, 3.0)
    assert events.quote({**QUOTE, "bbo": [None, level(11, 3)]}, 5) == Quote("BTC", T0, 5, None, None, 11.0, 3.0)
    assert events.mids({"BTC": "10.5"}, 5) == events.mids({"mids": {"BTC": "10.5"}}, 5) == {"BTC": Mid("BTC", 5, 10.5)}
    book = events.book(BOOK, 5)
    assert (book.bids.tolist(), book.asks.tolist()) == ([[10, 1], [9, 2]], [[11, 3], [12, 4]])


def test_book_may_have_an_empty_side() -> None:
    book = events.book({**BOOK, "levels": [[], [level(11, 3)]]}, 5)
    assert (book.bids.shape, book.asks.shape) == ((0, 2), (1, 2))


@pytest.mark.parametrize("levels", [
    [[level(9, 2), level(10, 1)], [level(11, 3)]], [[level(10, 1)], [level(12, 4), level(11, 3)]],
    [[level(10, 1), level(10, 1)], [level(11, 3)]],
    [[level(10, 0)], []], [[level(math.nan, 1)], []], [[level(10, math.inf)], []], [[]], None, [[{"px": "1"}], []]])
def test_book_that_is_unsorted_or_not_numbers_is_malformed(levels: Any) -> None:
    with pytest.raises(MalformedMessage):
        events.book({**BOOK, "levels": levels}, 5)


def test_sides_that_cross_for_a_moment_are_what_the_venue_says() -> None:
    """Features of both sides are then missing; an older book would be taken for the present one."""
    crossed = events.book({**BOOK, "levels": [[level(12, 1)], [level(11, 3)]]}, 5)
    assert (crossed.bids[0, 0], crossed.asks[0, 0]) == (12, 11)
    assert events.quote({**QUOTE, "bbo": [level(12, 1), level(11, 3)]}, 5).bid_price == 12


def test_a_coin_without_a_price_has_no_mid_and_the_others_have() -> None:
    assert set(events.mids({"mids": {"BTC": "100.5", "DEAD": "0.0"}}, 5)) == {"BTC"}


@pytest.mark.parametrize(("parse", "wire"), [
    (events.candle, made_candles("BTC", "1m", T0, 1)[0]), (events.funding, FUNDING),
    (lambda wire: events.book(wire, 5), BOOK), (lambda wire: events.quote(wire, 5), QUOTE),
    (lambda wire: events.trade(wire, 5), TRADE)])
def test_every_field_that_is_missing_or_of_another_kind_is_malformed(parse: Any, wire: dict[str, Any]) -> None:
    parse(copy.deepcopy(wire))
    unread = {"T", "premium", "hash"}
    for key in wire.keys() - unread:
        bad_ones: list[Any] = [None, [], {}, "", True, [1, 2], -10**30]
        bad_ones += [] if key in ("coin", "s") else ["nan", "-inf", "1e999"]
        for changed in ({name: value for name, value in wire.items() if name != key},
                        *({**wire, key: bad} for bad in bad_ones)):
            with pytest.raises(MalformedMessage):
                parse(changed)
    for nothing in (None, [], "x", 3, {}):
        with pytest.raises(MalformedMessage):
            parse(nothing)


@pytest.fixture
def data_dir() -> Path:
    if "HUB_DATA_DIR" not in os.environ:
        pytest.skip("needs recorded data: HUB_DATA_DIR is not set")
    return Path(os.environ["HUB_DATA_DIR"])


def message(data_dir: Path, name: str) -> dict[str, Any]:
    found = json.loads((data_dir / "hyperliquid_payloads" / f"{name}.json").read_text())
    return found.get("server_message", found)["data"]  # type: ignore[no-any-return]


def test_recorded_messages_of_the_websocket_hold_what_is_read(data_dir: Path) -> None:
    wire = message(data_dir, "ws_candle_HYPE")
    candle = events.candle(wire)
    assert [candle.open, candle.high, candle.low, candle.close, candle.volume] == [float(wire[key]) for key in "ohlcv"]
    assert (candle.close_time_ms, candle.trades) == (wire["T"] + 1, wire["n"])
    wire = message(data_dir, "ws_bbo_HYPE")
    quote = events.quote(wire, 5)
    assert [quote.bid_price, quote.ask_price] == [float(side["px"]) for side in wire["bbo"]]
    [wire] = message(data_dir, "ws_trades_HYPE")
    trade = events.trade(wire, 5)
    assert (trade.trade_id, trade.side, trade.price) == (wire["tid"], "buy", float(wire["px"]))  # type: ignore[call-overload]
    for name in ("ws_allMids", "ws_allMids_20260512"):
        wire = message(data_dir, name)["mids"]
        assert {key: mid.price for key, mid in events.mids({"mids": wire}, 5).items()} == {
            key: float(price) for key, price in wire.items()}


@pytest.mark.parametrize("name", ["ws_l2Book_HYPE", "http_l2Book_DYDX.response", "http_l2Book_HYPE_spot_107.response",
                                  "http_l2Book_BTC_20251030.response"])
def test_recorded_books_hold_what_is_read(data_dir: Path, name: str) -> None:
    wire = json.loads((data_dir / "hyperliquid_payloads" / f"{name}.json").read_text())
    wire = wire["server_message"]["data"] if "server_message" in wire else wire
    book = events.book(wire, 5)
    for side, levels in ((book.bids, wire["levels"][0]), (book.asks, wire["levels"][1])):
        assert side.tolist() == [[float(one["px"]), float(one["sz"])] for one in levels]


@pytest.mark.parametrize("symbol", ["BTC", "ETH", "SOL"])
def test_recorded_books_of_minutes_are_all_accepted(data_dir: Path, symbol: str) -> None:
    frame = duckdb.sql(f"SELECT * FROM '{data_dir}/hyperliquid_l2/{symbol}_l2_20_20250903.parquet'").df()
    columns = {side: frame[[f"{side}_{what}_{k}" for k in range(20) for what in ("price", "size")]].to_numpy()
               for side in ("bid", "ask")}
    for place in range(len(frame)):
        sides = {side: columns[side][place].reshape(-1, 2) for side in columns}
        book = events.book({"coin": symbol, "time": T0, "levels": [[level(*one) for one in sides["bid"]],
                                                                   [level(*one) for one in sides["ask"]]]}, 5)
        assert np.array_equal(book.bids, sides["bid"])
        assert np.array_equal(book.asks, sides["ask"])
