"""Reading one feature vector on the way of a decision: one round trip to Redis, in Feast's own layout.

Feast keeps, per entity, one hash: field mmh3("<view>:<feature>") holds the value and `_ts:<view>` the event time, both
as protobuf. The key and the field names never change, so they are made once, and without Feast: to import it costs
every serving process three seconds and 150 MB. Feast does not apply a view's ttl when it reads online; `fresh` compares
the event times instead.
"""

from __future__ import annotations

import asyncio
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import mmh3
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from feature_repo.features import DECISION_V1, FeatureList
from policies.errors import HubError

PROJECT = "elite_trading"
FEAST_STRING = 2  # feast.ValueType.STRING
DOUBLE_TAG = 0x29  # field 5 (double_val) of feast.types.Value, wire type 64 bits
DOUBLE_BYTES = 9  # the tag, then a little-endian double


class FeaturesUnavailable(HubError):
    """No vector that may be used: Redis is away or slow, or what it holds cannot be read."""

    code = "features_unavailable"


class FutureFeatures(FeaturesUnavailable):
    """A value's event time lies after the decision's time: to use it would be to know the future."""

    code = "future_features"


@dataclass(frozen=True)
class OnlineVector:
    """values: in the order of the feature list, NaN where missing. event_time_ms: by group; absent if never written."""

    values: tuple[float, ...]
    event_time_ms: dict[str, int]


def redis_key_of(project: str, symbol: str) -> bytes:
    """Feast's key of an entity with one join key, version 3: count, key and value, each with its type and length."""
    parts = [struct.pack("<I", 1)]
    for text in ("symbol", symbol):
        encoded = text.encode()
        parts += [struct.pack("<II", FEAST_STRING, len(encoded)), encoded]
    return b"".join([*parts, project.encode()])


def field_of(group: str, name: str) -> bytes:
    """The hash field of a feature: four bytes."""
    return struct.pack("<I", mmh3.hash(f"{group}:{name}", signed=False))


def time_field_of(group: str) -> bytes:
    return f"_ts:{group}".encode()


def event_time_ms_of(raw: bytes) -> int:
    """Milliseconds of a protobuf Timestamp."""
    return Timestamp.FromString(raw).ToMilliseconds()


class OnlineReader:
    """Reads vectors of one feature list. Belongs to one event loop; close() it there.

    deadline_s: of a whole read, connecting included.
    """

    def __init__(self, redis_url: str, project: str = PROJECT, service: FeatureList = DECISION_V1,
                 deadline_s: float = 0.05) -> None:
        self._project, self._service, self._deadline_s = project, service, deadline_s
        self._fields = ([field_of(spec.group, spec.name) for spec in service.specs]
                        + [time_field_of(group) for group in service.groups])
        self._keys: dict[str, bytes] = {}
        self._unpack_all = struct.Struct("<" + "xd" * len(service)).unpack
        # One retry without a pause: the first command after a restart of Redis meets a dead connection.
        self._redis = Redis.from_url(redis_url, socket_timeout=deadline_s, socket_connect_timeout=deadline_s,
                                     retry=Retry(NoBackoff(), 1))

    async def read(self, symbol: str) -> OnlineVector:
        """The newest vector of a symbol; FeaturesUnavailable on any failure of Redis or past the deadline.

        A symbol that was never written has only NaN and no event times.
        """
        key = self._keys.get(symbol) or redis_key_of(self._project, symbol)
        try:
            async with asyncio.timeout(self._deadline_s):
                raw = await self._redis.execute_command("HMGET", key, *self._fields)
            vector = self._decode(raw)
        except TimeoutError as error:
            raise FeaturesUnavailable(f"Redis did not answer within {self._deadline_s * 1000:g} ms") from error
        except (RedisError, OSError) as error:
            raise FeaturesUnavailable(f"Redis: {type(error).__name__}") from error
        except DecodeError as error:
            raise FeaturesUnavailable(f"Redis holds something else than features of {symbol}") from error
        if vector.event_time_ms:
            self._keys[symbol] = key  # only symbols that exist: callers cannot fill the memory with names
        return vector

    def fresh(self, vector: OnlineVector, now_ms: int) -> list[str]:
        """Required groups that are absent or older than their ttl, in order: empty if the vector may be used.

        FutureFeatures if any group's event time lies after now_ms.
        """
        for group, time_ms in vector.event_time_ms.items():
            if time_ms > now_ms:
                raise FutureFeatures(f"{group}: event time {time_ms} lies {time_ms - now_ms} ms after now")
        ttl_ms, times = self._service.ttl_ms, vector.event_time_ms
        return [group for group in self._service.required_groups
                if group not in times or now_ms - times[group] > ttl_ms[group]]

    async def close(self) -> None:
        await self._redis.aclose()

    def _decode(self, raw: Sequence[bytes | None]) -> OnlineVector:
        count = len(self._service)
        times = {group: event_time_ms_of(stamp)
                 for group, stamp in zip(self._service.groups, raw[count:], strict=True) if stamp}
        return OnlineVector(self._values(raw[:count]), times)

    def _values(self, raw: Sequence[bytes | None]) -> tuple[float, ...]:
        if all(field is not None and len(field) == DOUBLE_BYTES and field[0] == DOUBLE_TAG for field in raw):
            return self._unpack_all(b"".join(raw))  # type: ignore[arg-type]
        return tuple(_value_of(field) for field in raw)


def _value_of(field: bytes | None) -> float:
    """A double; NaN for a field that is absent or holds null. Only Feast's own materialisation leaves such fields."""
    from feast.protos.feast.types.Value_pb2 import Value

    value = Value.FromString(field) if field else None
    return value.double_val if value is not None and value.HasField("double_val") else math.nan
