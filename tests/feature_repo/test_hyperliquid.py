from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feature_repo.hyperliquid import ASK_AGAIN_MS, PAGE_BARS, HyperliquidMarket, MarketUnavailable
from feature_repo.market import choose_market
from policies.errors import InvalidInput

MINUTE, HOUR = 60_000, 3_600_000
START = 1_750_000_020_000  # a full minute
Answer = Callable[[dict[str, Any]], Any]


class InfoServer:
    """Answers POST /info on this machine with what `answer` makes of the request; counts the requests."""

    def __init__(self) -> None:
        self.answer: Answer = exchange(now_ms=START + 100 * MINUTE)
        self.requests: list[dict[str, Any]] = []
        self.release = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append(request)
                answer = outer.answer(request)
                status, body = answer if isinstance(answer, tuple) else (200, json.dumps(answer))
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()


def exchange(now_ms: int) -> Answer:
    """What the exchange does: strings, the candle that contains startTime, a forming one, the newest 5000 only."""

    def answer(request: dict[str, Any]) -> Any:
        if request["type"] == "meta":
            return {"universe": [{"name": "BTC", "szDecimals": 5}, {"name": "SOL", "szDecimals": 2}]}
        if request["type"] == "fundingHistory":
            return []
        asked = request["req"]
        first, last = asked["startTime"] // MINUTE, min(asked["endTime"], now_ms) // MINUTE
        return [candle(asked["coin"], minute) for minute in range(first, last + 1)][-PAGE_BARS:]

    return answer


def candle(coin: str, minute: int) -> dict[str, Any]:
    price = 100 + minute % 7
    return {"t": minute * MINUTE, "T": minute * MINUTE + MINUTE - 1, "s": coin, "i": "1m", "o": f"{price}.0",
            "c": f"{price}.5", "h": f"{price + 1}.0", "l": f"{price - 1}.0", "v": "12.25", "n": 3}


@pytest.fixture
def server() -> Iterator[InfoServer]:
    made = InfoServer()
    yield made
    made.close()


def market(server: InfoServer, now_ms: int, timeout_s: float = 2.0) -> HyperliquidMarket:
    server.answer = exchange(now_ms)
    return HyperliquidMarket(("BTC",), base_url=server.url, timeout_s=timeout_s, now_ms=lambda: now_ms)


def test_building_it_asks_for_nothing(server: InfoServer) -> None:
    market(server, START)
    assert server.requests == []


def test_candle_that_contains_the_start_and_the_forming_one_are_dropped(server: InfoServer) -> None:
    bars = market(server, START + 10 * MINUTE + 30_000).bars("BTC", START + 1_000)
    assert bars.open_time_ms.tolist() == [START + k * MINUTE for k in range(1, 10)]
    assert bars.close_time_ms[-1] == START + 10 * MINUTE
    assert bars.volume.tolist() == [12.25] * 9
    assert (bars.close - bars.open == 0.5).all()


def test_candle_is_there_from_the_moment_it_closes(server: InfoServer) -> None:
    assert market(server, START + MINUTE - 1).bars("BTC", START).open_time_ms.tolist() == []
    assert market(server, START + MINUTE).bars("BTC", START).open_time_ms.tolist() == [START]


def test_long_range_is_paged_without_gap_or_duplicate(server: InfoServer) -> None:
    count = 2 * PAGE_BARS + 123
    bars = market(server, START + count * MINUTE).bars("BTC", START)
    assert bars.open_time_ms.tolist() == [START + k * MINUTE for k in range(count)]
    assert [request["type"] for request in server.requests].count("candleSnapshot") == 3


def test_without_a_start_it_reaches_back_one_page(server: InfoServer) -> None:
    assert len(market(server, START + 9_000 * MINUTE).bars("BTC")) == PAGE_BARS


@pytest.mark.parametrize("answer", [(500, "down"), (429, "null"), (200, "<html>"), [{"t": START}], [{"x": 1}]])
def test_what_is_no_list_of_candles_is_market_unavailable(server: InfoServer, answer: Any) -> None:
    asked = market(server, START + 10 * MINUTE)
    server.answer = lambda _: answer
    with pytest.raises(MarketUnavailable):
        asked.bars("BTC", START)


