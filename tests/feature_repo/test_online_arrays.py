from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from feast.protos.feast.types.Value_pb2 import FloatList, Value
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from feature_repo.array_frames import OnlineArray
from feature_repo.features import ARRAYS, BARS, GROUPS, MARKET_EMBEDDING, WINDOW
from feature_repo.online import FeaturesUnavailable, OnlineReader, field_of, floats_of, redis_key_of, text_of
from feature_repo.store import FeatureRepo, OnlineRow
from policies.errors import InvalidInput

NOW = 1_750_000_020_000
TTL_MS = ARRAYS[WINDOW].ttl_ms
BOTH = (MARKET_EMBEDDING, WINDOW)
REPEATABLE = settings(derandomize=True, database=None, deadline=None)


def window(symbol: str, time_ms: int = NOW, seed: int = 0) -> OnlineArray:
    return OnlineArray(symbol, WINDOW, time_ms, np.random.default_rng(seed).normal(size=600).astype(np.float32))


def embedding(symbol: str, time_ms: int = NOW, version: str = "mae-0123456789ab", size: int = 16) -> OnlineArray:
    values = np.random.default_rng(7).normal(size=size).astype(np.float32)
    return OnlineArray(symbol, MARKET_EMBEDDING, time_ms, values, version)


def bars(symbol: str, time_ms: int = NOW) -> OnlineRow:
    return OnlineRow(symbol, BARS, time_ms, tuple(k / 7 for k in range(len(GROUPS[BARS].names))))


async def test_arrays_are_what_feast_reads(repo: FeatureRepo) -> None:
    rows = [window("BTC"), window("ETH", seed=1), embedding("BTC"), embedding("ETH", version="mae-of-another", size=5)]
    repo.write_arrays(rows)
    repo.write_online([bars("BTC")])
    reader = OnlineReader(repo.redis_url, deadline_s=5.0)
    wanted = ["window:bars_before", "market_embedding:embedding", "market_embedding:embedding_version"]
    for place, symbol in enumerate(("BTC", "ETH")):
        vector = await reader.read(symbol, NOW, BOTH)
        feast = repo.feast.get_online_features(features=wanted, entity_rows=[{"symbol": symbol}]).to_dict()
        assert vector.arrays[WINDOW].tolist() == feast["bars_before"][0] == rows[place].values.tolist()
        assert vector.arrays[MARKET_EMBEDDING].tolist() == feast["embedding"][0] == rows[place + 2].values.tolist()
        assert vector.versions == {MARKET_EMBEDDING: feast["embedding_version"][0]}
        assert {vector.event_time_ms[group] for group in BOTH} == {NOW}
    assert vector.arrays[WINDOW].dtype == np.float32
    await reader.close()


async def test_only_what_is_asked_for_is_read_and_all_of_it_by_one_command(
        repo: FeatureRepo, redis_client: Any) -> None:
    repo.write_arrays([window("BTC"), embedding("BTC")])
    repo.write_online([bars("BTC")])
    reader = OnlineReader(repo.redis_url, deadline_s=5.0)
    plain = await reader.read("BTC", NOW)
    assert (plain.arrays, plain.versions, plain.event_time_ms) == ({}, {}, {BARS: NOW})
    before = redis_client.info("commandstats")["cmdstat_hmget"]["calls"]
    one, both = await reader.read("BTC", NOW, (WINDOW,)), await reader.read("BTC", NOW, BOTH)
    assert redis_client.info("commandstats")["cmdstat_hmget"]["calls"] == before + 2
    assert (set(one.arrays), one.versions) == ({WINDOW}, {})
    assert set(both.arrays) == set(BOTH)
    assert np.array_equal(plain.values, one.values, equal_nan=True)
    assert np.array_equal(plain.values, both.values, equal_nan=True)
    await reader.close()


