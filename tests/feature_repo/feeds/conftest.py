from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
from followed import Followed
from hyperliquid_server import HyperliquidServer
from hyperliquid_wire import funding_rows, made_candles
from waiting import eventually

from feature_repo.feeds.connection import ConnectionSettings
from feature_repo.feeds.hyperliquid_live import HyperliquidLive, LiveSettings
from feature_repo.feeds.hyperliquid_rest import HyperliquidRest, RestSettings

MINUTE, HOUR = 60_000, 3_600_000
T0 = 1_750_000_020_000 // HOUR * HOUR
SYMBOLS = ("BTC", "kPEPE")
QUICK = LiveSettings(first_pause_s=0.01, longest_pause_s=0.05, look_s=0.01,
                     connection=ConnectionSettings(connect_s=5.0, ping_s=0.1, silence_s=5.0))


@pytest.fixture
def venue() -> Iterator[HyperliquidServer]:
    made = HyperliquidServer(T0)
    for seed, symbol in enumerate(SYMBOLS):
        made.candles[symbol, "1m"] = made_candles(symbol, "1m", T0 - 90 * MINUTE, 400, seed)
        made.funding[symbol] = funding_rows(symbol, T0 - 4 * HOUR, 12, seed)
    yield made
    made.close()


@pytest.fixture
def follow(venue: HyperliquidServer) -> Iterator[Callable[..., Followed]]:
    made: list[HyperliquidLive] = []

    def start(settings: LiveSettings = QUICK, from_ms: int | None = None, retry_for_s: float = 2.0,
              connect: bool = True) -> Followed:
        rest = HyperliquidRest(SYMBOLS, venue.url, RestSettings(2.0, retry_for_s, 0.005, 0.02, 1e9),
                               now_ms=lambda: venue.now_ms)
        live = HyperliquidLive(SYMBOLS, rest, settings=settings, from_ms=from_ms, now_ms=lambda: venue.now_ms,
                               rng=random.Random(3))
        made.append(live.start())
        followed = Followed(venue, live)
        if connect:
            eventually(followed.connected, "subscribed to everything")
        return followed

    yield start
    for live in made:
        live.stop()
