"""Thin Ray shells around plain classes: five Serve deployments, and the ingress's ends of the two actors.

Each method translates and calls. The ingress (`Hub`) holds its own fold of the ledger and hops only where isolation is
worth a millisecond: to the heads, whose code and memory it must survive, and to the ledger's writer. `ParamBandits` and
`EpisodeMemory` fold the same ledger for those who ask them directly, and scale by themselves.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from feature_repo.features import EPISODE_V1, MARKET_EMBEDDING
from feature_repo.online import FeaturesUnavailable, OnlineReader
from hub import decide, status
from hub.api import build_api
from hub.coalesce import Coalescer
from hub.config import HubConfig
from hub.decide import Answer, Features
from hub.embedding_use import embedders_of
from hub.growth_limit import limit_growth
from hub.head_rack import HeadRack
from hub.home import Home
from hub.rack_loading import keep_loading
from hub.registration import ChildIntake, registrar_of
from hub.scores import with_scores
from hub.service import HubService
from hub.state import HubState, catch_up, folded
from hub.webhook import PolicyWebhook, webhook_secret
from policies.clock import ClockChoice, LiveClock
from policies.errors import HubError, WriterUnavailable
from policies.registry import PolicyFolder
from policies.types import Context, Role
from sentry.ledger import LedgerReader

NAMESPACE = "hub"
SENTRY, FEEDER = "sentry", "feeder"

FEEDER_PATIENCE_S = 0.25  # the first bars of some hours are prepared within it
START_PATIENCE_S = 30.0  # with marks a head takes some hundredths, without a second
MOST_GROWTH_BYTES = 8 * 2**30  # of a process of heads; what a canary may have is a quarter of it

Result = TypeVar("Result")


class _HeadShell:
    def __init__(self, home: Home, most_growth_bytes: int = MOST_GROWTH_BYTES) -> None:
        """most_growth_bytes: of memory beyond what Ray takes; 0: no limit. The loop that answers loads nothing: the
        ledger's policies are loaded by a thread, for which the start waits a while, so that the first decision finds
        them."""
        if most_growth_bytes:
            limit_growth(most_growth_bytes)
        self._rack, looked = HeadRack(PolicyFolder(home.policies)), threading.Event()
        threading.Thread(target=keep_loading, args=(self._rack, home.ledger, looked), name="heads", daemon=True).start()
        looked.wait(START_PATIENCE_S)

    async def propose(self, batch: list[tuple[list[str], Context]]) -> list[dict[str, tuple[Any, float, str]]]:
        return [self._rack.propose(policy_ids, context) for policy_ids, context in batch]

    async def load(self, policy_id: str) -> None:
        await asyncio.to_thread(self._rack.load, policy_id)  # others are asked meanwhile

    async def forget(self, policy_id: str) -> None:
        self._rack.forget(policy_id)

    async def check_health(self) -> None:
        """Called by Serve on the event loop that answers proposals: a stalled loop is not healthy."""


@serve.deployment(max_ongoing_requests=64)
class ProductionHead(_HeadShell):
    """Serves the production policy, apart from everything that is not proven yet."""


@serve.deployment(max_ongoing_requests=64)
class ChallengerHead(_HeadShell):
    """Serves the challenger and the shadows."""


class _Folding:
    """A deployment's own fold of the ledger."""

    def __init__(self, home: Home, redis_url: str, deadline_s: float, clock: ClockChoice) -> None:
        self._reader = LedgerReader(home.ledger)
        self._state = folded(self._reader)
        self._features = RedisFeatures(redis_url, deadline_s)
        self._live = LiveClock() if clock.mode == "live" else None

    async def _read(self, symbol: str, state: HubState) -> Features:
        """As of now: in replay the clock lives in the ingress, and the ledger's last row is the latest known of it."""
        now_ms = self._live.now_ms() if self._live else state.latest_ms
        return with_scores(await self._features.read(symbol, now_ms), state.scores, symbol, now_ms)

    def _now(self) -> HubState:
        catch_up(self._state, self._reader)
        return self._state


@serve.deployment(max_ongoing_requests=64)
class ParamBandits(_Folding):
    async def params(self, strategy: str, symbol: str | None) -> dict[str, Any]:
        """The proposal for a strategy in a symbol's present market, or in the normal flat one, and what arms know."""
        state = self._now()
        features = await self._read(symbol, state) if symbol else Features(None, {})
        return status.params(state, strategy, symbol, features)


@serve.deployment(max_ongoing_requests=64)
class EpisodeMemory(_Folding):
    async def knn(self, symbol: str, k: int) -> dict[str, Any]:
        """Episodes like a symbol's present market, nearest first."""
        state = self._now()
        features = await self._read(symbol, state)
        episodes = len(state.memory) if state.memory is not None else 0
        return {"symbol": symbol, "k": k, "episodes": episodes, "degraded": features.failed,
                "neighbours": decide.neighbours(state, features, state.latest_ms, k)}


