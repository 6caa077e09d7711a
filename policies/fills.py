"""The one market engine: what a bracket trade (entry, stop, target, horizon) earns on bars.

Training labels, the backtest and the paper bot all fill with it, so a policy is judged by the rules it was taught.
Where bars leave the order of events open, the worse order is assumed:

entry        a decision made at a bar's close fills at the next bar's open, moved against us by the slippage, taker fee;
             with a limit offset, at the limit and only if that bar trades beyond it, maker fee; else "not_filled"
stop         before the target when one bar reaches both; a bar that opens beyond it fills at that open; slippage,
             taker fee
target       only if the bar trades beyond it, at the target and never better, maker fee; not in the bar of a limit
             entry, whose extreme may have come before the entry
liquidation  instead of the stop where it lies nearer: the price at which margin less entry fee and funding is down to
             the maintenance margin; closed on the book like a stop
horizon      at the close of the last bar, slippage, taker fee
funding      every rate settled within a bar of the trade, entry and exit bar included, on the notional at that open
margin       isolated: a loss, fees and funding included, ends at the margin (the exit price is bounded accordingly)

`BracketTrade` takes one bar at a time and is the definition; `simulate_brackets` is the same over many entries at once.
Fractions are of the notional at entry unless a name says otherwise. sign is +1 for long, -1 for short.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, TypeVar

import numpy as np
from annotated_types import Ge, Le
from numpy.typing import ArrayLike, NDArray

from policies.bars import Bars
from policies.errors import InvalidInput
from policies.types import Action, Direction, Outcome, require_finite

MAX_LEVERAGE = 100.0  # of the engine, not of any account: above it fees alone could use up the margin

TARGET, STOP, HORIZON, LIQUIDATION = map(Outcome.EXIT_REASONS.index, ("target", "stop", "horizon", "liquidation"))
UNFINISHED = -1  # the bars end before the trade does

Price = TypeVar("Price", float, NDArray[np.float64])


@dataclass(frozen=True)
class Costs:
    """What trading costs, as fractions of the traded notional. Fees default to Hyperliquid's base tier.

    slippage_fraction: per side, on entries at market, stops, liquidations and horizon exits.
    maintenance_margin_fraction: of the notional at the current price. Hyperliquid asks for half the initial margin at
    an asset's highest leverage; 0.025 is that of a 20x market (BTC 0.0125, HYPE 0.05).
    """

    taker_fee_fraction: Annotated[float, Ge(0), Le(0.005)] = 0.00045
    maker_fee_fraction: Annotated[float, Ge(0), Le(0.005)] = 0.00015
    slippage_fraction: Annotated[float, Ge(0), Le(0.05)] = 0.0001
    maintenance_margin_fraction: Annotated[float, Ge(0), Le(0.5)] = 0.025


class Bar(NamedTuple):
    """One finished bar; prices in USD. funding_rate: settled within it, paid by longs if positive."""

    open_time_ms: int
    open: float
    high: float
    low: float
    close: float
    funding_rate: float = 0.0


def bar_at(bars: Bars, index: int) -> Bar:
    rate = 0.0 if bars.funding_rate is None else float(bars.funding_rate[index])
    return Bar(int(bars.open_time_ms[index]), float(bars.open[index]), float(bars.high[index]), float(bars.low[index]),
               float(bars.close[index]), rate)


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
                 interval_ms: int, costs: Costs = Costs()) -> None:
        if action.direction is Direction.FLAT:
            raise InvalidInput("action.direction", "long or short", "flat")
        require_finite("action.size_fraction", action.size_fraction, 0.0, 1.0)
        require_finite("action.limit_offset_pct", action.limit_offset_pct, 0.0, 0.5)
        require_finite("last_close", last_close, 1e-12, 1e12)
        require_finite("equity", equity, 1e-9, 1e15)
        _check_brackets(action.leverage, action.tp_pct, action.sl_pct, horizon_bars)
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
        if not (0 < bar.low <= min(bar.open, bar.close) <= max(bar.open, bar.close) <= bar.high < math.inf
                and math.isfinite(bar.funding_rate)):
            raise InvalidInput("bar", "finite prices > 0 with low <= open, close <= high", bar)
        self._next_open_ms = bar.open_time_ms + self._interval_ms
        if self._bars_held == 0 and not self._enter(bar):
            return self._close(self._limit_price, "not_filled", 0.0)
        self._bars_held += 1
        self._funding += self._sign * bar.funding_rate * bar.open / self._entry_price
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
        liquidation = _ruin_price(entry, sign, cushion, costs.maintenance_margin_fraction)
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
        bankrupt = _ruin_price(self._entry_price, self._sign, cushion, self.costs.taker_fee_fraction)
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
    """Trades of N entries, aligned with them; market entries only. Of an unfinished one: index -1, prices and sums NaN.

    exit_index: int64 (N,), the bar of the exit. reason: int8 (N,), place in Outcome.EXIT_REASONS or UNFINISHED.
    gross, fees, funding: float64 (N,), fractions of the notional at entry. net_return_on_margin: float64 (N,), >= -1.
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
                      sl_pct: ArrayLike, horizon_bars: int, costs: Costs = Costs()) -> BracketFills:
    """What N independent bracket trades earn; bit for bit what `BracketTrade` says of each.

    entry_index: int (N,), the bar at whose open an entry fills, 0..len(bars) (that of len(bars) is unfinished).
    direction: +1 long, -1 short. direction, leverage, tp_pct, sl_pct: (N,) or one value for all.
    Walks bar by bar over all trades still open: O(N * bars held). Bars are checked first.
    """
    bars.check()
    if bars.funding_rate is not None and not np.isfinite(bars.funding_rate).all():
        raise InvalidInput(f"bars.{bars.symbol}.funding_rate", "finite", "NaN or infinite")
    index = np.asarray(entry_index, dtype=np.int64)
    if index.ndim != 1 or not ((index >= 0) & (index <= len(bars))).all():
        raise InvalidInput("entry_index", f"a list of bar numbers between 0 and {len(bars)}", entry_index)
    sign, lever, tp, sl = (np.broadcast_to(np.asarray(v, dtype=np.float64), index.shape)
                           for v in (direction, leverage, tp_pct, sl_pct))
    if not (np.abs(sign) == 1.0).all():
        raise InvalidInput("direction", "+1 or -1", direction)
    _check_brackets(lever, tp, sl, horizon_bars)
    entry = np.append(bars.open, np.nan)[index] * (1.0 + sign * costs.slippage_fraction)
    funding = np.zeros(len(index))
    exit_index, reason = np.full(len(index), -1, dtype=np.int64), np.full(len(index), UNFINISHED, dtype=np.int8)
    exit_price, exit_fee = np.full(len(index), np.nan), np.full(len(index), np.nan)
    held = np.arange(len(index))
    for age in range(horizon_bars):
        held = held[index[held] + age < len(bars)]
        at = index[held] + age
        if bars.funding_rate is not None:
            funding[held] += sign[held] * bars.funding_rate[at] * bars.open[at] / entry[held]
        price, why, fee = _endings(bars, at, sign[held], entry[held], lever[held], tp[held], sl[held], funding[held],
                                   age == horizon_bars - 1, costs)
        ended = why != UNFINISHED
        places = held[ended]
        exit_index[places], exit_price[places], reason[places] = at[ended], price[ended], why[ended]
        exit_fee[places] = fee[ended]
        held = held[~ended]
    gross = sign * (exit_price / entry - 1.0)
    fees = costs.taker_fee_fraction + exit_fee * (exit_price / entry)
    funding[reason == UNFINISHED] = np.nan
    net = np.maximum(-1.0, (gross - fees - funding) * lever)
    return BracketFills(exit_index, entry, exit_price, reason, gross, fees, funding, net)


