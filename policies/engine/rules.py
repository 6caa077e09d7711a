"""The words and formulas of the market engine that every one of its walks shares; `policies.engine` has the rules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, NamedTuple, TypeVar

import numpy as np
from annotated_types import Ge, Le
from numpy.typing import NDArray

from policies.bars import Bars
from policies.errors import InvalidInput
from policies.types import Outcome

MAX_LEVERAGE = 100.0  # of the engine, not of any account: above it fees alone could use up the margin

TARGET, STOP, HORIZON, LIQUIDATION, MANUAL = map(
    Outcome.EXIT_REASONS.index, ("target", "stop", "horizon", "liquidation", "manual"))
UNFINISHED = -1  # the bars end before the trade does

Price = TypeVar("Price", float, NDArray[np.float64])


class Sizing(IntEnum):
    """What the amount of an order means, always signed: positive is long.

    QUANTITY: base units to trade. TARGET: base units to hold afterwards. TARGET_FRACTION: notional to hold afterwards,
    over the account's equity at the bar's open; the quantity follows from the price of the fill.
    """

    QUANTITY = 0
    TARGET = 1
    TARGET_FRACTION = 2


@dataclass(frozen=True)
class Costs:
    """What trading costs, as fractions of the traded notional. Fees default to Hyperliquid's base tier.

    slippage_fraction: per side, on orders at market, stops, liquidations and horizon exits.
    maintenance_margin_fraction: of the notional at the current price. Hyperliquid asks for half the initial margin at
    an asset's highest leverage; 0.025 is that of a 20x market (BTC 0.0125, HYPE 0.05).
    """

    taker_fee_fraction: Annotated[float, Ge(0), Le(0.005)] = 0.00045
    maker_fee_fraction: Annotated[float, Ge(0), Le(0.005)] = 0.00015
    slippage_fraction: Annotated[float, Ge(0), Le(0.05)] = 0.0001
    maintenance_margin_fraction: Annotated[float, Ge(0), Le(0.5)] = 0.025

    def row(self) -> NDArray[np.float64]:
        """(4,) in the order of the fields, for the compiled walks."""
        return np.array([self.taker_fee_fraction, self.maker_fee_fraction, self.slippage_fraction,
                         self.maintenance_margin_fraction])


BASE_TIER = Costs()


class Bar(NamedTuple):
    """One finished bar; prices in USD. funding_rate: settled within it, paid by longs if positive."""

    open_time_ms: int
    open: float
    high: float
    low: float
    close: float
    funding_rate: float = 0.0

    def check(self) -> Bar:
        """The same bar, or InvalidInput."""
        if not (0 < self.low <= min(self.open, self.close) <= max(self.open, self.close) <= self.high < math.inf
                and math.isfinite(self.funding_rate)):
            raise InvalidInput("bar", "finite prices > 0 with low <= open, close <= high", self)
        return self


def bar_at(bars: Bars, index: int) -> Bar:
    rate = 0.0 if bars.funding_rate is None else float(bars.funding_rate[index])
    return Bar(int(bars.open_time_ms[index]), float(bars.open[index]), float(bars.high[index]), float(bars.low[index]),
               float(bars.close[index]), rate)


def price_rows(bars: Bars) -> NDArray[np.float64]:
    """(5, T): open, high, low, close, funding rate, for the compiled walks; InvalidInput if the bars are no bars."""
    bars.check()
    rates = np.zeros(len(bars)) if bars.funding_rate is None else bars.funding_rate
    if not np.isfinite(rates).all():
        raise InvalidInput(f"bars.{bars.symbol}.funding_rate", "finite", "NaN or infinite")
    return np.array([bars.open, bars.high, bars.low, bars.close, rates], dtype=np.float64)


class Book(NamedTuple):
    """Both sides of the order book at a bar's open, best level first; sizes in base units. NaN ends a side early."""

    bid_price: Sequence[float]
    bid_size: Sequence[float]
    ask_price: Sequence[float]
    ask_size: Sequence[float]
    beyond_depth_fraction: float = 0.005

    def slippage_fraction(self, direction: int, quantity: float) -> float:
        """What a market order of `quantity` base units pays over the mid; NaN if a side is empty.

        direction: +1 buys, -1 sells. The average price of the walk, against the order: >= 0 for a book that is not
        crossed. The part beyond the last known level pays that level's price and beyond_depth_fraction more.
        """
        price, size = (self.ask_price, self.ask_size) if direction > 0 else (self.bid_price, self.bid_size)
        mid = 0.5 * (self.bid_price[0] + self.ask_price[0])
        left, paid, last = quantity, 0.0, math.nan
        for level_price, level_size in zip(price, size, strict=True):
            if not (level_price > 0 and level_size >= 0):
                break
            last = level_price
            taken = min(left, level_size)
            paid += taken * level_price
            left -= taken
            if left <= 0.0:
                break
        paid += left * last * (1.0 + direction * self.beyond_depth_fraction)
        return direction * (paid / quantity / mid - 1.0)


def ruin_price(entry: Price, sign: Price | int, cushion: Price, kept: float) -> Price:
    """The price p at which the margin left is `kept` of the notional: cushion + sign * (p/entry - 1) = kept * p/entry.

    cushion: margin less entry fee and funding, as a fraction of the notional at entry.
    """
    return entry * (1.0 - sign * cushion) / (1.0 - sign * kept)


def check_brackets(leverage: object, tp_pct: object, sl_pct: object, horizon_bars: object) -> None:
    """InvalidInput unless all of each lie in the engine's ranges: numbers or arrays."""
    for name, value, low, high in (("leverage", leverage, 1.0, MAX_LEVERAGE), ("tp_pct", tp_pct, 1e-9, 0.999),
                                   ("sl_pct", sl_pct, 1e-9, 0.999), ("horizon_bars", horizon_bars, 1, 1_000_000)):
        given = np.asarray(value)
        if not ((given >= low) & (given <= high)).all():
            raise InvalidInput(name, f"between {low:g} and {high:g}", value)