class RedisFeatures:
    """The online store with a deadline; a failure is a value, not an exception."""

    def __init__(self, redis_url: str, deadline_s: float) -> None:
        self._reader = OnlineReader(redis_url, also=(EPISODE_V1,), deadline_s=deadline_s)

    async def read(self, symbol: str, now_ms: int, arrays: tuple[str, ...] = ()) -> Features:
        try:
            vector = await self._reader.read(symbol, now_ms, arrays)
        except FeaturesUnavailable as error:
            return Features(None, {}, str(error))
        return Features(vector.values, vector.event_time_ms, episode=vector.also[EPISODE_V1.name],
                        arrays=vector.arrays, embedding_version=vector.versions.get(MARKET_EMBEDDING, ""))


class ServeHeads:
    """Production in its own process, everyone else in the other one, both asked at once with one deadline."""

    def __init__(self, production: DeploymentHandle, challenger: DeploymentHandle) -> None:
        # gRPC without the object store: a proposal is small, and a hop through plasma costs more than the head.
        self._handles = [handle.options(_by_reference=False) for handle in (production, challenger)]
        self._calls = [Coalescer(self._sender(handle)) for handle in self._handles]

    async def propose(self, ask: dict[str, Role], context: Context, deadline_s: float) -> dict[str, Answer]:
        split: tuple[list[str], list[str]] = ([], [])
        for policy_id, role in ask.items():
            split[0 if role is Role.PRODUCTION else 1].append(policy_id)
        asked = [self._ask(call, ids, context, deadline_s) for call, ids in zip(self._calls, split, strict=True) if ids]
        found = {policy_id: answer for part in await asyncio.gather(*asked) for policy_id, answer in part.items()}
        return {policy_id: found[policy_id] for policy_id in ask}

    async def load(self, policy_id: str) -> None:
        """Whatever happens to it in one process, it has ended in the other, so that `forget` leaves nothing."""
        ended = await asyncio.gather(*(handle.load.remote(policy_id) for handle in self._handles),
                                     return_exceptions=True)
        for error in ended:
            if isinstance(error, BaseException):
                cause = getattr(error, "cause", None)  # Ray's errors hold that of the process
                raise cause if isinstance(cause, Exception) else error

    async def forget(self, policy_id: str) -> None:
        """A process that is away has forgotten it: it will load what the ledger knows."""
        await asyncio.gather(*(handle.forget.remote(policy_id) for handle in self._handles), return_exceptions=True)

    async def _ask(self, call: Coalescer[Any, Any], policy_ids: list[str], context: Context,
                   deadline_s: float) -> dict[str, Answer]:
        started = time.perf_counter()
        try:
            answers = await asyncio.wait_for(call.submit((policy_ids, context)), deadline_s)
        except TimeoutError:
            late = Answer(None, None, f"missed its deadline of {deadline_s * 1_000:.0f} ms")
            return dict.fromkeys(policy_ids, late)
        except Exception as error:  # the deployment is away or restarting; whatever Serve raises, the answer is safe
            return dict.fromkeys(policy_ids, Answer(None, None, f"unreachable ({type(error).__name__})"))
        waited_ms = round((time.perf_counter() - started) * 1_000, 3)
        return {policy_id: Answer(proposal, waited_ms, failed) for policy_id, (proposal, _, failed) in answers.items()}

    @staticmethod
    def _sender(handle: DeploymentHandle) -> Any:
        propose = handle.propose  # asking the handle for it costs as much as the pickling

        async def send(batch: list[tuple[list[str], Context]]) -> list[Any]:
            return list(await propose.remote(batch))

        return send


