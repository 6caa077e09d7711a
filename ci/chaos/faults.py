"""The faults, one function each: breaks something of the feature store, holds it while requests are answered, mends it.

Each returns when the fault began and ended, by time.monotonic(), and what is known of the answers meanwhile.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import psutil
import redis

from ci.chaos.judge import Expectation
from ci.chaos.load import Load
from ci.chaos.recording import SYMBOLS, Recording
from ci.chaos.target import ChaosHub, NotRun, until
from feature_repo.features import BARS, DECISION_V1, FEAR_GREED, GROUPS, MINUTE_MS, TWITTER
from feature_repo.online import OnlineReader
from feature_repo.store import FeatureRepo

HELD_REQUESTS = 160  # answered while a fault holds: four seconds of the load
PAUSES_MS = (40, 400, 40, 400, 40, 400, 40, 400)  # of the slow server: under the deadline of a read, and over it
BETWEEN_PAUSES = 16  # requests
NO_HEAD = "features"  # what an answer names when no head may be asked


@dataclass(frozen=True)
class Rebuild:
    """seconds: from the loss until every row was back. said_s: what the feeder said of the offline part; NaN if it was
    killed before it could.

    rows: of a symbol and a group each, that were back; of: that were lost. equal: whether vectors read back from Redis
    are those that the offline store joins.
    """

    seconds: float
    said_s: float
    rows: int
    of: int
    groups: tuple[str, ...]
    equal: bool


@dataclass(frozen=True)
class Spell:
    begin_s: float
    end_s: float
    expected: tuple[Expectation, ...] = ()
    rebuild: Rebuild | None = None


@dataclass(frozen=True)
class Stage:
    hub: ChaosHub
    load: Load
    recording: Recording
    repo: FeatureRepo

    def answer(self, count: int) -> None:
        """Wait until as many more requests were answered."""
        goal = len(self.load.answers) + count
        until(lambda: len(self.load.answers) >= goal, f"{count} answers")

    def reach(self, time_ms: int) -> None:
        """Let the replay clock run to this time at the load's own pace."""
        until(lambda: self.load.clock_ms >= time_ms, f"the clock to reach {time_ms}")

    def push_scores(self) -> None:
        """Sentiment on every symbol, fresh at the moment that the clock shows."""
        for symbol in SYMBOLS:
            self.hub.push_score(symbol)

    def held(self) -> set[tuple[str, str]]:
        """(symbol, group) of every row in Redis; none while it cannot be asked."""
        with suppress(Exception):
            found = self.repo.online_event_times(SYMBOLS)
            return {(symbol, group) for symbol, groups in found.items() for group in groups}
        return set()


Fault = Callable[[Stage], Spell]


def frozen(stage: Stage) -> Spell:
    """Redis is stopped and goes on later: its connections stay open and say nothing."""
    server = stage.hub.redis_process()
    begin_s = time.monotonic()
    server.suspend()
    try:
        until(lambda: server.status() == psutil.STATUS_STOPPED, "Redis to stand still", 5.0)
        still_s = time.monotonic()
        stage.answer(HELD_REQUESTS)
    finally:
        end_s = time.monotonic()
        server.resume()
    return Spell(begin_s, end_s, (Expectation(False, (NO_HEAD,), still_s, end_s),))


def killed(stage: Stage) -> Spell:
    """Redis is killed with all it held; the supervisor starts it again, the feeder fills it."""
    before, said, server = stage.held(), len(stage.hub.restore_seconds()), stage.hub.redis_process()
    begin_s = time.monotonic()
    server.kill()
    down_s = time.monotonic()
    down = [down_s]

    def back() -> bool:
        asked_s = time.monotonic()
        try:
            return stage.hub.redis_process().pid != server.pid
        except (redis.RedisError, psutil.Error):
            down.append(asked_s)
            return False

    until(back, "the supervisor to start Redis again")
    rebuild = _rebuilt(stage, before, begin_s, said)
    return Spell(begin_s, begin_s, (Expectation(False, (NO_HEAD,), down_s, down[-1]),), rebuild)


def flushed(stage: Stage) -> Spell:
    """FLUSHALL: Redis answers, and knows nothing."""
    before, said = stage.held(), len(stage.hub.restore_seconds())
    with stage.hub.redis() as client:
        begin_s = time.monotonic()
        client.flushall()
    return Spell(begin_s, begin_s, rebuild=_rebuilt(stage, before, begin_s, said))


def slow(stage: Stage) -> Spell:
    """Redis answers nobody for some time, again and again; some pauses are shorter than the deadline of a read."""
    begin_s, expected = time.monotonic(), []
    with stage.hub.redis() as client:
        for pause_ms in PAUSES_MS:
            asked_s = time.monotonic()
            client.execute_command("CLIENT", "PAUSE", pause_ms, "ALL")
            expected.append(Expectation(False, (NO_HEAD,), time.monotonic(), asked_s + pause_ms / 1_000))
            client.ping()  # is answered when the pause is over
            stage.answer(BETWEEN_PAUSES)
    return Spell(begin_s, time.monotonic(), tuple(expected))


def full(stage: Stage) -> Spell:
    """Redis has no memory left: it reads and refuses every write, so what it holds grows old."""
    with stage.hub.redis() as client:
        before = client.config_get("maxmemory")["maxmemory"]
        begin_s = time.monotonic()
        client.config_set("maxmemory", 1)
        try:
            last_ms = stage.load.clock_ms  # nothing of a later minute can be written
            stage.answer(HELD_REQUESTS)
        finally:
            end_s = time.monotonic()
            client.config_set("maxmemory", before)
    stale_ms = last_ms + GROUPS[BARS].ttl_ms
    return Spell(begin_s, end_s, (Expectation(False, (f"{NO_HEAD} {BARS}",), begin_s, end_s, stale_ms),))


