from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from feature_repo.features import BARS, DECISION_V1, FUNDING, GROUPS, MINUTE_MS, PRICE, REDDIT
from feature_repo.feeder import Feeder
from feature_repo.frames import GroupFrame, assemble
from feature_repo.generated import START_MS, GeneratedMarket
from feature_repo.online import OnlineReader
from feature_repo.sources import BarSource, gathered
from feature_repo.store import FeatureRepo
from feature_repo.transforms import LOOKBACK_BARS, bar_frames

SYMBOLS = ("BTC", "ETH")
FIRST_ROW_MS = START_MS + LOOKBACK_BARS * MINUTE_MS
ROWS_OF_A_BAR = 2 * len(SYMBOLS)  # BARS and PRICE; FUNDING comes hourly
HOUR = 60 * MINUTE_MS


class Fixed:
    """A source that always has the same rows."""

    def __init__(self, *frames: GroupFrame) -> None:
        self._frames = frames

    def frames(self, symbol: str, start_ms: int, stop_ms: int) -> dict[str, GroupFrame]:
        return {frame.group: frame.reaching(start_ms, stop_ms) for frame in self._frames}


@pytest.fixture
def market() -> GeneratedMarket:
    return GeneratedMarket(1, symbols=SYMBOLS, bars=400)


@pytest.fixture
def feeder(market: GeneratedMarket, repo: FeatureRepo) -> Feeder:
    made = Feeder([BarSource(market)], repo, SYMBOLS)
    made.prepare(START_MS, START_MS + 400 * MINUTE_MS)
    return made


def everything(feeder: Feeder) -> dict[tuple[str, str], GroupFrame]:
    return feeder.known(START_MS, START_MS + 400 * MINUTE_MS)


def test_no_value_is_written_before_it_was_known(feeder: Feeder, repo: FeatureRepo) -> None:
    feeder.advance(FIRST_ROW_MS - 1)
    assert all(BARS not in times for times in repo.online_event_times(SYMBOLS).values())
    for now_ms in range(FIRST_ROW_MS, FIRST_ROW_MS + 3 * MINUTE_MS, 20_000):
        feeder.advance(now_ms)
        for times in repo.online_event_times(SYMBOLS).values():
            assert times[BARS] == times[PRICE] == now_ms // MINUTE_MS * MINUTE_MS
            assert times[FUNDING] == now_ms // HOUR * HOUR + MINUTE_MS, "of the bar in which it was settled"


async def test_what_is_served_is_what_was_known_then(feeder: Feeder, repo: FeatureRepo,
                                                     market: GeneratedMarket) -> None:
    now_ms = FIRST_ROW_MS + 77 * MINUTE_MS + 1_234
    feeder.advance(now_ms)
    reader = OnlineReader(repo.redis_url, deadline_s=5.0)
    for symbol in SYMBOLS:
        known = bar_frames(market.bars(symbol).between(START_MS, now_ms - MINUTE_MS + 1))
        vector = await reader.read(symbol, now_ms)
        assert np.array_equal(vector.values, assemble(DECISION_V1, known, np.array([now_ms]))[0], equal_nan=True)
    await reader.close()


def test_same_bar_is_written_once(feeder: Feeder) -> None:
    feeder.advance(FIRST_ROW_MS)
    assert feeder.advance(FIRST_ROW_MS + 59_999).rows_written == 0
    assert feeder.advance(FIRST_ROW_MS + MINUTE_MS).rows_written == ROWS_OF_A_BAR


def test_store_that_lost_its_content_is_rebuilt_from_the_offline_store(
        feeder: Feeder, repo: FeatureRepo, redis_client: Any) -> None:
    feeder.keep(everything(feeder), FIRST_ROW_MS)
    mood = GroupFrame(REDDIT, np.array([FIRST_ROW_MS - HOUR]), np.array([[0.5, 0.9]]))
    repo.append("ETH", mood, FIRST_ROW_MS)
    assert not feeder.advance(FIRST_ROW_MS).lost
    before = repo.online_event_times(SYMBOLS)
    redis_client.flushall()
    assert feeder.restore(FIRST_ROW_MS) == 7, "bars, prices and funding of two symbols, and a mood"
    after = repo.online_event_times(SYMBOLS)
    assert after["ETH"].pop(REDDIT) == FIRST_ROW_MS - HOUR, "also what the feeder does not hold"
    assert after == before
    assert feeder.advance(FIRST_ROW_MS).rows_written == 0, "all of it came from the offline store"


