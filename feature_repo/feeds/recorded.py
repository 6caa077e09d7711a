"""Recorded quotes, books, trades, funding and sentiment of a folder, found by name, as rows of the feature groups:

    hyperliquid_l2/<SYMBOL>_l2_20_*   timestamp, recv, bid_price_0 .. ask_size_19
    hyperliquid_l2/<SYMBOL>_bbo_*     timestamp, recv, price, size, side (bid or ask): one row a side
    hyperliquid_l2/<SYMBOL>_trades_*  timestamp, recv, price, size, side (buy or sell), trade_id
    hyperliquid/<SYMBOL>_funding_*    timestamp, funding_rate
    sentiment/fear_greed_1d_*         timestamp, fear_greed

as parquet or CSV; `timestamp` is the exchange's clock, `recv` that of the recorder, and a row is known at the later of
the two, rounded up to the millisecond. Files of one symbol may overlap. What is not there has no frame; there are no
recorded mids.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from feature_repo.book import (
    FLOW_WINDOW_MS,
    LARGEST,
    LEAST,
    SAMPLE_MS,
    Books,
    Quotes,
    Trades,
    depth_features,
    flow_features,
    quote_features,
    sampled,
)
from feature_repo.features import DEPTH, FEAR_GREED, FLOW, FUNDING, GROUPS, MINUTE_MS, QUOTE
from feature_repo.files import FUNDING_NAME, symbol_of
from feature_repo.frames import GroupFrame
from feature_repo.sentiment import fear_greed_frame
from feature_repo.tables import numbers_of, read_table, refuse_first, times_of
from policies.errors import InvalidInput

LEVELS = 20
BOOK, BBO, TRADES = "l2_20", "bbo", "trades"
FEED_NAME = re.compile(rf"^(?P<symbol>[A-Za-z0-9]+)_(?P<kind>{BOOK}|{BBO}|{TRADES})_\w+\.(parquet|csv)$")
FEAR_GREED_NAME = re.compile(r"^fear_greed_1d_\w+\.(parquet|csv)$")
QUOTE_TTL_MS = GROUPS[QUOTE].ttl_ms

Floats = NDArray[np.float64]
Times = NDArray[np.int64]


class RecordedFeeds:
    """What `folder` holds besides bars. every_ms: how often QUOTE, DEPTH and FLOW are
    sampled. Files are read when they are first asked for, and once.
    """

    groups = (QUOTE, DEPTH, FLOW, FUNDING, FEAR_GREED)

    def __init__(self, folder: Path, every_ms: int = SAMPLE_MS) -> None:
        self._every_ms = every_ms
        self._feeds: dict[tuple[str, str], list[Path]] = {}
        for path in _files(folder / "hyperliquid_l2"):
            if match := FEED_NAME.match(path.name):
                self._feeds.setdefault((match["kind"], symbol_of(match["symbol"])), []).append(path)
        self._funding: dict[str, list[Path]] = {}
        for path in _files(folder / "hyperliquid"):
            if match := FUNDING_NAME.match(path.name):
                self._funding.setdefault(symbol_of(match["symbol"]), []).append(path)
        self._fear_greed = [path for path in _files(folder / "sentiment") if FEAR_GREED_NAME.match(path.name)]
        self._frames: dict[tuple[str, str], GroupFrame | None] = {}

    @property
    def symbols(self) -> tuple[str, ...]:
        return tuple(sorted({symbol for _, symbol in self._feeds} | set(self._funding)))

    def frames(self, symbol: str) -> dict[str, GroupFrame]:
        """{group: its rows} of the groups that were recorded for this symbol or for the whole market."""
        found = {group: self._frame(group, symbol) for group in self.groups}
        return {group: frame for group, frame in found.items() if frame is not None}

    def frame(self, group: str, symbol: str) -> GroupFrame:
        """The rows of one group; empty if nothing was recorded."""
        if group not in self.groups:
            raise InvalidInput("group", f"one of {', '.join(self.groups)}", group)
        return self._frame(group, symbol) or GroupFrame.empty(group)

    def quotes(self, symbol: str) -> Quotes | None:
        """All quotes. A side stands until its next row, and no longer than a quote is fresh: then there is no quote."""
        paths = self._feeds.get((BBO, symbol))
        return _quotes(symbol, paths) if paths else None

    def books(self, symbol: str) -> Books | None:
        paths = self._feeds.get((BOOK, symbol))
        return _books(symbol, paths) if paths else None

    def trades(self, symbol: str) -> Trades | None:
        """Every trade once, as it was received first."""
        paths = self._feeds.get((TRADES, symbol))
        return _trades(symbol, paths) if paths else None

    def funding(self, symbol: str) -> GroupFrame | None:
        """Rates over the whole recorded history, each known at the close of the minute in which it was settled."""
        paths = self._funding.get(symbol)
        return _funding(paths) if paths else None

    def fear_greed(self) -> GroupFrame | None:
        return _fear_greed(self._fear_greed) if self._fear_greed else None

    def describe(self) -> str:
        """One line: the kinds of file there are, by symbol."""
        kinds = [*((symbol, kind) for kind, symbol in self._feeds), *((symbol, FUNDING) for symbol in self._funding)]
        held = [f"{symbol} {' '.join(sorted(kind for s, kind in kinds if s == symbol))}" for symbol in self.symbols]
        held += [f"{FEAR_GREED} of the market"] if self._fear_greed else []
        return f"recorded feeds: {', '.join(held) or 'none'}"

    def _frame(self, group: str, symbol: str) -> GroupFrame | None:
        key = (group, "" if group == FEAR_GREED else symbol)
        if key not in self._frames:
            self._frames[key] = self._read(group, symbol)
        return self._frames[key]

    def _read(self, group: str, symbol: str) -> GroupFrame | None:
        if group == FEAR_GREED:
            return self.fear_greed()
        if group == FUNDING:
            return self.funding(symbol)
        transforms: dict[str, tuple[Callable[..., Any], Callable[..., GroupFrame]]] = {
            QUOTE: (self.quotes, quote_features), DEPTH: (self.books, depth_features), FLOW: (self.trades, _whole_flow)}
        read, features = transforms[group]
        rows = read(symbol)
        return None if rows is None else features(rows, self._every_ms)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _quotes(symbol: str, paths: list[Path]) -> Quotes:
    known_ms, exchange_ms, rows = _joined([_priced_rows(path, ("bid", "ask")) for path in paths])
    sides = []
    for side in ("bid", "ask"):
        own = np.flatnonzero(rows["side"] == side)
        kept = own[_advancing(known_ms[own], exchange_ms[own])]
        sides.append((known_ms[kept], rows["price"].to_numpy()[kept], rows["size"].to_numpy()[kept]))
    time_ms = np.unique(np.concatenate([known for known, _, _ in sides]))
    for known, _, _ in sides:
        latest, outdated = (np.searchsorted(known, time_ms, "right"),
                            np.searchsorted(known, time_ms - QUOTE_TTL_MS, "left"))
        time_ms = time_ms[latest > outdated]
    columns = [values[np.searchsorted(known, time_ms, "right") - 1] for known, *both in sides for values in both]
    return Quotes(symbol, time_ms, *columns)


def _books(symbol: str, paths: list[Path]) -> Books:
    known_ms, exchange_ms, rows = _joined([_book_rows(path) for path in paths])
    kept = _advancing(known_ms, exchange_ms)
    sides = [rows[_level_names(side, what)].to_numpy()[kept] for side in ("bid", "ask") for what in ("price", "size")]
    return Books(symbol, known_ms[kept], *sides)


def _trades(symbol: str, paths: list[Path]) -> Trades:
    known_ms, exchange_ms, rows = _joined([_priced_rows(path, ("buy", "sell"), ("trade_id",)) for path in paths])
    order = np.argsort(known_ms, kind="stable")
    # An id is unique only together with the time of its block.
    again = pd.DataFrame({"id": rows["trade_id"], "time": exchange_ms}).iloc[order].duplicated().to_numpy()
    kept = order[~again]
    price, size, side = (rows[name].to_numpy()[kept] for name in ("price", "size", "side"))
    return Trades(symbol, known_ms[kept], price, size, (side == "buy").astype(bool))


def _whole_flow(trades: Trades, every_ms: int) -> GroupFrame:
    """Flow without the rows of which the recording may not hold all 60 s.

    A break in the recording can't be told from a market in which nothing is traded, so silence of more than the window
    counts as one: after it, as at the start, rows begin when a whole window was recorded.
    """
    frame = flow_features(trades, every_ms)
    times = trades.event_time_ms
    starts = times[np.r_[True, np.diff(times) > FLOW_WINDOW_MS]]
    since_ms = starts[np.searchsorted(starts, frame.event_time_ms, "right") - 1]
    whole = frame.event_time_ms - since_ms >= FLOW_WINDOW_MS
    return GroupFrame(FLOW, frame.event_time_ms[whole], frame.values[whole])


def _funding(paths: list[Path]) -> GroupFrame:
    """Of a settlement that several files hold, the last file's."""
    known, rates = [], []
    for path in paths:
        table = read_table(path, ("timestamp", "funding_rate"))
        known.append(times_of(path, table) // MINUTE_MS * MINUTE_MS + MINUTE_MS)
        rates.append(numbers_of(path, table, "funding_rate", least=-1.0, above=True))
    known_ms, rate = np.concatenate(known), np.concatenate(rates)
    order = np.argsort(known_ms, kind="stable")
    kept = order[sampled(known_ms[order], every_ms=1)]
    return GroupFrame(FUNDING, known_ms[kept], rate[kept, None])


def _fear_greed(paths: list[Path]) -> GroupFrame:
    """Of a day that several files hold, the last file's value."""
    times, values = [], []
    for path in paths:
        table = read_table(path, ("timestamp", "fear_greed"))
        times.append(times_of(path, table))
        values.append(numbers_of(path, table, "fear_greed", least=0.0, above=False, most=100.0))
    time_ms, index = np.concatenate(times), np.concatenate(values)
    order = np.argsort(time_ms, kind="stable")
    return fear_greed_frame(time_ms[order], index[order])


def _joined(parts: list[pd.DataFrame]) -> tuple[Times, Times, pd.DataFrame]:
    """(when each row became known, the exchange's time, the rows) of several files, one after the other."""
    rows = pd.concat(parts, ignore_index=True)
    exchange_ms = rows["timestamp"].to_numpy(np.int64)
    return np.maximum(exchange_ms, rows["recv"].to_numpy(np.int64)), exchange_ms, rows


def _advancing(known_ms: Times, exchange_ms: Times) -> Times:
    """Places in the order of becoming known, without what was older than, or the same as, what was known already."""
    order = np.lexsort((exchange_ms, known_ms))
    known, exchange = known_ms[order], exchange_ms[order]
    newest = np.maximum.accumulate(exchange)
    reached = known[np.searchsorted(newest, exchange, "left")]
    return order[(exchange == newest) & (known == reached)]


def _priced_rows(path: Path, sides: tuple[str, str], more: tuple[str, ...] = ()) -> pd.DataFrame:
    table = read_table(path, ("timestamp", "recv", "price", "size", "side", *more))
    columns: dict[str, NDArray] = dict(_clocks(path, table))
    for name in ("price", "size"):
        columns[name] = numbers_of(path, table, name, least=LEAST, above=False, most=LARGEST)
    side = table["side"].to_numpy(object)
    refuse_first(path, "side", np.isin(side.astype(str), sides), f"{sides[0]} or {sides[1]}", side)
    columns["side"] = side
    for name in more:
        refuse_first(path, name, table[name].notna().to_numpy(), "not empty", table[name].to_numpy(object))
        columns[name] = table[name].astype(str).to_numpy(object)
    return pd.DataFrame(columns)


def _book_rows(path: Path) -> pd.DataFrame:
    names = [name for side in ("bid", "ask") for what in ("price", "size") for name in _level_names(side, what)]
    table = read_table(path, ("timestamp", "recv", *names))
    columns: dict[str, NDArray] = dict(_clocks(path, table))
    for name in names:
        columns[name] = numbers_of(path, table, name, least=LEAST, above=False, most=LARGEST, may_be_empty=True)
    for side, worse in (("bid", -1.0), ("ask", 1.0)):
        prices, sizes = _level_names(side, "price"), _level_names(side, "size")
        for price, size in zip(prices, sizes, strict=True):
            fine = np.isnan(columns[price]) == np.isnan(columns[size])
            refuse_first(path, size, fine, f"empty where {price} is, and only there", columns[size])
        for better, price in itertools.pairwise(prices):
            fine = np.isnan(columns[price]) | (worse * (columns[price] - columns[better]) > 0)
            refuse_first(path, price, fine, f"worse than {better}; empty if that is", columns[price])
    return pd.DataFrame(columns)


def _clocks(path: Path, table: pd.DataFrame) -> dict[str, Times]:
    return {name: times_of(path, table, name, rising=False, round_up=True) for name in ("timestamp", "recv")}


def _level_names(side: str, what: str) -> list[str]:
    return [f"{side}_{what}_{level}" for level in range(LEVELS)]
