"""One symbol's features from the online store, as a decision reads them, against Feast's own way and Redis alone.

All read the same Redis, which holds every group of a symbol as the feeder writes it. The hub's reader keeps its
deadline, its breaker and its check of ages; Feast has none of them. The floor is HGETALL of a hash that holds exactly
the wanted fields and their groups' event times, by the synchronous client that Feast uses as well (with hiredis). Its
answer is not even decoded.

All run on one event loop, in turn, forwards and backwards. It is uvloop's, on which a Serve replica runs; what the
reader takes on asyncio's own loop is shown beside it. That values are equal to Feast's and that expired rows are
missing is checked in the same run, before and after.
"""

from __future__ import annotations

import asyncio
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import redis
import redis.asyncio
import uvloop
from redis.exceptions import RedisError

from ci.bench.load import NotMeasured
from feature_repo.features import BARS, DECISION_V1, EPISODE_V1, GROUPS, FeatureList, FeatureSpec
from feature_repo.online import PROJECT, FeaturesUnavailable, OnlineReader, field_of, redis_key_of, time_field_of
from feature_repo.redis_server import EmbeddedRedis
from feature_repo.store import ONLINE_GROUPS, FeatureRepo, OnlineRow
from hub.config import FeaturesConfig
from policies.free_ports import free_port
from reports.report import Aim, BenchRow, Side, compared

WORK = "Online features, one row x"
HUB = "OnlineReader.read on uvloop"
PEER = "Feast's get_online_features"
FLOOR = "HGETALL of a hash of just these fields, synchronous redis-py with hiredis"
FEAST_AS_NUMBERS, ASYNC_FLOOR, PLAIN_LOOP = "Feast and to_dict", "redis.asyncio HGETALL", "hub on asyncio's loop"
AIM = Aim(most_to_floor=2.0)
TWENTY = 20

SYMBOL, NOW_MS = "BTC", 1_750_000_020_000
FLOOR_KEY = "only-what-is-wanted"

Say = Callable[[str], None]
Runs = dict[str, list[float]]


@dataclass(frozen=True)
class Extent:
    """rounds: each visits every side twice. calls: of a visit; its run is their median. warm_up: calls before that."""

    rounds: int = 20
    calls: int = 200
    warm_up: int = 100


@dataclass(frozen=True)
class Wanted:
    """What is read: the vector of a service, and the stored features of others."""

    name: str
    service: FeatureList
    also: tuple[FeatureList, ...] = ()

    @property
    def specs(self) -> tuple[FeatureSpec, ...]:
        """Every feature that lies in the online store, once."""
        return tuple({spec.name: spec for one in (self.service, *self.also) for spec in one.stored
                      if GROUPS[spec.group].online}.values())


def run(say: Say, extent: Extent = Extent()) -> list[BenchRow]:
    """Measure 20 features, and all that a decision reads. NotMeasured if anyone read anything wrong."""
    with (tempfile.TemporaryDirectory(prefix="hub-bench-") as folder,
          EmbeddedRedis(Path(folder) / "redis", free_port()) as server):
        repo = FeatureRepo(Path(folder) / "home", server.url, timeout_s=1.0)
        repo.apply()
        repo.write_online(_rows())
        twenty = Wanted("", twenty_features())
        whole = Wanted(", all that a decision reads", DECISION_V1, (EPISODE_V1,))
        return [_compare(repo, twenty, AIM, extent, say), _compare(repo, whole, Aim(), extent, say)]


def twenty_features() -> FeatureList:
    """The first features of the group that every decision needs."""
    ttl_ms = MappingProxyType({BARS: GROUPS[BARS].ttl_ms})
    return FeatureList("twenty", GROUPS[BARS].specs[:TWENTY], (BARS,), (), ttl_ms)


def _rows() -> list[OnlineRow]:
    """A row of every group; no two values are alike, and of a group with several the last one is missing."""
    rows = []
    for number, group in enumerate(ONLINE_GROUPS):
        values = [math.pi * (100 * number + place) for place in range(len(GROUPS[group].names))]
        rows.append(OnlineRow(SYMBOL, group, NOW_MS, (*values[:-1], math.nan if len(values) > 1 else values[-1])))
    return rows


def _compare(repo: FeatureRepo, wanted: Wanted, aim: Aim, extent: Extent, say: Say) -> BenchRow:
    with closing(redis.Redis.from_url(repo.redis_url)) as client:
        _lay_floor(client, wanted)
        work = f"{WORK} {len(wanted.specs)}{wanted.name}"
        say(work)
        sides = _Sides(repo, wanted, client)
        runs, failed = uvloop.run(sides.measure(extent, plain=False))
        plain, failed_plain = asyncio.run(sides.measure(extent, plain=True))
    others = [Side(name, (runs | plain)[name]) for name in (FEAST_AS_NUMBERS, ASYNC_FLOOR, PLAIN_LOOP)]
    detail = {"floors_ms": {FLOOR: statistics.median(runs[FLOOR]), ASYNC_FLOOR: statistics.median(runs[ASYNC_FLOOR])},
              "hash_fields": {"read": len(wanted.specs) + len(_groups(wanted)), "held": _held_fields()},
              "calls_a_run": extent.calls,
              "failed_calls": {name: count for name, count in (failed | failed_plain).items() if count},
              "checked": "values equal to Feast's, expired groups missing; before and after"}
    return compared(work, "ms", Side(HUB, runs[HUB]), Side(PEER, runs[PEER]), Side(FLOOR, runs[FLOOR]), aim, others,
                    detail)


