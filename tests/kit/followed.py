"""A live feed of the test server, and everything that it has handed out."""

from __future__ import annotations

from hyperliquid_server import HyperliquidServer
from waiting import eventually

from feature_repo.feeds import events
from feature_repo.feeds.events import Candle, Funding
from feature_repo.feeds.hyperliquid_live import HyperliquidLive


class Followed:
    """take() gathers what has come; check() compares it with what the server held."""

    def __init__(self, server: HyperliquidServer, live: HyperliquidLive) -> None:
        self.server, self.live = server, live
        self.candles: dict[tuple[str, str], list[Candle]] = {}
        self.funding: dict[str, list[Funding]] = {}

    def take(self) -> Followed:
        for symbol in self.live.symbols:
            for interval in self.live.settings.intervals:
                self.candles.setdefault((symbol, interval), []).extend(self.live.take_candles(symbol, interval))
            self.funding.setdefault(symbol, []).extend(self.live.take_funding(symbol))
        return self

    def candles_until(self, stop_ms: int) -> bool:
        """Whether all candles that close until stop_ms have been handed out."""
        self.take()
        return all(rows and rows[-1].close_time_ms + rows[-1].interval_ms > stop_ms for rows in self.candles.values())

    def connected(self) -> bool:
        wanted = len(self.live.symbols) * (3 + len(self.live.settings.intervals)) + 1
        return len(self.server.subscribed()) == wanted

    def past_close(self, close_ms: int) -> None:
        """To where the candles of a standing connection have settled, but REST would not be asked yet."""
        self.server.advance(close_ms + 100)
        self.read_all()
        self.server.advance(close_ms + 700)

    def read_all(self) -> None:
        """Wait until what was sent has been read, or its connection is gone."""
        made, seen = self.server.connections, self.live.counters().get("unexpected", 0)
        if self.server.subscribed():
            self.server.send_text('{"channel": "the end", "data": 1}')
            eventually(lambda: self.live.counters().get("unexpected", 0) > seen or self.server.connections > made
                       or not self.server.subscribed(), "everything that was sent")

    def check(self, from_ms: int) -> None:
        """What was handed out is what the server held, each row once and in order."""
        for (symbol, interval), rows in self.candles.items():
            held = [events.candle(row) for row in self.server.final_candles(symbol, interval) if row["t"] >= from_ms]
            assert rows == held[:len(rows)]
        for symbol, settled in self.funding.items():
            due = [events.funding(row) for row in self.server.funding[symbol]
                   if from_ms <= row["time"] <= self.server.now_ms]
            assert settled == due[:len(settled)]
