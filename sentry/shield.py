"""The shield: the last look at an action before it is recorded and answered. It can only lower risk.

Caps come first, then the stop, then the risk at the stop, then what forbids the trade altogether. An input that is not
a number, or lies outside the range where an action means anything, becomes no position at all.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, Lt

from policies.types import Action, Direction, LlmView

# By how much the size is lowered when rounding left the risk above its budget: a few units in the last place.
ROUNDING = 2.0**-50


@dataclass(frozen=True)
class ShieldSettings:
    """max_leverage: broker.max_leverage. max_position_pct: risk.max_position_pct, the cap of size_fraction.

    min_sl_pct: the tightest stop of directional strategies. min_conf: the global confidence below which nothing is
    done. risk_per_trade: the largest loss at the stop over equity, size_fraction * leverage * sl_pct.
    """

    max_leverage: Annotated[float, Ge(1), Le(100)] = 20.0
    max_position_pct: Annotated[float, Gt(0), Le(1)] = 0.25
    min_sl_pct: Annotated[float, Gt(0), Lt(1)] = 0.004
    directional_strategies: tuple[str, ...] = ("momentum", "scalping", "breakout", "sniping")
    min_conf: Annotated[float, Ge(0.5), Le(1)] = 0.50
    risk_per_trade: Annotated[float, Gt(0), Le(1)] = 0.002


@dataclass(frozen=True)
class Change:
    """One thing that the shield changed. before: as text where it was not a finite number."""

    field: str
    before: float | str
    after: float | str
    rule: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Shielded:
    action: Action
    changes: tuple[Change, ...]


def shield(action: Action, strategy: str, confidence: float, llm: LlmView | None, no_new_risk: bool, size_scale: float,
           settings: ShieldSettings) -> Shielded:
    """The action with its risk lowered to every limit that applies.

    confidence: of whoever proposed the action, 0..1. llm: where it differs from the action, the stricter of both wins
    (a flat view has no size). no_new_risk: the book's breaker is tripped. size_scale: scales the limits of size and of
    risk, 0..1; 1 for a policy that is not on probation.
    """
    meaningless = _meaningless(action, confidence, llm, size_scale)
    if meaningless:
        return _nothing(meaningless, settings)
    draft = _Draft(action)
    draft.at_most("leverage", settings.max_leverage, "max_leverage")
    draft.at_most("size_fraction", settings.max_position_pct * size_scale, "max_position_pct")
    if llm is not None:
        draft.at_most("leverage", llm.action.leverage, "llm_is_stricter")
        draft.at_most("size_fraction", _taken(llm.action).size_fraction, "llm_is_stricter")
    if strategy in settings.directional_strategies:
        draft.at_least("sl_pct", settings.min_sl_pct, "min_sl_pct")
    draft.at_least("min_conf", settings.min_conf, "min_conf")
    draft.risk_at_most(_taken(action).risk_fraction, "risk_never_rises")
    draft.risk_at_most(settings.risk_per_trade * size_scale, "risk_per_trade")
    if llm is not None:
        draft.risk_at_most(_taken(llm.action).risk_fraction, "llm_is_stricter")
    if not confidence >= draft.action.min_conf:
        draft.flatten("confidence")
    if no_new_risk:
        draft.flatten("no_new_risk")
    if draft.action.size_fraction == 0.0:
        draft.flatten("no_size")
    return Shielded(draft.action, tuple(draft.changes))


class _Draft:
    """An action on its way through the rules, and what they changed."""

    def __init__(self, action: Action) -> None:
        self.action = action
        self.changes: list[Change] = []
        if action.direction is Direction.FLAT:
            self._set("size_fraction", 0.0, "flat")

    def at_most(self, field: str, limit: float, rule: str) -> None:
        if getattr(self.action, field) > limit:
            self._set(field, limit, rule)

    def at_least(self, field: str, limit: float, rule: str) -> None:
        if getattr(self.action, field) < limit:
            self._set(field, limit, rule)

    def risk_at_most(self, budget: float, rule: str) -> None:
        """Shrink the size until the loss at the stop is within `budget`, a fraction of equity."""
        if self.action.risk_fraction > budget:
            size = budget / (self.action.leverage * self.action.sl_pct)
            fitting = (candidate for candidate in (size, size * (1 - ROUNDING))
                       if replace(self.action, size_fraction=candidate).risk_fraction <= budget)
            self._set("size_fraction", next(fitting, 0.0), rule)

    def flatten(self, rule: str) -> None:
        self._set("direction", Direction.FLAT, rule)
        self._set("size_fraction", 0.0, rule)

    def _set(self, field: str, value: Any, rule: str) -> None:
        before = getattr(self.action, field)
        if before != value:
            self.action = replace(self.action, **{field: value})
            self.changes.append(Change(field, _shown(before), _shown(value), rule))


def _taken(action: Action) -> Action:
    """The action as it would be executed: flat means without size."""
    return action.flat() if action.direction is Direction.FLAT else action


def _meaningless(action: Action, confidence: float, llm: LlmView | None, size_scale: float) -> dict[str, float]:
    """Values that are no number, or out of the range in which they mean anything, by name."""
    ranges = [("", action)] + ([("llm.", llm.action)] if llm is not None else [])
    values = [("confidence", confidence, 0.0, 1.0), ("size_scale", size_scale, 0.0, 1.0)]
    if llm is not None:
        values.append(("llm.confidence", llm.confidence, 0.0, 1.0))
    for prefix, one in ranges:
        values += [
            (f"{prefix}size_fraction", one.size_fraction, 0.0, 1.0),
            (f"{prefix}leverage", one.leverage, 1.0, 1_000.0),
            (f"{prefix}tp_pct", one.tp_pct, math.ulp(0.0), 1_000.0),  # a short's target is bounded, a long's is not
            (f"{prefix}sl_pct", one.sl_pct, math.ulp(0.0), 1.0),
            (f"{prefix}limit_offset_pct", one.limit_offset_pct, 0.0, 1.0),
            (f"{prefix}min_conf", one.min_conf, 0.0, 1.0),
        ]
    return {name: value for name, value, low, high in values if not low <= value <= high}


def _nothing(meaningless: dict[str, float], settings: ShieldSettings) -> Shielded:
    """No position, with levels that are safe to record and to read."""
    safe = Action(Direction.FLAT, 0.0, 1.0, settings.min_sl_pct, settings.min_sl_pct, 0.0, settings.min_conf)
    changes = tuple(Change(name, _shown(value), getattr(safe, name, "flat"), "out_of_range")
                    for name, value in meaningless.items())
    return Shielded(safe, changes)


def _shown(value: Any) -> float | str:
    if isinstance(value, float | int) and not isinstance(value, bool):
        return value if math.isfinite(value) else str(value)
    return str(value)