class _Sides:
    """All that read, on whichever loop runs."""

    def __init__(self, repo: FeatureRepo, wanted: Wanted, client: redis.Redis) -> None:
        self._repo, self._wanted, self._client = repo, wanted, client
        self._refs = [f"{spec.group}:{spec.name}" for spec in wanted.specs]

    async def measure(self, extent: Extent, plain: bool) -> tuple[Runs, dict[str, int]]:
        """Medians in ms by side, a run each visit, and how many calls failed. plain: the hub's reader alone."""
        reader = OnlineReader(self._repo.redis_url, service=self._wanted.service, also=self._wanted.also,
                              deadline_s=FeaturesConfig().deadline_ms / 1_000)
        client = redis.asyncio.Redis.from_url(self._repo.redis_url)
        try:
            await check(reader, self._wanted, self._as_feast_reads())
            if plain:
                measured = await _alternate({PLAIN_LOOP: lambda: reader.read(SYMBOL, NOW_MS)}, extent)
            else:
                measured = await _alternate({
                    HUB: lambda: reader.read(SYMBOL, NOW_MS), PEER: self._feast,
                    FLOOR: lambda: self._client.hgetall(FLOOR_KEY), FEAST_AS_NUMBERS: lambda: self._feast().to_dict(),
                    ASYNC_FLOOR: lambda: client.hgetall(FLOOR_KEY)}, extent)
            await check(reader, self._wanted, self._as_feast_reads())
        finally:
            await client.aclose()
            await reader.close()
        return measured

    def _feast(self) -> Any:
        return self._repo.feast.get_online_features(features=self._refs, entity_rows=[{"symbol": SYMBOL}])

    def _as_feast_reads(self) -> dict[str, float]:
        answer = self._feast().to_dict()
        return {spec.name: math.nan if (value := answer[spec.name][0]) is None else value
                for spec in self._wanted.specs}


async def check(reader: OnlineReader, wanted: Wanted, expected: Mapping[str, float]) -> None:
    """NotMeasured unless the reader gives exactly these values, and none of a group once it has expired."""
    found = named(await reader.read(SYMBOL, NOW_MS), wanted)
    wrong = [name for name, value in expected.items() if found[name] != value
             and not (math.isnan(found[name]) and math.isnan(value))]
    if wrong or found.keys() != expected.keys():
        raise NotMeasured(f"the hub reads something else than Feast: {wrong or sorted(found.keys() ^ expected.keys())}")
    for group in _groups(wanted):
        late = named(await reader.read(SYMBOL, NOW_MS + GROUPS[group].ttl_ms + 1), wanted)
        kept = [spec.name for spec in wanted.specs if spec.group == group and not math.isnan(late[spec.name])]
        if kept:
            raise NotMeasured(f"{group} has expired, but the hub still reads {kept}")


def named(vector: Any, wanted: Wanted) -> dict[str, float]:
    """The stored features of a vector and of those beside it, by name."""
    values = dict(zip(wanted.service.names, vector.values, strict=True))
    found = {spec.name: values[spec.name] for spec in wanted.service.stored}
    for one in wanted.also:
        found |= vector.also[one.name]
    return found


async def _alternate(sides: Mapping[str, Callable[[], Any]], extent: Extent) -> tuple[Runs, dict[str, int]]:
    """Visit every side forwards and backwards, so that a machine that grows slower or faster favours none."""
    runs: Runs = {name: [] for name in sides}
    failed = dict.fromkeys(sides, 0)
    for call in sides.values():
        await _latencies_ms(call, extent.warm_up)
    for name in (*sides, *reversed(list(sides))) * extent.rounds:
        latencies_ms = await _latencies_ms(sides[name], extent.calls)
        failed[name] += latencies_ms.count(math.inf)
        runs[name].append(statistics.median(latencies_ms))
    return runs, failed


async def _latencies_ms(call: Callable[[], Any], calls: int) -> list[float]:
    """Of each call; infinite if it failed, so that an answer that never came is no quick one."""
    latencies_ms = []
    for _ in range(calls):
        started = time.perf_counter()
        try:
            answer = call()
            if asyncio.iscoroutine(answer):
                await answer
            latencies_ms.append((time.perf_counter() - started) * 1_000)
        except (FeaturesUnavailable, RedisError, OSError):
            latencies_ms.append(math.inf)
    return latencies_ms


def _lay_floor(client: redis.Redis, wanted: Wanted) -> None:
    fields = [*(field_of(spec.group, spec.name) for spec in wanted.specs), *map(time_field_of, _groups(wanted))]
    held = client.execute_command("HMGET", redis_key_of(PROJECT, SYMBOL), *fields)
    client.delete(FLOOR_KEY)
    client.hset(FLOOR_KEY, mapping=dict(zip(fields, held, strict=True)))  # type: ignore[arg-type]


def _groups(wanted: Wanted) -> tuple[str, ...]:
    return tuple(dict.fromkeys(spec.group for spec in wanted.specs))


def _held_fields() -> int:
    return sum(len(GROUPS[group].names) + 1 for group in ONLINE_GROUPS)
