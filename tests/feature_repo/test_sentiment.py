from __future__ import annotations

import json
import math
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import numpy as np
import pytest

from feature_repo.features import FEAR_GREED
from feature_repo.sentiment import (
    LONGEST_ANSWER,
    FearGreedApi,
    SentimentUnavailable,
    fear_greed_frame,
)
from policies.errors import InvalidInput

DAY = 86_400_000
FEB_26 = 1_551_139_200  # 2019-02-26 00:00 UTC, in seconds


class Api(HTTPServer):
    """Answers every GET with `body` and `status`; keeps the paths that were asked for."""

    status, body = 200, b""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}/fng/"

    def holds(self, *days: tuple[Any, Any]) -> None:
        """days: (value, seconds), the newest first, as the real one answers."""
        self.body = json.dumps({"name": "Fear and Greed Index", "data": [
            {"value": value, "value_classification": "-", "timestamp": seconds} for value, seconds in days],
            "metadata": {"error": None}}).encode()


class Answer(BaseHTTPRequestHandler):
    server: Api

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        try:
            self.wfile.write(self.server.body)
        except ConnectionError:
            self.close_connection = True  # the client had heard enough

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def api() -> Iterator[Api]:
    with Api() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_fear_and_greed_is_a_share_known_when_its_day_is_over() -> None:
    times = np.array([0, DAY - 1, DAY, 3 * DAY + 5], np.int64)
    frame = fear_greed_frame(times, np.array([10.0, 20.0, 0.0, 100.0]))
    assert frame.event_time_ms.tolist() == [DAY, 2 * DAY, 4 * DAY]
    assert frame.values.tolist() == [[0.2], [0.0], [1.0]]


@pytest.mark.parametrize("index", [-1.0, 100.5, math.nan, math.inf])
def test_index_out_of_its_range_is_refused(index: float) -> None:
    with pytest.raises(InvalidInput, match=r"fear_greed\[1\]\.index: must be 0\.\.100"):
        fear_greed_frame(np.array([0, DAY], np.int64), np.array([50.0, index]))


def test_the_public_index_is_read_whole_and_in_order(api: Api) -> None:
    api.holds(("40", str(FEB_26 + 18_000)), ("47", str(FEB_26 - 68_400)))
    feed = FearGreedApi(api.url)
    frame = feed.refresh()
    assert api.asked == ["/fng/?limit=0"]
    assert frame.event_time_ms.tolist() == [FEB_26 * 1000, FEB_26 * 1000 + DAY]
    assert frame.values[:, 0].tolist() == [0.47, 0.4]
    for symbol in ("BTC", "ETH"):
        assert feed.frames(symbol, 0, 2**53)[FEAR_GREED].equals(frame)
    until = feed.frames("BTC", FEB_26 * 1000, FEB_26 * 1000 + DAY - 1)[FEAR_GREED]
    assert len(until) == 1, "a value is known when its day is over"


@pytest.mark.parametrize(("status", "body"), [
    (500, b"{}"), (404, b""), (200, b"not json"), (200, b"[]"), (200, b"null"), (200, b'{"data": 3}'),
    (200, b'{"data": [{"value": "40"}]}'), (200, b'{"data": [{"value": "forty", "timestamp": "1551157200"}]}'),
    (200, b'{"data": [{"value": "101", "timestamp": "1551157200"}]}'),
    (200, b'{"data": [{"value": "nan", "timestamp": "1551157200"}]}'),
    (200, b'{"data": [{"value": "40", "timestamp": "9e99"}]}'),
    (200, b'{"data": [{"value": "40", "timestamp": "999999999999999999999"}]}'), (200, b" " * (LONGEST_ANSWER + 1)),
])
def test_answer_that_is_none_leaves_what_was_read_before(api: Api, status: int, body: bytes) -> None:
    api.holds(("40", str(FEB_26)))
    feed = FearGreedApi(api.url)
    before = feed.refresh()
    api.status, api.body = status, body
    with pytest.raises(SentimentUnavailable):
        feed.refresh()
    assert feed.frames("BTC", 0, 2**53)[FEAR_GREED].equals(before)


def test_server_that_is_silent_or_away_is_given_up() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with pytest.raises(SentimentUnavailable, match="ReadTimeout"):
            FearGreedApi(url, timeout_s=0.05).refresh()
    with pytest.raises(SentimentUnavailable, match="ConnectError"):
        FearGreedApi(url, timeout_s=1.0).refresh()
