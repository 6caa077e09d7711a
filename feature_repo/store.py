"""The feature repository: Feast in library mode, DuckDB over parquet offline and Redis online.

Everything lies under `home`: `features/<group>/<SYMBOL>.parquet`, `features/registry.pb`. The registry can run code in
who opens it (Feast keeps pickled parts in it), so the folder belongs to the hub's user alone.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from feast import FeatureStore, RepoConfig
from feast.infra.online_stores.redis import RedisOnlineStore
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from numpy.typing import ArrayLike
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from feature_repo.definitions import build_definitions, offline_folder
from feature_repo.features import DECISION_V1, FeatureList
from feature_repo.online import FeaturesUnavailable, event_time_ms_of, redis_key_of, time_field_of
from feature_repo.transforms import FeatureFrame
from policies.errors import InvalidInput

SETTINGS = Path(__file__).with_name("feature_store.yaml")


@dataclass(frozen=True)
class OnlineRow:
    """What the online store is to hold of a symbol. values: (40,) in the order of the feature list, NaN if missing."""

    symbol: str
    event_time_ms: int
    values: tuple[float, ...]


class QuickRedisStore(RedisOnlineStore):
    """Feast's store on a client of ours: its own one waits seconds between the retries to a frozen server."""

    def __init__(self, client: Redis) -> None:
        self._client = client


class FeatureRepo:
    """Writes features offline and online, and reads them as they were known at a time. One writer per home.

    timeout_s: of one round trip to Redis.
    """

    def __init__(self, home: Path, redis_url: str, features: FeatureList = DECISION_V1,
                 timeout_s: float = 0.05) -> None:
        self.home, self.features = home.resolve(), features
        self.redis_url = redis_url
        self._redis = Redis.from_url(redis_url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s,
                                     retry=Retry(NoBackoff(), 0))
        self._online = QuickRedisStore(self._redis)
        self.definitions = build_definitions(self.home, features)

    @cached_property
    def config(self) -> RepoConfig:
        """feature_store.yaml with this home and this Redis filled in."""
        text = Template(SETTINGS.read_text()).substitute(HUB_HOME=self.home, HUB_REDIS=_feast_address(self.redis_url))
        return RepoConfig(repo_path=self.home, **yaml.safe_load(text))

    @cached_property
    def feast(self) -> FeatureStore:
        """Feast's own front, for whatever this class does not offer."""
        return FeatureStore(config=self.config)

    def apply(self) -> None:
        """Register entity, views and service. Idempotent."""
        for group in self.features.groups:
            offline_folder(self.home, group).mkdir(parents=True, exist_ok=True, mode=0o700)
        self.feast.apply(self.definitions.everything())

    def write_offline(self, symbol: str, frame: FeatureFrame) -> None:
        """Replace what the offline store holds of a symbol. A reader sees the old file or the new one, whole.

        `created` is the newest event time of the frame: the first moment at which it could have been computed.
        """
        if len(frame) == 0:
            raise InvalidInput("frame", "at least one row", 0)
        stamps = pa.array(frame.event_time_ms, pa.timestamp("ms", tz="UTC"))
        created = pa.array(np.full(len(frame), frame.event_time_ms[-1]), pa.timestamp("ms", tz="UTC"))
        columns = dict(zip(self.features.names, frame.values.T, strict=True))
        for group, names in self.features.groups.items():
            table = pa.table({"symbol": pa.array([symbol] * len(frame)), "event_timestamp": stamps, "created": created,
                              **{name: columns[name] for name in names}})
            path = offline_folder(self.home, group) / f"{symbol}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            part = path.with_suffix(".part")  # not matched by the view's *.parquet
            pq.write_table(table, part, compression="zstd")
            os.replace(part, path)

    def materialize(self, until_ms: int) -> None:
        """Put each symbol's newest offline row at or before until_ms into the online store, by Feast's own job.

        Only rows that are fresh at until_ms for some group are looked at.
        """
        stop = _utc(until_ms)
        self.feast.materialize(_utc(until_ms - max(self.features.ttl_ms.values())), stop)

    def training_frame(self, symbols: Sequence[str], event_time_ms: ArrayLike) -> pd.DataFrame:
        """One row per symbol and time, symbol by symbol: symbol, event_timestamp, then the features in order.

        Each value is the newest one known at that time and within its group's ttl, NaN if there was none.
        """
        times = np.asarray(event_time_ms, np.int64)
        stamps = pd.to_datetime(np.tile(times, len(symbols)), unit="ms", utc=True)
        wanted = pd.DataFrame({"symbol": np.repeat(list(symbols), len(times)), "event_timestamp": stamps})
        service = self.feast.get_feature_service(self.features.name)
        joined = self.feast.get_historical_features(entity_df=wanted, features=service).to_df()
        columns = ["symbol", "event_timestamp", *self.features.names]
        return wanted.merge(joined.drop_duplicates(["symbol", "event_timestamp"]), how="left",
                            on=["symbol", "event_timestamp"])[columns]

    def write_online(self, rows: Sequence[OnlineRow]) -> None:
        """Write rows of several symbols, one round trip per group; of a group, values and event time change as one."""
        for row in rows:
            if len(row.values) != len(self.features):
                raise InvalidInput("row.values", f"{len(self.features)} numbers", len(row.values))
        try:
            for group, view in self.definitions.views.items():
                self._online.online_write_batch(self.config, view, [self._protos(row, group) for row in rows], None)
        except (RedisError, OSError) as error:
            raise FeaturesUnavailable(f"Redis: {type(error).__name__}") from error

    def online_event_times(self, symbols: Sequence[str]) -> dict[str, dict[str, int]]:
        """{symbol: {group: event time in ms}} of what the online store holds now, in one round trip."""
        groups = tuple(self.features.groups)
        fields = [time_field_of(group) for group in groups]
        try:
            with self._redis.pipeline(transaction=False) as pipe:
                for symbol in symbols:
                    pipe.execute_command("HMGET", redis_key_of(self.config.project, symbol), *fields)
                stamps = pipe.execute()
        except (RedisError, OSError) as error:
            raise FeaturesUnavailable(f"Redis: {type(error).__name__}") from error
        return {symbol: {group: event_time_ms_of(raw) for group, raw in zip(groups, found, strict=True) if raw}
                for symbol, found in zip(symbols, stamps, strict=True)}

    def _protos(self, row: OnlineRow, group: str) -> tuple[Any, dict[str, Value], datetime, None]:
        values = {spec.name: Value(double_val=value)
                  for spec, value in zip(self.features.specs, row.values, strict=True) if spec.group == group}
        key = EntityKey(join_keys=["symbol"], entity_values=[Value(string_val=row.symbol)])
        return key, values, _utc(row.event_time_ms), None


def _utc(time_ms: int) -> datetime:
    return datetime.fromtimestamp(time_ms / 1000, UTC)


def _feast_address(redis_url: str) -> str:
    """redis://:secret@host:6380/2 as Feast writes it: host:6380,db=2,password=secret."""
    url = urlsplit(redis_url)
    if url.scheme not in ("redis", "rediss") or not url.hostname:
        shown = f"{url.scheme}://{url.hostname}"  # never the password
        raise InvalidInput("features.redis_url", "redis://host:port/db", shown)
    options = {"db": url.path.strip("/") or "0", "username": unquote(url.username or ""),
               "password": unquote(url.password or ""), "ssl": "true" if url.scheme == "rediss" else ""}
    parts = [f"{name}={value}" for name, value in options.items() if value]
    return ",".join([f"{url.hostname}:{url.port or 6379}", *parts])
