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

from feature_repo.features import BARS, DECISION_V1, EPISODE_V1, FUNDING, GROUPS, QUOTE, REDDIT
from feature_repo.online import FeaturesUnavailable, OnlineReader, field_of, redis_key_of
from feature_repo.redis_server import EmbeddedRedis
from feature_repo.store import ONLINE_GROUPS, FeatureRepo, OnlineRow
from policies.breaker import Breaker
from policies.free_ports import free_port

NOW = 1_750_000_020_000


def row(symbol: str, group: str, offset: float = 0.0, time_ms: int = NOW, missing: tuple[int, ...] = ()) -> OnlineRow:
    values = tuple(math.nan if k in missing else offset + k / 7 for k in range(len(GROUPS[group].names)))
    return OnlineRow(symbol, group, time_ms, values)


def whole(symbol: str, offset: float = 0.0, missing: tuple[int, ...] = ()) -> list[OnlineRow]:
    return [row(symbol, group, offset + k, missing=missing) for k, group in enumerate(ONLINE_GROUPS)]


def as_feast_reads(repo: FeatureRepo, symbol: str, service: str) -> dict[str, float]:
    answer = repo.feast.get_online_features(features=repo.feast.get_feature_service(service),
                                            entity_rows=[{"symbol": symbol}]).to_dict()
    return {name: math.nan if values[0] is None else values[0] for name, values in answer.items() if name != "symbol"}


def stored(values: tuple[float, ...]) -> dict[str, float]:
    return {spec.name: value for spec, value in zip(DECISION_V1.specs, values, strict=True)
            if spec in DECISION_V1.stored}


def test_services_hold_the_stored_features_in_their_order(repo: FeatureRepo) -> None:
    for service in (DECISION_V1, EPISODE_V1):
        kept = repo.feast.get_feature_service(service.name)
        names = [field.name for view in kept.feature_view_projections for field in view.features]
        assert names == [spec.name for spec in service.stored]


@pytest.mark.parametrize("missing", [(), (0,), (1, 2), tuple(range(40))])
async def test_vectors_are_what_feast_reads(repo: FeatureRepo, missing: tuple[int, ...]) -> None:
    repo.write_online([*whole("BTC", missing=missing), *whole("ETH", 50.0)])
    reader = OnlineReader(repo.redis_url, also=(EPISODE_V1,), deadline_s=5.0)
    for symbol in ("BTC", "ETH"):
        vector = await reader.read(symbol, NOW)
        assert stored(vector.values) == pytest.approx(as_feast_reads(repo, symbol, "decision_v1"), abs=0, nan_ok=True)
        held = as_feast_reads(repo, symbol, "episode_v1")
        online = {name: held[name] for name in vector.also["episode_v1"]}
        assert vector.also["episode_v1"] == pytest.approx(online, abs=0, nan_ok=True)
        assert set(held) - set(online) == set(GROUPS["portfolio"].names) | set(GROUPS["weights"].names)
        assert vector.event_time_ms == dict.fromkeys(ONLINE_GROUPS, NOW)
    await reader.close()


async def test_absent_and_null_fields_are_missing_as_in_feast(repo: FeatureRepo, redis_client: Any) -> None:
    repo.write_online(whole("BTC"))
    reader = OnlineReader(repo.redis_url, deadline_s=5.0)
    key = redis_key_of("elite_trading", "BTC")
    redis_client.hdel(key, field_of(BARS, "ret_5"))
    redis_client.hset(key, field_of(BARS, "vol_ratio_5"), b"")
    values = stored((await reader.read("BTC", NOW)).values)
    assert [name for name, value in values.items() if math.isnan(value)] == ["ret_5", "vol_ratio_5"]
    assert values == pytest.approx(as_feast_reads(repo, "BTC", "decision_v1"), abs=0, nan_ok=True)
    await reader.close()


async def test_a_group_that_is_stale_not_known_yet_or_never_written_is_missing_and_said_to_be(
        repo: FeatureRepo) -> None:
    stale, future = NOW - GROUPS[FUNDING].ttl_ms - 1, NOW + 1
    repo.write_online([row("BTC", BARS, time_ms=NOW - GROUPS[BARS].ttl_ms), row("BTC", FUNDING, time_ms=stale),
                       row("BTC", QUOTE, time_ms=future)])
    reader = OnlineReader(repo.redis_url, deadline_s=5.0)
    vector = await reader.read("BTC", NOW)
    values = dict(zip(DECISION_V1.names, vector.values, strict=True))
    assert values["ret_1"] == 0.0
    for group in (FUNDING, QUOTE, REDDIT):
        assert values[f"{group}_missing"] == 1.0
        assert all(math.isnan(values[name]) for name in DECISION_V1.groups[group])
    assert vector.event_time_ms == {BARS: NOW - GROUPS[BARS].ttl_ms, FUNDING: stale, QUOTE: future}
    fresh = await reader.read("BTC", NOW - 1)
    assert dict(zip(DECISION_V1.names, fresh.values, strict=True))["funding_missing"] == 0.0
    await reader.close()


