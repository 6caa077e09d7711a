"""Candles and funding of a live run, complete and in order, between the threads that bring and the one that takes."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from feature_repo.feeds.candle_follower import CandleFollower
from feature_repo.feeds.events import Candle, Funding
from policies.errors import UnknownEntity

HOUR_MS = 3_600_000
MOST_WAITING = 20_000  # rows of one feed that nobody has taken; beyond it the oldest are dropped, and counted
Row = TypeVar("Row", Candle, Funding)


@dataclass(frozen=True)
class Missing:
    """What REST is to be asked for: rows with time in [start_ms, stop_ms). interval: of candles; None for funding."""

    symbol: str
    interval: str | None
    start_ms: int
    stop_ms: int


class CompleteRows:
    """Thread-safe; knows no network. Rows wait here until they are taken.

    followers: by (symbol, interval). funding_from_ms: time of the first settlement wanted. funding_grace_ms: after an
    hour has begun, until its settlement is missed; funding is settled each hour, some ms late.
    """

    def __init__(self, followers: dict[tuple[str, str], CandleFollower], funding_from_ms: dict[str, int],
                 funding_grace_ms: int, began_ms: int) -> None:
        self._followers, self._funding_from_ms = followers, dict(funding_from_ms)
        self._funding_grace_ms, self._began_ms = funding_grace_ms, began_ms
        self._candles: dict[tuple[str, str], deque[Candle]] = {key: deque() for key in followers}
        self._funding: dict[str, deque[Funding]] = {symbol: deque() for symbol in funding_from_ms}
        self._counts: Counter[str] = Counter()
        self._changed = threading.Condition()

    def see(self, candle: Candle, interval: str, now_ms: int) -> None:
        """A state of a candle from the stream."""
        with self._changed:
            self._followers[candle.symbol, interval].see(candle, now_ms)
            self._hand_out_ready(now_ms)

    def cut(self) -> None:
        """The stream ended."""
        with self._changed:
            for follower in self._followers.values():
                follower.cut()

    def missing(self, now_ms: int) -> list[Missing]:
        """Hand out what the stream has completed until now, and say what must be fetched."""
        with self._changed:
            self._hand_out_ready(now_ms)
            out = [Missing(symbol, interval, *span) for (symbol, interval), follower in self._followers.items()
                   if (span := follower.missing(now_ms)) is not None]
            settled_ms = (now_ms - self._funding_grace_ms) // HOUR_MS * HOUR_MS
            return out + [Missing(symbol, None, from_ms, now_ms + 1)
                          for symbol, from_ms in self._funding_from_ms.items() if settled_ms >= from_ms]

    def fetched_candles(self, asked: Missing, candles: Sequence[Candle], now_ms: int) -> int:
        """How many of the answer's rows were news."""
        assert asked.interval is not None
        with self._changed:
            key = (asked.symbol, asked.interval)
            out = self._followers[key].fetched(asked.start_ms, candles, now_ms)
            before = sum(candle.close_time_ms <= self._began_ms for candle in out)
            self._counts["backfilled_rows"] += before
            self._counts["repaired_rows"] += len(out) - before
            self._add(self._candles[key], out)
            self._hand_out_ready(now_ms)
            return len(out)

    def fetched_funding(self, asked: Missing, rows: Sequence[Funding]) -> int:
        """How many of the answer's rows were news."""
        with self._changed:
            news = [row for row in rows if row.time_ms >= self._funding_from_ms[asked.symbol]]
            if news:
                self._funding_from_ms[asked.symbol] = news[-1].time_ms + 1
            self._counts["funding_rows"] += len(news)
            self._add(self._funding[asked.symbol], news)
            return len(news)

    def take_candles(self, symbol: str, interval: str) -> list[Candle]:
        with self._changed:
            if (symbol, interval) not in self._candles:
                raise UnknownEntity("candles of", f"{symbol} {interval}", [" ".join(key) for key in self._candles])
            return _emptied(self._candles[symbol, interval])

    def take_funding(self, symbol: str) -> list[Funding]:
        with self._changed:
            if symbol not in self._funding:
                raise UnknownEntity("symbol", symbol, list(self._funding))
            return _emptied(self._funding[symbol])

    def wait(self, timeout_s: float) -> bool:
        """Whether rows wait to be taken, now or within timeout_s."""
        with self._changed:
            return self._changed.wait_for(lambda: any((*self._candles.values(), *self._funding.values())), timeout_s)

    def counters(self) -> dict[str, int]:
        with self._changed:
            followers = self._followers.values()
            return dict(self._counts, absent_candles=sum(one.absent for one in followers),
                        late_candles=sum(one.late for one in followers))

    def _hand_out_ready(self, now_ms: int) -> None:
        for key, follower in self._followers.items():
            out = follower.ready(now_ms)
            self._counts["live_rows"] += len(out)
            self._add(self._candles[key], out)

    def _add(self, waiting: deque[Row], rows: Sequence[Row]) -> None:
        waiting.extend(rows)
        while len(waiting) > MOST_WAITING:
            waiting.popleft()
            self._counts["dropped_rows"] += 1
        if rows:
            self._changed.notify_all()


def _emptied(waiting: deque[Row]) -> list[Row]:
    rows = list(waiting)
    waiting.clear()
    return rows
