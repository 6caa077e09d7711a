from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from encoder_bundles import encoder_bundle

from feature_repo.array_feed import ArrayFeed
from feature_repo.array_frames import WindowFrame
from feature_repo.features import ARRAYS, BARS, MARKET_EMBEDDING, MINUTE_MS, WINDOW
from feature_repo.feeder import Feeder
from feature_repo.generated import START_MS, GeneratedMarket
from feature_repo.online import OnlineReader, OnlineVector
from feature_repo.sources import BarSource
from feature_repo.store import FeatureRepo
from feature_repo.transforms import LOOKBACK_BARS
from feature_repo.windows import CHANNELS, WINDOW_BARS, bar_channels
from policies.embedder import Embedder, load_embedder

SYMBOLS = ("BTC", "ETH")
FIRST_ROW_MS = START_MS + LOOKBACK_BARS * MINUTE_MS
STOP_MS = START_MS + 400 * MINUTE_MS
BOTH = (MARKET_EMBEDDING, WINDOW)


@pytest.fixture
def market() -> GeneratedMarket:
    return GeneratedMarket(1, symbols=SYMBOLS, bars=400)


@pytest.fixture
def feeder(market: GeneratedMarket, repo: FeatureRepo) -> Feeder:
    source = BarSource(market)
    made = Feeder([source], repo, SYMBOLS, ArrayFeed(source, SYMBOLS))
    made.prepare(START_MS, STOP_MS)
    return made


def embedder(seed: int = 0, **more: Any) -> Embedder:
    return load_embedder(encoder_bundle(seed, **more))


async def served(repo: FeatureRepo, symbol: str, now_ms: int) -> OnlineVector:
    reader = OnlineReader(repo.redis_url, deadline_s=5.0)
    vector = await reader.read(symbol, now_ms, BOTH)
    await reader.close()
    return vector


def window_by_hand(market: GeneratedMarket, symbol: str, now_ms: int) -> np.ndarray:
    """From the bars that had closed at now_ms, and no other."""
    bars = market.bars(symbol)
    known = bars.slice(0, int(np.searchsorted(bars.close_time_ms, now_ms, "right")))
    return bar_channels(known)[-120:].reshape(-1)