@pytest.mark.parametrize(("age_ms", "fresh"), [(0, True), (TTL_MS, True), (TTL_MS + 1, False), (-1, False)])
async def test_an_array_that_is_stale_or_not_known_yet_is_missing_and_said_to_be(
        repo: FeatureRepo, age_ms: int, fresh: bool) -> None:
    repo.write_arrays([window("BTC", NOW - age_ms), embedding("BTC")])
    reader = OnlineReader(repo.redis_url, deadline_s=5.0)
    vector = await reader.read("BTC", NOW, BOTH)
    assert (WINDOW in vector.arrays) == fresh
    assert vector.event_time_ms == {WINDOW: NOW - age_ms, MARKET_EMBEDDING: NOW}
    assert MARKET_EMBEDDING in vector.arrays, "each group goes stale by itself"
    await reader.close()


async def test_an_array_that_was_never_written_is_absent(repo: FeatureRepo) -> None:
    repo.write_online([bars("BTC")])
    reader = OnlineReader(repo.redis_url, deadline_s=5.0)
    vector = await reader.read("BTC", NOW, BOTH)
    assert (vector.arrays, vector.versions, vector.event_time_ms) == ({}, {}, {BARS: NOW})
    await reader.close()


async def test_values_version_and_time_of_a_new_row_replace_those_of_the_old_one(repo: FeatureRepo) -> None:
    repo.write_arrays([embedding("BTC", version="mae-old")])
    repo.write_arrays([embedding("BTC", version="mae-new", size=3)])
    reader = OnlineReader(repo.redis_url, deadline_s=5.0)
    vector = await reader.read("BTC", NOW, (MARKET_EMBEDDING,))
    assert (len(vector.arrays[MARKET_EMBEDDING]), vector.versions[MARKET_EMBEDDING]) == (3, "mae-new")
    assert repo.online_event_times(["BTC"]) == {"BTC": {MARKET_EMBEDDING: NOW}}
    await reader.close()


async def test_foreign_content_is_unavailable_not_an_array(repo: FeatureRepo, redis_client: Any) -> None:
    repo.write_arrays([window("BTC")])
    reader = OnlineReader(repo.redis_url, deadline_s=5.0)
    redis_client.hset(redis_key_of("elite_trading", "BTC"), field_of(WINDOW, "bars_before"), b"\x82\x01\xff")
    with pytest.raises(FeaturesUnavailable, match="something else"):
        await reader.read("BTC", NOW, (WINDOW,))
    assert (await reader.read("BTC", NOW)).event_time_ms == {}, "who does not ask for it does not mind"
    await reader.close()


@REPEATABLE
@given(arrays(np.float32, st.integers(0, 700), elements=st.floats(width=32)), st.integers(1, 2_900))
def test_numbers_come_back_to_the_last_bit_and_a_part_of_them_never(values: np.ndarray, cut: int) -> None:
    raw = Value(float_list_val=FloatList(val=values.tolist())).SerializeToString()
    assert np.array_equal(floats_of(raw), values, equal_nan=True)
    if cut < len(raw):
        with pytest.raises(DecodeError):
            floats_of(raw[:cut])
    with pytest.raises(DecodeError):
        floats_of(raw + b"\0")


@REPEATABLE
@given(st.text(max_size=300))
def test_texts_come_back(text: str) -> None:
    raw = Value(string_val=text).SerializeToString()
    assert text_of(raw) == text
    with pytest.raises(DecodeError):
        text_of(raw[:-1])


@pytest.mark.parametrize(("group", "count", "version", "value"), [
    (WINDOW, 601, "", 0.0), (WINDOW, 0, "", 0.0), (WINDOW, 600, "mae-1", 0.0), (MARKET_EMBEDDING, 16, "", 0.0),
    (MARKET_EMBEDDING, 257, "mae-1", 0.0), (WINDOW, 600, "", np.nan), (MARKET_EMBEDDING, 4, "mae-1", np.inf)])
def test_rows_that_nobody_may_write_are_refused(group: str, count: int, version: str, value: float) -> None:
    with pytest.raises(InvalidInput, match=group):
        OnlineArray("BTC", group, NOW, np.full(count, value, np.float32), version)
