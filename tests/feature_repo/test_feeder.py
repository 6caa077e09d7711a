from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from feature_repo.features import MINUTE_MS
from feature_repo.feeder import BarFeeder, Fed
from feature_repo.generated import START_MS, GeneratedMarket
from feature_repo.online import OnlineReader
from feature_repo.store import FeatureRepo
from feature_repo.transforms import LOOKBACK_BARS, compute_features

SYMBOLS = ("BTC", "ETH")
FIRST_ROW_MS = START_MS + LOOKBACK_BARS * MINUTE_MS


@pytest.fixture
def market() -> GeneratedMarket:
    return GeneratedMarket(1, symbols=SYMBOLS, bars=400)


@pytest.fixture
def feeder(market: GeneratedMarket, repo: FeatureRepo) -> BarFeeder:
    made = BarFeeder(market, repo, SYMBOLS)
    made.prepare(START_MS, START_MS + 400 * MINUTE_MS)
    return made


def test_no_value_is_written_before_its_bar_has_closed(feeder: BarFeeder, repo: FeatureRepo) -> None:
    assert feeder.advance(FIRST_ROW_MS - 1) == Fed(0, {})
    for now_ms in range(FIRST_ROW_MS, FIRST_ROW_MS + 3 * MINUTE_MS, 20_000):
        feeder.advance(now_ms)
        for times in repo.online_event_times(SYMBOLS).values():
            assert times == dict.fromkeys(("bars", "funding"), now_ms // MINUTE_MS * MINUTE_MS)


async def test_what_is_served_is_the_row_of_the_last_closed_bar(feeder: BarFeeder, repo: FeatureRepo,
                                                                market: GeneratedMarket) -> None:
    now_ms = FIRST_ROW_MS + 77 * MINUTE_MS + 1_234
    feeder.advance(now_ms)
    reader = OnlineReader(repo.redis_url, deadline_s=5.0)
    for symbol in SYMBOLS:
        alone = compute_features(market.bars(symbol).between(START_MS, now_ms - MINUTE_MS + 1))
        vector = await reader.read(symbol)
        assert np.array_equal(vector.values, alone.values[-1], equal_nan=True)
        assert reader.fresh(vector, now_ms) == []
    await reader.close()


def test_same_bar_is_written_once(feeder: BarFeeder) -> None:
    assert feeder.advance(FIRST_ROW_MS).rows_written == 2
    again = feeder.advance(FIRST_ROW_MS + 59_999)
    assert again == Fed(0, dict.fromkeys(SYMBOLS, FIRST_ROW_MS))
    assert feeder.advance(FIRST_ROW_MS + MINUTE_MS).rows_written == 2


def test_store_that_lost_its_content_is_filled_again(feeder: BarFeeder, repo: FeatureRepo, redis_client: Any) -> None:
    feeder.advance(FIRST_ROW_MS)
    redis_client.flushall()
    assert feeder.advance(FIRST_ROW_MS).rows_written == 2
    assert repo.online_event_times(SYMBOLS)["ETH"]["bars"] == FIRST_ROW_MS


def test_new_replay_puts_the_store_back_to_its_start(feeder: BarFeeder, repo: FeatureRepo) -> None:
    feeder.advance(FIRST_ROW_MS + 50 * MINUTE_MS)
    feeder.advance(FIRST_ROW_MS)
    assert repo.online_event_times(["BTC"])["BTC"]["bars"] == FIRST_ROW_MS


def test_prepared_range_holds_exactly_the_bars_that_close_in_it(feeder: BarFeeder, market: GeneratedMarket) -> None:
    start_ms, stop_ms = START_MS + 200 * MINUTE_MS, START_MS + 210 * MINUTE_MS
    frame = feeder.prepare(start_ms, stop_ms)["BTC"]
    assert frame.event_time_ms.tolist() == list(range(start_ms, stop_ms + 1, MINUTE_MS))
    whole = compute_features(market.bars("BTC"))
    first = int(np.searchsorted(whole.event_time_ms, start_ms))
    assert frame.values.tobytes() == whole.values[first:first + 11].tobytes()


def test_polling_serves_the_last_closed_bar(market: GeneratedMarket, repo: FeatureRepo) -> None:
    live = BarFeeder(market, repo, SYMBOLS)
    for now_ms in (FIRST_ROW_MS + 90 * MINUTE_MS + 5_000, FIRST_ROW_MS + 91 * MINUTE_MS):
        fed = live.poll(now_ms)
        assert fed == Fed(2, dict.fromkeys(SYMBOLS, now_ms // MINUTE_MS * MINUTE_MS))
        assert repo.online_event_times(SYMBOLS)["BTC"]["bars"] <= now_ms
