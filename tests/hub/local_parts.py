"""The parts of a hub that are processes of their own when it runs, here as objects of this process.

Features are a keyed draw of symbol and minute; heads, writer and intake do what the real ones do, without a hop.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from feature_repo.features import ARRAYS, DECISION_V1, MARKET_EMBEDDING, MINUTE_MS
from hub.decide import Answer, Features
from hub.head_rack import HeadRack
from hub.intake import Asked, Taken, take_in
from policies.clock import Clock
from policies.errors import HubError, WriterUnavailable
from policies.keyed_random import generator
from policies.types import Context, Role
from sentry.actor import SentryShell


class KeyedFeatures:
    """Standard normal features, times their scale, of the minute that has just closed on the clock.

    Settable: `age_ms` of the row, `failed` (why nothing can be read), `fixed` values by feature name,
    `event_time_ms` of single groups, `episode` values, `embedding_version` and `embedding_size` of the stored
    embedding. Arrays are keyed draws, too; one that is stale is left out, as the reader does. `read_arrays` holds the
    groups of every read.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.age_ms = 0
        self.failed = ""
        self.fixed: dict[str, float] = {}
        self.event_time_ms: dict[str, int] = {}
        self.episode: dict[str, float] | None = {"median_price": 100.0, "mid_price": float("nan")}
        self.embedding_version, self.embedding_size = "", 4
        self.read_arrays: list[tuple[str, ...]] = []

    async def read(self, symbol: str, now_ms: int, arrays: tuple[str, ...] = ()) -> Features:
        self.read_arrays.append(arrays)
        if self.failed:
            return Features(None, {}, self.failed)
        event_ms = self._clock.now_ms() // MINUTE_MS * MINUTE_MS - self.age_ms
        values = generator(5, symbol, event_ms).normal(size=len(DECISION_V1)) * DECISION_V1.scales
        for name, value in self.fixed.items():
            values[DECISION_V1.names.index(name)] = value
        held = [group for group in arrays if group != MARKET_EMBEDDING or self.embedding_version]
        read = {group: time_ms for group, time_ms in self.event_time_ms.items() if group in held or group not in ARRAYS}
        times = dict.fromkeys((*DECISION_V1.groups, *held), event_ms) | read
        drawn = {group: self._array(group, symbol, times[group]) for group in held
                 if 0 <= now_ms - times[group] <= ARRAYS[group].ttl_ms}
        return Features(tuple(map(float, values)), times, episode=self.episode, arrays=drawn,
                        embedding_version=self.embedding_version if MARKET_EMBEDDING in arrays else "")

    def _array(self, group: str, symbol: str, event_ms: int) -> NDArray[np.float32]:
        """Another one for each version of an embedding."""
        size = self.embedding_size if group == MARKET_EMBEDDING else ARRAYS[group].most
        version = self.embedding_version if group == MARKET_EMBEDDING else ""
        return generator(5, group, version, symbol, event_ms).normal(size=size).astype(np.float32)


class LocalHeads:
    """Heads in this process. Settable: what each policy does instead of answering, and `during`: run once while the
    heads are being asked. `asked` holds the policies of every call.
    """

    def __init__(self, rack: HeadRack) -> None:
        self._rack = rack
        self.asked: list[list[str]] = []
        self.instead: dict[str, Answer] = {}
        self.latency_ms = 2.0
        self.during: Callable[[], Awaitable[Any]] | None = None

    async def propose(self, ask: dict[str, Role], context: Context, deadline_s: float) -> dict[str, Answer]:
        self.asked.append(list(ask))
        if self.during is not None:
            interruption, self.during = self.during, None
            await interruption()
        found = self._rack.propose([policy_id for policy_id in ask if policy_id not in self.instead], context)
        answers = {policy_id: Answer(proposal, self.latency_ms, failed)
                   for policy_id, (proposal, _, failed) in found.items()}
        return {policy_id: self.instead[policy_id] if policy_id in self.instead else answers[policy_id]
                for policy_id in ask}

    async def load(self, policy_id: str) -> None:
        self._rack.load(policy_id)

    async def forget(self, policy_id: str) -> None:
        self._rack.forget(policy_id)


class LocalWriter:
    """The sentry without Ray. Settable: `away`, and `before_commit`: run once between the heads and the commit."""

    def __init__(self, shell: SentryShell) -> None:
        self._shell = shell
        self.away = False
        self.before_commit: Callable[[], Awaitable[Any]] | None = None

    async def commit_decision(self, body: dict[str, Any], now_ms: int) -> dict[str, Any]:
        if self.before_commit is not None:
            interruption, self.before_commit = self.before_commit, None
            await interruption()
        await asyncio.sleep(0)  # as with a real hop, others are served meanwhile
        return _raised(self._there().commit_decisions([body], now_ms)[0])

    async def record_outcome(self, outcome: dict[str, Any], now_ms: int) -> dict[str, Any]:
        return _raised(self._there().record_outcomes([outcome], now_ms)[0])

    async def command(self, command: dict[str, Any], now_ms: int) -> dict[str, Any]:
        return self._there().command(**command, now_ms=now_ms)

    async def register(self, registration: dict[str, Any], now_ms: int) -> dict[str, Any]:
        return self._there().register(**registration, now_ms=now_ms)

    async def expire_epoch(self, now_ms: int) -> None:
        self._there().expire_epoch(now_ms)

    async def observe(self, observation: dict[str, Any], now_ms: int) -> dict[str, Any]:
        return self._there().observe(**observation, now_ms=now_ms)

    async def ping(self) -> dict[str, Any]:
        return self._there().ping()

    async def audit(self, limit: int) -> dict[str, Any]:
        return self._there().audit(limit)

    def _there(self) -> SentryShell:
        if self.away:
            raise WriterUnavailable("the ledger's writer did not answer within 1 s")
        return self._shell


class StillFeeder:
    async def advance(self, now_ms: int) -> bool:
        """The features of every minute are there already."""
        return True

    async def take_in(self, now_ms: int) -> bool:
        """There is no store to bring anything into."""
        return True


class LocalExtras:
    """What the other deployments answer, from the service's own fold."""

    async def params(self, strategy: str, symbol: str | None) -> dict[str, Any]:
        return {"strategy": strategy, "symbol": symbol}

    async def knn(self, symbol: str, k: int) -> dict[str, Any]:
        return {"symbol": symbol, "k": k, "neighbours": []}


class LocalIntake:
    """Candidates are read and checked in this process. `taken`: of every one. `before`: run before each."""

    def __init__(self) -> None:
        self.taken: list[Taken] = []
        self.before: Callable[[], Awaitable[Any]] | None = None

    async def take_in(self, asked: Asked, upload: IO[bytes] | None) -> Taken:
        if self.before is not None:
            await self.before()
        if upload is not None:
            upload.seek(0)
        self.taken.append(await asyncio.to_thread(take_in, asked, upload or io.BytesIO()))
        return self.taken[-1]


def _raised(answer: dict[str, Any] | HubError) -> dict[str, Any]:
    if isinstance(answer, HubError):
        raise answer
    return answer