class RayWriter:
    """The sentry actor with deadlines. No answer in time is WriterUnavailable: deny, never assume."""

    def __init__(self, deadline_s: float) -> None:
        self._actor = ray.get_actor(SENTRY, namespace=NAMESPACE)
        self._deadline_s = deadline_s
        self._commits: Coalescer[tuple[dict[str, Any], int], dict[str, Any]] = Coalescer(
            self._sender(self._actor.commit_decisions))
        self._outcomes: Coalescer[tuple[dict[str, Any], int], dict[str, Any]] = Coalescer(
            self._sender(self._actor.record_outcomes))

    async def commit_decision(self, body: dict[str, Any], now_ms: int) -> dict[str, Any]:
        return await self._commits.submit((body, now_ms))

    async def record_outcome(self, report: dict[str, Any], now_ms: int) -> dict[str, Any]:
        return await self._outcomes.submit((report, now_ms))

    async def command(self, command: dict[str, Any], now_ms: int) -> dict[str, Any]:
        return await self._within(self._actor.command.remote(**command, now_ms=now_ms))

    async def register(self, registration: dict[str, Any], now_ms: int) -> dict[str, Any]:
        return await self._within(self._actor.register.remote(**registration, now_ms=now_ms))

    async def expire_epoch(self, now_ms: int) -> None:
        await self._within(self._actor.expire_epoch.remote(now_ms))

    async def observe(self, observation: dict[str, Any], now_ms: int) -> dict[str, Any]:
        return await self._within(self._actor.observe.remote(**observation, now_ms=now_ms))

    async def ping(self) -> dict[str, Any]:
        return await self._within(self._actor.ping.remote())

    async def audit(self, limit: int) -> dict[str, Any]:
        return await self._within(self._actor.audit.remote(limit))

    def _sender(self, method: Any) -> Callable[[list[tuple[dict[str, Any], int]]], Awaitable[list[Any]]]:
        async def send(batch: list[tuple[dict[str, Any], int]]) -> list[Any]:
            # One clock: the batch is written at the latest of its moments.
            return await self._within(method.remote([item for item, _ in batch], max(now_ms for _, now_ms in batch)))

        return send

    async def _within(self, reference: Awaitable[Result]) -> Result:
        try:
            return await asyncio.wait_for(reference, self._deadline_s)
        except TimeoutError:
            raise WriterUnavailable(f"the ledger's writer did not answer within {self._deadline_s:g} s") from None
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, HubError):
                raise error.cause from None
            raise WriterUnavailable(f"the ledger's writer failed: {error.cause!r}") from error
        except ray.exceptions.RayError as error:
            raise WriterUnavailable(f"the ledger's writer is away ({type(error).__name__})") from error


class RayFeeder:
    """A feeder that is away shows as stale features, which is what the decision's own check is for.

    A call waits for a feeder that keeps up, so that a replay decides on the bar that has just closed. One that was
    late, or failed, is told the time and not waited for until it has answered again: nobody queues behind it.
    """

    def __init__(self, live: bool) -> None:
        self._live = live
        self._actor = ray.get_actor(FEEDER, namespace=NAMESPACE)
        self._under_way: asyncio.Future[None] | None = None
        self._keeps_up, self._reached_ms = True, -1

    async def advance(self, now_ms: int) -> bool:
        return self._live or await self.take_in(now_ms)

    async def take_in(self, now_ms: int) -> bool:
        """Whether the feeder has come to now_ms."""
        if self._under_way is None or self._under_way.done():
            self._under_way = asyncio.ensure_future(self._told(now_ms))
        if not self._keeps_up:
            return False
        done, _ = await asyncio.wait([self._under_way], timeout=FEEDER_PATIENCE_S)
        self._keeps_up = bool(done) and self._keeps_up
        return self._keeps_up and self._reached_ms >= now_ms

    async def _told(self, now_ms: int) -> None:
        try:
            await self._actor.advance.remote(now_ms)
            self._keeps_up, self._reached_ms = True, now_ms
        except ray.exceptions.RayError:
            self._keeps_up = False


class ServeExtras:
    def __init__(self, params: DeploymentHandle, memory: DeploymentHandle) -> None:
        self._params, self._memory = params, memory

    async def params(self, strategy: str, symbol: str | None) -> dict[str, Any]:
        return await self._params.params.remote(strategy, symbol)

    async def knn(self, symbol: str, k: int) -> dict[str, Any]:
        return await self._memory.knn.remote(symbol, k)


@serve.deployment(max_ongoing_requests=256)
@serve.ingress()
class Hub:
    """The ingress: one plain HubService, bound to Ray, behind the HTTP API."""

    def __init__(self, home: Home, config: HubConfig, redis_url: str, market: str, clock: ClockChoice,
                 production: DeploymentHandle, challenger: DeploymentHandle, params: DeploymentHandle,
                 memory: DeploymentHandle) -> None:
        server = config.server
        reader = LedgerReader(home.ledger)
        state = folded(reader)
        self.service = HubService(
            reader, state, clock.make(state.latest_ms), config.market.symbols,
            RedisFeatures(redis_url, config.features.deadline_ms / 1_000), ServeHeads(production, challenger),
            RayWriter(server.commit_deadline_ms / 1_000), RayFeeder(clock.mode == "live"), server,
            embedders_of(home))
        extras = ServeExtras(params, memory)
        registrar = registrar_of(home, config, self.service, ChildIntake())
        webhook = PolicyWebhook(registrar, reader, webhook_secret(home.root), time.time)
        self._build = lambda: build_api(self.service, extras, home.tokens(), server, market, registrar, webhook)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._build()

    async def check_health(self) -> None:
        """A real canary: the fold can be brought up to date on the loop that answers requests."""
        self.service.catch_up()

