"""Bracket trades (entry, stop, target, horizon): the market engine's special case that a decision is.

The rules are those of `policies.engine`: market entry at the next bar's open, or a limit entry that lives for that bar
and is else "not_filled"; then stop, target, liquidation and horizon. Funding settled within the entry bar is paid
where it is owed and not received, as the entry may fill after the settlement; later bars do both. Training labels, the
backtest and the paper bot all fill with it, so a policy is judged by the rules it was taught.

`BracketTrade` takes one bar at a time and is the definition; `simulate_brackets` is the same over many entries and
parameters at once. Fractions are of the notional at entry unless a name says otherwise. sign is +1 for long, -1 for
short.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from policies.bars import Bars
from policies.engine.rules import (
    BASE_TIER,
    HORIZON,
    LIQUIDATION,
    MAX_LEVERAGE,
    STOP,
    TARGET,
    UNFINISHED,
    Bar,
    Costs,
    bar_at,
    check_brackets,
    price_rows,
    ruin_price,
)
from policies.errors import InvalidInput
from policies.types import Action, Direction, Outcome, require_finite

__all__ = ["HORIZON", "LIQUIDATION", "MAX_LEVERAGE", "STOP", "TARGET", "UNFINISHED", "Bar", "BracketFills",
           "BracketTrade", "ClosedTrade", "Costs", "bar_at", "simulate_brackets"]


@dataclass(frozen=True)
class ClosedTrade:
    """How a bracket trade ended. Times in ms: entry at its bar's open, exit at its bar's close (when it is known).

    quantity: base units, 0 if not filled. gross, fees, funding: fractions of the notional at entry; funding < 0 was
    received. net_return_on_margin >= -1. worst_loss_fraction: deepest unrealised loss over equity, 0..1, fees left out.
    """

    direction: Direction
    entry_time_ms: int
    exit_time_ms: int
    entry_price: float
    exit_price: float
    quantity: float
    exit_reason: str
    gross: float
    fees: float
    funding: float
    net_return_on_margin: float
    worst_loss_fraction: float

    @property
    def notional(self) -> float:
        """USD at entry."""
        return self.quantity * self.entry_price

    @property
    def net_pnl(self) -> float:
        """USD, after fees and funding."""
        return self.notional * (self.gross - self.fees - self.funding)

    def outcome(self, decision_id: str, part: int = 0, revision: int = 0, equity: float | None = None,
                final: bool = True) -> Outcome:
        """What the bot reports. equity: the account's value after the trade, USD."""
        return Outcome(
            decision_id=decision_id, part=part, revision=revision, entry_time_ms=self.entry_time_ms,
            exit_time_ms=self.exit_time_ms, entry_price=self.entry_price, exit_price=self.exit_price,
            size=self.quantity, pnl=(self.exit_price - self.entry_price) * self.quantity * self.direction.sign,
            fees=self.fees * self.notional, funding=self.funding * self.notional, exit_reason=self.exit_reason,
            drawdown_proxy=self.worst_loss_fraction, equity=equity, final=final)


