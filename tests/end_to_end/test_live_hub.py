"""A hub that follows a live exchange: here a server on this machine that speaks as Hyperliquid does, by wall time."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hyperliquid_server import HyperliquidServer
from hyperliquid_wire import funding_rows, level, made_candles, trade_rows
from plain_bundles import momentum_bundle
from running_hub import RunningHub
from waiting import eventually

from feature_repo.features import DECISION_V1, HOUR_MS, MINUTE_MS, SECOND_MS
from sentry.ledger import LedgerReader

SYMBOL = "BTC"
_numbers = itertools.count()


class Exchange(HyperliquidServer):
    """Its clock is the wall's while it runs; books, quotes and trades go on for ten minutes."""

    def __init__(self) -> None:
        now_ms = wall_ms()
        super().__init__(now_ms)
        first_ms = now_ms // MINUTE_MS * MINUTE_MS - 180 * MINUTE_MS
        self.candles[SYMBOL, "1m"] = made_candles(SYMBOL, "1m", first_ms, 200)
        self.funding[SYMBOL] = funding_rows(SYMBOL, now_ms - 4 * HOUR_MS, 6)
        times = range(now_ms, now_ms + 10 * MINUTE_MS, SECOND_MS)
        self.books[SYMBOL] = [{"coin": SYMBOL, "time": t, "levels": [[level(100, 1)], [level(101, 3)]]} for t in times]
        self.quotes[SYMBOL] = [{"coin": SYMBOL, "time": t, "bbo": [level(100, 1), level(101, 3)]} for t in times]
        self.trades[SYMBOL] = trade_rows(SYMBOL, now_ms, 600, every_ms=SECOND_MS)
        self._ending = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def stop(self) -> None:
        if not self._ending.is_set():
            self._ending.set()
            self.close()

    def _run(self) -> None:
        while not self._ending.wait(0.2):
            self.advance(wall_ms())


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


@pytest.fixture
def exchange() -> Iterator[Exchange]:
    made = Exchange()
    yield made
    made.stop()


@pytest.fixture
def live_hub(tmp_path: Path, exchange: Exchange) -> Iterator[RunningHub]:
    hub = RunningHub(tmp_path / "home", MARKET__KIND="hyperliquid", MARKET__SYMBOLS=f'["{SYMBOL}"]',
                     MARKET__HYPERLIQUID_URL=exchange.url, MARKET__FEAR_GREED_URL='""').start()
    try:
        hub.register(momentum_bundle())
        yield hub
    finally:
        if hub.processes():
            hub.kill()


def decided(hub: RunningHub) -> dict[str, Any]:
    answer = hub.post("/v1/decisions", request_id=f"live-{next(_numbers)}", symbol=SYMBOL, strategy="momentum",
                      portfolio={"equity": 10_000.0})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def stale(answer: dict[str, Any]) -> set[str]:
    return {entry["part"] for entry in answer["degraded"]}


def vector(hub: RunningHub, answer: dict[str, Any]) -> dict[str, float | None]:
    reader = LedgerReader(hub.home / "hub.sqlite")
    row = reader.get("decision", answer["decision_id"])
    reader.close()
    assert row is not None
    assert all(time <= answer["time_ms"] for time in row.body["features"]["event_time_ms"].values())
    return dict(zip(DECISION_V1.names, row.body["features"]["values"], strict=True))


def test_a_live_hub_decides_on_what_the_exchange_says_and_names_the_feed_that_stops(
        live_hub: RunningHub, exchange: Exchange) -> None:
    wanted = ("quote", "depth", "flow", "funding")
    eventually(lambda: all(vector(live_hub, decided(live_hub))[f"{group}_missing"] == 0 for group in wanted),
               "every feed has been heard, trades for a whole minute", 150.0, every_s=0.5)
    answer = decided(live_hub)
    seen = vector(live_hub, answer)
    assert answer["role"] == "production"
    assert stale(answer) == set()
    assert (seen["imbalance_1"], seen["imbalance_20"]) == pytest.approx((-0.5, (100 - 303) / 403))
    assert seen["funding_rate"] in [float(row["fundingRate"]) for row in exchange.funding[SYMBOL]]
    offline = live_hub.home / "features" / "hyperliquid" / "bars" / SYMBOL
    eventually(lambda: list(offline.glob("*.parquet")) != [], "live bars are kept offline", 30.0)
    exchange.stop()
    eventually(lambda: "features quote" in stale(decided(live_hub)), "the quote is past its ttl", 60.0, every_s=0.2)
    assert decided(live_hub)["role"] == "production", "bars are fresh for three minutes; a quote is optional"
    ages = {entry["group"]: entry for entry in live_hub.get("/v1/status")["features"]}
    assert not ages["quote"]["fresh"]
    assert ages["bars"]["fresh"]