def _endings(bars: Bars, at: NDArray[np.int64], sign: NDArray[np.float64], entry: NDArray[np.float64],
             leverage: NDArray[np.float64], tp: NDArray[np.float64], sl: NDArray[np.float64],
             funding: NDArray[np.float64], last: bool, costs: Costs) -> tuple[Any, Any, Any]:
    """`BracketTrade._ending` for one bar of each open trade: exit price, reason (or UNFINISHED), exit fee fraction."""
    opens, long = bars.open[at], sign > 0
    adverse, favourable = np.where(long, bars.low[at], bars.high[at]), np.where(long, bars.high[at], bars.low[at])
    cushion = 1.0 / leverage - costs.taker_fee_fraction - funding
    stop = entry * (1.0 - sign * sl)
    liquidation = _ruin_price(entry, sign, cushion, costs.maintenance_margin_fraction)
    guard = sign * np.maximum(sign * stop, sign * liquidation)
    target = entry * (1.0 + sign * tp)
    guarded = sign * adverse <= sign * guard
    reached = ~guarded & (sign * favourable > sign * target)
    touched = np.where(guarded, sign * np.minimum(sign * opens, sign * guard), bars.close[at])
    bankrupt = _ruin_price(entry, sign, cushion, costs.taker_fee_fraction)
    fill = sign * np.maximum(sign * (touched * (1.0 - sign * costs.slippage_fraction)), sign * bankrupt)
    reason = np.full(len(at), HORIZON if last else UNFINISHED, dtype=np.int8)
    reason[reached] = TARGET
    reason[guarded] = np.where(sign * liquidation > sign * stop, LIQUIDATION, STOP)[guarded]
    return (np.where(reached, target, fill), reason,
            np.where(reached, costs.maker_fee_fraction, costs.taker_fee_fraction))


def _ruin_price(entry: Price, sign: Price | int, cushion: Price, kept: float) -> Price:
    """The price p at which the margin left is `kept` of the notional: cushion + sign * (p/entry - 1) = kept * p/entry.

    cushion: margin less entry fee and funding, as a fraction of the notional at entry.
    """
    return entry * (1.0 - sign * cushion) / (1.0 - sign * kept)


def _check_brackets(leverage: ArrayLike, tp_pct: ArrayLike, sl_pct: ArrayLike, horizon_bars: int) -> None:
    for name, value, low, high in (("leverage", leverage, 1.0, MAX_LEVERAGE), ("tp_pct", tp_pct, 1e-9, 0.999),
                                   ("sl_pct", sl_pct, 1e-9, 0.999), ("horizon_bars", horizon_bars, 1, 1_000_000)):
        if not ((np.asarray(value) >= low) & (np.asarray(value) <= high)).all():
            raise InvalidInput(name, f"between {low:g} and {high:g}", value)