async def test_what_is_served_is_made_of_bars_that_had_closed(
        feeder: Feeder, repo: FeatureRepo, market: GeneratedMarket) -> None:
    encoder = embedder()
    feeder.use_embedder(encoder)
    feeder.advance(FIRST_ROW_MS - 1)
    assert all(not set(BOTH) & set(times) for times in repo.online_event_times(SYMBOLS).values())
    for now_ms in (FIRST_ROW_MS, FIRST_ROW_MS + 59_999, FIRST_ROW_MS + 77 * MINUTE_MS + 1_234):
        feeder.advance(now_ms)
        for symbol in SYMBOLS:
            vector, expected = await served(repo, symbol, now_ms), window_by_hand(market, symbol, now_ms)
            assert vector.arrays[WINDOW].tobytes() == expected.tobytes()
            assert vector.arrays[MARKET_EMBEDDING].tobytes() == encoder.embed(expected[None, -300:])[0].tobytes()
            assert vector.versions[MARKET_EMBEDDING] == encoder.version
            assert {vector.event_time_ms[group] for group in (BARS, *BOTH)} == {now_ms // MINUTE_MS * MINUTE_MS}


def test_without_an_embedder_there_are_windows_alone(feeder: Feeder, repo: FeatureRepo) -> None:
    feeder.advance(FIRST_ROW_MS)
    assert all(WINDOW in times and MARKET_EMBEDDING not in times
               for times in repo.online_event_times(SYMBOLS).values())


def test_the_same_bar_is_written_once(feeder: Feeder) -> None:
    feeder.use_embedder(embedder())
    feeder.advance(FIRST_ROW_MS)
    assert feeder.advance(FIRST_ROW_MS + 59_999).rows_written == 0
    assert feeder.advance(FIRST_ROW_MS + MINUTE_MS).rows_written == 4 * len(SYMBOLS), "bars, prices and both arrays"


async def test_another_embedder_embeds_the_present_bar_at_once(feeder: Feeder, repo: FeatureRepo) -> None:
    first, second = embedder(), embedder(1, size=7)
    for encoder in (first, second, first):
        feeder.use_embedder(encoder)
        assert feeder.advance(FIRST_ROW_MS).rows_written in (4 * len(SYMBOLS) + 2, len(SYMBOLS))
        vector = await served(repo, "ETH", FIRST_ROW_MS)
        assert vector.versions[MARKET_EMBEDDING] == encoder.version
        assert len(vector.arrays[MARKET_EMBEDDING]) == encoder.size


async def test_when_no_embedder_is_used_any_more_the_last_embedding_grows_stale(
        feeder: Feeder, repo: FeatureRepo) -> None:
    feeder.use_embedder(embedder())
    feeder.advance(FIRST_ROW_MS)
    feeder.use_embedder(None)
    later_ms = FIRST_ROW_MS + ARRAYS[MARKET_EMBEDDING].ttl_ms + MINUTE_MS
    feeder.advance(later_ms)
    vector = await served(repo, "BTC", later_ms)
    assert set(vector.arrays) == {WINDOW}
    assert vector.event_time_ms[MARKET_EMBEDDING] == FIRST_ROW_MS


def test_both_come_back_after_redis_has_lost_them(feeder: Feeder, repo: FeatureRepo, redis_client: Any) -> None:
    feeder.use_embedder(embedder())
    feeder.advance(FIRST_ROW_MS)
    before = repo.online_event_times(SYMBOLS)
    kept = {key: redis_client.hgetall(key) for key in redis_client.scan_iter()}
    redis_client.flushall()
    assert feeder.advance(FIRST_ROW_MS).lost
    assert repo.online_event_times(SYMBOLS) == before
    assert {key: redis_client.hgetall(key) for key in redis_client.scan_iter()} == kept


async def test_a_window_that_cannot_be_embedded_leaves_the_rest_as_it_is_and_says_why(
        feeder: Feeder, repo: FeatureRepo) -> None:
    feeder.use_embedder(embedder(most=0.5))
    feeder.advance(FIRST_ROW_MS)
    assert set((await served(repo, "BTC", FIRST_ROW_MS)).arrays) == {WINDOW}
    assert "not finite" in feeder.embedding_problem
    feeder.use_embedder(embedder())
    feeder.advance(FIRST_ROW_MS)
    assert set((await served(repo, "BTC", FIRST_ROW_MS)).arrays) == set(BOTH)
    assert feeder.embedding_problem == ""


class OneBadWindow:
    """Windows of zeros; the newest volume of ETH is `volume`."""

    def __init__(self, volume: float) -> None:
        self._volume = volume

    def windows(self, symbol: str, start_ms: int, stop_ms: int) -> WindowFrame:
        channels = np.zeros((WINDOW_BARS, len(CHANNELS)), np.float32)
        channels[-1, -1] = self._volume if symbol == "ETH" else 0.0
        return WindowFrame(np.array([stop_ms]), channels, np.array([WINDOW_BARS - 1]))


@pytest.mark.parametrize(("volume", "left"), [(100.0, {WINDOW}), (math.inf, set()), (math.nan, set())])
def test_a_symbol_without_an_embedding_or_a_window_keeps_nobody_elses_from_being_made(
        volume: float, left: set[str]) -> None:
    feed = ArrayFeed(OneBadWindow(volume), ("BTC", "ETH", "HYPE"))
    feed.use(embedder(most=50.0))
    feed.hold(0, MINUTE_MS)
    due = {symbol: {row.group for row in feed.due(MINUTE_MS, {}) if row.symbol == symbol}
           for symbol in ("BTC", "ETH", "HYPE")}
    assert due == {"BTC": set(BOTH), "ETH": left, "HYPE": set(BOTH)}
    assert feed.problem.startswith("ETH: ")
    assert {row.symbol for row in feed.take_embedded()} == {"BTC", "HYPE"}
    feed.use(None)
    assert feed.problem == ""


async def test_new_bars_refresh_both_when_the_exchange_is_followed(
        repo: FeatureRepo, market: GeneratedMarket) -> None:
    source = BarSource(market)
    live = Feeder([source], repo, SYMBOLS, ArrayFeed(source, SYMBOLS))
    live.use_embedder(embedder())
    for now_ms in (FIRST_ROW_MS + 500, FIRST_ROW_MS + MINUTE_MS + 500):
        live.poll(now_ms)
        vector = await served(repo, "BTC", now_ms)
        assert vector.arrays[WINDOW].tobytes() == window_by_hand(market, "BTC", now_ms).tobytes()
        assert vector.event_time_ms[MARKET_EMBEDDING] == now_ms // MINUTE_MS * MINUTE_MS
    assert live.poll(now_ms + 1_000).rows_written == 0


def test_embeddings_that_were_served_are_kept_offline_by_version(feeder: Feeder, repo: FeatureRepo) -> None:
    first, second = embedder(), embedder(1)
    feeder.use_embedder(first)
    for minute in range(3):
        feeder.advance(FIRST_ROW_MS + minute * MINUTE_MS)
    feeder.use_embedder(second)
    feeder.advance(FIRST_ROW_MS + 2 * MINUTE_MS)
    assert feeder.keep_embeddings(FIRST_ROW_MS) == 4 * len(SYMBOLS)
    assert feeder.keep_embeddings(FIRST_ROW_MS) == 0
    times = FIRST_ROW_MS + MINUTE_MS * np.arange(3)
    assert np.isfinite(repo.market_embeddings(["BTC"] * 3, times, first.version, 4)).all()
    by_second = repo.market_embeddings(["BTC"] * 3, times, second.version, 4)
    assert np.isfinite(by_second).all(axis=1).tolist() == [False, False, True]
