"""The feature repository: Feast in library mode, DuckDB over parquet offline and Redis online.

Everything lies under `home/features/<market>`: one folder of parquet files per view, and `registry.pb`. The registry
can run code in who opens it (Feast keeps pickled parts in it), so the folder belongs to the hub's user alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import yaml
from feast import FeatureStore, RepoConfig
from feast.infra.online_stores.redis import RedisOnlineStore
from google.protobuf.message import DecodeError
from numpy.typing import ArrayLike, NDArray
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from feature_repo.array_frames import EmbeddingFrame, OnlineArray
from feature_repo.asof_store import AsofOfflineStore
from feature_repo.definitions import (
    EMBEDDINGS,
    EMBEDDINGS_BY_VERSION,
    ENTITY,
    LABEL_NAMES,
    LABELS,
    OUTCOME_NAMES,
    OUTCOMES,
    build_definitions,
)
from feature_repo.feast_forms import array_protos, feast_address, protos_of, utc
from feature_repo.features import ARRAYS, DECISION_V1, GROUPS, MARKET_EMBEDDING, VERSION_FEATURE, FeatureList
from feature_repo.frames import GroupFrame
from feature_repo.offline import CREATED, EVENT, OfflineFiles
from feature_repo.online import FeaturesUnavailable, event_time_ms_of, redis_key_of, time_field_of
from policies.errors import InvalidInput

SETTINGS = Path(__file__).with_name("feature_store.yaml")
REGISTRY = "registry.pb"  # as feature_store.yaml names it
ONLINE_GROUPS = tuple(group.name for group in GROUPS.values() if group.online)
WRITTEN_GROUPS = (*ONLINE_GROUPS, *ARRAYS)  # what has an event time in the online store


@dataclass(frozen=True)
class OnlineRow:
    """What the online store is to hold of a group of a symbol. values: (k,) in the order of the group's names."""

    symbol: str
    group: str
    event_time_ms: int
    values: tuple[float, ...]


@dataclass(frozen=True)
class LabelRows:
    """Labels of one symbol and one kind of trade.

    decided_ms, known_ms: int64 (N,). values: float64 (N, 2), in the order of LABEL_NAMES.
    """

    symbol: str
    bracket: str
    decided_ms: NDArray[np.int64]
    known_ms: NDArray[np.int64]
    values: NDArray[np.float64]


@dataclass(frozen=True)
class OutcomeRow:
    """known_ms: when the outcome was recorded. values: in the order of OUTCOME_NAMES."""

    decision_id: str
    known_ms: int
    values: tuple[float, ...]


@dataclass(frozen=True)
class EmbeddingRow:
    symbol: str
    event_time_ms: int
    vector: NDArray[np.float32]
    version: str


class QuickRedisStore(RedisOnlineStore):
    """Feast's store on a client of ours: its own one waits seconds between the retries to a frozen server."""

    def __init__(self, client: Redis) -> None:
        self._client = client


# Of a Redis for whoever asks the offline store alone: Feast wants an address.
OFFLINE_ONLY = "redis://127.0.0.1:6380/0"