def bars_stop(stage: Stage) -> Spell:
    """The feed of a required group stops: the clock runs into the hole of the bars, and out of it."""
    recording = stage.recording
    stage.load.jump(recording.hole_start_ms - 2 * MINUTE_MS)
    stage.reach(recording.hole_start_ms)
    stage.push_scores()
    begin_s = time.monotonic()
    stage.reach(recording.bars_stale_after_ms + 6 * MINUTE_MS)
    stage.load.jump(recording.bars_back_ms - 3 * MINUTE_MS)
    stage.reach(recording.bars_back_ms)
    return Spell(begin_s, time.monotonic(), (Expectation(
        False, (f"{NO_HEAD} {BARS}",), after_ms=recording.bars_stale_after_ms, before_ms=recording.bars_back_ms),))


def optional_stop(stage: Stage) -> Spell:
    """Feeds of optional groups stop: no more fear and greed, and no new score for longer than a score is fresh."""
    ttl_ms = GROUPS[TWITTER].ttl_ms
    stale_ms = max(stage.recording.mood_stale_after_ms, stage.load.clock_ms + ttl_ms) + MINUTE_MS
    begin_s = time.monotonic()
    stage.load.jump(stale_ms)
    stage.reach(stale_ms)
    stage.answer(HELD_REQUESTS)
    end_s = time.monotonic()
    named = (f"{NO_HEAD} {FEAR_GREED}", f"{NO_HEAD} {TWITTER}")
    stage.push_scores()
    return Spell(begin_s, end_s, (Expectation(True, named, begin_s, end_s, stale_ms - 1),))


def feeder_killed(stage: Stage) -> Spell:
    """The feeder's process is killed; Ray starts the actor again."""
    feeder = _feeder(stage)
    begin_s = time.monotonic()
    feeder.kill()
    _wait_for_another(stage, feeder)
    return Spell(begin_s, begin_s)


def torn(stage: Stage) -> Spell:
    """The feeder is killed as soon as it begins to fill a store that was flushed; what is half done must not stay."""
    before, feeder = stage.held(), _feeder(stage)
    with stage.hub.redis() as client:
        begin_s = time.monotonic()
        client.flushall()
    until(lambda: bool(stage.held()), "the feeder to begin")
    feeder.kill()
    _wait_for_another(stage, feeder)
    return Spell(begin_s, begin_s, rebuild=_agreement(stage, before, begin_s, math.nan))


FAULTS: dict[str, tuple[str, Fault]] = {
    "frozen": ("Redis frozen", frozen), "killed": ("Redis killed", killed), "flushed": ("Redis flushed", flushed),
    "slow": ("Redis slow", slow), "full": ("Redis full", full), "bars": ("bars stop (required)", bars_stop),
    "optional": ("sentiment stops (optional)", optional_stop), "feeder": ("feeder killed", feeder_killed),
    "torn": ("feeder killed while it rebuilds", torn)}
OF_REDIS = ("frozen", "killed", "flushed", "slow", "full")


def _rebuilt(stage: Stage, before: set[tuple[str, str]], lost_s: float, said: int) -> Rebuild:
    """Wait for what was there before and for the feeder's word, then hold both stores against each other."""
    until(lambda: len(stage.hub.restore_seconds()) > said, "the feeder to rebuild the online store", 90.0)
    return _agreement(stage, before, lost_s, stage.hub.restore_seconds()[-1])


def _agreement(stage: Stage, before: set[tuple[str, str]], lost_s: float, said_s: float) -> Rebuild:
    until(lambda: stage.held() >= before, "every row to be back", 90.0)
    seconds = time.monotonic() - lost_s
    stage.load.hold()
    try:
        until(lambda: stage.load.under_way == 0, "the last answers")
        after, equal = stage.held(), _stores_agree(stage)
    finally:
        stage.load.go_on()
    return Rebuild(seconds, said_s, len(after & before), len(before), tuple(sorted({g for _, g in after})), equal)


def _feeder(stage: Stage) -> psutil.Process:
    found = stage.hub.feeders()
    if len(found) != 1:
        raise NotRun(f"one feeder was expected, there are {len(found)}")
    return found[0]


def _wait_for_another(stage: Stage, feeder: psutil.Process) -> None:
    """Until Ray has started the actor again and it has written a later minute."""
    until(lambda: any(now.pid != feeder.pid for now in stage.hub.feeders()), "Ray to start the feeder again")
    clock_ms = stage.load.clock_ms
    until(lambda: min(groups.get(BARS, 0) for groups in stage.repo.online_event_times(SYMBOLS).values()) > clock_ms,
          "the feeder to write again")


def _stores_agree(stage: Stage) -> bool:
    """Every symbol's vector, online as the hub reads it and offline as DuckDB joins it."""
    now_ms = stage.load.clock_ms

    async def online() -> list[tuple[float, ...]]:
        reader = OnlineReader(stage.hub.redis_url, deadline_s=5.0)
        try:
            return [(await reader.read(symbol, now_ms)).values for symbol in SYMBOLS]
        finally:
            await reader.close()

    joined = stage.repo.training_frame(SYMBOLS, [now_ms])[list(DECISION_V1.names)].to_numpy(np.float64)
    return bool(np.array_equal(np.array(asyncio.run(online())), joined, equal_nan=True))
