from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from feature_repo.feast_forms import feast_address
from feature_repo.features import ARRAYS, BARS, DECISION_V1, EPISODE_V1, FEAR_GREED, FUNDING, GROUPS, MINUTE_MS, PRICE
from feature_repo.frames import GroupFrame, assemble
from feature_repo.online import OnlineReader
from feature_repo.store import (
    ONLINE_GROUPS,
    EmbeddingRow,
    FeatureRepo,
    LabelRows,
    OnlineRow,
    OutcomeRow,
)
from feature_repo.transforms import bar_frames
from policies.bars import Bars
from policies.errors import InvalidInput

MakeBars = Callable[..., Bars]
Frames = dict[str, dict[str, GroupFrame]]


def kept(repo: FeatureRepo, make: MakeBars, *symbols: str) -> Frames:
    """Frames of 400 bars and a few moods per symbol, in the offline store."""
    frames = {}
    for seed, symbol in enumerate(symbols):
        found = bar_frames(make(400, seed=seed, symbol=symbol))
        times = found[BARS].event_time_ms[::70]
        found[FEAR_GREED] = GroupFrame(FEAR_GREED, times, np.linspace(0, 1, len(times))[:, None])
        for frame in found.values():
            assert repo.append(symbol, frame, int(frame.event_time_ms[-1])) == len(frame)
        frames[symbol] = found
    return frames


def test_training_frame_is_the_join_by_hand(repo: FeatureRepo, random_bars: MakeBars) -> None:
    frames = kept(repo, random_bars, "BTC", "SOL")
    first, last = frames["BTC"][BARS].event_time_ms[[0, -1]]
    times = np.random.default_rng(3).integers(first - 500 * MINUTE_MS, last + 500 * MINUTE_MS, 300)
    for service in (DECISION_V1, EPISODE_V1):
        table = repo.training_frame(("SOL", "BTC"), times, service)
        assert table.columns.tolist() == ["symbol", "event_timestamp", *service.names]
        assert table["symbol"].tolist() == ["SOL"] * 300 + ["BTC"] * 300
        expected = np.vstack([assemble(service, frames[symbol], times) for symbol in ("SOL", "BTC")])
        assert np.array_equal(table[list(service.names)].to_numpy(np.float64), expected, equal_nan=True)


def test_time_asked_for_twice_is_answered_twice(repo: FeatureRepo, random_bars: MakeBars) -> None:
    frame = kept(repo, random_bars, "BTC")["BTC"][BARS]
    times = frame.event_time_ms[[7, 3, 7]]
    assert repo.training_frame(["BTC"], times)["ret_1"].tolist() == frame.values[[7, 3, 7], 0].tolist()


def test_a_repo_without_a_row_answers_with_missing_values(repo: FeatureRepo) -> None:
    table = repo.training_frame(["BTC"], [1_750_000_000_000])
    assert table["ret_1"].isna().all()
    assert table["quote_missing"].tolist() == [1.0]


def test_a_row_that_was_corrected_is_the_one_that_is_joined(repo: FeatureRepo, random_bars: MakeBars) -> None:
    frame = kept(repo, random_bars, "BTC")["BTC"][BARS]
    corrected = GroupFrame(BARS, frame.event_time_ms[10:12], frame.values[10:12] + np.array([[1.0], [0.0]]))
    assert repo.append("BTC", corrected, int(frame.event_time_ms[-1]) + 1) == 1, "the other one says nothing new"
    assert repo.training_frame(["BTC"], frame.event_time_ms[10:12])["ret_1"].tolist() == corrected.values[:, 0].tolist()


async def test_materialize_serves_the_newest_fresh_row_of_each_group(repo: FeatureRepo, random_bars: MakeBars) -> None:
    frames = kept(repo, random_bars, "BTC", "SOL")
    now_ms = int(frames["BTC"][BARS].event_time_ms[150]) + 59_999
    repo.materialize(now_ms)
    reader = OnlineReader(repo.redis_url, deadline_s=5.0)
    for symbol, found in frames.items():
        vector = await reader.read(symbol, now_ms)
        expected = assemble(DECISION_V1, found, np.array([now_ms]))[0]
        assert np.array_equal(vector.values, expected, equal_nan=True)
        for group, time_ms in repo.online_event_times([symbol])[symbol].items():
            assert time_ms == found[group].event_time_ms[found[group].until(now_ms) - 1]
    await reader.close()


def test_materialize_leaves_what_feasts_own_job_leaves(
        repo: FeatureRepo, random_bars: MakeBars, redis_client: Any) -> None:
    frames = kept(repo, random_bars, "BTC", "kPEPE", "PURR/USDC")
    now_ms = int(frames["BTC"][BARS].event_time_ms[150]) + 59_999
    repo.materialize(now_ms)
    ours = {key: redis_client.hgetall(key) for key in redis_client.scan_iter()}
    redis_client.flushall()
    for group in ONLINE_GROUPS:
        start, stop = (pd.Timestamp(ms, unit="ms", tz="UTC") for ms in (now_ms - GROUPS[group].ttl_ms, now_ms))
        repo.feast.materialize(start, stop, feature_views=[group])
    assert len(ours) == 3
    assert {key: redis_client.hgetall(key) for key in redis_client.scan_iter()} == ours


