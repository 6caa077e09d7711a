"""What a bot imports to ask the hub what to do and to tell it what came of it.

Two promises. `decide` answers within its deadline and never raises: whatever goes wrong with the hub, the network or
the answer, the bot gets the advice `llm_only` (trade as if there were no hub) and the reason. `report` never loses an
outcome: it is on disk before it is sent, survives a kill -9, and is sent again, in order, until the hub acknowledges
it. Sending one twice is harmless, because the hub keys outcomes by (decision_id, part, revision).

Needs httpx and the standard library. All methods may be called from any thread.

    with HubClient("http://127.0.0.1:8000", token, outbox=Path("outbox.sqlite")) as hub:
        advice = hub.decide("BTC", "momentum", equity=10_000.0, llm_view=view)
        put_learning_memory(market_context, advice)
        ...                      # trade advice.action; it is the LLM's own one whenever advice.acts is false
        hub.report(outcome)
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from policies.types import Action, Direction, LlmView, Outcome

log = logging.getLogger(__name__)

LLM_ONLY = "llm_only"

# These mean that the hub is not there, as 5xx do: a proxy whose ingress was killed answers 404 for a moment, an
# overloaded one 429. Every other 4xx is the hub's own refusal.
_UNAVAILABLE_4XX = frozenset({404, 408, 425, 429})

# Says nothing about the outcome, which is delivered once the token is mended.
_TOKEN_REFUSED = frozenset({401, 403})

_SCHEMA = """
    PRAGMA journal_mode=DELETE;
    PRAGMA synchronous=EXTRA;
    CREATE TABLE IF NOT EXISTS waiting (id INTEGER PRIMARY KEY AUTOINCREMENT, body TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS refused (id INTEGER PRIMARY KEY AUTOINCREMENT, body TEXT NOT NULL, reason TEXT NOT NULL);
"""


@dataclass(frozen=True)
class Limits:
    """What this bot would never do, whoever advises it: an answer beyond is not used.

    max_leverage: the account's own cap, >= 1. max_size_fraction: margin over equity, 0..1.
    """

    max_leverage: float = 25.0
    max_size_fraction: float = 1.0


@dataclass(frozen=True)
class Degraded:
    """A part that did not do its work for this advice, and why. `part` is "hub" or "client" when all of it failed."""

    part: str
    reason: str


@dataclass(frozen=True)
class Advice:
    """What the hub advises for one decision.

    decision_id: what the outcome is reported on; None if the hub has no record of it, then the trade is the bot's own.
    action: what to do. The hub's if `acts`, else the LLM's own unchanged; None if the bot passed no view of its LLM.
    propensity: probability of this policy given the roles; role_probability: probability of the roles. 0..1.
    confidence: probability that `action` beats doing nothing, 0..1. horizon_s: seconds after which to close the trade.
    learning_memory: the most similar episodes, nearest first. latency_ms: wall time of `decide`.
    """

    request_id: str
    action: Action | None
    decision_id: str | None = None
    policy_id: str = LLM_ONLY
    policy: str = LLM_ONLY
    role: str = LLM_ONLY
    acts: bool = False
    propensity: float = 1.0
    role_probability: float = 1.0
    confidence: float | None = None
    horizon_s: int | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    learning_memory: tuple[Mapping[str, Any], ...] = ()
    shielded: tuple[Mapping[str, Any], ...] = ()
    degraded: tuple[Degraded, ...] = ()
    proposals: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    latency_ms: float = 0.0

    @property
    def llm_only(self) -> bool:
        """No policy of the hub stands behind this advice."""
        return self.policy_id == LLM_ONLY


@dataclass(frozen=True)
class OwnTrade:
    """Marks an outcome as that of a trade the bot made by itself. Its `decision_id` is any unique id of the bot."""

    symbol: str
    strategy: str
    direction: Direction


@dataclass(frozen=True)
class Delivery:
    """What one attempt to empty the outbox did. pending: outcomes that wait for the next attempt.

    verdicts: what PolicySentry said on the outcomes just delivered. refused: how many were parked with the reason.
    """

    delivered: int = 0
    refused: int = 0
    pending: int = 0
    verdicts: tuple[Mapping[str, Any], ...] = ()


class HubClient:
    """One hub, one token, one outbox file. Close it, or use it in a `with`."""

    def __init__(
        self, base_url: str, token: str, outbox: Path, timeout_s: float = 0.25, *, report_timeout_s: float = 2.0,
        limits: Limits | None = None, failures_to_open: int = 5, open_s: float = 2.0, first_backoff_s: float = 0.25,
        longest_backoff_s: float = 30.0,
    ) -> None:
        """timeout_s: the whole of a decision, from connecting to the last byte. report_timeout_s: of one delivery.

        After `failures_to_open` failures in a row decisions answer llm_only at once for `open_s`; then one request
        probes whether the hub is back. Deliveries back off from first_backoff_s, doubling up to longest_backoff_s.
        """
        self._timeout_s, self._report_timeout_s = timeout_s, report_timeout_s
        self._limits = limits or Limits()
        self._breaker = Breaker(failures_to_open, open_s)
        self._backoff = Backoff(first_backoff_s, longest_backoff_s)
        self._outbox = Outbox(outbox)
        self._sending = threading.Lock()  # one sender at a time keeps outcomes in order
        self._wire = _Wire(base_url, token)

    def decide(
        self, symbol: str, strategy: str, equity: float, llm_view: LlmView | None = None, *, time_ms: int | None = None,
        request_id: str | None = None, current_leverage: float = 0.0, unrealised_pnl: float = 0.0,
        parent_decision_id: str | None = None,
    ) -> Advice:
        """The hub's advice for one slot. Never raises; see `Advice` for what the arguments and results mean.

        request_id: 1..64 characters, the same for every retry of the same question; one is drawn if not given.
        time_ms: needed when the hub's clock is in replay: the close of the bar decided on.
        """
        started = time.perf_counter()
        request_id = request_id or uuid.uuid4().hex

        def fallback(part: str, reason: str) -> Advice:
            return Advice(request_id, llm_view.action if llm_view else None, degraded=(Degraded(part, reason),),
                          latency_ms=_elapsed_ms(started))

        try:
            body = _encoded({
                "request_id": request_id, "symbol": symbol, "strategy": strategy, "time_ms": time_ms,
                "portfolio": {"equity": equity, "current_leverage": current_leverage, "unrealised_pnl": unrealised_pnl},
                "llm": _llm_json(llm_view), "parent_decision_id": parent_decision_id,
            })
        except (TypeError, ValueError) as error:
            log.warning("decision for %s/%s was not asked: %s", symbol, strategy, error)
            return fallback("client", f"the question is not valid JSON: {error}")
        if not self._breaker.allows():
            return fallback("hub", "not asked: it failed repeatedly a moment ago")
        reply = self._wire.post("/v1/decisions", body, self._timeout_s)
        if reply.refusal:
            self._breaker.succeeded()  # it answered: the caller's mistake says nothing about the hub's health
            log.warning("decision for %s/%s was refused: %s", symbol, strategy, reply.reason)
            return fallback("client", reply.reason)
        if reply.answer is None:
            self._breaker.failed()
            return fallback("hub", reply.reason)
        try:
            advice = _advice(reply.answer, request_id, llm_view, self._limits, _elapsed_ms(started))
        except _Unusable as error:
            self._breaker.failed()
            log.warning("answer on %s/%s is not used: %s", symbol, strategy, error)
            return fallback("hub", f"unusable answer: {error}")
        self._breaker.succeeded()
        return advice

    def report(self, outcome: Outcome, own_trade: OwnTrade | None = None) -> Delivery:
        """Write the outcome to the outbox, durably, then deliver what waits there unless a backoff is running.

        Raises only if the outbox itself can't be written (sqlite3.Error): then nothing is promised.
        An outcome that holds a NaN is parked as refused at once.
        """
        values = outcome.to_dict()
        if own_trade is not None:
            values |= {"origin": "bot", "symbol": own_trade.symbol, "strategy": own_trade.strategy,
                       "direction": Direction(own_trade.direction).value}
        try:
            body = _encoded(values).decode()
        except ValueError as error:
            log.warning("outcome %s was not sent: %s", outcome.key, error)
            self._outbox.park_unsendable(repr(values), str(error))
            return Delivery(refused=1, pending=self._outbox.pending())
        self._outbox.put(body)
        return self._deliver() if self._backoff.over() else Delivery(pending=self._outbox.pending())

    def flush(self, within_s: float = 0.0) -> Delivery:
        """Deliver what waits, oldest first, trying again with backoff until all is delivered or within_s is over.

        A bot calls it in its loop: outcomes that waited for the hub leave with the next report or flush.
        """
        stop_at = time.monotonic() + within_s
        total = self._deliver()
        while total.pending and time.monotonic() < stop_at:
            time.sleep(max(0.0, min(self._backoff.wait_s(), stop_at - time.monotonic())))
            step = self._deliver()
            total = Delivery(total.delivered + step.delivered, total.refused + step.refused, step.pending,
                             total.verdicts + step.verdicts)
        return total

    def refused_outcomes(self) -> list[tuple[str, str]]:
        """(outcome as JSON, reason) of every outcome that the hub refused for good, oldest first."""
        return self._outbox.refused()

    def close(self) -> None:
        """Close the connection and the outbox. What waits stays on disk for the next client."""
        self._wire.close()
        self._outbox.close()

    def __enter__(self) -> HubClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def _deliver(self) -> Delivery:
        delivered, refused = 0, 0
        verdicts: list[Mapping[str, Any]] = []
        with self._sending:
            while (oldest := self._outbox.oldest()) is not None:
                row_id, body = oldest
                reply = self._wire.post("/v1/outcomes", body.encode(), self._report_timeout_s)
                if reply.answer is not None and reply.answer.get("accepted") is not None:
                    self._outbox.drop(row_id)
                    delivered += 1
                    verdicts += [v for v in _rows(reply.answer.get("verdicts")) if isinstance(v, dict)]
                elif reply.refusal and reply.status not in _TOKEN_REFUSED:
                    log.warning("outcome was refused and is parked: %s", reply.reason)
                    self._outbox.park(row_id, reply.reason)
                    refused += 1
                else:
                    self._backoff.failed()
                    return Delivery(delivered, refused, self._outbox.pending(), tuple(verdicts))
                self._backoff.succeeded()
        return Delivery(delivered, refused, 0, tuple(verdicts))


class Breaker:
    """Closed: every request may go. After n failures in a row it opens, and lets one probe through per open_s."""

    def __init__(self, failures_to_open: int, open_s: float, now_s: Callable[[], float] = time.monotonic) -> None:
        self._failures_to_open, self._open_s, self._now_s = failures_to_open, open_s, now_s
        self._lock = threading.Lock()
        self._failures = 0
        self._next_probe_s = -math.inf

    def allows(self) -> bool:
        with self._lock:
            if self._failures < self._failures_to_open:
                return True
            if self._now_s() < self._next_probe_s:
                return False
            self._next_probe_s = self._now_s() + self._open_s  # this caller probes, the others wait for its finding
            return True

    def succeeded(self) -> None:
        with self._lock:
            self._failures = 0

    def failed(self) -> None:
        with self._lock:
            self._failures += 1
            self._next_probe_s = self._now_s() + self._open_s


class Backoff:
    """How long to wait before the next delivery: nothing after a success, doubling after each failure."""

    def __init__(self, first_s: float, longest_s: float, now_s: Callable[[], float] = time.monotonic) -> None:
        self._first_s, self._longest_s, self._now_s = first_s, longest_s, now_s
        self._step_s, self._until_s = 0.0, -math.inf

    def failed(self) -> None:
        self._step_s = min(max(self._first_s, 2 * self._step_s), self._longest_s)
        self._until_s = self._now_s() + self._step_s

    def succeeded(self) -> None:
        self._step_s, self._until_s = 0.0, -math.inf

    def wait_s(self) -> float:
        return max(0.0, self._until_s - self._now_s())

    def over(self) -> bool:
        return self.wait_s() == 0.0


class Outbox:
    """Outcomes on disk, oldest first, and those refused for good.

    A rollback journal with synchronous=EXTRA: when a write returns, it is on the disk, whatever happens next.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=5.0)
        self._db.executescript(_SCHEMA)

    def put(self, body: str) -> None:
        with self._transaction() as db:
            db.execute("INSERT INTO waiting (body) VALUES (?)", (body,))

    def oldest(self) -> tuple[int, str] | None:
        with self._lock:
            row = self._db.execute("SELECT id, body FROM waiting ORDER BY id LIMIT 1").fetchone()
        return None if row is None else (row[0], row[1])

    def drop(self, row_id: int) -> None:
        with self._transaction() as db:
            db.execute("DELETE FROM waiting WHERE id = ?", (row_id,))

    def park(self, row_id: int, reason: str) -> None:
        with self._transaction() as db:
            db.execute("INSERT INTO refused (body, reason) SELECT body, ? FROM waiting WHERE id = ?", (reason, row_id))
            db.execute("DELETE FROM waiting WHERE id = ?", (row_id,))

    def park_unsendable(self, text: str, reason: str) -> None:
        with self._transaction() as db:
            db.execute("INSERT INTO refused (body, reason) VALUES (?, ?)", (text, reason))

    def pending(self) -> int:
        with self._lock:
            return int(self._db.execute("SELECT count(*) FROM waiting").fetchone()[0])

    def refused(self) -> list[tuple[str, str]]:
        with self._lock:
            return self._db.execute("SELECT body, reason FROM refused ORDER BY id").fetchall()

    def close(self) -> None:
        with self._lock:
            self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")