def test_silent_server_is_given_up_after_the_timeout(server: InfoServer) -> None:
    asked = market(server, START + 10 * MINUTE, timeout_s=0.1)
    server.answer = lambda _: server.release.wait(5)
    with pytest.raises(MarketUnavailable):
        asked.bars("BTC", START)
    with pytest.raises(MarketUnavailable, match="within"):
        asked.probe(0.05)


def test_choice_without_files_is_hyperliquid_if_it_answers_else_generated(server: InfoServer) -> None:
    live = choose_market(None, symbols=("BTC", "SOL"), hyperliquid_url=server.url)
    assert (live.name, live.symbols) == ("hyperliquid", ("BTC", "SOL"))
    assert "answered" in live.describe()
    server.answer = lambda _: (503, "closed")
    made = choose_market(None, symbols=("BTC", "SOL"), hyperliquid_url=server.url, seed=4)
    assert (made.name, made.symbols) == ("generated", ("BTC", "SOL"))
    assert "did not answer" in made.describe()


def test_market_that_is_asked_for_is_never_replaced(server: InfoServer, tmp_path: Path) -> None:
    server.answer = lambda _: (503, "closed")
    with pytest.raises(MarketUnavailable):
        choose_market(None, "hyperliquid", hyperliquid_url=server.url)
    with pytest.raises(InvalidInput, match="data_dir"):
        choose_market(None, "files")
    with pytest.raises(InvalidInput, match="data_dir"):
        choose_market(str(tmp_path / "none"))
    with pytest.raises(InvalidInput, match="one of files"):
        choose_market(None, "binance")
    assert choose_market(str(tmp_path), "generated").name == "generated"
    assert server.requests, "the first choice did ask"


def test_symbol_that_is_not_traded_there_is_refused(server: InfoServer) -> None:
    with pytest.raises(InvalidInput, match="DOGE"):
        choose_market(None, "hyperliquid", symbols=("BTC", "DOGE"), hyperliquid_url=server.url)


def asked_for_candles(server: InfoServer) -> list[dict[str, Any]]:
    return [request["req"] for request in server.requests if request["type"] == "candleSnapshot"]


