from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from feature_repo.features import DECISION_V1, MINUTE_MS
from feature_repo.online import OnlineReader
from feature_repo.store import FeatureRepo, OnlineRow, _feast_address
from feature_repo.transforms import FeatureFrame, compute_features
from policies.bars import Bars
from policies.errors import InvalidInput

MakeBars = Callable[..., Bars]


def frames_of(make: MakeBars, *symbols: str) -> dict[str, FeatureFrame]:
    return {symbol: compute_features(make(400, seed=k, symbol=symbol)) for k, symbol in enumerate(symbols)}


def test_training_frame_is_the_newest_row_known_at_each_time(repo: FeatureRepo, random_bars: MakeBars) -> None:
    frames = frames_of(random_bars, "BTC", "SOL")
    for symbol, frame in frames.items():
        repo.write_offline(symbol, frame)
    times = frames["BTC"].event_time_ms[[5, 100, 200]] + [0, 1, MINUTE_MS - 1]
    table = repo.training_frame(("SOL", "BTC"), times)
    assert table.columns.tolist() == ["symbol", "event_timestamp", *DECISION_V1.names]
    assert table["symbol"].tolist() == ["SOL"] * 3 + ["BTC"] * 3
    values = table[list(DECISION_V1.names)].to_numpy(np.float64)
    expected = np.vstack([frames[symbol].values[[5, 100, 200]] for symbol in ("SOL", "BTC")])
    assert np.array_equal(values, expected, equal_nan=True)


def test_time_asked_for_twice_is_answered_twice(repo: FeatureRepo, random_bars: MakeBars) -> None:
    frame = frames_of(random_bars, "BTC")["BTC"]
    repo.write_offline("BTC", frame)
    times = frame.event_time_ms[[7, 3, 7]]
    assert repo.training_frame(["BTC"], times)["ret_1"].tolist() == frame.values[[7, 3, 7], 0].tolist()


def test_row_beyond_the_ttl_or_before_the_first_is_missing(repo: FeatureRepo, random_bars: MakeBars) -> None:
    frame = frames_of(random_bars, "BTC")["BTC"]
    repo.write_offline("BTC", frame)
    first, last, ttl = int(frame.event_time_ms[0]), int(frame.event_time_ms[-1]), DECISION_V1.ttl_ms["bars"]
    table = repo.training_frame(["BTC"], [first - 1, first, last + ttl, last + ttl + MINUTE_MS])
    assert table["ret_1"].isna().tolist() == [True, False, False, True]


def test_writing_offline_again_replaces_and_leaves_no_parts(repo: FeatureRepo, random_bars: MakeBars) -> None:
    frame = frames_of(random_bars, "BTC")["BTC"]
    repo.write_offline("BTC", frame)
    changed = FeatureFrame(frame.event_time_ms, frame.values + 1)
    repo.write_offline("BTC", changed)
    table = repo.training_frame(["BTC"], frame.event_time_ms[-1:])
    assert table["ret_1"].tolist() == [changed.values[-1, 0]]
    files = sorted(p.relative_to(repo.home).as_posix() for p in (repo.home / "features").rglob("BTC*"))
    assert files == ["features/bars/BTC.parquet", "features/funding/BTC.parquet"]
    with pytest.raises(InvalidInput):
        repo.write_offline("BTC", frame.slice(0, 0))


async def test_materialize_serves_the_newest_row_at_that_time(repo: FeatureRepo, random_bars: MakeBars) -> None:
    frame = frames_of(random_bars, "BTC")["BTC"]
    repo.write_offline("BTC", frame)
    repo.materialize(int(frame.event_time_ms[150]) + 59_999)
    reader = OnlineReader(repo.redis_url, deadline_s=5.0)
    vector = await reader.read("BTC")
    assert np.array_equal(vector.values, frame.values[150], equal_nan=True)
    assert vector.event_time_ms == dict.fromkeys(("bars", "funding"), int(frame.event_time_ms[150]))
    await reader.close()


def test_applying_twice_is_applying_once(repo: FeatureRepo) -> None:
    repo.apply()
    assert [view.name for view in repo.feast.list_feature_views()] == ["bars", "funding"]
    assert repo.config.project == "elite_trading"


def test_vector_of_another_length_is_refused(repo: FeatureRepo) -> None:
    with pytest.raises(InvalidInput, match="40 numbers"):
        repo.write_online([OnlineRow("BTC", 0, (1.0,))])


def test_redis_urls_as_feast_writes_them() -> None:
    assert _feast_address("redis://127.0.0.1:6380/2") == "127.0.0.1:6380,db=2"
    assert _feast_address("rediss://u:p%40ss@r.example") == "r.example:6379,db=0,username=u,password=p@ss,ssl=true"
    with pytest.raises(InvalidInput, match="redis_url"):
        _feast_address("127.0.0.1:6380")
