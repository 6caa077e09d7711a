"""Many accounts at once: strategies, parameters and symbols as columns, each an account of its own.

`simulate_accounts` gives, to the last bit, what `account.Account` says of each column.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from policies.bars import Bars
from policies.engine.position import Part
from policies.engine.rules import BASE_TIER, MAX_LEVERAGE, Book, Costs, Sizing, price_rows
from policies.errors import InvalidInput


@dataclass(frozen=True)
class Orders:
    """The orders of C columns over T bars; an order belongs to the bar that it meets (`policies.engine`, "time").

    amount: (C, T), or (T,) for every column; NaN is no order. Its unit is that of `sizing`. The other fields, in the
    words of `position.Order`: one value, or anything that broadcasts to (C, T), such as (C, 1) for parameters.
    """

    amount: ArrayLike
    sizing: Sizing = Sizing.TARGET
    limit_price: ArrayLike = math.nan
    leverage: ArrayLike = 1.0
    stop_pct: ArrayLike = math.inf
    target_pct: ArrayLike = math.inf
    horizon_bars: ArrayLike = 0


@dataclass(frozen=True)
class Books:
    """The order books of one symbol as they stood at the opens of its bars, best level first.

    Each float64 (T, levels), USD and base units; NaN where nothing is known or a side ends.
    """

    bid_price: NDArray[np.float64]
    bid_size: NDArray[np.float64]
    ask_price: NDArray[np.float64]
    ask_size: NDArray[np.float64]
    beyond_depth_fraction: float = 0.005

    def at(self, bar: int) -> Book:
        return Book(self.bid_price[bar].tolist(), self.bid_size[bar].tolist(), self.ask_price[bar].tolist(),
                    self.ask_size[bar].tolist(), self.beyond_depth_fraction)


@dataclass(frozen=True)
class Parts:
    """Closed parts of positions, by column and then in the order of their exits; the words are those of `Part`.

    All (P,): column, entry_index, exit_index int64; sign, reason int8; the rest float64. entry_index is the bar in
    which the position began.
    """

    column: NDArray[np.int64]
    entry_index: NDArray[np.int64]
    exit_index: NDArray[np.int64]
    sign: NDArray[np.int8]
    quantity: NDArray[np.float64]
    entry_price: NDArray[np.float64]
    exit_price: NDArray[np.float64]
    reason: NDArray[np.int8]
    gross: NDArray[np.float64]
    fees: NDArray[np.float64]
    funding: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.column)

    @property
    def net_pnl(self) -> NDArray[np.float64]:
        """USD, after fees and funding."""
        return self.quantity * self.entry_price * (self.gross - self.fees - self.funding)

    def part(self, place: int, bars: Bars) -> Part:
        return Part(int(self.sign[place]), float(self.quantity[place]), float(self.entry_price[place]),
                    float(self.exit_price[place]), int(self.reason[place]), float(self.gross[place]),
                    float(self.fees[place]), float(self.funding[place]),
                    int(bars.open_time_ms[self.entry_index[place]]), int(bars.close_time_ms[self.exit_index[place]]))


@dataclass(frozen=True)
class AccountRuns:
    """What C accounts came to after the last bar; open positions are valued at its close, not closed.

    cash, equity, fees_paid, funding_paid: float64 (C,), USD. max_drawdown_fraction: (C,), the largest fall of equity
    from its peak, over that peak, at closes. refused, parts_count: int64 (C,). curves: float64 (C, T), equity at every
    close, and parts: None where they were not asked for.
    """

    cash: NDArray[np.float64]
    equity: NDArray[np.float64]
    fees_paid: NDArray[np.float64]
    funding_paid: NDArray[np.float64]
    max_drawdown_fraction: NDArray[np.float64]
    refused: NDArray[np.int64]
    parts_count: NDArray[np.int64]
    curves: NDArray[np.float64] | None
    parts: Parts | None


def simulate_accounts(bars: Bars | Sequence[Bars], orders: Orders, cash: ArrayLike = 10_000.0,
                      costs: Costs = BASE_TIER, *, market: ArrayLike = 0,
                      books: Books | Sequence[Books] | None = None, curves: bool = True,
                      parts: bool = True) -> AccountRuns:
    """Run every column's account over all bars. The first call of a process compiles or loads the walk (seconds).

    bars: of one symbol, or of several with the same open times. market: for each column its place in bars, one for
    all or (C,). cash: USD, > 0, one for all or (C,). books: as many as symbols. curves, parts: whether to keep them; a
    curve takes 8 bytes a bar and column. InvalidInput names what is out of range. Memory beside the results: none
    where amounts are float64 and contiguous.
    """
    from policies.engine import kernel  # imports numba, which those that step one account do without

    listed = [bars] if isinstance(bars, Bars) else list(bars)
    prices = _prices(listed)
    amount = np.atleast_2d(np.asarray(orders.amount, dtype=np.float64))
    columns = max(len(amount), *(np.atleast_2d(np.asarray(getattr(orders, field.name))).shape[0]
                                 for field in fields(orders) if field.name not in ("amount", "sizing")),
                  np.size(market), np.size(cash))
    amount, limit, leverage, stop, target, horizon = _checked(orders, amount, columns, prices.shape[2])
    markets = _markets(market, columns, len(listed))
    start = np.ascontiguousarray(np.broadcast_to(np.asarray(cash, dtype=np.float64), columns))
    if not ((start > 0) & (start <= 1e15)).all():
        raise InvalidInput("cash", "> 0 and at most 1e15", cash)
    stacked, beyond = _stacked(books, len(listed), prices.shape[2])
    curve = np.empty((columns, prices.shape[2] if curves else 0))
    figures = np.empty((columns, len(kernel.FIGURES)))
    room = np.empty((1024 if parts else 0, len(kernel.RECORD)))
    records = kernel.walk(prices, markets, start, amount, int(orders.sizing), limit, leverage, stop, target, horizon,
                          np.append(costs.row(), beyond), stacked, curve, room, figures)
    by_name = dict(zip(kernel.FIGURES, figures.T.copy(), strict=True))
    count = by_name.pop("parts").astype(np.int64)
    return AccountRuns(**{name: by_name[name] for name in by_name if name != "refused"},
                       refused=by_name["refused"].astype(np.int64), parts_count=count,
                       curves=curve if curves else None,
                       parts=_parts(records[:int(count.sum())], kernel.RECORD) if parts else None)


def _prices(listed: Sequence[Bars]) -> NDArray[np.float64]:
    """(symbols, 5, T): open, high, low, close, funding rate, checked."""
    if not listed:
        raise InvalidInput("bars", "at least one symbol", 0)
    for one in listed:
        if not np.array_equal(one.open_time_ms, listed[0].open_time_ms):
            raise InvalidInput(f"bars.{one.symbol}.open_time_ms", f"those of {listed[0].symbol}", len(one))
    return np.array([price_rows(one) for one in listed])


def _checked(orders: Orders, amount: NDArray[np.float64], columns: int, bars: int) -> list[NDArray[np.float64]]:
    """The six fields of orders, each (C or 1, T or 1), in their ranges."""
    bounds = {"limit_price": (5e-324, 1.7e308), "leverage": (1.0, MAX_LEVERAGE), "stop_pct": (1e-9, 0.999),
              "target_pct": (1e-9, 0.999), "horizon_bars": (0.0, 2.0**53)}
    absent: dict[str, Any] = {"limit_price": np.isnan, "stop_pct": np.isinf, "target_pct": np.isinf}
    if np.isinf(amount).any():
        raise InvalidInput("orders.amount", "finite, or NaN for no order", "infinite")
    checked = [_flexible("amount", amount, columns, bars)]
    for name, (low, high) in bounds.items():
        given = np.asarray(getattr(orders, name), dtype=np.float64)
        fine = (given >= low) & (given <= high)
        if name in absent:
            fine |= absent[name](given) & ~(given < 0)
        if not fine.all():
            raise InvalidInput(f"orders.{name}", f"between {low:g} and {high:g}", given[~fine].flat[0])
        checked.append(_flexible(name, given, columns, bars))
    return checked


def _flexible(name: str, given: NDArray[np.float64], columns: int, bars: int) -> NDArray[np.float64]:
    shaped = np.require(np.atleast_2d(given), np.float64, ["C", "W"])  # one layout, so that it is compiled once
    if shaped.shape[0] not in (1, columns) or shaped.shape[1] not in (1, bars):
        raise InvalidInput(f"orders.{name}", f"of a shape that broadcasts to ({columns}, {bars})", given.shape)
    return shaped


def _markets(market: ArrayLike, columns: int, symbols: int) -> NDArray[np.int64]:
    places = np.ascontiguousarray(np.broadcast_to(np.asarray(market, dtype=np.int64), columns))
    if not ((places >= 0) & (places < symbols)).all():
        raise InvalidInput("market", f"between 0 and {symbols - 1}", market)
    return places


def _stacked(books: Books | Sequence[Books] | None, symbols: int, bars: int) -> tuple[NDArray[np.float64], float]:
    """(symbols, T, 4, levels), or no bars where no book is known; what lies beyond their depth."""
    if books is None:
        return np.empty((symbols, 0, 4, 0)), 0.0
    listed = [books] if isinstance(books, Books) else list(books)
    stacked = np.array([np.stack([one.bid_price, one.bid_size, one.ask_price, one.ask_size], axis=1)
                        for one in listed], dtype=np.float64)
    if stacked.shape[:2] != (symbols, bars) or len({one.beyond_depth_fraction for one in listed}) != 1:
        raise InvalidInput("books", f"{symbols} of {bars} bars with one beyond_depth_fraction", stacked.shape)
    return np.ascontiguousarray(stacked), listed[0].beyond_depth_fraction


def _parts(records: NDArray[np.float64], names: Sequence[str]) -> Parts:
    kinds: dict[str, type] = {"column": np.int64, "entry_index": np.int64, "exit_index": np.int64, "sign": np.int8,
                              "reason": np.int8}
    made: dict[str, Any] = {name: records[:, place].astype(kinds.get(name, np.float64))
                            for place, name in enumerate(names)}
    return Parts(**made)
