"""The two use cases, decide and learn, without a framework.

What lies outside (features, heads, the ledger's writer, the feeder) comes in as the protocols below; `deployments.py`
binds them to Ray, tests bind them to plain objects. The service holds its own fold of the ledger and brings it up to
date before every decision.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from feature_repo.features import ARRAYS, DECISION_V1, GROUPS, MARKET_EMBEDDING
from hub import decide
from hub.config import ServerConfig
from hub.decide import Answer, Features
from hub.embedding_commands import Embedders, EmbeddingCommands
from hub.fitness import arrays_wanted
from hub.head_rack import judged
from hub.param_commands import ParamCommands
from hub.policy_names import policy_named
from hub.rl_use import RlCommands
from hub.scores import SENTIMENT, with_scores
from hub.state import HubState, catch_up
from policies.clock import LIVE_TOLERANCE_MS, Clock
from policies.errors import ContentConflict, HubError, InvalidInput, WriterUnavailable
from policies.rows import BOOK, LLM_ONLY, Row, decision_id_of
from policies.types import NO_EMBEDDING, Context, Role
from sentry.ledger import LedgerReader

# A decision that lost against a gate, command or registration is made again; a second loss in a row is rare, a third
# means that the ledger changes faster than decisions can be made, and the safe answer is right.
ATTEMPTS = 3
MOST_REASONS = 500  # of degraded parts that are counted one by one


class FeatureSource(Protocol):
    async def read(self, symbol: str, now_ms: int, arrays: tuple[str, ...] = ()) -> Features:
        """arrays: array groups to read as well."""
        ...


class Heads(Protocol):
    async def propose(self, ask: dict[str, Role], context: Context, deadline_s: float) -> dict[str, Answer]: ...

    async def load(self, policy_id: str) -> None: ...

    async def forget(self, policy_id: str) -> None:
        """Never raises: what cannot be reached holds nothing."""
        ...


class Writer(Protocol):
    """The ledger's only writer. Every method raises WriterUnavailable when its deadline passes."""

    async def commit_decision(self, body: dict[str, Any], now_ms: int) -> dict[str, Any]: ...

    async def record_outcome(self, outcome: dict[str, Any], now_ms: int) -> dict[str, Any]: ...

    async def command(self, command: dict[str, Any], now_ms: int) -> dict[str, Any]: ...

    async def register(self, registration: dict[str, Any], now_ms: int) -> dict[str, Any]: ...

    async def expire_epoch(self, now_ms: int) -> None: ...

    async def observe(self, observation: dict[str, Any], now_ms: int) -> dict[str, Any]: ...

    async def ping(self) -> dict[str, Any]: ...

    async def audit(self, limit: int) -> dict[str, Any]: ...


class Feeder(Protocol):
    async def advance(self, now_ms: int) -> bool:
        """Bring the online store to the clock; whether it is there. In live mode the feeder runs by itself."""
        ...

    async def take_in(self, now_ms: int) -> bool:
        """Bring what the ledger has recorded for the feeder into the online store; whether it is there."""
        ...


@dataclass
class Seen:
    """What this process has served, for /metrics and the status page. It decides nothing."""

    decisions: Counter[tuple[str, str]] = field(default_factory=Counter)  # (role, "acted" | "observed")
    degraded: Counter[tuple[str, str]] = field(default_factory=Counter)  # (part, reason)
    outcomes: Counter[str] = field(default_factory=Counter)
    conflicts: int = 0
    latencies_ms: deque[float] = field(default_factory=lambda: deque(maxlen=5_000))  # of the last ones
    latency_total_ms: float = 0.0  # of all

    def count_degraded(self, part: str, reason: str) -> None:
        """Reasons hold figures, so there is no end to them: beyond some hundred they are counted together."""
        known = (part, reason) in self.degraded or len(self.degraded) < MOST_REASONS
        self.degraded[part, reason if known else "other"] += 1