def test_a_label_is_joined_only_once_its_trade_is_over(repo: FeatureRepo) -> None:
    decided = np.array([0, 1, 2]) * MINUTE_MS + 1_750_000_020_000
    values = np.array([[0.1, -0.1], [0.2, -0.2], [0.3, -0.3]])
    for bracket, factor in (("narrow", 1.0), ("wide", 2.0)):
        labels = LabelRows("BTC", bracket, decided, decided + 15 * MINUTE_MS, values * factor)
        assert repo.append_labels(labels, int(decided[-1])) == 3
    as_of_ms = int(decided[1]) + 15 * MINUTE_MS
    table = repo.labels(["BTC"] * 3 + ["ETH"], [*decided, decided[0]], "narrow", as_of_ms)
    assert table["long_return"].tolist()[:2] == [0.1, 0.2]
    assert table["short_return"].isna().tolist() == [False, False, True, True]
    assert repo.labels(["BTC"], decided[:1], "wide", as_of_ms)["long_return"].tolist() == [0.2]


def test_outcomes_and_embeddings_are_joined_as_they_were_known(repo: FeatureRepo) -> None:
    now = 1_750_000_020_000
    rows = [OutcomeRow("d1", now, (0.01, 10.0, 1.0, 0.0, 900.0, 0.0)), OutcomeRow("d2", now, (0.02, 20.0) + (0.0,) * 4)]
    assert repo.append_outcomes(rows, now) == 2
    assert repo.append_outcomes([OutcomeRow("d1", now + 5, (0.03, 30.0) + (0.0,) * 4)], now + 5) == 1
    wanted = pd.DataFrame({"decision_id": ["d2", "d1", "d1", "d9"], "event_timestamp": pd.to_datetime(
        [now, now, now + 5, now + 5], unit="ms", utc=True)})
    found = repo.historical(wanted, ["outcomes:net_return"])["net_return"]
    assert found.fillna(-1).tolist() == [0.02, 0.01, 0.03, -1]
    vector = np.array([0.6, 0.8], np.float32)
    embedding = EmbeddingRow("BTC", now, vector, "decision_v1/none")
    assert [repo.append_embeddings([embedding], now) for _ in range(2)] == [1, 0]
    asked = pd.DataFrame({"symbol": ["BTC"], "event_timestamp": pd.to_datetime([now + 1], unit="ms", utc=True)})
    joined = repo.historical(asked, ["embeddings:embedding", "embeddings:embedding_version"])
    assert np.array_equal(joined["embedding"][0], vector)
    assert joined["embedding_version"].tolist() == ["decision_v1/none"]


def test_applying_twice_is_applying_once(repo: FeatureRepo) -> None:
    repo.apply()
    views = {view.name for view in repo.feast.list_feature_views()}
    assert views == {*GROUPS, *ARRAYS, "labels", "outcomes", "embeddings", "market_embedding_by_version"}
    assert {service.name for service in repo.feast.list_feature_services()} == {"decision_v1", "episode_v1"}
    assert repo.config.project == "elite_trading"
    assert repo.feast.get_feature_view(FUNDING).ttl.total_seconds() * 1_000 == GROUPS[FUNDING].ttl_ms


def test_a_registry_that_was_torn_is_made_anew(repo: FeatureRepo, random_bars: MakeBars) -> None:
    frame = kept(repo, random_bars, "BTC")["BTC"][BARS]
    registry = repo.offline.folder / "registry.pb"
    registry.write_bytes(registry.read_bytes()[:100])
    again = FeatureRepo(repo.home, repo.redis_url)
    again.apply()
    assert again.training_frame(["BTC"], frame.event_time_ms[-1:])["ret_1"].tolist() == [frame.values[-1, 0]]


def test_rows_of_two_markets_are_never_joined_together(repo: FeatureRepo, random_bars: MakeBars) -> None:
    frame = kept(repo, random_bars, "BTC")["BTC"][BARS]
    other = FeatureRepo(repo.home, repo.redis_url, "another")
    other.apply()
    assert other.training_frame(["BTC"], frame.event_time_ms[-1:])["ret_1"].isna().all()
    assert repo.training_frame(["BTC"], frame.event_time_ms[-1:])["ret_1"].notna().all()


def test_a_row_of_another_length_is_refused(repo: FeatureRepo) -> None:
    with pytest.raises(InvalidInput, match="3 numbers"):
        repo.write_online([OnlineRow("BTC", PRICE, 0, (1.0,))])


def test_redis_urls_as_feast_writes_them() -> None:
    assert feast_address("redis://127.0.0.1:6380/2") == "127.0.0.1:6380,db=2"
    assert feast_address("rediss://u:p%40ss@r.example") == "r.example:6379,db=0,username=u,password=p@ss,ssl=true"
    with pytest.raises(InvalidInput, match="redis_url"):
        feast_address("127.0.0.1:6380")
