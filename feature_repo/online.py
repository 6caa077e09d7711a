"""Reading feature vectors on the way of a decision: one round trip to Redis, in Feast's own layout.

Feast keeps, per entity, one hash: field mmh3("<view>:<feature>") holds the value and `_ts:<view>` the event time, both
as protobuf. The key and the field names never change, so they are made once, and without Feast: to import it costs
every serving process three seconds and 150 MB. Feast does not apply a view's ttl when it reads online; here a group
that is older than its ttl, or not known yet, is missing from the vector like one that was never written.

Array groups are read by the same command, and only those that are asked for.
"""

from __future__ import annotations

import asyncio
import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from operator import itemgetter

import mmh3
import numpy as np
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp
from numpy.typing import NDArray
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from feature_repo.features import ARRAYS, DECISION_V1, GROUPS, VERSION_FEATURE, FeatureList
from policies.breaker import Breaker
from policies.errors import HubError

PROJECT = "elite_trading"
FEAST_STRING = 2  # feast.ValueType.STRING
DOUBLE_TAG = 0x29  # field 5 (double_val) of feast.types.Value, wire type 64 bits
DOUBLE_BYTES = 9  # the tag, then a little-endian double
FAILURES_TO_OPEN, OPEN_S = 3, 0.25  # of reads in a row, and for how long none but a probe is tried
NAN_FIELD = struct.pack("<Bd", DOUBLE_TAG, math.nan)
STRING_TAG = 0x12  # field 2 (string_val), wire type length-delimited
FLOATS_TAG = b"\x82\x01"  # field 16 (float_list_val), wire type length-delimited
PACKED_TAG = 0x0A  # field 1 of feast.types.FloatList, packed


class FeaturesUnavailable(HubError):
    """No vector that may be used: Redis is away or slow, or what it holds cannot be read."""

    code = "features_unavailable"


@dataclass(frozen=True)
class OnlineVector:
    """values: by feature, in the order of the feature list, NaN where missing. event_time_ms: by group; absent if it
    was never written. also: {service: {feature: value}} of the others that were asked for. arrays: of the array groups
    that were asked for, those that are fresh, float32 and read-only. versions: by array group that has one, of its row,
    fresh or not."""

    values: tuple[float, ...]
    event_time_ms: dict[str, int]
    also: dict[str, dict[str, float]] = field(default_factory=dict)
    arrays: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


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


@lru_cache(4_096)  # a row is read many times before the next one is written
def event_time_ms_of(raw: bytes) -> int:
    """Milliseconds of a protobuf Timestamp."""
    return Timestamp.FromString(raw).ToMilliseconds()


def floats_of(raw: bytes) -> NDArray[np.float32]:
    """The numbers of a Value that holds a list of floats: (n,), a read-only view. DecodeError for anything else."""
    length, start = _length_at(raw, 2) if raw[:2] == FLOATS_TAG else (-1, 0)
    if length == len(raw) - start == 0:
        return np.empty(0, np.float32)
    packed, first = _length_at(raw, start + 1) if raw[start:start + 1] == bytes([PACKED_TAG]) else (-1, 0)
    if length != len(raw) - start or packed != len(raw) - first or packed % 4:
        raise DecodeError("not a list of floats")
    return np.frombuffer(raw, "<f4", offset=first)


def text_of(raw: bytes) -> str:
    """The text of a Value that holds one; DecodeError for anything else."""
    length, start = _length_at(raw, 1) if raw[:1] == bytes([STRING_TAG]) else (-1, 0)
    if length != len(raw) - start:
        raise DecodeError("not a text")
    return raw[start:].decode(errors="replace")


def _length_at(raw: bytes, place: int) -> tuple[int, int]:
    """(length, place after it) of a protobuf varint; (-1, 0) if it does not end."""
    length = 0
    for count, byte in enumerate(raw[place:place + 5]):
        length |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return length, place + count + 1
    return -1, 0


class OnlineReader:
    """Reads vectors of one service, and beside them the stored features of others. Belongs to one event loop; close()
    it there.

    deadline_s: of a whole read, connecting included.
    """

    def __init__(self, redis_url: str, project: str = PROJECT, service: FeatureList = DECISION_V1,
                 also: Sequence[FeatureList] = (), deadline_s: float = 0.05, breaker: Breaker | None = None) -> None:
        self._project, self._service, self._deadline_s = project, service, deadline_s
        self._breaker = breaker or Breaker(FAILURES_TO_OPEN, OPEN_S)
        self._layout = _Layout(service, also)
        self._array_layouts: dict[tuple[str, ...], _ArrayLayout] = {(): _ArrayLayout(())}
        self._keys: dict[str, bytes] = {}
        # One retry without a pause: the first command after a restart of Redis meets a dead connection. The client's
        # own timeouts stay off, since `read` has one over all of it, and they cost a tenth of a read.
        self._redis = Redis.from_url(redis_url, retry=Retry(NoBackoff(), 1))

    async def read(self, symbol: str, now_ms: int, arrays: tuple[str, ...] = ()) -> OnlineVector:
        """The vector of a symbol as it is known at now_ms; FeaturesUnavailable on any failure or past the deadline.

        A group whose row is older than its ttl or lies after now_ms is missing; `event_time_ms` says which it was.
        arrays: array groups to read as well.
        """
        if not self._breaker.allows():
            raise FeaturesUnavailable("Redis has failed lately and is left alone for a moment")
        key = self._keys.get(symbol) or redis_key_of(self._project, symbol)
        wanted = self._array_layouts.get(arrays) or self._array_layouts.setdefault(arrays, _ArrayLayout(arrays))
        try:
            async with asyncio.timeout(self._deadline_s):
                raw = await self._redis.execute_command("HMGET", key, *wanted.fields, *self._layout.fields)
        except TimeoutError as error:
            self._breaker.failed()
            raise FeaturesUnavailable(f"Redis did not answer within {self._deadline_s * 1000:g} ms") from error
        except (RedisError, OSError) as error:
            self._breaker.failed()
            raise FeaturesUnavailable(f"Redis: {type(error).__name__}") from error
        self._breaker.succeeded()
        try:
            vector = self._layout.vector(raw[len(wanted.fields):] if arrays else raw, now_ms)
            if arrays:
                wanted.add(raw, now_ms, vector)
        except DecodeError as error:
            raise FeaturesUnavailable(f"Redis holds something else than features of {symbol}") from error
        if vector.event_time_ms:
            self._keys[symbol] = key  # only symbols that exist: callers cannot fill the memory with names
        return vector

    async def close(self) -> None:
        await self._redis.aclose()


