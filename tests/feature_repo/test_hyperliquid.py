from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from feature_repo.hyperliquid import PAGE_BARS, HyperliquidMarket, MarketUnavailable
from feature_repo.market import choose_market
from policies.errors import InvalidInput

MINUTE = 60_000
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
    assert len(server.requests) == 3


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


@pytest.mark.skipif("HUB_DATA_DIR" not in os.environ, reason="needs the recorded payloads: HUB_DATA_DIR is not set")
def test_recorded_answer_of_the_exchange_is_read(server: InfoServer) -> None:
    folder = Path(os.environ["HUB_DATA_DIR"]) / "hyperliquid_payloads"
    recorded = json.loads((folder / "http_candleSnapshot_kPEPE.response.json").read_text())
    asked = json.loads((folder / "http_candleSnapshot_kPEPE.request.json").read_text())["request_body"]["req"]
    live = HyperliquidMarket(("kPEPE",), base_url=server.url, now_ms=lambda: asked["endTime"])
    server.answer = lambda _: recorded
    bars = live.bars("kPEPE", asked["startTime"], asked["endTime"])
    kept = [one for one in recorded if asked["startTime"] <= one["t"] < asked["endTime"]]
    assert len(kept) == len(recorded) - 1, "the first candle contains startTime"
    assert bars.open_time_ms.tolist() == [one["t"] for one in kept]
    assert bars.close.tolist() == [float(one["c"]) for one in kept]
