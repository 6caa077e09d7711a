"""The feeder's actor without Ray: a real ledger says which embedder is in use, a real Redis and real files follow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoder_bundles import SIZE, encoder_bundle
from plain_hub import PlainHub
from redis import Redis

from feature_repo.features import MARKET_EMBEDDING, MINUTE_MS, WINDOW
from feature_repo.generated import START_MS
from feature_repo.online import OnlineReader, OnlineVector
from feature_repo.redis_server import EmbeddedRedis
from feature_repo.store import FeatureRepo
from hub.actors import PREPARED_MS, FeederShell
from hub.embedding_use import embedders_of
from hub.market import MarketChoice
from policies.bundle import pack_bundle
from policies.embedder import load_embedder, version_of
from policies.free_ports import free_port
from policies.types import NO_EMBEDDING

NOW_MS = START_MS + 200 * MINUTE_MS
V1, V2 = (version_of(encoder_bundle(seed).policy_id) for seed in (1, 2))
MARKET = MarketChoice("generated", None, ("BTC", "ETH"), 0, 1.0, 1_000, "a test")


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(tmp_path_factory.mktemp("redis"), free_port()) as server:
        yield server


@pytest.fixture
def hub(open_hub: Callable[..., PlainHub]) -> PlainHub:
    started = open_hub()
    for seed in (1, 2):
        embedders_of(started.home).add(pack_bundle(encoder_bundle(seed)), load_embedder)
    return started


@pytest.fixture
def feeder(hub: PlainHub, redis: EmbeddedRedis, monkeypatch: Any) -> FeederShell:
    with Redis.from_url(redis.url) as client:
        client.flushall()
    patient = FeatureRepo.__init__
    monkeypatch.setattr(FeatureRepo, "__init__", lambda self, home, url, market: patient(self, home, url, market, 5.0))
    return FeederShell(hub.home, MARKET, redis.url, NOW_MS)


async def served(redis: EmbeddedRedis, now_ms: int) -> OnlineVector:
    reader = OnlineReader(redis.url, deadline_s=5.0)
    vector = await reader.read("ETH", now_ms, (MARKET_EMBEDDING, WINDOW))
    await reader.close()
    return vector


async def test_the_embedding_follows_the_ledger_at_once_also_back(
        hub: PlainHub, feeder: FeederShell, redis: EmbeddedRedis) -> None:
    assert MARKET_EMBEDDING not in (await served(redis, NOW_MS)).event_time_ms
    seen = []
    for say in (lambda: hub.service.embeddings.use(V1, ""), lambda: hub.service.embeddings.use(V2, ""),
                lambda: hub.service.embeddings.revert("it drifts")):
        await say()
        feeder.advance(NOW_MS)  # as the hub tells it when it has recorded the row
        vector = await served(redis, NOW_MS)
        seen.append((vector.versions[MARKET_EMBEDDING], vector.arrays[MARKET_EMBEDDING].tobytes()))
        assert vector.event_time_ms[MARKET_EMBEDDING] == vector.event_time_ms[WINDOW] == NOW_MS
    assert [version for version, _ in seen] == [V1, V2, V1]
    assert seen[0] == seen[2] != seen[1]
    await hub.service.embeddings.use(NO_EMBEDDING, "")
    later_ms = NOW_MS + MINUTE_MS
    feeder.advance(later_ms)
    vector = await served(redis, later_ms)
    assert (vector.event_time_ms[WINDOW], vector.event_time_ms[MARKET_EMBEDDING]) == (later_ms, NOW_MS)


async def test_an_embedder_that_is_gone_leaves_windows_and_features_alone(
        hub: PlainHub, feeder: FeederShell, redis: EmbeddedRedis, capfd: Any) -> None:
    await hub.service.embeddings.use(V1, "")
    model = hub.home.root / "embedders" / encoder_bundle(1).policy_id / "model.onnx"
    model.unlink()
    for minute in range(1, 4):
        feeder.advance(NOW_MS + minute * MINUTE_MS)
    vector = await served(redis, NOW_MS + 3 * MINUTE_MS)
    assert set(vector.arrays) == {WINDOW}
    assert not np.isnan(vector.values[0])
    assert capfd.readouterr().out.count("the market's embedding") == 1, "said once, not every minute"


async def test_what_was_embedded_is_in_the_offline_store_when_the_next_stretch_is_prepared(
        hub: PlainHub, feeder: FeederShell, redis: EmbeddedRedis, tmp_path: Path) -> None:
    await hub.service.embeddings.use(V1, "")
    feeder.advance(NOW_MS)
    served_then = (await served(redis, NOW_MS)).arrays[MARKET_EMBEDDING]
    feeder.advance(NOW_MS + PREPARED_MS + MINUTE_MS)
    feeder._keeper.shutdown(wait=True)
    repo = FeatureRepo(hub.home.root, redis.url, MARKET.open().origin)  # as the job opens it
    found = repo.market_embeddings(["ETH"], [NOW_MS], V1, SIZE)
    assert found.tobytes() == served_then.tobytes()