class _Layout:
    """Which fields are asked for in which order, and how vectors are made of the answer."""

    def __init__(self, service: FeatureList, also: Sequence[FeatureList]) -> None:
        every = {spec.name: spec for one in (service, *also) for spec in one.stored if GROUPS[spec.group].online}
        self._specs = tuple(every.values())
        self._groups = tuple(dict.fromkeys(spec.group for spec in self._specs))
        self._ttl_ms = {group: GROUPS[group].ttl_ms for group in self._groups} | dict(service.ttl_ms)
        self._places = {group: [place for place, spec in enumerate(self._specs) if spec.group == group]
                        for group in self._groups}
        self.fields = ([field_of(spec.group, spec.name) for spec in self._specs]
                       + [time_field_of(group) for group in self._groups])
        self._unpack_all = struct.Struct("<" + "xd" * len(self._specs)).unpack
        self._tags = bytes([DOUBLE_TAG]) * len(self._specs)
        self._indicated = [(place, service.places[group].tolist()) for group, place in service.indicators.items()]
        # Where each number of the vector comes from: a place among the specs, or the zero after them.
        self._pick = _picker([self._specs.index(spec) if spec in every.values() else len(self._specs)
                              for spec in service.specs])
        places = {spec.name: place for place, spec in enumerate(self._specs)}
        held = {one.name: [name for name in one.names if name in places] for one in also}
        self._also_picks = [(service_name, names, _picker([places[name] for name in names]))
                            for service_name, names in held.items()]

    def vector(self, raw: Sequence[bytes | None], now_ms: int) -> OnlineVector:
        count = len(self._specs)
        times = {group: event_time_ms_of(stamp)
                 for group, stamp in zip(self._groups, raw[count:], strict=True) if stamp}
        stored = [*self._values(raw[:count]), 0.0]
        for group, places in self._places.items():
            if not 0 <= now_ms - times.get(group, -(10**15)) <= self._ttl_ms[group]:
                for place in places:
                    stored[place] = math.nan
        values = [*self._pick(stored)]
        for indicator, features in self._indicated:
            if all(values[place] != values[place] for place in features):  # only NaN is unequal to itself
                values[indicator] = 1.0
        also = {name: dict(zip(names, pick(stored), strict=True)) for name, names, pick in self._also_picks}
        return OnlineVector(tuple(values), times, also)

    def _values(self, raw: Sequence[bytes | None]) -> Sequence[float]:
        """An absent or null field is NaN; DecodeError if one holds anything else than a double."""
        fields = [field or NAN_FIELD for field in raw]
        joined = b"".join(fields)
        if {*map(len, fields)} != {DOUBLE_BYTES} or joined[::DOUBLE_BYTES] != self._tags:
            raise DecodeError("not a double")
        return self._unpack_all(joined)


class _ArrayLayout:
    """Which fields of array groups are asked for, and how they are read: of each its array, event time and version."""

    def __init__(self, groups: tuple[str, ...]) -> None:
        self._groups = [ARRAYS[group] for group in groups]
        self.fields: list[bytes] = []
        for group in self._groups:
            self.fields += [field_of(group.name, group.feature), time_field_of(group.name)]
            self.fields += [field_of(group.name, VERSION_FEATURE)] if group.versioned else []

    def add(self, raw: Sequence[bytes | None], now_ms: int, vector: OnlineVector) -> None:
        """Put into the vector what the answer's first fields hold."""
        answers = iter(raw)
        for group in self._groups:
            values, stamp = next(answers), next(answers)
            version = next(answers) if group.versioned else None
            if version:
                vector.versions[group.name] = text_of(version)
            if not stamp:
                continue
            time_ms = vector.event_time_ms[group.name] = event_time_ms_of(stamp)
            if values and 0 <= now_ms - time_ms <= group.ttl_ms:
                vector.arrays[group.name] = floats_of(values)


def _picker(places: Sequence[int]) -> Callable[[Sequence[float]], tuple[float, ...]]:
    """What picks these places out of a row: twice as quick as a comprehension, but for one place it gives no tuple."""
    return itemgetter(*places) if len(places) > 1 else lambda row: tuple(row[place] for place in places)