@dataclass(frozen=True)
class _Reply:
    """answer: the JSON object of a 200. Else reason says why there is none, and refusal that the hub itself said no."""

    answer: dict[str, Any] | None = None
    reason: str = ""
    refusal: bool = False
    status: int = 0


class _Wire:
    """POSTs with one deadline over everything: connecting, sending, and every byte of the answer.

    httpx bounds single reads, so a server that trickles bytes could hold a caller for ever. Requests therefore run on
    an event loop in a thread of their own, where one that is late can be cancelled and its connection closed.
    """

    def __init__(self, base_url: str, token: str) -> None:
        # Proxies and .netrc of the environment are ignored: the token goes to the hub and nowhere else.
        self._http = httpx.AsyncClient(base_url=base_url, headers={"Authorization": f"Bearer {token}"}, timeout=None,
                                       trust_env=False, limits=httpx.Limits(max_connections=None))
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="hub-client", daemon=True)
        self._thread.start()

    def post(self, path: str, body: bytes, timeout_s: float) -> _Reply:
        if self._closed:
            return _Reply(reason="this client is closed")
        request = asyncio.run_coroutine_threadsafe(self._post(path, body), self._loop)
        try:
            return _reply_of(request.result(timeout_s))
        except TimeoutError:
            request.cancel()
            return _Reply(reason=f"no answer within {timeout_s * 1000:.0f} ms")
        except Exception as error:  # the one place where any failure of the network stack becomes a reason
            return _Reply(reason=f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        asyncio.run_coroutine_threadsafe(self._http.aclose(), self._loop).result(1.0)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(1.0)
        self._loop.close()

    async def _post(self, path: str, body: bytes) -> httpx.Response:
        return await self._http.post(path, content=body, headers={"Content-Type": "application/json"})


class _Unusable(Exception):
    """An answer that contradicts the wire or goes beyond the bot's limits."""


def put_learning_memory(market_context: dict[str, Any], advice: Advice) -> None:
    """Put the similar episodes where the LLM's prompt reads them: market_context["learning_memory"]."""
    market_context["learning_memory"] = [dict(episode) for episode in advice.learning_memory]


def _reply_of(response: httpx.Response) -> _Reply:
    status = response.status_code
    try:
        content = json.loads(response.content, parse_constant=_no_constant)
    except ValueError as error:
        content, broken = None, str(error)
    else:
        broken = "" if isinstance(content, dict) else "not a JSON object"
    if status == 200:
        return _Reply(reason=f"malformed answer: {broken}", status=status) if broken else _Reply(content, status=status)
    problem = content if isinstance(content, dict) else {}
    # "unknown" is the hub's own word for a decision it does not hold; a bare 404 is a proxy without a hub behind it.
    refusal = 400 <= status < 500 and (status not in _UNAVAILABLE_4XX or problem.get("code") == "unknown")
    text = problem.get("detail") or problem.get("title") or ""
    return _Reply(reason=f"{status} {problem.get('code', '')}: {text}" if text else f"HTTP {status}",
                  refusal=refusal, status=status)


def _advice(answer: dict[str, Any], request_id: str, llm_view: LlmView | None, limits: Limits,
            latency_ms: float) -> Advice:
    """The answer as a value, or _Unusable naming what is wrong with it."""
    if answer.get("request_id") != request_id:
        raise _Unusable(f"request_id {answer.get('request_id')!r} answers another request")
    acts = answer.get("acts")
    if not isinstance(acts, bool):
        raise _Unusable(f"acts must be true or false, got {acts!r}")
    return Advice(
        request_id=request_id,
        action=_action(answer.get("action"), limits) if acts else llm_view.action if llm_view else None,
        decision_id=None if answer.get("decision_id") is None else _text(answer, "decision_id"),
        policy_id=_text(answer, "policy_id"), policy=_text(answer, "policy"), role=_text(answer, "role"), acts=acts,
        propensity=_number(answer, "propensity", 0.0, 1.0),
        role_probability=_number(answer, "role_probability", 0.0, 1.0),
        confidence=None if answer.get("confidence") is None else _number(answer, "confidence", 0.0, 1.0),
        horizon_s=int(_number(answer, "horizon_s", 1, 366 * 86_400)),
        weights={name: _number(_mapping(answer, "weights"), name, 0.0, 1.0) for name in _mapping(answer, "weights")},
        learning_memory=_mappings(answer, "learning_memory"), shielded=_mappings(answer, "shielded"),
        degraded=tuple(Degraded(_text(row, "part"), _text(row, "reason")) for row in _mappings(answer, "degraded")),
        proposals=_mapping(answer, "proposals"), versions=_mapping(answer, "versions"), latency_ms=latency_ms,
    )


def _action(values: Any, limits: Limits) -> Action:
    if not isinstance(values, dict):
        raise _Unusable(f"action must be an object, got {values!r}")
    if values.get("direction") not in list(Direction):
        raise _Unusable(f"direction must be long, short or flat, got {values.get('direction')!r}")
    return Action(
        Direction(values["direction"]),
        size_fraction=_number(values, "size_fraction", 0.0, limits.max_size_fraction),
        leverage=_number(values, "leverage", 1.0, limits.max_leverage),
        tp_pct=_number(values, "tp_pct", 1e-6, 0.999), sl_pct=_number(values, "sl_pct", 1e-6, 0.999),
        limit_offset_pct=_number(values, "limit_offset_pct", 0.0, 0.5), min_conf=_number(values, "min_conf", 0.0, 1.0),
    )


def _number(values: Mapping[str, Any], name: str, low: float, high: float) -> float:
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise _Unusable(f"{name} must lie between {low:g} and {high:g}, got {value!r}")
    return value


def _text(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name)
    if not isinstance(value, str) or not value:
        raise _Unusable(f"{name} must be a text, got {value!r}")
    return value


def _mapping(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = values.get(name)
    if not isinstance(value, dict):
        raise _Unusable(f"{name} must be an object, got {value!r}")
    return value


def _mappings(values: Mapping[str, Any], name: str) -> tuple[dict[str, Any], ...]:
    rows = values.get(name)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise _Unusable(f"{name} must be a list of objects, got {rows!r}")
    return tuple(rows)


def _rows(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _llm_json(view: LlmView | None) -> dict[str, Any] | None:
    if view is None:
        return None
    return {**view.action.to_dict(), "confidence": view.confidence, "strategy_weights": dict(view.strategy_weights)}


def _encoded(values: dict[str, Any]) -> bytes:
    return json.dumps(values, allow_nan=False, separators=(",", ":")).encode()


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number of JSON")


def _elapsed_ms(started: float) -> float:
    return (time.perf_counter() - started) * 1000.0
