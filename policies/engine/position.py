"""What is sent to an account, what it holds, and what it has closed: the values of `policies.engine.account`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le

from policies.engine.rules import MAX_LEVERAGE, Sizing
from policies.errors import InvalidInput
from policies.types import Outcome, require_finite


@dataclass(frozen=True)
class Order:
    """What is sent for one bar. amount: signed, in the unit of `sizing`.

    limit_price: USD, NaN for an order at market. leverage: notional over the margin set aside for what it opens or
    adds. stop_pct, target_pct: distance from the average entry, as fractions; inf for none. horizon_bars: bars the
    position lives, the first included; 0 for no end. An order that only reduces leaves the position's levels alone.
    """

    amount: float
    sizing: Sizing = Sizing.TARGET
    limit_price: float = math.nan
    leverage: Annotated[float, Ge(1), Le(MAX_LEVERAGE)] = 1.0
    stop_pct: Annotated[float, Gt(0)] = math.inf
    target_pct: Annotated[float, Gt(0)] = math.inf
    horizon_bars: Annotated[int, Ge(0)] = 0

    def __post_init__(self) -> None:
        if not math.isfinite(self.amount):
            raise InvalidInput("order.amount", "finite", self.amount)
        require_finite("order.leverage", self.leverage, 1.0, MAX_LEVERAGE)
        for name in ("stop_pct", "target_pct"):
            if not (1e-9 <= getattr(self, name) <= 0.999 or getattr(self, name) == math.inf):
                raise InvalidInput(f"order.{name}", "between 1e-9 and 0.999, or inf", getattr(self, name))
        if not (math.isnan(self.limit_price) or 0 < self.limit_price < math.inf):
            raise InvalidInput("order.limit_price", "> 0, or NaN for none", self.limit_price)
        if not self.horizon_bars >= 0:
            raise InvalidInput("order.horizon_bars", ">= 0", self.horizon_bars)


@dataclass
class Position:
    """What an account holds. quantity: base units, > 0. entry: the average price, USD. bars_held: 1 in its first bar.

    margin, fees, funding: fractions of the notional at entry: set aside, paid on entering, paid since (< 0: received).
    """

    sign: int
    quantity: float
    entry: float
    margin: float
    fees: float
    funding: float
    stop_pct: float
    target_pct: float
    horizon_bars: int
    entry_time_ms: int
    bars_held: int = 0

    @property
    def notional(self) -> float:
        """USD at entry."""
        return self.quantity * self.entry

    @property
    def cushion(self) -> float:
        """What is left of the margin, gains left out, as a fraction of the notional at entry."""
        return self.margin - self.fees - self.funding

    @property
    def stop_price(self) -> float:
        return self.entry * (1.0 - self.sign * self.stop_pct)

    @property
    def target_price(self) -> float:
        return self.entry * (1.0 + self.sign * self.target_pct)

    def unrealised(self, price: float) -> float:
        """USD, before the fee of closing."""
        return self.sign * self.quantity * (price - self.entry)


@dataclass(frozen=True)
class Part:
    """A closed part of a position. quantity: base units, > 0. gross, fees, funding: fractions of its notional at entry.

    entry_time_ms: open of the bar in which the position began; exit_time_ms: close of the bar of the exit.
    reason: place in Outcome.EXIT_REASONS, `manual` where an order closed it.
    """

    sign: int
    quantity: float
    entry_price: float
    exit_price: float
    reason: int
    gross: float
    fees: float
    funding: float
    entry_time_ms: int
    exit_time_ms: int

    @property
    def exit_reason(self) -> str:
        return Outcome.EXIT_REASONS[self.reason]

    @property
    def net_pnl(self) -> float:
        """USD, after fees and funding."""
        return self.quantity * self.entry_price * (self.gross - self.fees - self.funding)