async def test_symbol_never_written_has_nothing(repo: FeatureRepo) -> None:
    reader = OnlineReader(repo.redis_url, deadline_s=5.0)
    vector = await reader.read("NEVER", NOW)
    assert vector.event_time_ms == {}
    assert all(math.isnan(value) for value in stored(vector.values).values())
    assert all(vector.values[place] == 1.0 for place in DECISION_V1.indicators.values())
    await reader.close()


async def test_one_read_is_one_command(repo: FeatureRepo, redis_client: Any) -> None:
    repo.write_online(whole("BTC"))
    reader = OnlineReader(repo.redis_url, deadline_s=5.0)
    await reader.read("BTC", NOW)
    before = redis_client.info("commandstats")
    await reader.read("BTC", NOW)
    after = redis_client.info("commandstats")
    grown = {name for name in after if after[name]["calls"] != before.get(name, {"calls": 0})["calls"]}
    assert grown - {"cmdstat_info"} == {"cmdstat_hmget"}
    assert after["cmdstat_hmget"]["calls"] == before["cmdstat_hmget"]["calls"] + 1
    await reader.close()


async def test_redis_that_is_away_frozen_or_back_again(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path / "redis", free_port())
    patient = Breaker(1_000, 1.0)  # what is tried here is the connection
    reader = OnlineReader(server.url, deadline_s=0.5, breaker=patient)
    repo = FeatureRepo(tmp_path, server.url, timeout_s=0.5)
    with pytest.raises(FeaturesUnavailable):
        await reader.read("BTC", NOW)
    with pytest.raises(FeaturesUnavailable):
        repo.write_online(whole("BTC"))
    with server:
        repo.write_online([*whole("BTC"), *whole("ETH", 50.0)])
        assert (await reader.read("BTC", NOW)).values[0] == 0.0
        assert server.pid is not None
        os.kill(server.pid, signal.SIGSTOP)
        with pytest.raises(FeaturesUnavailable, match="within"):
            await reader.read("BTC", NOW)
        with pytest.raises(FeaturesUnavailable):
            repo.online_event_times(["BTC"])
        os.kill(server.pid, signal.SIGCONT)
        # The late answer to the abandoned read must not be taken for the answer to this one.
        assert (await reader.read("ETH", NOW)).values[0] == 50.0
        server.stop()
        server.start()
        assert (await reader.read("ETH", NOW)).event_time_ms == {}, "a restart empties it; the reader connects again"
        assert repo.online_event_times(["ETH"]) == {"ETH": {}}
    await reader.close()


async def test_a_redis_that_keeps_failing_is_left_alone_for_a_moment(repo: FeatureRepo) -> None:
    repo.write_online(whole("BTC"))
    now_s = [0.0]
    gone = OnlineReader("redis://127.0.0.1:1/0", deadline_s=5.0, breaker=Breaker(2, 1.0, lambda: now_s[0]))
    for reason in ("ConnectionError", "ConnectionError", "left alone", "left alone"):
        with pytest.raises(FeaturesUnavailable, match=reason):
            await gone.read("BTC", NOW)
    now_s[0] = 1.0
    with pytest.raises(FeaturesUnavailable, match="ConnectionError"):
        await gone.read("BTC", NOW)
    breaker = Breaker(2, 1.0, lambda: now_s[0])
    breaker.failed()
    breaker.failed()
    back = OnlineReader(repo.redis_url, deadline_s=5.0, breaker=breaker)
    with pytest.raises(FeaturesUnavailable, match="left alone"):
        await back.read("BTC", NOW)
    now_s[0] = 2.0
    for _ in range(3):
        assert (await back.read("BTC", NOW)).values[0] == 0.0
    await back.close()


async def test_foreign_content_is_unavailable_not_a_value(repo: FeatureRepo, redis_client: Any) -> None:
    repo.write_online(whole("BTC"))
    reader = OnlineReader(repo.redis_url, deadline_s=5.0)
    redis_client.hset(redis_key_of("elite_trading", "BTC"), field_of(BARS, "ret_1"), b"\xff\xff\xff")
    with pytest.raises(FeaturesUnavailable, match="something else"):
        await reader.read("BTC", NOW)
    await reader.close()


@pytest.mark.parametrize("symbol", ["BTC", "kPEPE", "@107", "PURR/USDC", "x" * 20])
def test_keys_and_fields_are_those_of_feast(symbol: str) -> None:
    entity = EntityKey(join_keys=["symbol"], entity_values=[Value(string_val=symbol)])
    assert redis_key_of("elite_trading", symbol) == _redis_key("elite_trading", entity, 3)
    assert [field_of(spec.group, spec.name) for spec in DECISION_V1.stored] == [
        _mmh3(f"{spec.group}:{spec.name}") for spec in DECISION_V1.stored]


def test_reading_online_features_does_not_import_feast() -> None:
    code = "import sys, feature_repo.online; sys.exit('feast' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
