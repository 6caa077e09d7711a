from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_time import FakeTime
from hyperliquid_server import HyperliquidServer
from hyperliquid_wire import candle_row, funding_rows, level, made_candles

from feature_repo.feeds.events import Candle, Funding, MarketUnavailable, Mid
from feature_repo.feeds.hyperliquid_rest import PAGE_CANDLES, HyperliquidRest, RestSettings
from policies.errors import InvalidInput, UnknownEntity

MINUTE, HOUR = 60_000, 3_600_000
T0 = 1_750_000_020_000 // HOUR * HOUR


@pytest.fixture
def server() -> Iterator[HyperliquidServer]:
    made = HyperliquidServer(T0)
    yield made
    made.close()


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


@pytest.fixture
def rest(server: HyperliquidServer, time: FakeTime) -> HyperliquidRest:
    return client(server, time)


def client(server: HyperliquidServer, time: FakeTime, **settings: float) -> HyperliquidRest:
    return HyperliquidRest(("BTC", "kPEPE", "HYPE"), server.url, RestSettings(**settings), now_ms=lambda: server.now_ms,
                           monotonic_s=time.monotonic_s, sleep=time.sleep, rng=random.Random(7))


def as_read(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["t"], *(float(row[key]) for key in "ohlcv")


def as_known(candle: Candle) -> tuple[Any, ...]:
    return candle.open_time_ms, candle.open, candle.high, candle.low, candle.close, candle.volume


def asked(server: HyperliquidServer, kind: str) -> int:
    return [request["type"] for request in server.requests].count(kind)


@pytest.mark.parametrize("interval", ["1m", "5m", "1h"])
def test_candles_are_the_closed_ones_within_the_range(server: HyperliquidServer, rest: HyperliquidRest,
                                                      interval: str) -> None:
    rows = server.candles["BTC", interval] = made_candles("BTC", interval, T0, 40)
    step_ms = rows[1]["t"] - rows[0]["t"]
    server.now_ms = T0 + 30 * step_ms + 7
    answer = rest.candles("BTC", interval, T0 + 3 * step_ms + 1, T0 + 35 * step_ms)
    assert list(map(as_known, answer.candles)) == list(map(as_read, rows[4:30]))
    assert answer.gaps == ()
    assert rest.candles("BTC", interval, T0 + 5 * step_ms, T0 + 7 * step_ms).candles == answer.candles[1:3]


def test_long_range_is_paged_without_gap_or_duplicate(server: HyperliquidServer, rest: HyperliquidRest) -> None:
    server.most_candles = 2 * PAGE_CANDLES + 500
    rows = server.candles["BTC", "1m"] = made_candles("BTC", "1m", T0, 2 * PAGE_CANDLES + 77)
    server.now_ms = rows[-1]["T"] + 1
    answer = rest.candles("BTC", "1m", T0, server.now_ms)
    assert list(map(as_known, answer.candles)) == list(map(as_read, rows))
    assert asked(server, "candleSnapshot") == 3


def test_only_what_the_venue_still_has_comes_and_is_no_gap(server: HyperliquidServer, rest: HyperliquidRest) -> None:
    rows = server.candles["BTC", "1m"] = made_candles("BTC", "1m", T0, 7_000)
    server.now_ms = rows[-1]["T"] + 1
    answer = rest.candles("BTC", "1m", T0, server.now_ms)
    assert [candle.open_time_ms for candle in answer.candles] == [row["t"] for row in rows[2_000:]]
    assert answer.gaps == ()


def test_minutes_that_the_venue_left_out_are_gaps_and_not_invented(server: HyperliquidServer,
                                                                   rest: HyperliquidRest) -> None:
    rows = made_candles("BTC", "1m", T0, 30)
    server.candles["BTC", "1m"] = rows[:5] + rows[6:20] + rows[23:]
    server.now_ms = rows[-1]["T"] + 1
    answer = rest.candles("BTC", "1m", T0, server.now_ms)
    assert len(answer.candles) == 26
    assert answer.gaps == ((T0 + 5 * MINUTE, T0 + 6 * MINUTE), (T0 + 20 * MINUTE, T0 + 23 * MINUTE))


@pytest.mark.parametrize("page", [1, 7, 500, 5_000])
def test_funding_is_complete_whatever_the_size_of_a_page(server: HyperliquidServer, rest: HyperliquidRest,
                                                         page: int) -> None:
    count = 40 if page < 500 else 1_038
    rows = server.funding["BTC"] = funding_rows("BTC", T0, count)
    server.funding_page, server.now_ms = page, rows[-1]["time"]
    settled = rest.funding("BTC", T0, server.now_ms + 1)
    assert settled == tuple(Funding("BTC", row["time"], float(row["fundingRate"])) for row in rows)
    assert rest.funding("BTC", rows[3]["time"], rows[9]["time"]) == settled[3:9]


def test_book_and_mids_are_read(server: HyperliquidServer, rest: HyperliquidRest) -> None:
    sides = [[level(100.5, 2), level(100.25, 1)], [level(100.75, 3)]]
    server.books["BTC"] = [{"coin": "BTC", "time": T0 - 5, "levels": sides}]
    server.quotes["BTC"] = [{"coin": "BTC", "time": T0 - 5, "bbo": [sides[0][0], sides[1][0]]}]
    book = rest.book("BTC")
    assert (book.symbol, book.time_ms, book.received_ms) == ("BTC", T0 - 5, T0)
    assert (book.bids.tolist(), book.asks.tolist()) == ([[100.5, 2.0], [100.25, 1.0]], [[100.75, 3.0]])
    assert rest.mids() == {"BTC": Mid("BTC", T0, 100.625)}


def test_refused_question_is_asked_again_with_growing_pauses(server: HyperliquidServer, rest: HyperliquidRest,
                                                             time: FakeTime) -> None:
    server.refuse(2, 429)
    server.refuse(2, 503)
    assert rest.perpetuals() == set()
    first_s = rest.settings.first_pause_s
    slept = [pause for pause in time.pauses if pause > 0]
    assert len(slept) == len(server.requests) - 1 == 4
    for tries, pause in enumerate(slept):
        assert first_s * 2**tries / 2 <= pause <= first_s * 2**tries
    assert len(set(slept)) == 4


@pytest.mark.parametrize(("header", "least_s"), [("12", 12), ("Sun, 15 Jun 2025 15:00:09 GMT", 9)])
@pytest.mark.parametrize("status", [429, 503])
def test_venue_that_says_when_to_come_back_is_obeyed(server: HyperliquidServer, rest: HyperliquidRest, time: FakeTime,
                                                     header: str, least_s: float, status: int) -> None:
    server.now_ms = 1_749_999_600_000  # 2025-06-15 15:00 UTC
    server.refuse(1, status, header)
    rest.perpetuals()
    assert least_s <= time.now_s < least_s + 1


def test_retry_after_that_is_nonsense_changes_nothing(server: HyperliquidServer, rest: HyperliquidRest,
                                                      time: FakeTime) -> None:
    for header in ("soon", "-5", "nan", "1e999"):
        server.refuse(1, 429, header)
    rest.perpetuals()
    assert time.now_s < 8


def test_another_thread_waits_too_after_a_429(server: HyperliquidServer, time: FakeTime) -> None:
    rest = client(server, time, retry_for_s=0.0)
    server.refuse(1, 429, "20")
    with pytest.raises(MarketUnavailable, match="429"):
        rest.perpetuals()
    assert time.now_s == 0
    rest.perpetuals()
    assert time.now_s == pytest.approx(20)


def test_retrying_ends_after_its_total(server: HyperliquidServer, rest: HyperliquidRest, time: FakeTime) -> None:
    server.refuse(1_000, 500)
    with pytest.raises(MarketUnavailable, match="500"):
        rest.book("BTC")
    assert 15 <= time.now_s <= rest.settings.retry_for_s
    assert len(server.requests) < 20


@pytest.mark.parametrize("status", [400, 404, 422])
def test_other_refusals_are_final_at_once(server: HyperliquidServer, rest: HyperliquidRest, time: FakeTime,
                                          status: int) -> None:
    server.refuse(1, status)
    with pytest.raises(MarketUnavailable, match=str(status)):
        rest.book("BTC")
    assert len(server.requests) == 1
    assert time.now_s == 0


def test_answer_that_is_no_json_and_one_that_does_not_come_are_tried_again(server: HyperliquidServer,
                                                                           time: FakeTime) -> None:
    rest = client(server, time, timeout_s=0.1)
    server.garble = 2
    assert rest.perpetuals() == set()
    assert len(server.requests) == 3
    server.hold_answers(True)
    with pytest.raises(MarketUnavailable, match="Timeout"):
        client(server, time, timeout_s=0.1, retry_for_s=1.0).perpetuals()
    assert len(server.requests) >= 5


def test_server_that_is_gone_is_market_unavailable(time: FakeTime) -> None:
    gone = HyperliquidServer(T0)
    rest = client(gone, time)
    gone.close()
    with pytest.raises(MarketUnavailable, match="ConnectionError"):
        rest.perpetuals()


def test_weight_of_what_is_asked_stays_within_the_limit(server: HyperliquidServer, rest: HyperliquidRest,
                                                        time: FakeTime) -> None:
    rows = server.candles["BTC", "1m"] = made_candles("BTC", "1m", T0, 5_000)
    server.now_ms = rows[-1]["T"] + 1
    spent = 0.0
    for _ in range(30):
        rest.candles("BTC", "1m", T0, server.now_ms)
        spent += 20 + 5_000 / 60
        assert spent <= 600 + time.now_s * 10 + 1e-6
    assert spent > 3_000


def test_question_that_the_limit_forbids_for_long_is_not_asked(server: HyperliquidServer, time: FakeTime) -> None:
    rest = client(server, time, longest_wait_s=1.0)
    for _ in range(30):
        rest.perpetuals()
    time.pauses.clear()
    with pytest.raises(MarketUnavailable, match="used up"):
        rest.perpetuals()
    assert (len(server.requests), time.pauses) == (30, [])


@pytest.mark.parametrize("change", [{"o": "NaN"}, {"h": "1"}, {"t": T0 + 1}, {"s": "ETH"}, {"i": "5m"}, {"v": "-1"},
                                    {"c": None}, {"t": "x"}, {"c": "1e999"}, {"n": 1.5}])
def test_candle_that_breaks_its_promise_makes_the_answer_none(server: HyperliquidServer, rest: HyperliquidRest,
                                                              change: dict[str, Any]) -> None:
    rows = made_candles("BTC", "1m", T0, 5)
    server.candles["BTC", "1m"] = [*rows[:2], {**rows[2], **change, "T": rows[2]["T"]}, *rows[3:]]
    server.now_ms = T0 + 10 * MINUTE
    if change.get("t") == "x":
        server._answer = lambda _: [{**rows[2], **change}]  # type: ignore[method-assign]
    with pytest.raises(MarketUnavailable):
        rest.candles("BTC", "1m", T0, server.now_ms)


def test_rows_out_of_order_and_repeated_ones_are_put_in_order_but_a_contradiction_is_refused(
        server: HyperliquidServer, rest: HyperliquidRest) -> None:
    rows = made_candles("BTC", "1m", T0, 5)
    server.now_ms = T0 + 10 * MINUTE
    server.candles["BTC", "1m"] = [rows[3], rows[0], rows[1], rows[0], rows[4], rows[2]]
    answer = rest.candles("BTC", "1m", T0, server.now_ms)
    assert list(map(as_known, answer.candles)) == list(map(as_read, rows))
    server.candles["BTC", "1m"] = [*rows, candle_row("BTC", "1m", T0, 1.0, 2.0, 0.5, 1.5, 3.0)]
    with pytest.raises(MarketUnavailable, match="differ"):
        rest.candles("BTC", "1m", T0, server.now_ms)


def test_unknown_symbol_and_interval_are_refused_before_anything_is_asked(server: HyperliquidServer,
                                                                          rest: HyperliquidRest) -> None:
    with pytest.raises(UnknownEntity, match="DOGE"):
        rest.candles("DOGE", "1m", 0, 1)
    with pytest.raises(UnknownEntity, match="DOGE"):
        rest.funding("DOGE", 0, 1)
    with pytest.raises(InvalidInput, match="interval"):
        rest.candles("BTC", "7m", 0, 1)
    assert server.requests == []


@pytest.fixture
def payloads() -> Path:
    if "HUB_DATA_DIR" not in os.environ:
        pytest.skip("needs the recorded payloads: HUB_DATA_DIR is not set")
    return Path(os.environ["HUB_DATA_DIR"]) / "hyperliquid_payloads"


def load(folder: Path, name: str) -> Any:
    return json.loads((folder / f"{name}.json").read_text())


def test_recorded_candles_come_out_as_they_were_recorded(server: HyperliquidServer, rest: HyperliquidRest,
                                                         payloads: Path) -> None:
    recorded = load(payloads, "http_candleSnapshot_kPEPE.response")
    question = load(payloads, "http_candleSnapshot_kPEPE.request")["request_body"]["req"]
    server._answer = lambda _: recorded  # type: ignore[method-assign]
    server.now_ms = recorded[-1]["T"]  # the last one was forming when it was asked
    answer = rest.candles("kPEPE", "1h", question["startTime"], question["endTime"])
    assert list(map(as_known, answer.candles)) == list(map(as_read, recorded[1:-1]))
    assert answer.gaps == ()


@pytest.mark.parametrize("page", [500, 5_000])
def test_recorded_funding_of_1038_rows_comes_out_whole(server: HyperliquidServer, rest: HyperliquidRest, payloads: Path,
                                                       page: int) -> None:
    recorded = server.funding["BTC"] = load(payloads, "http_fundingHistory_BTC_2.response")
    server.funding_page, server.now_ms = page, recorded[-1]["time"] + HOUR
    settled = rest.funding("BTC", 1_681_923_833_000, server.now_ms)
    assert [row.time_ms for row in settled] == [row["time"] for row in recorded]
    assert [row.rate for row in settled] == [float(row["fundingRate"]) for row in recorded]
    assert len(settled) == 1_038


def test_recorded_mids_and_perpetuals_come_out_as_they_were_recorded(server: HyperliquidServer, rest: HyperliquidRest,
                                                                     payloads: Path) -> None:
    mids, meta = load(payloads, "http_allMids.response"), load(payloads, "http_meta.response")
    server._answer = lambda question: mids if question["type"] == "allMids" else meta  # type: ignore[method-assign]
    assert {name: mid.price for name, mid in rest.mids().items()} == {
        name: float(mids[name]) for name in ("BTC", "kPEPE")}
    assert rest.perpetuals() == {asset["name"] for asset in meta["universe"]}
