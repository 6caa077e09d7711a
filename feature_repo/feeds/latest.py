"""The present state of the live feeds, for readers in other threads: last values, recent trades, ages, counters."""

from __future__ import annotations

import threading
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable

from feature_repo.feeds.events import Book, Mid, Quote, Trade

MOST_TRADES = 50_000  # kept of one symbol, whatever their age


class Ages:
    """When each feed was last heard of. A feed that dies is seen by its growing age; it sends no word of its own."""

    def __init__(self, feeds: Iterable[tuple[str, str]], started_ms: int) -> None:
        self._heard_ms = dict.fromkeys(feeds, started_ms)

    def touch(self, feed: str, symbol: str, received_ms: int) -> None:
        """Received something of this feed; a name that is not followed is left out."""
        if (feed, symbol) in self._heard_ms:
            self._heard_ms[feed, symbol] = received_ms

    def at(self, now_ms: int) -> dict[tuple[str, str], int]:
        """ms since each (feed, symbol) was heard of; since the start, of one that never was."""
        return {key: max(0, now_ms - heard_ms) for key, heard_ms in self._heard_ms.items()}


class TradeTape:
    """The trades of one symbol of the last kept_ms, by time, each once.

    A trade that is as old as one that was let go is not taken in again, so repeats are known by what is kept.
    """

    def __init__(self, kept_ms: int, most: int = MOST_TRADES) -> None:
        self._kept_ms, self._most = kept_ms, most
        self._trades: list[Trade] = []
        self._keys: set[tuple[int, int]] = set()
        self._let_go_ms = -1  # trades up to this time are no longer taken

    def add(self, trade: Trade) -> bool:
        """False for one that is known already, or too old to be kept."""
        key = (trade.time_ms, trade.trade_id)
        if key in self._keys or trade.time_ms <= self._let_go_ms:
            return False
        self._keys.add(key)
        insort(self._trades, trade, key=_order)
        self._let_go(trade.received_ms - self._kept_ms)
        return key in self._keys

    def since(self, since_ms: int) -> list[Trade]:
        return self._trades[bisect_left(self._trades, (since_ms, -1), key=_order):]

    def _let_go(self, oldest_ms: int) -> None:
        count = max(bisect_left(self._trades, (oldest_ms, -1), key=_order), len(self._trades) - self._most)
        if count > 0:
            self._let_go_ms = self._trades[count - 1].time_ms
            self._keys.difference_update(_order(trade) for trade in self._trades[:count])
            del self._trades[:count]


class LatestMarket:
    """Thread-safe. Feeds are named as the venue names its subscriptions: l2Book, bbo, trades, allMids, candle:1m."""

    def __init__(self, symbols: Iterable[str], feeds: Iterable[str], trades_kept_ms: int, started_ms: int) -> None:
        self._symbols = tuple(symbols)
        self._ages = Ages([(feed, symbol) for feed in feeds for symbol in self._symbols], started_ms)
        self._tapes = {symbol: TradeTape(trades_kept_ms) for symbol in self._symbols}
        self._unbroken_since_ms: dict[str, int] = {}
        self._books: dict[str, Book] = {}
        self._quotes: dict[str, Quote] = {}
        self._mids: dict[str, Mid] = {}
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def set_book(self, book: Book) -> None:
        """The newest by the venue's time stays, in whatever order they come."""
        with self._lock:
            self._ages.touch("l2Book", book.symbol, book.received_ms)
            held = self._books.get(book.symbol)
            if held is None or book.time_ms >= held.time_ms:
                self._books[book.symbol] = book

    def set_quote(self, quote: Quote) -> None:
        with self._lock:
            self._ages.touch("bbo", quote.symbol, quote.received_ms)
            held = self._quotes.get(quote.symbol)
            if held is None or quote.time_ms >= held.time_ms:
                self._quotes[quote.symbol] = quote

    def set_mids(self, mids: dict[str, Mid]) -> None:
        with self._lock:
            for symbol in self._symbols:
                if symbol in mids:
                    self._mids[symbol] = mids[symbol]
                    self._ages.touch("allMids", symbol, mids[symbol].received_ms)

    def add_trade(self, trade: Trade) -> None:
        with self._lock:
            self._ages.touch("trades", trade.symbol, trade.received_ms)
            tape = self._tapes.get(trade.symbol)
            if tape is None or not tape.add(trade):
                self._counts["unexpected" if tape is None else "repeated_trades"] += 1

    def begin_trades(self, symbol: str, now_ms: int) -> None:
        """From here on every trade is received, until cut()."""
        with self._lock:
            self._unbroken_since_ms[symbol] = now_ms

    def cut(self) -> None:
        with self._lock:
            self._unbroken_since_ms.clear()

    def trades_unbroken_since(self, symbol: str) -> int | None:
        with self._lock:
            return self._unbroken_since_ms.get(symbol)

    def touch(self, feed: str, symbol: str, received_ms: int) -> None:
        with self._lock:
            self._ages.touch(feed, symbol, received_ms)

    def count(self, what: str, by: int = 1) -> None:
        with self._lock:
            self._counts[what] += by

    def book(self, symbol: str) -> Book | None:
        with self._lock:
            return self._books.get(symbol)

    def quote(self, symbol: str) -> Quote | None:
        with self._lock:
            return self._quotes.get(symbol)

    def mid(self, symbol: str) -> Mid | None:
        with self._lock:
            return self._mids.get(symbol)

    def trades(self, symbol: str, since_ms: int) -> list[Trade]:
        """With time >= since_ms, by time."""
        with self._lock:
            return self._tapes[symbol].since(since_ms)

    def ages(self, now_ms: int) -> dict[tuple[str, str], int]:
        with self._lock:
            return self._ages.at(now_ms)

    def counters(self) -> dict[str, int]:
        with self._lock:
            return dict(self._counts)


def _order(trade: Trade) -> tuple[int, int]:
    return trade.time_ms, trade.trade_id