class BracketTrade:
    """One trade, stepped bar by bar from the first bar after its decision; it knows no later bar.

    action: long or short. decision_time_ms: the close of the bar it was decided on; last_close: that bar's close, USD,
    from which a limit entry keeps its distance. equity: USD, > 0. horizon_bars >= 1, the entry bar is the first.
    """

    def __init__(self, action: Action, decision_time_ms: int, last_close: float, equity: float, horizon_bars: int,
                 interval_ms: int, costs: Costs = BASE_TIER) -> None:
        if action.direction is Direction.FLAT:
            raise InvalidInput("action.direction", "long or short", "flat")
        require_finite("action.size_fraction", action.size_fraction, 0.0, 1.0)
        require_finite("action.limit_offset_pct", action.limit_offset_pct, 0.0, 0.5)
        require_finite("last_close", last_close, 1e-12, 1e12)
        require_finite("equity", equity, 1e-9, 1e15)
        check_brackets(action.leverage, action.tp_pct, action.sl_pct, horizon_bars)
        self.action, self.costs = action, costs
        self.result: ClosedTrade | None = None
        self._sign = action.direction.sign
        self._last_close, self._equity = last_close, equity
        self._horizon_bars, self._interval_ms = horizon_bars, interval_ms
        self._next_open_ms = decision_time_ms
        self._bars_held = 0
        self._entry_time_ms = 0
        self._entry_price = self._entry_fee = self._funding = self._worst_loss = 0.0

    @property
    def in_position(self) -> bool:
        return self._bars_held > 0 and self.result is None

    def step(self, bar: Bar) -> ClosedTrade | None:
        """Take the next finished bar; the closed trade if it ended within it. Bars go forward in time only."""
        if self.result is not None:
            raise InvalidInput("bar", "none: the trade is closed", bar.open_time_ms)
        if bar.open_time_ms < self._next_open_ms:
            raise InvalidInput("bar.open_time_ms", f">= {self._next_open_ms}", bar.open_time_ms)
        bar.check()
        self._next_open_ms = bar.open_time_ms + self._interval_ms
        if self._bars_held == 0 and not self._enter(bar):
            return self._close(self._limit_price, "not_filled", 0.0)
        self._bars_held += 1
        due = self._sign * bar.funding_rate * bar.open / self._entry_price
        self._funding += due if self._bars_held > 1 else max(0.0, due)  # it may have filled after the settlement
        ending = self._ending(bar)
        worst_price = bar.low if self._sign > 0 else bar.high
        if ending is None:
            self._note_loss(worst_price)
            return None
        price, reason, fee_fraction = ending
        self._note_loss(price if reason in (STOP, LIQUIDATION) else worst_price)
        self._note_loss(price)
        return self._close(price, Outcome.EXIT_REASONS[reason], fee_fraction)

    @property
    def _limit_price(self) -> float:
        return self._last_close * (1.0 - self._sign * self.action.limit_offset_pct)

    def _enter(self, bar: Bar) -> bool:
        """Whether the entry is filled within its bar."""
        self._entry_time_ms = bar.open_time_ms
        if self.action.limit_offset_pct == 0.0:
            self._entry_price = bar.open * (1.0 + self._sign * self.costs.slippage_fraction)
            self._entry_fee = self.costs.taker_fee_fraction
            return True
        self._entry_price, self._entry_fee = self._limit_price, self.costs.maker_fee_fraction
        return bar.low < self._limit_price if self._sign > 0 else bar.high > self._limit_price

    def _ending(self, bar: Bar) -> tuple[float, int, float] | None:
        """(exit price, reason, exit fee fraction) if the trade ends within this bar."""
        sign, entry, costs = self._sign, self._entry_price, self.costs
        cushion = 1.0 / self.action.leverage - self._entry_fee - self._funding
        adverse, favourable = (bar.low, bar.high) if sign > 0 else (bar.high, bar.low)
        stop = entry * (1.0 - sign * self.action.sl_pct)
        liquidation = ruin_price(entry, sign, cushion, costs.maintenance_margin_fraction)
        guard = sign * max(sign * stop, sign * liquidation)
        if sign * adverse <= sign * guard:
            touched = sign * min(sign * bar.open, sign * guard)
            reason = LIQUIDATION if sign * liquidation > sign * stop else STOP
            return self._market_exit(touched, cushion), reason, costs.taker_fee_fraction
        target = entry * (1.0 + sign * self.action.tp_pct)
        may_reach = self._bars_held > 1 or self.action.limit_offset_pct == 0.0
        if may_reach and sign * favourable > sign * target:
            return target, TARGET, costs.maker_fee_fraction
        if self._bars_held == self._horizon_bars:
            return self._market_exit(bar.close, cushion), HORIZON, costs.taker_fee_fraction
        return None

    def _market_exit(self, price: float, cushion: float) -> float:
        fill = price * (1.0 - self._sign * self.costs.slippage_fraction)
        bankrupt = ruin_price(self._entry_price, self._sign, cushion, self.costs.taker_fee_fraction)
        return self._sign * max(self._sign * fill, self._sign * bankrupt)

    def _note_loss(self, price: float) -> None:
        loss = self._sign * (1.0 - price / self._entry_price) * self.action.leverage
        self._worst_loss = max(self._worst_loss, min(loss, 1.0) * self.action.size_fraction)

    def _close(self, price: float, reason: str, exit_fee: float) -> ClosedTrade:
        entry = self._entry_price
        filled = reason != "not_filled"
        gross = self._sign * (price / entry - 1.0)
        fees = self._entry_fee + exit_fee * (price / entry) if filled else 0.0
        notional = self.action.size_fraction * self.action.leverage * self._equity if filled else 0.0
        self.result = ClosedTrade(
            direction=self.action.direction, entry_time_ms=self._entry_time_ms, exit_time_ms=self._next_open_ms,
            entry_price=entry, exit_price=price, quantity=notional / entry, exit_reason=reason, gross=gross, fees=fees,
            funding=self._funding, worst_loss_fraction=self._worst_loss,
            net_return_on_margin=max(-1.0, (gross - fees - self._funding) * self.action.leverage))
        return self.result