def test_a_restore_that_ends_late_is_put_right_by_the_next_step(feeder: Feeder, repo: FeatureRepo) -> None:
    feeder.keep(everything(feeder), FIRST_ROW_MS)
    later_ms = FIRST_ROW_MS + MINUTE_MS
    feeder.advance(later_ms)
    feeder.restore(FIRST_ROW_MS)
    assert repo.online_event_times(["BTC"])["BTC"][BARS] == FIRST_ROW_MS
    feeder.advance(later_ms)
    assert repo.online_event_times(["BTC"])["BTC"][BARS] == later_ms


def test_rows_that_were_not_kept_yet_are_written_again_from_memory(
        feeder: Feeder, repo: FeatureRepo, redis_client: Any) -> None:
    feeder.advance(FIRST_ROW_MS)
    redis_client.flushall()
    assert feeder.advance(FIRST_ROW_MS).lost
    assert not feeder.advance(FIRST_ROW_MS).lost
    assert repo.online_event_times(SYMBOLS)["ETH"][BARS] == FIRST_ROW_MS


def test_new_replay_puts_the_store_back_to_its_start(feeder: Feeder, repo: FeatureRepo) -> None:
    feeder.advance(FIRST_ROW_MS + 50 * MINUTE_MS)
    feeder.advance(FIRST_ROW_MS)
    assert repo.online_event_times(["BTC"])["BTC"][BARS] == FIRST_ROW_MS


def test_prepared_range_holds_what_becomes_known_in_it_and_what_is_fresh_at_its_start(
        feeder: Feeder, market: GeneratedMarket) -> None:
    start_ms, stop_ms = START_MS + 200 * MINUTE_MS, START_MS + 210 * MINUTE_MS
    held = feeder.prepare(start_ms, stop_ms)
    whole = bar_frames(market.bars("BTC"))
    for group in (BARS, FUNDING):
        times = held["BTC", group].event_time_ms
        assert times.tolist() == [time for time in whole[group].event_time_ms
                                  if start_ms - GROUPS[group].ttl_ms <= time <= stop_ms]
    first = int(np.searchsorted(whole[BARS].event_time_ms, held["BTC", BARS].event_time_ms[0]))
    assert held["BTC", BARS].values.tobytes() == whole[BARS].values[first:first + len(held["BTC", BARS])].tobytes()


def test_keeping_the_same_rows_again_adds_none(feeder: Feeder) -> None:
    held = everything(feeder)
    assert feeder.keep(held, START_MS) == sum(map(len, held.values()))
    assert feeder.keep(held, START_MS + 1) == 0


def test_polling_serves_the_last_closed_bar(market: GeneratedMarket, repo: FeatureRepo) -> None:
    live = Feeder([BarSource(market)], repo, SYMBOLS)
    for now_ms in (FIRST_ROW_MS + 90 * MINUTE_MS + 5_000, FIRST_ROW_MS + 91 * MINUTE_MS):
        assert live.poll(now_ms).rows_written >= ROWS_OF_A_BAR
        assert repo.online_event_times(SYMBOLS)["BTC"][BARS] == now_ms // MINUTE_MS * MINUTE_MS
    assert live.poll(now_ms).rows_written == 0


def test_a_row_that_its_source_corrects_is_written_again(repo: FeatureRepo) -> None:
    def moods(score: float) -> GroupFrame:
        return GroupFrame(REDDIT, np.array([START_MS]), np.array([[score, 1.0]]))

    source = Fixed(moods(0.1))
    live = Feeder([source], repo, ["BTC"])
    assert live.poll(START_MS).rows_written == 1
    source._frames = (moods(0.2),)
    assert live.poll(START_MS + 1).rows_written == 1
    live.put("BTC", GroupFrame(REDDIT, np.array([START_MS, START_MS + 5]), np.array([[0.2, 1.0], [0.3, 1.0]])))
    assert live.advance(START_MS + 5).rows_written == 1
    assert repo.online_event_times(["BTC"])["BTC"] == {REDDIT: START_MS + 5}


def test_of_a_group_that_two_sources_have_the_first_with_rows_counts() -> None:
    one = GroupFrame(REDDIT, np.array([START_MS]), np.array([[0.1, 1.0]]))
    other = GroupFrame(REDDIT, np.array([START_MS]), np.array([[0.9, 1.0]]))
    for first, expected in ((one, 0.1), (GroupFrame.empty(REDDIT), 0.9)):
        found = gathered([Fixed(first), Fixed(other)], "BTC", START_MS, START_MS)
        assert found[REDDIT].values[0, 0] == expected
