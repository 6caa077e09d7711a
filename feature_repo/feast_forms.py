"""Rows, times and addresses as Feast writes them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import FloatList, Value

from feature_repo.array_frames import OnlineArray
from feature_repo.definitions import ENTITY
from feature_repo.features import ARRAYS, GROUPS, VERSION_FEATURE
from policies.errors import InvalidInput

if TYPE_CHECKING:
    from feature_repo.store import OnlineRow

Protos = tuple[Any, dict[str, Value], datetime, None]


def protos_of(row: OnlineRow) -> Protos:
    values = {name: Value(double_val=value) for name, value in zip(GROUPS[row.group].names, row.values, strict=True)}
    return _key(row.symbol), values, utc(row.event_time_ms), None


def array_protos(row: OnlineArray) -> Protos:
    group = ARRAYS[row.group]
    values = {group.feature: Value(float_list_val=FloatList(val=row.values.tolist()))}
    if group.versioned:
        values[VERSION_FEATURE] = Value(string_val=row.version)
    return _key(row.symbol), values, utc(row.event_time_ms), None


def _key(symbol: str) -> EntityKey:
    return EntityKey(join_keys=[ENTITY], entity_values=[Value(string_val=symbol)])


def utc(time_ms: int) -> datetime:
    return datetime.fromtimestamp(time_ms / 1000, UTC)


def feast_address(redis_url: str) -> str:
    """redis://:secret@host:6380/2 as Feast writes it: host:6380,db=2,password=secret."""
    url = urlsplit(redis_url)
    if url.scheme not in ("redis", "rediss") or not url.hostname:
        shown = f"{url.scheme}://{url.hostname}"  # never the password
        raise InvalidInput("features.redis_url", "redis://host:port/db", shown)
    options = {"db": url.path.strip("/") or "0", "username": unquote(url.username or ""),
               "password": unquote(url.password or ""), "ssl": "true" if url.scheme == "rediss" else ""}
    parts = [f"{name}={value}" for name, value in options.items() if value]
    return ",".join([f"{url.hostname}:{url.port or 6379}", *parts])
