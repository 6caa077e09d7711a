from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from redis import Redis

from feature_repo.redis_server import EmbeddedRedis
from feature_repo.store import FeatureRepo
from policies.bars import Bars
from policies.free_ports import free_port

MINUTE = 60_000


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(tmp_path_factory.mktemp("redis"), free_port()) as server:
        yield server


@pytest.fixture
def redis_client(redis_server: EmbeddedRedis) -> Iterator[Redis]:
    with Redis.from_url(redis_server.url) as client:
        client.flushall()
        yield client


@pytest.fixture
def repo(tmp_path: Path, redis_server: EmbeddedRedis, redis_client: Redis) -> FeatureRepo:
    # Patient: a busy machine must not make a test fail that is not about deadlines.
    made = FeatureRepo(tmp_path / "home", redis_server.url, timeout_s=5.0)
    made.apply()
    return made


@pytest.fixture
def random_bars() -> Callable[..., Bars]:
    def make(count: int, seed: int = 0, start_ms: int = 1_700_000_040_000, symbol: str = "BTC") -> Bars:
        rng = np.random.default_rng(seed)
        close = 100 * np.exp(np.cumsum(rng.normal(0, 0.001, count)))
        opening = np.r_[100.0, close[:-1]]
        high = np.maximum(opening, close) * (1 + rng.random(count) * 0.001)
        low = np.minimum(opening, close) * (1 - rng.random(count) * 0.001)
        funding = np.where(np.arange(count) % 300 == 7, rng.normal(0, 1e-4, count), 0.0)
        times = start_ms // MINUTE * MINUTE + MINUTE * np.arange(count, dtype=np.int64)
        return Bars(symbol, MINUTE, times, opening, high, low, close, rng.exponential(10, count), funding).check()

    return make
