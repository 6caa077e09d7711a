from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from feast.infra.online_stores.helpers import _mmh3, _redis_key
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value

from feature_repo.features import DECISION_V1, MINUTE_MS
from feature_repo.online import FeaturesUnavailable, FutureFeatures, OnlineReader, OnlineVector, field_of, redis_key_of
from feature_repo.redis_server import EmbeddedRedis
from feature_repo.store import FeatureRepo, OnlineRow

NOW = 1_750_000_020_000


def row(symbol: str, offset: float = 0.0, time_ms: int = NOW, missing: tuple[int, ...] = ()) -> OnlineRow:
    values = tuple(math.nan if k in missing else offset + k / 7 for k in range(len(DECISION_V1)))
    return OnlineRow(symbol, time_ms, values)


def as_feast_reads(repo: FeatureRepo, symbol: str) -> list[float]:
    service = repo.feast.get_feature_service("decision_v1")
    answer = repo.feast.get_online_features(features=service, entity_rows=[{"symbol": symbol}]).to_dict()
    return [math.nan if answer[name][0] is None else answer[name][0] for name in DECISION_V1.names]


def test_service_holds_the_features_in_their_order(repo: FeatureRepo) -> None:
    service = repo.feast.get_feature_service("decision_v1")
    names = [field.name for view in service.feature_view_projections for field in view.features]
    assert tuple(names) == DECISION_V1.names


@pytest.mark.parametrize("missing", [(), (39,), (0, 17, 39), tuple(range(40))])
async def test_vector_is_what_feast_reads(repo: FeatureRepo, missing: tuple[int, ...]) -> None:
    repo.write_online([row("BTC", missing=missing), row("ETH", 50.0)])
    reader = OnlineReader(repo.redis_url, deadline_s=5.0)
    for symbol in ("BTC", "ETH"):
        vector = await reader.read(symbol)
        assert list(vector.values) == pytest.approx(as_feast_reads(repo, symbol), abs=0, nan_ok=True)
        assert vector.event_time_ms == {"bars": NOW, "funding": NOW}
    await reader.close()


async def test_absent_and_null_fields_are_missing_as_in_feast(repo: FeatureRepo, redis_client: Any) -> None:
    repo.write_online([row("BTC")])
    reader = OnlineReader(repo.redis_url, deadline_s=5.0)
    key = redis_key_of("elite_trading", "BTC")
    redis_client.hdel(key, reader._fields[3])
    redis_client.hset(key, reader._fields[4], b"")
    vector = await reader.read("BTC")
    assert [k for k, value in enumerate(vector.values) if math.isnan(value)] == [3, 4]
    assert list(vector.values) == pytest.approx(as_feast_reads(repo, "BTC"), abs=0, nan_ok=True)
    await reader.close()


async def test_symbol_never_written_has_nothing_and_is_stale(repo: FeatureRepo) -> None:
    reader = OnlineReader(repo.redis_url, deadline_s=5.0)
    vector = await reader.read("NEVER")
    assert vector.event_time_ms == {}
    assert all(math.isnan(value) for value in vector.values)
    assert reader.fresh(vector, NOW) == ["bars"]
    await reader.close()


async def test_one_read_is_one_command(repo: FeatureRepo, redis_client: Any) -> None:
    repo.write_online([row("BTC")])
    reader = OnlineReader(repo.redis_url, deadline_s=5.0)
    await reader.read("BTC")
    before = redis_client.info("commandstats")
    await reader.read("BTC")
    after = redis_client.info("commandstats")
    grown = {name for name in after if after[name]["calls"] != before.get(name, {"calls": 0})["calls"]}
    assert grown - {"cmdstat_info"} == {"cmdstat_hmget"}
    assert after["cmdstat_hmget"]["calls"] == before["cmdstat_hmget"]["calls"] + 1
    await reader.close()


@pytest.mark.parametrize(("age_ms", "stale"), [(0, []), (180_000, []), (180_001, ["bars"])])
async def test_required_group_is_stale_only_beyond_its_ttl(age_ms: int, stale: list[str]) -> None:
    reader = OnlineReader("redis://127.0.0.1:1/0")
    vector = OnlineVector((0.0,) * 40, {"bars": NOW - age_ms, "funding": NOW - 500 * MINUTE_MS})
    assert reader.fresh(vector, NOW) == stale


@pytest.mark.parametrize("group", ["bars", "funding"])
async def test_event_time_after_now_is_refused(group: str) -> None:
    reader = OnlineReader("redis://127.0.0.1:1/0")
    vector = OnlineVector((0.0,) * 40, {"bars": NOW, "funding": NOW, group: NOW + 1})
    with pytest.raises(FutureFeatures, match=group):
        reader.fresh(vector, NOW)


async def test_redis_that_is_away_frozen_or_back_again(tmp_path: Path, free_port: int) -> None:
    server = EmbeddedRedis(tmp_path / "redis", free_port)
    reader = OnlineReader(server.url, deadline_s=0.5)
    repo = FeatureRepo(tmp_path, server.url, timeout_s=0.5)
    with pytest.raises(FeaturesUnavailable):
        await reader.read("BTC")
    with pytest.raises(FeaturesUnavailable):
        repo.write_online([row("BTC")])
    with server:
        repo.write_online([row("BTC"), row("ETH", 50.0)])
        assert (await reader.read("BTC")).values == row("BTC").values
        assert server.pid is not None
        os.kill(server.pid, signal.SIGSTOP)
        with pytest.raises(FeaturesUnavailable, match="within"):
            await reader.read("BTC")
        with pytest.raises(FeaturesUnavailable):
            repo.online_event_times(["BTC"])
        os.kill(server.pid, signal.SIGCONT)
        # The late answer to the abandoned read must not be taken for the answer to this one.
        assert (await reader.read("ETH")).values == row("ETH", 50.0).values
        server.stop()
        server.start()
        assert (await reader.read("ETH")).event_time_ms == {}, "a restart empties it; the dead connection is no error"
        assert repo.online_event_times(["ETH"]) == {"ETH": {}}
    await reader.close()


async def test_foreign_content_is_unavailable_not_a_value(repo: FeatureRepo, redis_client: Any) -> None:
    repo.write_online([row("BTC")])
    reader = OnlineReader(repo.redis_url, deadline_s=5.0)
    redis_client.hset(redis_key_of("elite_trading", "BTC"), reader._fields[0], b"\xff\xff\xff")
    with pytest.raises(FeaturesUnavailable, match="something else"):
        await reader.read("BTC")
    await reader.close()


@pytest.mark.parametrize("symbol", ["BTC", "kPEPE", "@107", "PURR/USDC", "x" * 20])
def test_keys_and_fields_are_those_of_feast(symbol: str) -> None:
    entity = EntityKey(join_keys=["symbol"], entity_values=[Value(string_val=symbol)])
    assert redis_key_of("elite_trading", symbol) == _redis_key("elite_trading", entity, 3)
    assert [field_of(spec.group, spec.name) for spec in DECISION_V1.specs] == [
        _mmh3(f"{spec.group}:{spec.name}") for spec in DECISION_V1.specs]


def test_reading_online_features_does_not_import_feast() -> None:
    code = "import sys, feature_repo.online; sys.exit('feast' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