@dataclass(frozen=True)
class BracketFills:
    """Trades of N entries, or of P parameter sets on N entries each; market entries only. All of shape (..., N).

    Of an unfinished trade: index -1, prices and sums NaN.
    exit_index: int64, the bar of the exit. reason: int8, place in Outcome.EXIT_REASONS or UNFINISHED.
    gross, fees, funding: float64, fractions of the notional at entry. net_return_on_margin: float64, >= -1.
    """

    exit_index: NDArray[np.int64]
    entry_price: NDArray[np.float64]
    exit_price: NDArray[np.float64]
    reason: NDArray[np.int8]
    gross: NDArray[np.float64]
    fees: NDArray[np.float64]
    funding: NDArray[np.float64]
    net_return_on_margin: NDArray[np.float64]

    @property
    def finished(self) -> NDArray[np.bool_]:
        return self.reason != UNFINISHED


def simulate_brackets(bars: Bars, entry_index: ArrayLike, direction: ArrayLike, leverage: ArrayLike, tp_pct: ArrayLike,
                      sl_pct: ArrayLike, horizon_bars: ArrayLike, costs: Costs = BASE_TIER) -> BracketFills:
    """What independent bracket trades earn; bit for bit what `BracketTrade` says of each.

    entry_index: int (N,), the bar at whose open an entry fills, 0..len(bars) (that of len(bars) is unfinished).
    direction: +1 long, -1 short. direction, leverage, tp_pct, sl_pct, horizon_bars (whole): one value, (N,), or what
    broadcasts to (..., N): (P, 1) is P parameter sets on every entry. 8 results of 8 bytes a trade. Bars are checked
    first. The first call of a process compiles or loads the walk (seconds); O(trades * bars held).
    """
    from policies.engine import bracket_kernel as kernel  # imports numba, which who steps one trade does without

    prices = price_rows(bars)
    index = np.require(entry_index, np.int64, ["C", "W"])
    if np.ndim(entry_index) != 1 or not ((index >= 0) & (index <= len(bars))).all():
        raise InvalidInput("entry_index", f"a list of bar numbers between 0 and {len(bars)}", entry_index)
    sign, lever, tp, sl = (np.asarray(v, dtype=np.float64) for v in (direction, leverage, tp_pct, sl_pct))
    if not (np.abs(sign) == 1.0).all():
        raise InvalidInput("direction", "+1 or -1", direction)
    check_brackets(lever, tp, sl, horizon_bars)
    horizon = np.asarray(horizon_bars).astype(np.int64)
    shape = _shape(index, sign, lever, tp, sl, horizon)
    given = (kernel.rectangle(one, shape[:-1], len(index)) for one in (sign, lever, tp, sl, horizon))
    flat = (int(np.prod(shape[:-1], dtype=np.int64)), len(index))
    exit_index, reason = np.empty(flat, dtype=np.int64), np.empty(flat, dtype=np.int8)
    sums = np.empty((len(kernel.SUMS), *flat))
    kernel.walk(prices, index, *given, costs.row(), exit_index, reason, sums)
    return BracketFills(exit_index.reshape(shape), reason=reason.reshape(shape),
                        **{name: row.reshape(shape) for name, row in zip(kernel.SUMS, sums, strict=True)})


def _shape(index: NDArray[np.int64], *given: NDArray[np.generic]) -> tuple[int, ...]:
    """(..., N) of all results."""
    try:
        shape = np.broadcast_shapes(index.shape, *(one.shape for one in given))
    except ValueError:
        shape = ()
    if shape[-1:] != index.shape:
        raise InvalidInput("direction, leverage, tp_pct, sl_pct, horizon_bars",
                           f"of shapes that broadcast to (..., {len(index)})", [one.shape for one in given])
    return shape
