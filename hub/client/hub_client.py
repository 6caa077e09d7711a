"""The client itself: one hub, one token, one outbox. The package's page says what it promises."""

from __future__ import annotations

import json
import logging
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from hub.client.advice import Advice, Degraded, Limits, Unusable, advice_of
from hub.client.candidate import Registration, candidate_bytes, registration_of
from hub.client.outbox import Outbox
from hub.client.wire import Wire
from policies.breaker import Backoff, Breaker
from policies.types import Direction, LlmView, Outcome

log = logging.getLogger(__name__)

# Says nothing about the outcome, which is delivered once the token is mended.
_TOKEN_REFUSED = frozenset({401, 403})


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
        self, base_url: str, token: str, outbox: Path, timeout_s: float = 1.0, *, report_timeout_s: float = 2.0,
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
        self._wire = Wire(base_url, token)

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
            advice = advice_of(reply.answer, request_id, llm_view, self._limits, _elapsed_ms(started))
        except Unusable as error:
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

    def push_score(self, source: str, symbol: str, score: float, confidence: float,
                   time_ms: int | None = None) -> str:
        """Tell the hub a sentiment: source reddit, twitter or polymarket, score -1..1, confidence 0..1.

        "" when it is recorded, and every decision from then on sees it; else why it is not. Never raises, and is not
        kept in the outbox: a mood is soon over. With a time_ms, the same score again is recorded once.
        """
        try:
            body = _encoded({"source": source, "symbol": symbol, "score": score, "confidence": confidence,
                             "time_ms": time_ms})
        except (TypeError, ValueError) as error:
            return f"not valid JSON: {error}"
        return self._wire.post("/v1/sentiment", body, self._timeout_s).reason

    def register(self, path: Path, timeout_s: float = 60.0) -> Registration:
        """Hand a candidate to the hub: a bundle as a file or a folder. Needs the token of scope ops. Never raises.

        Handing the same one over again is harmless: it is registered once.
        """
        try:
            content = candidate_bytes(path)
        except (OSError, ValueError) as error:
            return Registration(reason=str(error), refused=True)
        return registration_of(self._wire.post("/v1/policies", content, timeout_s, "application/octet-stream"))

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


def _rows(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _llm_json(view: LlmView | None) -> dict[str, Any] | None:
    if view is None:
        return None
    return {**view.action.to_dict(), "confidence": view.confidence, "strategy_weights": dict(view.strategy_weights)}


def _encoded(values: dict[str, Any]) -> bytes:
    return json.dumps(values, allow_nan=False, separators=(",", ":")).encode()


def _elapsed_ms(started: float) -> float:
    return (time.perf_counter() - started) * 1000.0
