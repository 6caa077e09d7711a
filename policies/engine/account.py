"""One account with one perpetual, stepped bar by bar: the definition of the rules in `policies.engine`."""

from __future__ import annotations

import math

from policies.engine.position import Order, Part, Position
from policies.engine.rules import (
    BASE_TIER,
    HORIZON,
    LIQUIDATION,
    MANUAL,
    STOP,
    TARGET,
    Bar,
    Book,
    Costs,
    Sizing,
    ruin_price,
)
from policies.errors import InvalidInput
from policies.types import require_finite

DUST = 1e-12  # share of a position that is rounding, not quantity
SPARE = 1e-9  # share by which an order may exceed free cash: rounding of sizes that use all of it


class Account:
    """Cash, at most one position, and what has been paid. cash: USD, > 0.

    fees_paid, funding_paid: USD since the start. refused: orders that found no margin or were not passive.
    """

    def __init__(self, cash: float, costs: Costs = BASE_TIER, interval_ms: int = 60_000) -> None:
        self.cash = require_finite("cash", cash, 1e-9, 1e15)
        self.costs, self.interval_ms = costs, interval_ms
        self.position: Position | None = None
        self.fees_paid = self.funding_paid = 0.0
        self.refused = 0
        self.last_close = math.nan
        self._next_open_ms = -(2**63)
        self._credit = 0.0  # funding of this bar on what was held before it, <= 0: an order that closes gives it back
        self._parts: list[Part] = []
        self._close_ms = 0

    @property
    def equity(self) -> float:
        """USD at the last bar's close."""
        return self.cash + (self.position.unrealised(self.last_close) if self.position else 0.0)

    @property
    def free_cash(self) -> float:
        """USD that no position's margin holds."""
        return self.cash - (self.position.notional * self.position.cushion if self.position else 0.0)

    def step(self, bar: Bar, order: Order | None = None, book: Book | None = None) -> tuple[Part, ...]:
        """Take the next finished bar with the order sent for it; what was closed within it, in order.

        book: as it stood at the bar's open.
        """
        bar.check()
        if bar.open_time_ms < self._next_open_ms:
            raise InvalidInput("bar.open_time_ms", f">= {self._next_open_ms}", bar.open_time_ms)
        self._next_open_ms = self._close_ms = bar.open_time_ms + self.interval_ms
        self._parts = []
        self._settle(bar)
        if self.position is not None and self._reached(bar.open):
            self._guarded_exit(bar.open, book)
        else:
            limited = order is not None and self._trade(bar, order, book)
            self._within(bar, book, may_reach_target=not limited)
        self.last_close = bar.close
        return tuple(self._parts)

    def _settle(self, bar: Bar) -> None:
        self._credit = 0.0
        if self.position is not None and bar.funding_rate != 0.0:
            due = self.position.sign * bar.funding_rate * bar.open / self.position.entry
            self.position.funding += due
            self._pay_funding(due * self.position.notional)
            self._credit = min(due, 0.0)

    def _pay_funding(self, usd: float) -> None:
        self.cash -= usd
        self.funding_paid += usd

    def _trade(self, bar: Bar, order: Order, book: Book | None) -> bool:
        """Fill the bar's order if it can be; whether a limit order opened or added."""
        held = self.position.sign * self.position.quantity if self.position else 0.0
        delta = self._delta(order, bar.open, held, bar.open)
        if delta == 0.0:
            return False
        direction, limited = (1 if delta > 0 else -1), not math.isnan(order.limit_price)
        if limited:
            price = order.limit_price
            if direction * (price - self.last_close) > 0:
                self.refused += 1
                return False
            if not (bar.low < price if direction > 0 else bar.high > price):
                return False
        else:
            price = bar.open * (1.0 + direction * self._slippage(book, direction, abs(delta), False))
        if order.sizing is Sizing.TARGET_FRACTION:
            delta = self._delta(order, price, held, bar.open)
            if direction * delta <= 0.0:
                return False
        fee = self.costs.maker_fee_fraction if limited else self.costs.taker_fee_fraction
        opening = abs(delta)
        if self.position is not None and self.position.sign != direction:
            if limited and self._reached(bar.low if self.position.sign > 0 else bar.high):
                return False
            opening = self._reduce(price, abs(delta), fee)
        return opening > 0.0 and self._open(bar, order, direction, opening, price, fee) and limited

    def _delta(self, order: Order, price: float, held: float, open_: float) -> float:
        """Signed base units to trade at `price`."""
        if order.sizing is Sizing.QUANTITY:
            return order.amount
        if order.sizing is Sizing.TARGET:
            return order.amount - held
        equity = self.cash + (self.position.unrealised(open_) if self.position else 0.0)
        return order.amount * equity / price - held

    def _reduce(self, price: float, quantity: float, fee: float) -> float:
        """Close up to `quantity` by an order; what of it is left to open."""
        position = self.position
        assert position is not None
        held = position.quantity
        closed = held if quantity >= held * (1.0 - DUST) else quantity
        if self._credit < 0.0:
            self._pay_funding(-self._credit * closed * position.entry)
        self._close(closed, price, MANUAL, fee, position.funding - self._credit, bounded=True)
        return quantity - held if quantity > held * (1.0 + DUST) else 0.0

    def _open(self, bar: Bar, order: Order, direction: int, quantity: float, price: float, fee: float) -> bool:
        """Open or add; False, and counted as refused, if the margin is not free."""
        notional, margin = quantity * price, 1.0 / order.leverage
        if not notional * margin <= self.free_cash * (1.0 + SPARE):
            self.refused += 1
            return False
        funding = max(0.0, direction * bar.funding_rate * bar.open / price)  # may have filled after the settlement
        self.cash -= notional * fee
        self.fees_paid += notional * fee
        self._pay_funding(notional * funding)
        held = self.position
        if held is None:
            self.position = Position(direction, quantity, price, margin, fee, funding, order.stop_pct,
                                     order.target_pct, order.horizon_bars, bar.open_time_ms)
            return True
        before, whole = held.notional, held.notional + notional
        held.entry = whole / (held.quantity + quantity)
        held.quantity += quantity
        held.margin = (held.margin * before + margin * notional) / whole
        held.fees = (held.fees * before + fee * notional) / whole
        held.funding = (held.funding * before + funding * notional) / whole
        held.stop_pct, held.target_pct, held.horizon_bars = order.stop_pct, order.target_pct, order.horizon_bars
        return True

    def _within(self, bar: Bar, book: Book | None, may_reach_target: bool) -> None:
        """Stop, liquidation, target and horizon inside the bar."""
        position = self.position
        if position is None:
            return
        position.bars_held += 1
        adverse, favourable = (bar.low, bar.high) if position.sign > 0 else (bar.high, bar.low)
        if self._reached(adverse):
            self._guarded_exit(bar.open, book)
        elif may_reach_target and position.sign * favourable > position.sign * position.target_price:
            self._close(position.quantity, position.target_price, TARGET, self.costs.maker_fee_fraction,
                        position.funding, bounded=False)
        elif position.horizon_bars and position.bars_held >= position.horizon_bars:
            self._market_exit(bar.close, HORIZON, book)

    def _guard(self) -> tuple[float, int]:
        """The price at which the position ends badly, and as what."""
        position = self.position
        assert position is not None
        stop = position.stop_price
        liquidation = ruin_price(position.entry, position.sign, position.cushion,
                                 self.costs.maintenance_margin_fraction)
        guard = position.sign * max(position.sign * stop, position.sign * liquidation)
        return guard, LIQUIDATION if position.sign * liquidation > position.sign * stop else STOP

    def _reached(self, price: float) -> bool:
        assert self.position is not None
        return self.position.sign * price <= self.position.sign * self._guard()[0]

    def _guarded_exit(self, open_: float, book: Book | None) -> None:
        assert self.position is not None
        guard, reason = self._guard()
        sign = self.position.sign
        self._market_exit(sign * min(sign * open_, sign * guard), reason, book)

    def _market_exit(self, price: float, reason: int, book: Book | None) -> None:
        position = self.position
        assert position is not None
        slippage = self._slippage(book, -position.sign, position.quantity, True)
        self._close(position.quantity, price * (1.0 - position.sign * slippage), reason,
                    self.costs.taker_fee_fraction, position.funding, bounded=True)

    def _slippage(self, book: Book | None, direction: int, quantity: float, dearer: bool) -> float:
        """dearer: the dearer of the book and the fraction, for exits that do not happen at the open."""
        fraction = self.costs.slippage_fraction
        walked = math.nan if book is None else book.slippage_fraction(direction, quantity)
        if math.isnan(walked):
            return fraction
        return max(walked, fraction) if dearer else walked

    def _close(self, quantity: float, price: float, reason: int, fee: float, funding: float, bounded: bool) -> None:
        """Realise `quantity` of the position. bounded: its loss, fees and funding included, ends at its margin."""
        position = self.position
        assert position is not None
        sign, entry = position.sign, position.entry
        if bounded:
            bankrupt = ruin_price(entry, sign, position.margin - position.fees - funding,
                                  self.costs.taker_fee_fraction)
            price = sign * max(sign * price, sign * bankrupt)
        gross, exit_fee, notional = sign * (price / entry - 1.0), fee * (price / entry), quantity * entry
        self.cash += notional * (gross - exit_fee)
        self.fees_paid += notional * exit_fee
        self._parts.append(Part(sign, quantity, entry, price, reason, gross, position.fees + exit_fee, funding,
                                position.entry_time_ms, self._close_ms))
        if quantity >= position.quantity:
            self.position = None
        else:
            position.quantity -= quantity