class HubService:
    def __init__(self, reader: LedgerReader, state: HubState, clock: Clock, symbols: tuple[str, ...],
                 features: FeatureSource, heads: Heads, writer: Writer, feeder: Feeder,
                 settings: ServerConfig, embedders: Embedders | None = None) -> None:
        self.state = state
        self.seen = Seen()
        self.clock, self.symbols = clock, symbols
        self.writer = writer
        self._reader, self._features, self._heads, self._feeder = reader, features, heads, feeder
        self._settings = settings
        self.embeddings = EmbeddingCommands(self, embedders)
        self.params, self.rl = ParamCommands(self), RlCommands(self)
        self._ticked_ms = -1
        self._tick_lock, self._observe_lock = asyncio.Lock(), asyncio.Lock()

    def catch_up(self) -> None:
        """Fold what the writer has committed since. With nothing new this is one read of some microseconds."""
        catch_up(self.state, self._reader)

    # -- decide -----------------------------------------------------------------------------------------------------

    async def decide(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Answer a DecisionRequest (as a dict). The same request_id again gets the recorded answer."""
        started = time.perf_counter()
        self.require_symbol(asked["symbol"])
        request_hash = hashlib.sha256(orjson.dumps(asked, option=orjson.OPT_SORT_KEYS)).hexdigest()
        self.catch_up()
        recorded = self._reader.get("decision", decision_id_of(self.state.seed, asked["request_id"]))
        if recorded is not None:
            return _recorded_answer(recorded, request_hash, self.state)
        self._require_parent(asked)
        time_ms = self.clock.admit(asked["time_ms"])  # last: what is refused must not move the clock
        request = {**asked, "time_ms": time_ms}
        answer = await self._decided(request, request_hash)
        latency_ms = (time.perf_counter() - started) * 1_000
        self.seen.latencies_ms.append(latency_ms)
        self.seen.latency_total_ms += latency_ms
        self.seen.decisions[answer["role"], "acted" if answer["acts"] else "observed"] += 1
        for entry in answer["degraded"]:
            self.seen.count_degraded(entry["part"], entry["reason"])
        if answer["decision_id"] is not None:  # what could not record a decision cannot record this either
            degraded = {entry["part"]: entry["reason"] for entry in answer["degraded"]}
            await self._observe_parts(degraded, asked["symbol"], time_ms)
        return answer

    async def _observe_parts(self, degraded: dict[str, str], symbol: str, now_ms: int) -> None:
        """Record when a part begins or ceases to be degraded. Not heads: their failures are in the decisions.

        A group of features is a part per symbol, "features bars of BTC". While nothing can be read, nothing is known of
        single groups.
        """
        now = {_part_of(part, symbol): reason for part, reason in degraded.items() if not part.startswith("head ")}
        if not self._changed_parts(now, symbol):
            return
        async with self._observe_lock:  # decisions that were asked at once found the same
            self.catch_up()
            with contextlib.suppress(WriterUnavailable):  # the writer's own absence cannot be written
                for what, part, reason in self._changed_parts(now, symbol):
                    await self.writer.observe({"what": what, "policy_id": None, "figure": None,
                                               "detail": {"part": part, "reason": reason}}, now_ms)
            self.catch_up()

    def _changed_parts(self, now: dict[str, str], symbol: str) -> list[tuple[str, str, str]]:
        """(degraded or recovered, part, reason) of what this decision found otherwise than the fold has it."""
        unknown = {part for part in self.state.degraded
                   if part.startswith("features ") and ("features" in now or not part.endswith(f" of {symbol}"))}
        before = self.state.degraded.keys() - unknown
        changed = [("degraded", part, now[part]) for part in now.keys() - before]
        return sorted([*changed, *(("recovered", part, "") for part in before - now.keys())])

    async def _decided(self, request: dict[str, Any], request_hash: str) -> dict[str, Any]:
        try:
            await self._tick(request["time_ms"])
            for _ in range(ATTEMPTS):
                answer = await self._attempt(request, request_hash)
                if answer is not None:
                    return answer
                self.seen.conflicts += 1
        except WriterUnavailable as error:
            return self._safe_answer(request, "sentry", str(error))
        return self._safe_answer(request, "sentry", f"the ledger changed under {ATTEMPTS} attempts")

    async def _tick(self, time_ms: int) -> None:
        """Once per moment of the clock: features up to it, and the epoch's end."""
        async with self._tick_lock:
            if time_ms > self._ticked_ms and await self._feeder.advance(time_ms):
                self._ticked_ms = time_ms
            if self.state.epoch_expired(time_ms):
                await self.writer.expire_epoch(time_ms)
                self.catch_up()

    async def _attempt(self, request: dict[str, Any], request_hash: str) -> dict[str, Any] | None:
        """One try: the answer, or None if something that decides who may act came in between."""
        arrays = arrays_wanted(self.state)
        stored = await self._features.read(request["symbol"], request["time_ms"], arrays)
        self.catch_up()
        if not set(arrays_wanted(self.state)) <= set(arrays):
            return None  # a head that takes more came in between
        features = with_scores(stored, self.state.scores, request["symbol"], request["time_ms"])
        planned = decide.plan(self.state, request, features)
        answers: dict[str, Answer] = {}
        remembered = None
        if planned.ask:
            context = decide.context_of(request, features.only(planned.arrays))
            deadline_s = self._settings.head_deadline_ms / 1_000
            asking = asyncio.ensure_future(self._heads.propose(planned.ask, context, deadline_s))
            await asyncio.sleep(0)  # the heads are asked; while they think, the memory is searched
            remembered = decide.remembered_in(self.state, request, features)
            answers = await asking
            self.catch_up()
            if self.state.last_blocking_position > planned.as_of:
                return None
        # Who acts has not changed since the plan, so the conclusion may stand on the newest position.
        chosen = decide.plan(self.state, request, features)
        if chosen.as_of != planned.as_of:
            remembered = None
        body = decide.conclude(self.state, chosen, request, request_hash, features, answers, remembered)
        committed = await self.writer.commit_decision(body, request["time_ms"])
        if committed["status"] == "conflict":
            return None
        if committed["status"] == "recorded":
            row = self._reader.get("decision", chosen.decision_id)
            assert row is not None, "the writer names a recorded decision that the ledger does not hold"
            return _recorded_answer(row, request_hash, self.state)
        return answer_of(chosen.decision_id, body, committed["position"])

    def _safe_answer(self, request: dict[str, Any], part: str, reason: str) -> dict[str, Any]:
        """`llm_only`, not recorded: nothing that the ledger's writer has not judged may act."""
        features = Features(None, {}, reason)
        decision_id = decision_id_of(self.state.seed, request["request_id"])
        chosen = decide.Plan(decision_id, self.state.position, decide.Draw(Role.LLM_ONLY, LLM_ONLY, 1.0), {},
                             ({"part": part, "reason": reason},))
        body = decide.conclude(self.state, chosen, request, "", features, {})
        return {**answer_of(decision_id, body, None), "decision_id": None}

    # -- learn ------------------------------------------------------------------------------------------------------

    async def learn(self, report: dict[str, Any]) -> dict[str, Any]:
        """Record an OutcomeReport (as a dict). The answer comes after the commit, with the verdicts it caused."""
        if report["origin"] == "bot":
            for name in ("symbol", "strategy", "direction"):
                if report[name] is None:
                    raise InvalidInput(name, "given for the bot's own trades", None)
            self.require_symbol(report["symbol"])
        now_ms = self.clock.now_ms()
        if self.clock.mode == "replay" and report["exit_time_ms"] > now_ms:
            # The bot learns of an exit at a bar's close before it asks anything at that close.
            now_ms = self.clock.check(report["exit_time_ms"])
        answer = await self.writer.record_outcome(report, now_ms)
        if now_ms > self.clock.now_ms():
            self.clock.admit(now_ms)  # only now: a report that is refused must not move the clock
        self.seen.outcomes[answer["accepted"]] += 1
        self.catch_up()
        return answer

    async def push_score(self, pushed: dict[str, Any]) -> dict[str, Any]:
        """Record a ScoreBody (as a dict). From the answer on, decisions of its symbol see it.

        With a time_ms it is recorded once, however often it is sent; without one it is a new score each time.
        """
        self.require_symbol(pushed["symbol"])
        now_ms, made_ms = self.clock.now_ms(), pushed["time_ms"]
        if made_ms is not None:
            tolerance_ms = LIVE_TOLERANCE_MS if self.clock.mode == "live" else 0
            oldest_ms = now_ms - GROUPS[pushed["source"]].ttl_ms
            if not oldest_ms <= made_ms <= now_ms + tolerance_ms:
                raise InvalidInput("time_ms", f"{oldest_ms}..{now_ms}, by the hub's clock", made_ms)
        key = None if made_ms is None else f"sentiment/{pushed['source']}/{pushed['symbol']}/{made_ms}"
        detail = {**pushed, "time_ms": now_ms if made_ms is None else made_ms}
        answer = await self.writer.observe({"what": SENTIMENT, "policy_id": None, "figure": pushed["score"],
                                            "detail": detail, "key": key}, now_ms)
        self.catch_up()
        await self._feeder.take_in(now_ms)
        return {"accepted": answer["accepted"], "key": key, "position": answer["position"]}

    async def command(self, command: str, policy: str, reason: str, command_id: str) -> dict[str, Any]:
        self.catch_up()
        policy_id = policy if policy == BOOK else self.policy_id_of(policy)
        answer = await self.writer.command({"command_id": command_id, "command": command, "policy_id": policy_id,
                                            "actor": "ops", "reason": reason}, self.clock.now_ms())
        self.catch_up()
        return {**answer, "command_id": command_id, "command": command, "policy_id": policy_id}

    async def register(self, policy_id: str, alias: str, manifest: dict[str, Any],
                       actor: str = "ops") -> dict[str, Any]:
        """Register a bundle that is stored already. Both serving processes must be able to open it first.

        BundleRefused where they can't, HeadsUnavailable where they don't answer.
        """
        try:
            await self._heads.load(policy_id)
        except Exception as error:  # of another process: whatever it or the way to it raises
            raise judged(error) from error
        answer = await self.writer.register({"policy_id": policy_id, "alias": alias, "manifest": manifest,
                                             "actor": actor}, self.clock.now_ms())
        self.catch_up()
        return {**answer, "policy_id": policy_id, "alias": alias}

    async def forget(self, policy_id: str) -> None:
        """Have no process of heads hold a candidate that did not become a policy."""
        await self._heads.forget(policy_id)

    async def observe(self, what: str, detail: dict[str, Any], key: str | None,
                      policy_id: str | None = None) -> dict[str, Any]:
        """Record what an operator chose; decisions that are asked for after the answer obey it."""
        answer = await self.writer.observe({"what": what, "policy_id": policy_id, "figure": None, "detail": detail,
                                            "key": key}, self.clock.now_ms())
        self.catch_up()
        return {"accepted": answer["accepted"], "position": answer["position"]}

    async def take_in(self) -> None:
        """Have the feeder follow what was recorded for it."""
        await self._feeder.take_in(self.clock.now_ms())

    # -- questions --------------------------------------------------------------------------------------------------

    def recorded_observation(self, key: str) -> Row | None:
        return self._reader.get("observation", key)

    async def readiness(self) -> dict[str, Any]:
        """Ready when a decision would be recorded: the ledger folds, the writer answers, features can be read."""
        self.catch_up()
        parts = {"ledger": self.state.position > 0}
        try:
            parts["sentry"] = bool(await self.writer.ping())
        except WriterUnavailable:
            parts["sentry"] = False
        parts["features"] = (await self._features.read(self.symbols[0], self.clock.now_ms())).values is not None
        return {"ready": all(parts.values()), "parts": parts, "position": self.state.position}

    async def feature_ages(self) -> dict[str, dict[str, int] | None]:
        """{symbol: {group: age in ms on the hub's clock}} of what the online store holds; None if it cannot be read.

        Without the market's embedding while none is in use: one that nobody makes any more has only its age.
        """
        now_ms = self.clock.now_ms()
        unused = MARKET_EMBEDDING if self.state.embedding.version == NO_EMBEDDING else ""
        found = await asyncio.gather(*(self._features.read(symbol, now_ms, tuple(ARRAYS)) for symbol in self.symbols))
        return {symbol: None if features.values is None else
                {group: now_ms - event_ms for group, event_ms in features.event_time_ms.items() if group != unused}
                for symbol, features in zip(self.symbols, found, strict=True)}

    def policy_id_of(self, name: str) -> str:
        """See `hub.policy_names`."""
        return policy_named(name, {policy_id: head.alias for policy_id, head in self.state.heads.items()})

    def require_symbol(self, symbol: str) -> None:
        if symbol not in self.symbols:
            raise InvalidInput("symbol", f"one of {', '.join(self.symbols)}", symbol)

    def _require_parent(self, asked: dict[str, Any]) -> None:
        parent = asked["parent_decision_id"]
        if parent is None:
            return
        now_ms = self.clock.now_ms() if asked["time_ms"] is None else asked["time_ms"]
        held = self.state.slot_is_open(asked["symbol"], asked["strategy"], now_ms)
        if held != parent:
            raise InvalidInput("parent_decision_id", f"the decision that holds the slot, {held or 'which is free'}",
                               parent)


def _part_of(part: str, symbol: str) -> str:
    return f"{part} of {symbol}" if part.startswith("features ") else part


def answer_of(decision_id: str, body: dict[str, Any], position: int | None) -> dict[str, Any]:
    """The wire answer of a decision's row. position None: not recorded."""
    same = ["request_id", "policy_id", "policy", "role", "acts", "propensity", "role_probability", "action",
            "confidence", "horizon_s", "weights", "learning_memory", "shielded", "degraded", "proposals"]
    same += ["rl"] if "rl" in body else []
    return {
        "decision_id": decision_id, "time_ms": body["request"]["time_ms"], **{name: body[name] for name in same},
        "versions": {"code": body["code_hash"], "config": body["config_hash"], "epoch": body["epoch"],
                     "as_of": body["as_of"], "position": position, "feature_service": DECISION_V1.name},
    }


def _recorded_answer(row: Row, request_hash: str, state: HubState) -> dict[str, Any]:
    if row.body["request_hash"] != request_hash:
        raise ContentConflict("request_id", row.body["request_id"], ["body"])
    return answer_of(row.key, row.body, row.position)


__all__ = ["FeatureSource", "Feeder", "Heads", "HubError", "HubService", "Seen", "Writer", "answer_of"]
