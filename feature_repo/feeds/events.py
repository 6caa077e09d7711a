"""What a market feed hands out, as plain checked values, and how Hyperliquid writes it on the wire.

On the wire numbers are strings, times are ms since 1970 UTC, A is the ask side and B the bid side. REST and websocket
write candles and books alike. A parser takes one element as JSON gave it and returns an event whose numbers are finite
and in range, or raises MalformedMessage.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from policies.errors import HubError

INTERVALS_MS = {"1m": 60_000, "5m": 300_000, "15m": 900_000, "1h": 3_600_000, "4h": 14_400_000, "1d": 86_400_000}
SIDES = {"B": "buy", "A": "sell"}
Event = TypeVar("Event")


class MalformedMessage(HubError):
    """Something from the market that is not of the shape, or not in the range, that the market promises."""

    code = "malformed_message"


class MarketUnavailable(HubError):
    """The market's API did not answer in time, or not with what it promises."""

    code = "market_unavailable"


@dataclass(frozen=True)
class Candle:
    """Prices in USD, > 0, low <= open, close <= high. volume: base units, >= 0. trades: how many it holds."""

    symbol: str
    interval_ms: int
    open_time_ms: int
    open: float
    high: float
    low: float
    close: float
    volume: float
    trades: int

    @property
    def close_time_ms(self) -> int:
        """Open time + interval: from here on the candle is closed, and before nothing of it is final."""
        return self.open_time_ms + self.interval_ms


@dataclass(frozen=True)
class Funding:
    """rate: fraction of the position per settlement, paid by longs if > 0. time_ms: some ms after the hour."""

    symbol: str
    time_ms: int
    rate: float


@dataclass(frozen=True, eq=False)
class Book:
    """bids, asks: float64 (k, 2), price and size (base units, > 0), the best first; k may be 0. They may cross."""

    symbol: str
    time_ms: int
    received_ms: int
    bids: NDArray[np.float64]
    asks: NDArray[np.float64]


@dataclass(frozen=True)
class Quote:
    """Best bid and ask; price and size of an absent side are None."""

    symbol: str
    time_ms: int
    received_ms: int
    bid_price: float | None
    bid_size: float | None
    ask_price: float | None
    ask_size: float | None


@dataclass(frozen=True)
class Trade:
    """side: buy or sell, of the one who crossed the spread. trade_id with time_ms is unique within a symbol."""

    symbol: str
    time_ms: int
    received_ms: int
    price: float
    size: float
    side: str
    trade_id: int


@dataclass(frozen=True)
class Mid:
    symbol: str
    received_ms: int
    price: float


def candle(wire: Any) -> Candle:
    """{t, T, s, i, o, h, l, c, v, n}: t opens, T is the last ms within. Whether it is closed, the clock says."""
    return _read("candle", wire, _candle)


def funding(wire: Any) -> Funding:
    """{coin, fundingRate, premium, time}."""
    return _read("funding", wire, lambda w: Funding(_name(w["coin"]), _time(w["time"]), _rate(w["fundingRate"])))


def book(wire: Any, received_ms: int) -> Book:
    """{coin, time, levels: [bids, asks]} of {px, sz, n}. Every message is the whole book."""
    return _read("book", wire, lambda w: _book(w, received_ms))


def quote(wire: Any, received_ms: int) -> Quote:
    """{coin, time, bbo: [bid, ask]}, a side may be null."""
    return _read("quote", wire, lambda w: _quote(w, received_ms))


def trade(wire: Any, received_ms: int) -> Trade:
    """{coin, side, px, sz, time, tid, ...}."""
    return _read("trade", wire, lambda w: Trade(_name(w["coin"]), _time(w["time"]), received_ms, _positive(w["px"]),
                                                _positive(w["sz"]), SIDES[w["side"]], _whole(w["tid"])))


def mids(wire: Any, received_ms: int) -> dict[str, Mid]:
    """{name: price} of REST, or {mids: {name: price}} of the websocket. A coin without a price has no mid."""
    return _read("mids", wire, lambda w: {_name(name): Mid(name, received_ms, _number(price))
                                          for name, price in w.get("mids", w).items() if _number(price) > 0})


def _read(kind: str, wire: Any, parse: Callable[[Any], Event]) -> Event:
    try:
        return parse(wire)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise MalformedMessage(f"a {kind} of Hyperliquid cannot be read ({reason:.100}): {wire!r:.200}") from error


def _candle(wire: Any) -> Candle:
    interval_ms = INTERVALS_MS[wire["i"]]
    open_time_ms = _time(wire["t"])
    opening, high, low, close = (_positive(wire[key]) for key in "ohlc")
    volume, trades = _number(wire["v"]), _whole(wire["n"])
    if open_time_ms % interval_ms:
        raise ValueError("opens between two grid times")
    if not (low <= min(opening, close) and high >= max(opening, close)):
        raise ValueError("low <= open, close <= high does not hold")
    if volume < 0:
        raise ValueError("negative volume")
    return Candle(_name(wire["s"]), interval_ms, open_time_ms, opening, high, low, close, volume, trades)


def _book(wire: Any, received_ms: int) -> Book:
    bid_levels, ask_levels = wire["levels"]
    bids, asks = _levels(bid_levels), _levels(ask_levels)
    if (np.diff(bids[:, 0]) >= 0).any() or (np.diff(asks[:, 0]) <= 0).any():
        raise ValueError("levels are not sorted from the best")
    return Book(_name(wire["coin"]), _time(wire["time"]), received_ms, bids, asks)


def _levels(side: Any) -> NDArray[np.float64]:
    return np.array([(_positive(level["px"]), _positive(level["sz"])) for level in side], np.float64).reshape(-1, 2)


def _quote(wire: Any, received_ms: int) -> Quote:
    bid, ask = wire["bbo"]
    bid_price, bid_size = (None, None) if bid is None else (_positive(bid["px"]), _positive(bid["sz"]))
    ask_price, ask_size = (None, None) if ask is None else (_positive(ask["px"]), _positive(ask["sz"]))
    return Quote(_name(wire["coin"]), _time(wire["time"]), received_ms, bid_price, bid_size, ask_price, ask_size)


def _name(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("a name that is not a text")
    return value


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError("not a whole number >= 0")
    return value


def _time(value: Any) -> int:
    if not 0 < _whole(value) < 2**53:
        raise ValueError("not a time in ms")
    return int(value)


def _number(value: Any) -> float:
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise ValueError("not a number")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("not finite")
    return number


def _rate(value: Any) -> float:
    number = _number(value)
    if not -1 < number < 1:
        raise ValueError("a rate of the whole position or more")
    return number


def _positive(value: Any) -> float:
    number = _number(value)
    if not number > 0:
        raise ValueError("not positive")
    return number