def test_who_polls_every_second_makes_few_and_short_questions(server: InfoServer) -> None:
    now = [START + 200 * MINUTE]
    polled = HyperliquidMarket(("BTC",), base_url=server.url, now_ms=lambda: now[0])
    for second in range(150):
        now[0] = START + 200 * MINUTE + second * 1_000
        server.answer = exchange(now[0])
        bars = polled.bars("BTC", now[0] - 120 * MINUTE, now[0])
        closes = range(-(-(now[0] - 120 * MINUTE) // MINUTE) + 1, now[0] // MINUTE + 1)
        assert bars.close_time_ms.tolist() == [minute * MINUTE for minute in closes]
    first, *later = asked_for_candles(server)
    assert first["endTime"] - first["startTime"] > 118 * MINUTE
    assert len(later) <= 3 * 4
    assert all(one["endTime"] - one["startTime"] <= 4 * MINUTE for one in later)


def test_candle_that_the_venue_corrects_shortly_after_its_close_is_read_again(server: InfoServer) -> None:
    now = [START + 10 * MINUTE + 100]
    polled = HyperliquidMarket(("BTC",), base_url=server.url, now_ms=lambda: now[0])
    server.answer = exchange(now[0])
    assert polled.bars("BTC", START).volume[-1] == 12.25
    server.answer = lambda request: [{**one, "v": "13"} for one in exchange(2**50)(request)]
    now[0] += 1_000
    assert polled.bars("BTC", START).volume[-1] == 12.25
    now[0] += 1_000
    assert polled.bars("BTC", START).volume.tolist() == [12.25] * 7 + [13.0] * 3


def test_candle_that_the_venue_still_lacks_is_asked_for_until_it_comes(server: InfoServer) -> None:
    now = [START + 10 * MINUTE + 30_000]
    polled = HyperliquidMarket(("BTC",), base_url=server.url, now_ms=lambda: now[0])
    server.answer = exchange(START + 9 * MINUTE - 1)
    assert len(polled.bars("BTC", START)) == 9
    server.answer = exchange(now[0])
    now[0] += 2_000
    assert len(polled.bars("BTC", START)) == 10
    asked = len(asked_for_candles(server))
    now[0] += 20_000
    assert len(polled.bars("BTC", START)) == 10
    assert len(asked_for_candles(server)) == asked


def test_earlier_bars_than_those_known_are_asked_for(server: InfoServer) -> None:
    polled = market(server, START + 100 * MINUTE + 30_000)
    assert len(polled.bars("BTC", START + 90 * MINUTE)) == 10
    assert len(polled.bars("BTC", START)) == 100
    assert len(polled.bars("BTC", START + 95 * MINUTE)) == 5
    assert len(polled.bars("BTC", START, START + 50 * MINUTE)) == 50
    assert len(asked_for_candles(server)) == 3


def settlements(*rates_by_hour: tuple[int, float]) -> Answer:
    """The bars of exchange(), and funding some ms after those hours."""
    rows = [{"coin": "BTC", "fundingRate": str(rate), "premium": "0.0", "time": hour * HOUR + 37}
            for hour, rate in rates_by_hour]

    def answer(request: dict[str, Any]) -> Any:
        if request["type"] == "fundingHistory":
            return [row for row in rows if request["startTime"] <= row["time"] <= request["endTime"]]
        return exchange(2**50)(request)

    return answer


def asked_for_funding(server: InfoServer) -> int:
    return [request["type"] for request in server.requests].count("fundingHistory")


def test_rate_lies_on_the_bar_within_which_it_was_settled(server: InfoServer) -> None:
    first = START // HOUR + 1
    asked = market(server, (first + 2) * HOUR + 5 * MINUTE)
    server.answer = settlements((first, 1e-4), (first + 1, -2e-4), (first + 2, 3e-4))
    bars = asked.bars("BTC", START)
    assert bars.funding_rate is not None
    settled = {int(bars.open_time_ms[place]): bars.funding_rate[place] for place in np.flatnonzero(bars.funding_rate)}
    assert settled == {first * HOUR: 1e-4, (first + 1) * HOUR: -2e-4, (first + 2) * HOUR: 3e-4}


def test_funding_is_asked_for_once_an_hour(server: InfoServer) -> None:
    now, first = [0], START // HOUR + 1
    asked = HyperliquidMarket(("BTC",), base_url=server.url, now_ms=lambda: now[0])
    server.answer = settlements((first, 1e-4), (first + 1, 2e-4))
    for second in range(0, 3_600, 200):
        now[0] = first * HOUR + 60_000 + second * 1_000
        asked.bars("BTC", START)
    once = asked_for_funding(server)
    assert once == 2, "the settlements, and that there are no more"
    now[0] = (first + 1) * HOUR + 90_000
    bars = asked.bars("BTC", START)
    assert asked_for_funding(server) == 2 * once
    assert bars.funding_rate is not None
    assert bars.funding_rate[bars.open_time_ms == (first + 1) * HOUR].tolist() == [2e-4]


def test_settlement_that_is_late_is_asked_for_again_after_a_while(server: InfoServer) -> None:
    first = START // HOUR + 1
    now = [first * HOUR + MINUTE]
    asked = HyperliquidMarket(("BTC",), base_url=server.url, now_ms=lambda: now[0])
    server.answer = settlements()
    bars = asked.bars("BTC", START)
    server.answer = settlements((first, 1e-4))
    now[0] += ASK_AGAIN_MS - 1
    assert asked_for_funding(server) == 1
    assert asked.bars("BTC", START).funding_rate is not None
    assert asked_for_funding(server) == 1
    now[0] += 1
    bars = asked.bars("BTC", START)
    assert bars.funding_rate is not None
    assert bars.funding_rate.max() == 1e-4


def test_funding_that_cannot_be_had_is_none_and_no_zeros(server: InfoServer) -> None:
    asked = market(server, START + 10 * MINUTE)
    server.answer = lambda request: (503, "") if request["type"] == "fundingHistory" else exchange(2**50)(request)
    for _ in range(3):
        bars = asked.bars("BTC", START)
        assert len(bars) == 10
        assert bars.funding_rate is None
    assert asked_for_funding(server) == 1, "a failure is not repeated with every poll"
