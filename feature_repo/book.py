"""The one definition of what is computed from quotes, books and trades: arrays in, rows of a feature group out.

Event times are when something became known here: the later of the exchange's time and our receiving it. A row of
QUOTE or DEPTH depends on its own quote or book alone, a row of FLOW on the trades of its last 60 s, added newest first.
Every step is elementwise, so a history and a single event give the same row to the last bit.

A side without a level is NaN. Where a side is absent, or the sides are crossed or locked (bid >= ask, for moments while
messages overtake each other), every number that needs both sides is NaN. The row stays, so that the last sound quote is
not taken for the present one.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from feature_repo.features import DEPTH, FLOW, GROUPS, MINUTE_MS, QUOTE, SECOND_MS
from feature_repo.frames import GroupFrame
from policies.errors import InvalidInput

SAMPLE_MS = 5 * SECOND_MS
FLOW_WINDOW_MS = MINUTE_MS
LEAST, LARGEST = 1e-15, 1e15  # of a price or a size: products and sums of them stay finite and above 0
LEGAL = f">= {LEAST:g} and <= {LARGEST:g}"

Floats = NDArray[np.float64]
Recorded = TypeVar("Recorded", "Quotes", "Books", "Trades")


@dataclass(frozen=True)
class Quotes:
    """Best bid and offer as they were received.

    event_time_ms: int64 (N,), not falling. Prices (USD) and sizes (base units): float64 (N,), > 0; both of a side are
    NaN if it is absent. Crossed sides are allowed.
    """

    symbol: str
    event_time_ms: NDArray[np.int64]
    bid_price: Floats
    bid_size: Floats
    ask_price: Floats
    ask_size: Floats

    def __post_init__(self) -> None:
        _check_times(self)
        for side in ("bid", "ask"):
            _check_side(self, side, (len(self),))

    def __len__(self) -> int:
        return len(self.event_time_ms)

    def take(self, places: NDArray[np.int64]) -> Quotes:
        return _taken(self, places)


@dataclass(frozen=True)
class Books:
    """Books as they were received, the best level first.

    event_time_ms: int64 (N,), not falling. Prices (USD) and sizes (base units): float64 (N, levels), > 0, prices
    falling on the bid side and rising on the ask side; a side with fewer levels ends in NaN. Crossed sides are allowed.
    """

    symbol: str
    event_time_ms: NDArray[np.int64]
    bid_price: Floats
    bid_size: Floats
    ask_price: Floats
    ask_size: Floats

    def __post_init__(self) -> None:
        _check_times(self)
        for side, worse in (("bid", -1.0), ("ask", 1.0)):
            price = getattr(self, f"{side}_price")
            _check_side(self, side, (len(self), max(1, *price.shape[1:])))
            _check_order(self, side, price * worse)

    def __len__(self) -> int:
        return len(self.event_time_ms)

    def take(self, places: NDArray[np.int64]) -> Books:
        return _taken(self, places)


@dataclass(frozen=True)
class Trades:
    """Trades in the order in which they were received, each once.

    event_time_ms: int64 (N,), not falling. price (USD), size (base units): float64 (N,), > 0. is_buy: bool (N,),
    whether the aggressor, who crossed the spread, bought.
    """

    symbol: str
    event_time_ms: NDArray[np.int64]
    price: Floats
    size: Floats
    is_buy: NDArray[np.bool_]

    def __post_init__(self) -> None:
        _check_times(self)
        for name in ("price", "size"):
            values = getattr(self, name)
            _check_shape(self, name, (len(self),))
            _refuse_first(self, name, (values >= LEAST) & (values <= LARGEST), LEGAL, values)
        _check_shape(self, "is_buy", (len(self),))
        if self.is_buy.dtype != np.bool_:
            raise InvalidInput(f"trades.{self.symbol}.is_buy", "an array of bool", self.is_buy.dtype)

    def __len__(self) -> int:
        return len(self.event_time_ms)

    def take(self, places: NDArray[np.int64]) -> Trades:
        return _taken(self, places)


def sampled(event_time_ms: NDArray[np.int64], every_ms: int = SAMPLE_MS) -> NDArray[np.int64]:
    """Places, rising, of the last row in each bucket [k every_ms, (k + 1) every_ms); the row keeps its own event time.

    Of rows with the same event time the last one is kept. event_time_ms: not falling. Which row is kept depends on what
    came later in its bucket, its time and values do not: between two samples a store may lag what is known by up to
    every_ms, and is never ahead of it.
    """
    if not every_ms >= 1:
        raise InvalidInput("every_ms", ">= 1", every_ms)
    bucket = event_time_ms // every_ms
    return np.flatnonzero(np.r_[bucket[1:] != bucket[:-1], True][:len(bucket)])


def quote_features(quotes: Quotes, every_ms: int = 1) -> GroupFrame:
    """Rows of QUOTE, one per sample of `every_ms`; by default one per event time."""
    kept = quotes.take(sampled(quotes.event_time_ms, every_ms))
    bid, ask, bid_size, ask_size = kept.bid_price, kept.ask_price, kept.bid_size, kept.ask_size
    both = np.where(ask > bid, 1.0, np.nan)  # NaN where a side is absent as well
    mid = (bid + ask) / 2
    sizes = bid_size + ask_size
    microprice = (bid * ask_size + ask * bid_size) / sizes
    return _frame(QUOTE, kept.event_time_ms, {
        "best_bid": bid, "best_ask": ask, "bid_size": bid_size, "ask_size": ask_size,
        "spread_bps": 1e4 * (ask - bid) / mid * both,
        "imbalance_1": (bid_size - ask_size) / sizes * both,
        "microprice_bps": 1e4 * (microprice / mid - 1) * both,
    })


def depth_features(books: Books, every_ms: int = 1) -> GroupFrame:
    """Rows of DEPTH, one per sample of `every_ms`; by default one per event time."""
    kept = books.take(sampled(books.event_time_ms, every_ms))
    both = np.where(kept.ask_price[:, 0] > kept.bid_price[:, 0], 1.0, np.nan)
    columns: dict[str, Floats] = {}
    for k in (5, 20):
        bid, ask = _depth(kept.bid_price, kept.bid_size, k), _depth(kept.ask_price, kept.ask_size, k)
        columns |= {f"bid_depth_{k}": bid, f"ask_depth_{k}": ask, f"imbalance_{k}": (bid - ask) / (bid + ask) * both}
    return _frame(DEPTH, kept.event_time_ms, columns)


def flow_features(trades: Trades, every_ms: int = 1) -> GroupFrame:
    """Rows of FLOW over the trades received in (t - 60 s, t], one per sample of `every_ms`; by default one per time.

    A row exists only where a trade was received. It does not know whether the feed was up for all of its 60 s: rows of
    a feed's first minute count what there is. To add one event: call with the trades of the last 60 s, take the last
    row; it is the row that the whole history gives.
    """
    last = sampled(trades.event_time_ms, every_ms)
    time_ms = trades.event_time_ms[last]
    first = np.searchsorted(trades.event_time_ms, time_ms - FLOW_WINDOW_MS, "right")
    usd = trades.price * trades.size
    bought = _sum_newest_first(np.where(trades.is_buy, usd, 0.0), first, last)
    sold = _sum_newest_first(np.where(trades.is_buy, 0.0, usd), first, last)
    traded = bought + sold
    return _frame(FLOW, time_ms, {"flow_imbalance_60": (bought - sold) / traded, "traded_60": traded})


def _depth(price: Floats, size: Floats, k: int) -> Floats:
    """(N,) USD of the best k levels, the best added first; NaN for a side without a level."""
    total = np.zeros(len(price))
    for level in range(min(k, price.shape[1])):
        usd = price[:, level] * size[:, level]
        total += np.where(np.isnan(usd), 0.0, usd)
    return np.where(np.isnan(price[:, 0]), np.nan, total)


def _sum_newest_first(amounts: Floats, first: NDArray[np.int64], last: NDArray[np.int64]) -> Floats:
    """(M,) sums of amounts[first..last], each added from the last place back.

    Not a difference of running sums: its last bits would depend on where the history starts.
    """
    total = np.zeros(len(last))
    rows, lag = np.arange(len(last)), 0
    while len(rows):
        total[rows] += amounts[last[rows] - lag]
        lag += 1
        rows = rows[last[rows] - lag >= first[rows]]
    return total


def _frame(group: str, event_time_ms: NDArray[np.int64], columns: dict[str, Floats]) -> GroupFrame:
    return GroupFrame(group, event_time_ms, np.column_stack([columns[name] for name in GROUPS[group].names]))


def _taken(rows: Recorded, places: NDArray[np.int64]) -> Recorded:
    arrays: dict[str, Any] = {f.name: getattr(rows, f.name)[places] for f in fields(rows) if f.name != "symbol"}
    return replace(rows, **arrays)


def _check_times(rows: Any) -> None:
    times = rows.event_time_ms
    if times.dtype != np.int64 or times.ndim != 1:
        raise InvalidInput(f"{_place(rows)}.event_time_ms", "int64 (N,)", f"{times.dtype} {times.shape}")
    fine = np.r_[True, np.diff(times) >= 0][:len(times)]
    _refuse_first(rows, "event_time_ms", fine, "not before the row before", times)


def _check_side(rows: Any, side: str, shape: tuple[int, ...]) -> None:
    price, size = getattr(rows, f"{side}_price"), getattr(rows, f"{side}_size")
    for name, values, other in ((f"{side}_price", price, size), (f"{side}_size", size, price)):
        _check_shape(rows, name, shape)
        if other.shape == values.shape:  # else the other one is refused
            fine = ((values >= LEAST) & (values <= LARGEST)) | (np.isnan(values) & np.isnan(other))
            _refuse_first(rows, name, fine, f"{LEGAL}; price and size NaN where there is no level", values)


def _check_order(rows: Any, side: str, price: Floats) -> None:
    """price: (N, levels), to be rising: the bid side comes negated."""
    rising = (price[:, 1:] > price[:, :-1]) | np.isnan(price[:, 1:])
    fine = np.column_stack([np.ones(len(price), bool), rising])
    _refuse_first(rows, f"{side}_price", fine, "worse than the level before; no level after a missing one",
                  getattr(rows, f"{side}_price"))


def _check_shape(rows: Any, name: str, shape: tuple[int, ...]) -> None:
    held = getattr(rows, name).shape
    if held != shape:
        raise InvalidInput(f"{_place(rows)}.{name}", f"of shape {shape}", held)


def _refuse_first(rows: Any, name: str, fine: NDArray[np.bool_], legal: str, values: NDArray) -> None:
    if not fine.all():
        bad = np.unravel_index(int(np.argmin(fine)), fine.shape)
        at = ", ".join(str(int(place)) for place in bad)
        raise InvalidInput(f"{_place(rows)}[{at}].{name}", legal, values[bad].item())


def _place(rows: Any) -> str:
    return f"{type(rows).__name__.lower()}.{rows.symbol}"