class FeatureRepo:
    """Writes features offline and online, and reads them as they were known at a time. One writer per home.

    market: whose rows these are (`Market.origin`); those of another one lie apart. timeout_s: of one round trip to
    Redis.
    """

    def __init__(self, home: Path, redis_url: str, market: str = "market", timeout_s: float = 0.05) -> None:
        self.home, self.redis_url = home.resolve(), redis_url
        self.offline = OfflineFiles(self.home / "features" / market)
        self._redis = Redis.from_url(redis_url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s,
                                     retry=Retry(NoBackoff(), 0))
        self._online = QuickRedisStore(self._redis)
        self.definitions = build_definitions(self.offline)

    @cached_property
    def config(self) -> RepoConfig:
        """feature_store.yaml with this folder and this Redis filled in."""
        text = Template(SETTINGS.read_text()).substitute(
            FEATURES=self.offline.folder, HUB_REDIS=feast_address(self.redis_url))
        return RepoConfig(repo_path=self.home, **yaml.safe_load(text))

    @cached_property
    def feast(self) -> FeatureStore:
        """Feast's own front, for whatever this class does not offer."""
        return FeatureStore(config=self.config)

    def apply(self) -> None:
        """Register entities, views and services. Idempotent; a registry that a crash has torn is made anew."""
        with self.offline.turn():
            for view, columns in self.definitions.columns.items():
                self.offline.declare(view, columns)
            try:
                self.feast.apply(self.definitions.everything())
            except DecodeError:
                (self.offline.folder / REGISTRY).unlink()
                self.__dict__.pop("feast", None)  # it holds the torn one
                self.feast.apply(self.definitions.everything())

    # -- offline ----------------------------------------------------------------------------------------------------

    def append(self, symbol: str, frame: GroupFrame, created_ms: int) -> int:
        """Add rows of a group to the offline store; returns how many it did not hold already."""
        columns = {ENTITY: pa.array([symbol] * len(frame), pa.string())}
        columns |= dict(zip(GROUPS[frame.group].names, map(pa.array, frame.values.T), strict=True))
        return self.offline.append(frame.group, symbol, pa.table(columns), frame.event_time_ms, created_ms)

    def append_labels(self, labels: LabelRows, created_ms: int) -> int:
        """Labels of one symbol, each known from its known_ms on."""
        count = len(labels.decided_ms)
        columns = {ENTITY: pa.array([labels.symbol] * count, pa.string()), "decided_ms": pa.array(labels.decided_ms),
                   "bracket": pa.array([labels.bracket] * count, pa.string()),
                   **dict(zip(LABEL_NAMES, map(pa.array, labels.values.T), strict=True))}
        return self.offline.append(LABELS, labels.symbol, pa.table(columns), labels.known_ms, created_ms)

    def append_outcomes(self, rows: Sequence[OutcomeRow], created_ms: int) -> int:
        values = np.array([row.values for row in rows], np.float64).reshape(len(rows), len(OUTCOME_NAMES))
        columns = {"decision_id": pa.array([row.decision_id for row in rows], pa.string()),
                   **dict(zip(OUTCOME_NAMES, map(pa.array, values.T), strict=True))}
        known = np.array([row.known_ms for row in rows], np.int64)
        return self.offline.append(OUTCOMES, "ledger", pa.table(columns), known, created_ms)

    def append_embeddings(self, rows: Sequence[EmbeddingRow], created_ms: int) -> int:
        columns = {ENTITY: pa.array([row.symbol for row in rows], pa.string()),
                   "embedding": pa.array([row.vector for row in rows], pa.list_(pa.float32())),
                   "embedding_version": pa.array([row.version for row in rows], pa.string())}
        times = np.array([row.event_time_ms for row in rows], np.int64)
        return self.offline.append(EMBEDDINGS, "ledger", pa.table(columns), times, created_ms)

    def append_market_embeddings(self, frame: EmbeddingFrame, created_ms: int) -> int:
        """Embeddings of one symbol by one embedder, beside those of others; returns how many were new."""
        count = len(frame)
        columns = {ENTITY: pa.array([frame.symbol] * count, pa.string()),
                   ARRAYS[MARKET_EMBEDDING].feature: pa.array(list(frame.values), pa.list_(pa.float32())),
                   VERSION_FEATURE: pa.array([frame.version] * count, pa.string())}
        return self.offline.append(MARKET_EMBEDDING, frame.symbol, pa.table(columns), frame.event_time_ms, created_ms)

    def market_embeddings(self, symbols: Sequence[str], event_time_ms: ArrayLike, version: str,
                          size: int) -> NDArray[np.float32]:
        """(N, size) as one version knew the market at each time, NaN where it has nothing fresh. symbols: as many as
        event_time_ms. size: of the version's embeddings."""
        times = np.asarray(event_time_ms, np.int64)
        keys = {ENTITY: np.asarray(symbols), VERSION_FEATURE: np.full(len(times), version)}
        feature = ARRAYS[MARKET_EMBEDDING].feature
        found = self.historical(_entity_frame(keys, times), [f"{EMBEDDINGS_BY_VERSION}:{feature}"])[feature]
        values = np.full((len(times), size), np.nan, np.float32)
        for place, vector in enumerate(found):
            if vector is not None:
                values[place] = vector
        return values

    def training_frame(self, symbols: Sequence[str], event_time_ms: ArrayLike,
                       service: FeatureList = DECISION_V1) -> pd.DataFrame:
        """One row per symbol and time, symbol by symbol: symbol, event_timestamp, then the service's features in order.

        Each value is the newest one known at that time and within its group's ttl, NaN if there was none.
        """
        times = np.asarray(event_time_ms, np.int64)
        wanted = _entity_frame({ENTITY: np.repeat(list(symbols), len(times))}, np.tile(times, len(symbols)))
        joined = self.historical(wanted, self.feast.get_feature_service(service.name))
        present = {group: joined[list(names)].notna().any(axis=1) for group, names in service.groups.items()}
        for group, place in service.indicators.items():
            joined[service.names[place]] = (~present[group]).astype(np.float64)
        return joined[[ENTITY, EVENT, *service.names]]

    def labels(self, symbols: Sequence[str], decided_ms: ArrayLike, bracket: str, as_of_ms: int) -> pd.DataFrame:
        """Labels as they were known at as_of_ms, one row for each symbol and time. symbols: as many as decided_ms.

        A label whose trade was not over then is NaN, so what is trained on them knows nothing of later bars.
        """
        count = len(symbols)
        keys = {ENTITY: np.asarray(symbols), "decided_ms": np.asarray(decided_ms, np.int64),
                "bracket": np.full(count, bracket)}
        return self.historical(_entity_frame(keys, np.full(count, as_of_ms)),
                               [f"{LABELS}:{name}" for name in LABEL_NAMES])

    def historical(self, wanted: pd.DataFrame, features: Any) -> pd.DataFrame:
        """Feast's point-in-time join, its rows in the order of `wanted`."""
        return self.feast.get_historical_features(entity_df=wanted, features=features).to_df()

    def materialize(self, until_ms: int) -> int:
        """Put each symbol's newest offline row at or before until_ms into the online store; returns how many.

        Of each group only rows that are fresh at until_ms are looked at. Feast's own job does the same, but marks the
        view in the registry meanwhile: joins fail until it ends, and for good if it is killed.
        """
        rows = [row for group in ONLINE_GROUPS for row in self._newest(group, until_ms)]
        self.write_online(rows)
        return len(rows)

    def _newest(self, group: str, until_ms: int) -> list[OnlineRow]:
        spec, source = GROUPS[group], self.definitions.views[group].batch_source
        assert source is not None, "every view has files"
        found = AsofOfflineStore.pull_latest_from_table_or_query(
            self.config, source, [ENTITY], list(spec.names), EVENT, CREATED,
            utc(until_ms - spec.ttl_ms), utc(until_ms)).to_arrow()
        times = found[EVENT].cast(pa.timestamp("ms", tz="UTC")).cast(pa.int64()).to_pylist()
        values = zip(*(found[name].fill_null(math.nan).to_pylist() for name in spec.names), strict=True)
        return [OnlineRow(*row) for row in zip(found[ENTITY].to_pylist(), repeat(group), times, values)]

    # -- online -----------------------------------------------------------------------------------------------------

    def write_online(self, rows: Iterable[OnlineRow]) -> None:
        """Write rows, one round trip per group; of a group, values and event time change as one."""
        by_group: dict[str, list[Any]] = {}
        for row in rows:
            legal = len(GROUPS[row.group].names)
            if len(row.values) != legal:
                raise InvalidInput(f"row.values of {row.group}", f"{legal} numbers", len(row.values))
            by_group.setdefault(row.group, []).append(protos_of(row))
        self._write(by_group)

    def write_arrays(self, rows: Sequence[OnlineArray]) -> None:
        """Write rows of array groups, one round trip per group; values, version and event time change as one."""
        self._write({group: [array_protos(row) for row in rows if row.group == group]
                     for group in dict.fromkeys(row.group for row in rows)})

    def _write(self, protos_by_group: Mapping[str, list[Any]]) -> None:
        try:
            for group, protos in protos_by_group.items():
                self._online.online_write_batch(self.config, self.definitions.views[group], protos, None)
        except (RedisError, OSError) as error:
            raise FeaturesUnavailable(f"Redis: {type(error).__name__}") from error

    def online_event_times(self, symbols: Sequence[str]) -> dict[str, dict[str, int]]:
        """{symbol: {group: event time in ms}} of what the online store holds now, in one round trip."""
        fields = [time_field_of(group) for group in WRITTEN_GROUPS]
        try:
            with self._redis.pipeline(transaction=False) as pipe:
                for symbol in symbols:
                    pipe.execute_command("HMGET", redis_key_of(self.config.project, symbol), *fields)
                stamps = pipe.execute()
        except (RedisError, OSError) as error:
            raise FeaturesUnavailable(f"Redis: {type(error).__name__}") from error
        return {symbol: {group: event_time_ms_of(raw) for group, raw in zip(WRITTEN_GROUPS, found, strict=True) if raw}
                for symbol, found in zip(symbols, stamps, strict=True)}


def _entity_frame(keys: Mapping[str, NDArray[Any]], event_time_ms: NDArray[np.int64]) -> pd.DataFrame:
    return pd.DataFrame({**keys, EVENT: pd.to_datetime(event_time_ms, unit="ms", utc=True)})
