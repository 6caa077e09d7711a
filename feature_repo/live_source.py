"""The exchange as it happens, as a source of frames: closed candles through the bars' own transforms, and the present
quote, book, flow and mid, at most one row per sample of recorded ones: here the first of its sample, there the last.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from feature_repo.array_frames import WindowFrame
from feature_repo.book import (
    FLOW_WINDOW_MS,
    SAMPLE_MS,
    Books,
    Quotes,
    Trades,
    depth_features,
    flow_features,
    quote_features,
)
from feature_repo.features import DEPTH, FLOW, FUNDING, GROUPS, HOUR_MS, MID, MINUTE_MS, QUOTE
from feature_repo.feeds.events import Book, Funding, Mid, Quote, Trade
from feature_repo.feeds.hyperliquid_live import HyperliquidLive
from feature_repo.feeds.hyperliquid_rest import HyperliquidRest
from feature_repo.frames import GroupFrame
from feature_repo.hyperliquid import bars_of
from feature_repo.transforms import LOOKBACK_BARS, BarWindow
from policies.clock import LiveClock

LEVELS = 20
# What must be fetched at the start: the lookback of the first vector, and a settlement that is still fresh.
REACH_MS = max(LOOKBACK_BARS * MINUTE_MS, GROUPS[FUNDING].ttl_ms) + 5 * MINUTE_MS
KEPT_MS = 3 * HOUR_MS  # of rows in memory; the offline store has the rest


def follow(symbols: Sequence[str], base_url: str | None = None) -> LiveSource:
    """A source that follows Hyperliquid from now on, by wall time. base_url: of another venue than the main net."""
    clock = LiveClock()
    rest = HyperliquidRest(tuple(symbols), base_url)
    live = HyperliquidLive(symbols, rest, from_ms=clock.now_ms() - REACH_MS)
    return LiveSource(live.start(), clock.now_ms)


class LiveSource:
    """now_ms: the clock of events and samples. Asking for frames takes in what has happened since."""

    def __init__(self, live: HyperliquidLive, now_ms: Callable[[], int]) -> None:
        self.live, self._now_ms = live, now_ms
        self._windows = {symbol: BarWindow(symbol) for symbol in live.symbols}
        self._kept: dict[tuple[str, str], GroupFrame] = {}
        self._turn = threading.Lock()

    @property
    def problem(self) -> str:
        """What last went wrong between us and the exchange, for people; empty if nothing has."""
        return self.live.last_problem

    def wait(self, timeout_s: float) -> bool:
        """Whether a candle has closed, or funding was settled, that no frame shows yet; now or within timeout_s."""
        return self.live.wait_for_rows(timeout_s)

    def frames(self, symbol: str, start_ms: int, stop_ms: int) -> dict[str, GroupFrame]:
        with self._turn:
            for group, frame in self._news(symbol).items():
                held = self._kept.get((symbol, group), GroupFrame.empty(group)).followed_by(frame)
                oldest_ms = self._now_ms() - KEPT_MS
                self._kept[symbol, group] = held.slice(held.until(oldest_ms), len(held))
            return {group: frame.reaching(start_ms, stop_ms) for (of, group), frame in self._kept.items()
                    if of == symbol and len(frame)}

    def windows(self, symbol: str, start_ms: int, stop_ms: int) -> WindowFrame:
        """The window of the newest candle that was taken in, if there is one; `frames` takes candles in."""
        with self._turn:
            return self._windows[symbol].window().reaching(start_ms, stop_ms)

    def _news(self, symbol: str) -> dict[str, GroupFrame]:
        news = self._windows[symbol].push(bars_of(symbol, self.live.take_candles(symbol), None))
        news[FUNDING] = _funding_frame(self.live.take_funding(symbol))
        due = {group for group in (QUOTE, DEPTH, FLOW, MID) if self._is_due(symbol, group)}
        if QUOTE in due and (quote := self.live.latest_quote(symbol)) is not None:
            news[QUOTE] = _quote_frame(quote)
        if DEPTH in due and (book := self.live.latest_book(symbol)) is not None:
            news[DEPTH] = _book_frame(book)
        if MID in due and (mid := self.live.mid(symbol)) is not None:
            news[MID] = _mid_frame(mid)
        if FLOW in due and self._heard_all_trades(symbol) and (trades := self._trades(symbol)):
            news[FLOW] = _flow_frame(trades)
        return news

    def _heard_all_trades(self, symbol: str) -> bool:
        """Whether no trade of the window was missed: those made while the connection was down come no more."""
        since_ms = self.live.trades_unbroken_since(symbol)
        return since_ms is not None and since_ms <= self._now_ms() - FLOW_WINDOW_MS

    def _trades(self, symbol: str) -> list[Trade]:
        return self.live.recent_trades(symbol, self._now_ms() - FLOW_WINDOW_MS - SAMPLE_MS)

    def _is_due(self, symbol: str, group: str) -> bool:
        """Whether the newest row is of an earlier sample: of a quote that changes at every look not all is kept."""
        held = self._kept.get((symbol, group))
        if held is None or not len(held):
            return True
        return bool(held.event_time_ms[-1] // SAMPLE_MS < self._now_ms() // SAMPLE_MS)


def _funding_frame(rows: Sequence[Funding]) -> GroupFrame:
    """Known at the close of the minute in which it was settled, as in recorded bars."""
    by_time = {row.time_ms // MINUTE_MS * MINUTE_MS + MINUTE_MS: row.rate for row in rows}
    times = sorted(by_time)
    return GroupFrame(FUNDING, np.array(times, np.int64), np.array([[by_time[time]] for time in times]).reshape(-1, 1))


def _quote_frame(quote: Quote) -> GroupFrame:
    sides = (quote.bid_price, quote.bid_size, quote.ask_price, quote.ask_size)
    columns = (np.array([np.nan if value is None else value]) for value in sides)
    return quote_features(Quotes(quote.symbol, _known(quote.time_ms, quote.received_ms), *columns))


def _book_frame(book: Book) -> GroupFrame:
    sides = [_levels(side[:, column]) for side in (book.bids, book.asks) for column in (0, 1)]
    return depth_features(Books(book.symbol, _known(book.time_ms, book.received_ms), *sides))


def _mid_frame(mid: Mid) -> GroupFrame:
    return GroupFrame(MID, np.array([mid.received_ms], np.int64), np.array([[mid.price]]))


def _flow_frame(trades: Sequence[Trade]) -> GroupFrame:
    """The row of the newest trade alone: the others' windows may reach further back than the trades at hand."""
    known = sorted(((max(trade.time_ms, trade.received_ms), trade) for trade in trades), key=lambda pair: pair[0])
    frame = flow_features(Trades(
        trades[0].symbol, np.array([time for time, _ in known], np.int64),
        np.array([trade.price for _, trade in known]), np.array([trade.size for _, trade in known]),
        np.array([trade.side == "buy" for _, trade in known])))
    return frame.slice(len(frame) - 1, len(frame))


def _known(exchange_ms: int, received_ms: int) -> NDArray[np.int64]:
    return np.array([max(exchange_ms, received_ms)], np.int64)


def _levels(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(1, LEVELS), a side with fewer levels ends in NaN."""
    row = np.full((1, LEVELS), np.nan)
    row[0, :min(LEVELS, len(values))] = values[:LEVELS]
    return row
