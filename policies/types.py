"""The words of the product as values: Context, Action, Proposal, Outcome and the roles of heads.

All are frozen. Money is in US dollars, fractions are of 1 (0.01 is one percent) unless a name ends in `_percent`,
times are integer milliseconds UTC and end in `_ms`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from policies.errors import InvalidInput

if TYPE_CHECKING:
    from numpy.typing import NDArray  # a bot that imports the words needs no numpy

NO_EMBEDDING = "none"  # the version of a market's embedding that stands for none

STRATEGIES = ("market_making", "momentum", "scalping", "arbitrage", "breakout", "sniping")


class Direction(StrEnum):
    LONG = "long"
    SHORT = "short"
    FLAT = "flat"

    @property
    def sign(self) -> int:
        """+1 for long, -1 for short, 0 for flat."""
        return {"long": 1, "short": -1, "flat": 0}[self.value]


class Role(StrEnum):
    """What a head may do. Only `PRODUCTION` and `CHALLENGER` ever execute; `LLM_ONLY` is the absence of a head."""

    PRODUCTION = "production"
    CHALLENGER = "challenger"
    SHADOW = "shadow"  # decides on every request, never executes
    PAUSED = "paused"  # by an operator, until an operator lifts it
    THROTTLED = "throttled"  # by a gate: goes on as shadow
    HALTED = "halted"  # by a gate: needs an operator
    LLM_ONLY = "llm_only"


class Judgement(StrEnum):
    """What PolicySentry says of a policy, mildest first."""

    APPROVE = "approve"
    REDUCE = "reduce"
    THROTTLE = "throttle"
    HALT = "halt"

    @property
    def severity(self) -> int:
        return list(Judgement).index(self)


class Rollout(StrEnum):
    """How much the hub may act."""

    SHADOW = "shadow"  # learns, acts on nothing
    HYBRID = "hybrid"  # acts where LLM and head agree on the direction
    FULL = "full"


@dataclass(frozen=True)
class Action:
    """What to do in one slot.

    size_fraction: margin over equity, 0..1. Notional = size_fraction * leverage * equity.
    leverage: >= 1. tp_pct, sl_pct: distance of target and stop from the entry price, as fractions, > 0.
    limit_offset_pct: distance of the entry limit from the last close on the passive side; 0 is a market order.
    min_conf: the confidence under which the action must not be taken, 0..1.
    """

    direction: Direction
    size_fraction: float
    leverage: float
    tp_pct: float
    sl_pct: float
    limit_offset_pct: float = 0.0
    min_conf: float = 0.5

    @property
    def risk_fraction(self) -> float:
        """Loss at the stop over equity, before fees and slippage."""
        return self.size_fraction * self.leverage * self.sl_pct

    def flat(self) -> Action:
        """The same levels with no position: what is done when something forbids the trade."""
        return replace(self, direction=Direction.FLAT, size_fraction=0.0)

    def to_dict(self) -> dict[str, Any]:
        # Spelt out, because `asdict` copies deeply and this is on the way of every decision.
        return {"direction": self.direction.value, "size_fraction": self.size_fraction, "leverage": self.leverage,
                "tp_pct": self.tp_pct, "sl_pct": self.sl_pct, "limit_offset_pct": self.limit_offset_pct,
                "min_conf": self.min_conf}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Action:
        return cls(**{**values, "direction": Direction(values["direction"])})


@dataclass(frozen=True)
class LlmView:
    """What the LLM would do by itself, and its share of capital by strategy (any non-negative weights)."""

    action: Action
    confidence: float
    strategy_weights: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Portfolio:
    """equity: account value in USD, > 0. current_leverage: gross notional over equity. unrealised_pnl: USD."""

    equity: float
    current_leverage: float = 0.0
    unrealised_pnl: float = 0.0


@dataclass(frozen=True)
class Context:
    """What is known when a decision is asked for.

    time_ms: the decision's time on the hub's clock.
    features: values in the order of the feature service; NaN is a missing value of an optional group.
    event_time_ms: by feature group, the event time of its values (a bar's close); absent if never seen.
    arrays: by array group, its numbers (float32), oldest first; a head takes the last ones of it.
    """

    symbol: str
    strategy: str
    time_ms: int
    features: tuple[float, ...]
    event_time_ms: dict[str, int]
    portfolio: Portfolio
    llm: LlmView | None = None
    arrays: Mapping[str, tuple[float, ...] | NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Proposal:
    """What one policy answers to a Context. confidence: probability that `action` beats doing nothing, 0..1.

    members: of an ensemble, each member's signal by its alias: direction, confidence, weight. Empty for all others.
    """

    action: Action
    confidence: float
    members: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, hash=False)

    def to_dict(self) -> dict[str, Any]:
        body = {"action": self.action.to_dict(), "confidence": self.confidence}
        if self.members:  # left out otherwise, so that rows written before there were ensembles replay equal
            body["members"] = {alias: dict(signal) for alias, signal in self.members.items()}
        return body

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Proposal:
        return cls(Action.from_dict(values["action"]), values["confidence"], values.get("members", {}))


@dataclass(frozen=True)
class Outcome:
    """What came of one part of a decision. Keyed (decision_id, part, revision); a higher revision supersedes.

    size: filled quantity in base units, > 0. entry_price, exit_price: fill prices in USD, > 0.
    pnl: gross, (exit - entry) * size * direction, in USD. fees: paid, >= 0. funding: paid, negative if received.
    Net PnL = pnl - fees - funding. drawdown_proxy: worst unrealised loss of the trade over equity, 0..1.
    equity: account value after the trade, if the bot knows it; feeds the book's breaker.
    final: the decision's slot is free after this part.
    """

    decision_id: str
    part: int
    revision: int
    entry_time_ms: int
    exit_time_ms: int
    entry_price: float
    exit_price: float
    size: float
    pnl: float
    fees: float
    funding: float
    exit_reason: str
    drawdown_proxy: float = 0.0
    equity: float | None = None
    final: bool = True

    EXIT_REASONS = ("target", "stop", "horizon", "liquidation", "manual", "not_filled")

    @property
    def key(self) -> str:
        return f"{self.decision_id}/{self.part}/{self.revision}"

    @property
    def net_pnl(self) -> float:
        return self.pnl - self.fees - self.funding

    @property
    def horizon_ms(self) -> int:
        return self.exit_time_ms - self.entry_time_ms

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Outcome:
        return cls(**values)


def require_finite(name: str, value: float, low: float, high: float) -> float:
    """`value` if low <= value <= high, written so that NaN fails; raises InvalidInput naming the range otherwise."""
    if not (low <= value <= high) or math.isinf(value):
        raise InvalidInput(name, f"between {low:g} and {high:g}", value)
    return value
