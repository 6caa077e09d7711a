"""What the hub advises, as a value. An answer that contradicts the wire or goes beyond the bot's limits is not used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from policies.types import Action, Direction, LlmView

LLM_ONLY = "llm_only"


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


class Unusable(Exception):
    """An answer that contradicts the wire or goes beyond the bot's limits."""


def put_learning_memory(market_context: dict[str, Any], advice: Advice) -> None:
    """Put the similar episodes where the LLM's prompt reads them: market_context["learning_memory"]."""
    market_context["learning_memory"] = [dict(episode) for episode in advice.learning_memory]


def advice_of(answer: dict[str, Any], request_id: str, llm_view: LlmView | None, limits: Limits,
            latency_ms: float) -> Advice:
    """The answer as a value, or Unusable naming what is wrong with it."""
    if answer.get("request_id") != request_id:
        raise Unusable(f"request_id {answer.get('request_id')!r} answers another request")
    acts = answer.get("acts")
    if not isinstance(acts, bool):
        raise Unusable(f"acts must be true or false, got {acts!r}")
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
        raise Unusable(f"action must be an object, got {values!r}")
    if values.get("direction") not in list(Direction):
        raise Unusable(f"direction must be long, short or flat, got {values.get('direction')!r}")
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
        raise Unusable(f"{name} must lie between {low:g} and {high:g}, got {value!r}")
    return value


def _text(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name)
    if not isinstance(value, str) or not value:
        raise Unusable(f"{name} must be a text, got {value!r}")
    return value


def _mapping(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = values.get(name)
    if not isinstance(value, dict):
        raise Unusable(f"{name} must be an object, got {value!r}")
    return value


def _mappings(values: Mapping[str, Any], name: str) -> tuple[dict[str, Any], ...]:
    rows = values.get(name)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise Unusable(f"{name} must be a list of objects, got {rows!r}")
    return tuple(rows)
