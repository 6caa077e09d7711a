"""Hyperliquid as it happens: closed candles and funding without a gap, and the present book, quote, trades and mid.

Candles and funding are complete: what was missed while the connection was down is fetched by REST and handed out, in
order and once, before anything newer. Books, quotes and mids are states; the next message replaces them. Trades that
were made while the connection was down are lost but for the latest ones, which the venue repeats after subscribing:
it has no history of them.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import orjson
from annotated_types import Gt, MinLen
from hyperliquid.utils.types import Subscription
from hyperliquid.websocket_manager import subscription_to_identifier, ws_msg_to_identifier

from feature_repo.feeds import events
from feature_repo.feeds.candle_follower import CandleFollower
from feature_repo.feeds.complete_rows import CompleteRows, Missing
from feature_repo.feeds.connection import Connection, ConnectionEnded, ConnectionSettings
from feature_repo.feeds.events import INTERVALS_MS, Book, Candle, Funding, MalformedMessage, Mid, Quote, Trade
from feature_repo.feeds.hyperliquid_rest import HyperliquidRest
from feature_repo.feeds.latest import LatestMarket
from feature_repo.feeds.pauses import pause_s
from policies.clock import LiveClock
from policies.errors import HubError, InvalidInput, UnknownEntity

GREETING = "Websocket connection established."
BY_SYMBOL = ("l2Book", "bbo", "trades")
Question = tuple[str, str | None]  # symbol, interval


@dataclass(frozen=True)
class LiveSettings:
    """intervals: of the candles. trades_kept_ms: how far back recent_trades goes.

    settle_ms, grace_ms, absent_after_ms: see CandleFollower. funding_grace_ms: see CompleteRows. look_s: between two
    looks for what must be fetched.
    Pauses before connecting, or asking, again grow from the first to the longest; those before connecting begin anew
    after a connection that stood for steady_s. The venue takes 30 new connections a minute from one address.
    """

    intervals: Annotated[tuple[str, ...], MinLen(1)] = ("1m",)
    trades_kept_ms: Annotated[int, Gt(0)] = 300_000
    settle_ms: Annotated[int, Gt(0)] = 500
    grace_ms: Annotated[int, Gt(0)] = 2_000
    absent_after_ms: Annotated[int, Gt(0)] = 120_000
    funding_grace_ms: Annotated[int, Gt(0)] = 5_000
    first_pause_s: Annotated[float, Gt(0)] = 1.0
    longest_pause_s: Annotated[float, Gt(0)] = 30.0
    steady_s: Annotated[float, Gt(0)] = 60.0
    look_s: Annotated[float, Gt(0)] = 0.2
    connection: ConnectionSettings = field(default_factory=ConnectionSettings)


class HyperliquidLive:
    """Follows perpetuals by name between start() and stop(), in two threads: one listens, one fetches.

    rest: a client for the same symbols. now_ms: the clock of candles and ages. ws_url: of rest's venue if None. rng:
    for the jitter of pauses. Readers may be in any thread. from_ms: time of the first candle and settlement wanted;
    None begins with the candle that is forming.
    """

    def __init__(self, symbols: Sequence[str], rest: HyperliquidRest, ws_url: str | None = None,
                 settings: LiveSettings | None = None, *, from_ms: int | None = None,
                 now_ms: Callable[[], int] | None = None, monotonic_s: Callable[[], float] = time.monotonic,
                 rng: random.Random | None = None) -> None:
        self.symbols, self.settings, self._rest = tuple(symbols), settings or LiveSettings(), rest
        self.ws_url = ws_url or "ws" + rest.base_url.removeprefix("http") + "/ws"
        _check(self.symbols, self.settings, self._rest, self.ws_url)
        self._now_ms, self._monotonic_s = now_ms or LiveClock().now_ms, monotonic_s
        self._rng = rng or random.Random(0)
        self._subscriptions = _subscriptions(self.symbols, self.settings.intervals)
        self._identifiers = {subscription_to_identifier(one) for one in self._subscriptions}
        began_ms = self._now_ms()
        first_ms = began_ms if from_ms is None else from_ms
        feeds = (*BY_SYMBOL, "allMids", *(f"candle:{interval}" for interval in self.settings.intervals), "funding")
        self._latest = LatestMarket(self.symbols, feeds, self.settings.trades_kept_ms, began_ms)
        self._rows = CompleteRows(_followers(self.symbols, self.settings, first_ms, whole=from_ms is not None),
                                  dict.fromkeys(self.symbols, first_ms), self.settings.funding_grace_ms, began_ms)
        self._stopping = threading.Event()
        self._connection: Connection | None = None
        self._threads: list[threading.Thread] = []
        self.last_problem = ""  # why the last connection ended, or the last question failed; for people

    def start(self) -> HyperliquidLive:
        if self._threads:
            raise InvalidInput("start", "called once", "a second call")
        self._threads = [threading.Thread(target=self._listen, name="hyperliquid-listens", daemon=True),
                         threading.Thread(target=self._fetch, name="hyperliquid-fetches", daemon=True)]
        for thread in self._threads:
            thread.start()
        return self

    def stop(self, timeout_s: float = 5.0) -> None:
        """Ends the threads, waiting up to timeout_s for each; what waits can still be taken."""
        self._stopping.set()
        connection = self._connection
        if connection is not None:
            connection.close()
        for thread in self._threads:
            thread.join(timeout_s)

    def take_candles(self, symbol: str, interval: str = "1m") -> list[Candle]:
        """The closed candles since the last call, in order, without gap or duplicate."""
        return self._rows.take_candles(symbol, interval)

    def take_funding(self, symbol: str) -> list[Funding]:
        """The settlements since the last call, in order, each once."""
        return self._rows.take_funding(symbol)

    def wait_for_rows(self, timeout_s: float) -> bool:
        """Whether candles or settlements wait to be taken, now or within timeout_s."""
        return self._rows.wait(timeout_s)

    def latest_book(self, symbol: str) -> Book | None:
        return self._latest.book(symbol)

    def latest_quote(self, symbol: str) -> Quote | None:
        return self._latest.quote(symbol)

    def mid(self, symbol: str) -> Mid | None:
        return self._latest.mid(symbol)

    def recent_trades(self, symbol: str, since_ms: int) -> list[Trade]:
        """Of the last trades_kept_ms, with time >= since_ms, by time, each once."""
        return self._latest.trades(symbol, since_ms)

    def trades_unbroken_since(self, symbol: str) -> int | None:
        """Since when (ms) no trade can have been missed; None while not subscribed. A sum over a window that began
        before is short of what was lost.
        """
        return self._latest.trades_unbroken_since(symbol)

    def ages(self, now_ms: int) -> dict[tuple[str, str], int]:
        """ms since each (feed, symbol) was last heard of. Feeds: l2Book, bbo, trades, allMids, candle:1m, funding.

        Without trades `trades` grows old; candles at most some seconds over their interval, funding over an hour.
        """
        return self._latest.ages(now_ms)

    def counters(self) -> dict[str, int]:
        """messages, connections, malformed, unexpected, refused, repeated_trades, failed_questions; of rows: live,
        backfilled (from before the start), repaired, funding, dropped; candles absent and late."""
        return self._latest.counters() | self._rows.counters()

    def _listen(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            began_s = self._monotonic_s()
            try:
                self._connection = Connection(self.ws_url, self._subscriptions, self.settings.connection,
                                              self._monotonic_s)
                self._latest.count("connections")
                self._hear_until_cut(self._connection)
            except ConnectionEnded as error:
                self.last_problem = str(error)
            self._rows.cut()
            self._latest.cut()
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            failures = 0 if self._monotonic_s() - began_s >= self.settings.steady_s else failures + 1
            self._stopping.wait(self._pause_s(max(0, failures - 1)))

    def _hear_until_cut(self, connection: Connection) -> None:
        while not self._stopping.is_set():
            text = connection.receive()
            if text is None or text == GREETING:
                continue
            try:
                message = orjson.loads(text)
                if message["channel"] == "subscriptionResponse":
                    self._acknowledged(connection, message["data"]["subscription"])
                else:
                    self._hear(message, self._now_ms())
            except (MalformedMessage, orjson.JSONDecodeError, KeyError, TypeError, AttributeError, IndexError) as error:
                self._latest.count("malformed")
                self.last_problem = f"malformed message: {type(error).__name__}: {error!s:.200}"
            self._latest.count("messages")  # last, so that who sees it counted sees what it brought

    def _acknowledged(self, connection: Connection, subscription: Any) -> None:
        connection.acknowledged(subscription)
        if subscription["type"] == "trades":
            self._latest.begin_trades(subscription["coin"], self._now_ms())

    def _hear(self, message: Any, received_ms: int) -> None:
        channel = message["channel"]
        if channel == "error":
            self._latest.count("refused")
            self.last_problem = f"refused by the venue: {message.get('data')!s:.200}"
        elif channel != "pong" and message["data"] != []:
            if ws_msg_to_identifier(message) in self._identifiers:
                self._take_in(channel, message["data"], received_ms)
            else:
                self._latest.count("unexpected")

    def _take_in(self, channel: str, wire: Any, received_ms: int) -> None:
        if channel == "candle":
            candle = events.candle(wire)
            self._rows.see(candle, wire["i"], received_ms)
            self._latest.touch(f"candle:{wire['i']}", candle.symbol, received_ms)
        elif channel == "trades":
            for one in wire:
                self._take_trade(one, received_ms)
        elif channel == "l2Book":
            self._latest.set_book(events.book(wire, received_ms))
        elif channel == "bbo":
            self._latest.set_quote(events.quote(wire, received_ms))
        elif channel == "allMids":
            self._latest.set_mids(events.mids(wire, received_ms))

    def _take_trade(self, wire: Any, received_ms: int) -> None:
        """One bad trade does not take its neighbours with it."""
        try:
            trade = events.trade(wire, received_ms)
        except MalformedMessage:
            self._latest.count("malformed")
            return
        self._latest.add_trade(trade)  # of a symbol that is not followed: counted, not kept

    def _fetch(self) -> None:
        failures: dict[Question, int] = {}
        not_before_s: dict[Question, float] = {}
        while not self._stopping.wait(self.settings.look_s):
            for asked in self._rows.missing(self._now_ms()):
                key = (asked.symbol, asked.interval)
                if self._stopping.is_set() or self._monotonic_s() < not_before_s.get(key, 0.0):
                    continue
                failures[key] = 0 if self._answer(asked) else failures.get(key, 0) + 1
                if failures[key]:
                    not_before_s[key] = self._monotonic_s() + self._pause_s(failures[key] - 1)

    def _answer(self, asked: Missing) -> bool:
        """Fetch what is asked for; whether that brought anything new."""
        try:
            if asked.interval is None:
                settled = self._rest.funding(asked.symbol, asked.start_ms, asked.stop_ms)
                news = self._rows.fetched_funding(asked, settled)
            else:
                answer = self._rest.candles(asked.symbol, asked.interval, asked.start_ms, asked.stop_ms)
                news = self._rows.fetched_candles(asked, answer.candles, self._now_ms())
        except HubError as error:
            self._latest.count("failed_questions")
            self.last_problem = str(error)
            return False
        if news:
            feed = "funding" if asked.interval is None else f"candle:{asked.interval}"
            self._latest.touch(feed, asked.symbol, self._now_ms())
        return news > 0

    def _pause_s(self, failures: int) -> float:
        return pause_s(failures, self.settings.first_pause_s, self.settings.longest_pause_s, self._rng)


def _check(symbols: tuple[str, ...], settings: LiveSettings, rest: HyperliquidRest, ws_url: str) -> None:
    for interval in settings.intervals:
        if interval not in INTERVALS_MS:
            raise InvalidInput("intervals", f"of {', '.join(INTERVALS_MS)}", interval)
    for symbol in symbols:
        if symbol not in rest.symbols:
            raise UnknownEntity("symbol", symbol, list(rest.symbols))
    if not ws_url.startswith(("ws://", "wss://")):
        raise InvalidInput("ws_url", "ws://... or wss://...", ws_url)


def _followers(symbols: tuple[str, ...], settings: LiveSettings, first_ms: int,
               whole: bool) -> dict[tuple[str, str], CandleFollower]:
    """whole: leave out a candle that began before first_ms; otherwise it is the first one."""

    def follower(interval_ms: int) -> CandleFollower:
        start_ms = first_ms if whole else first_ms // interval_ms * interval_ms
        return CandleFollower(interval_ms, start_ms, settings.settle_ms, settings.grace_ms, settings.absent_after_ms)

    return {(symbol, interval): follower(INTERVALS_MS[interval]) for symbol in symbols
            for interval in settings.intervals}


def _subscriptions(symbols: tuple[str, ...], intervals: tuple[str, ...]) -> list[Subscription]:
    out: list[Any] = [{"type": "allMids"}]
    out += [{"type": kind, "coin": symbol} for symbol in symbols for kind in BY_SYMBOL]
    return out + [{"type": "candle", "coin": symbol, "interval": interval} for symbol in symbols
                  for interval in intervals]
