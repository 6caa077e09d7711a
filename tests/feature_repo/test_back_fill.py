from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from feature_repo.back_fill import CHUNK_MS, BackFill, Filled
from feature_repo.features import BARS, DECISION_V1, FEAR_GREED, MINUTE_MS, PRICE
from feature_repo.frames import GroupFrame
from feature_repo.generated import START_MS, GeneratedMarket
from feature_repo.sources import BarSource
from feature_repo.statistics import FeatureStatistics
from feature_repo.store import FeatureRepo
from feature_repo.transforms import LOOKBACK_BARS, bar_frames

DAYS = 40
BARS_COUNT = DAYS * 1_440
NOW_MS = START_MS + BARS_COUNT * MINUTE_MS


class Mood:
    """A source beside the bars, whose rows begin long before them."""

    def frames(self, symbol: str, start_ms: int, stop_ms: int) -> dict[str, GroupFrame]:
        times = np.array([START_MS - 90 * 86_400_000, START_MS])
        return {FEAR_GREED: GroupFrame(FEAR_GREED, times, np.array([[0.2], [0.3]])).reaching(start_ms, stop_ms)}


@pytest.fixture(scope="module")
def market() -> GeneratedMarket:
    return GeneratedMarket(2, symbols=("BTC",), bars=BARS_COUNT)


@pytest.fixture
def statistics(tmp_path: Path) -> FeatureStatistics:
    return FeatureStatistics(tmp_path / "statistics.duckdb")


@pytest.fixture
def job(market: GeneratedMarket, repo: FeatureRepo, statistics: FeatureStatistics) -> BackFill:
    return BackFill(market, [BarSource(market), Mood()], repo, statistics)


def test_the_whole_history_is_in_the_store_in_steps_of_a_month(
        job: BackFill, repo: FeatureRepo, market: GeneratedMarket, statistics: FeatureStatistics) -> None:
    steps = list(job.run("BTC", NOW_MS))
    assert [step.until_ms for step in steps] == [START_MS + MINUTE_MS + CHUNK_MS - 1, NOW_MS]
    assert steps[-1].share == 1.0
    held = {extent.view: extent for extent in repo.offline.extents()}
    whole = bar_frames(market.bars("BTC"))
    assert {view: extent.rows for view, extent in held.items()} == {
        **{group: len(frame) for group, frame in whole.items()}, FEAR_GREED: 2}
    assert sum(step.added for step in steps) == sum(extent.rows for extent in held.values())
    times = np.array([START_MS + LOOKBACK_BARS * MINUTE_MS, NOW_MS])
    joined = repo.training_frame(["BTC"], times)
    assert joined["ret_1"].tolist() == whole[BARS].values[[0, -1], 0].tolist()
    days, counts = statistics.histograms("BTC")
    assert len(days) == DAYS + 1
    assert counts[:, 0].sum() == len(whole[BARS]), "every vector is counted once"


def test_a_back_fill_that_was_interrupted_goes_on_there_and_a_second_one_adds_nothing(
        job: BackFill, repo: FeatureRepo, market: GeneratedMarket) -> None:
    first = next(job.run("BTC", NOW_MS))
    rest = list(job.run("BTC", NOW_MS))
    assert [step.until_ms for step in rest] == [NOW_MS]
    assert 0 < rest[0].added < first.added
    assert list(job.run("BTC", NOW_MS)) == [Filled("BTC", NOW_MS, 0, 1.0)]
    held = {extent.view: extent.rows for extent in repo.offline.extents()}
    assert held[BARS] == held[PRICE] == BARS_COUNT - LOOKBACK_BARS + 1


def test_new_bars_are_all_that_a_later_run_adds(repo: FeatureRepo, market: GeneratedMarket) -> None:
    earlier = GeneratedMarket(2, symbols=("BTC",), bars=2_000)
    list(BackFill(earlier, [BarSource(earlier)], repo).run("BTC", NOW_MS))
    later = GeneratedMarket(2, symbols=("BTC",), bars=2_010)
    added = [step.added for step in BackFill(later, [BarSource(later)], repo).run("BTC", NOW_MS)]
    assert sum(added) == 2 * 10, "ten bars, BARS and PRICE each"


def test_a_hole_before_what_is_held_is_filled_and_its_days_are_counted_anew(
        job: BackFill, repo: FeatureRepo, market: GeneratedMarket, statistics: FeatureStatistics) -> None:
    whole = bar_frames(market.bars("BTC"))
    for frame in whole.values():
        repo.append("BTC", frame.slice(len(frame) * 3 // 4, len(frame)), NOW_MS)
    recent = whole[BARS].slice(50_000, 60_000)
    statistics.record("BTC", recent.event_time_ms, np.zeros((len(recent), len(DECISION_V1))))
    steps = list(job.run("BTC", NOW_MS))
    assert [step.until_ms for step in steps] == [START_MS + MINUTE_MS + CHUNK_MS - 1, NOW_MS]
    held = {extent.view: extent.rows for extent in repo.offline.extents()}
    assert {group: held[group] for group in whole} == {group: len(frame) for group, frame in whole.items()}
    assert statistics.histograms("BTC")[1][:, 0].sum() == len(whole[BARS])


def test_a_run_that_failed_between_two_groups_is_completed_by_the_next(
        job: BackFill, repo: FeatureRepo, market: GeneratedMarket, monkeypatch: pytest.MonkeyPatch) -> None:
    append = repo.append

    def failing(symbol: str, frame: GroupFrame, created_ms: int) -> int:
        if frame.group == PRICE:
            raise OSError("disk full")
        return append(symbol, frame, created_ms)

    monkeypatch.setattr(repo, "append", failing)
    with pytest.raises(OSError, match="disk full"):
        list(job.run("BTC", NOW_MS))
    monkeypatch.undo()
    list(job.run("BTC", NOW_MS))
    held = {extent.view: extent.rows for extent in repo.offline.extents()}
    assert held[PRICE] == held[BARS] == BARS_COUNT - LOOKBACK_BARS + 1
