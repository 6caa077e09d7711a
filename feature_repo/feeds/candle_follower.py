"""Which candle is handed out next, and which must be fetched first, so that a live run has no gap and no duplicate."""

from __future__ import annotations

from collections.abc import Sequence

from feature_repo.feeds.events import Candle

MOST_HELD = 1_000  # states of candles that wait for older ones; beyond it the oldest are dropped and fetched instead


class CandleFollower:
    """The closed candles of one symbol and interval, in order, each once, from a live stream and a history.

    The stream repeats the whole state of a candle until it closes and never says that it has. A candle is taken from
    the stream if its state came over the present connection and, settle_ms ago, a newer candle was seen: a state may
    come late or out of order. All others are missing(): fetch them and give the answer to fetched(). Nothing newer is
    handed out before.

    first_ms: open time of the first candle wanted. grace_ms: how long after its close a candle is waited for, and
    the history is given to settle. absent_after_ms: a candle that the history still lacks so long after its close,
    though a newer one has been seen, never was. Times are ms. Not thread-safe.
    """

    def __init__(self, interval_ms: int, first_ms: int, settle_ms: int = 500, grace_ms: int = 2_000,
                 absent_after_ms: int = 120_000) -> None:
        self._interval_ms, self._settle_ms = interval_ms, settle_ms
        self._grace_ms, self._absent_after_ms = grace_ms, absent_after_ms
        self.next_ms = -(-first_ms // interval_ms) * interval_ms  # open time of the next candle to hand out
        self._states: dict[int, Candle] = {}
        self._newest_ms = -1  # open time of the newest candle seen on any connection
        self._newest_since_ms = 0  # when it was first seen
        self._last: Candle | None = None
        self.absent = 0  # candles that the venue does not have
        self.late = 0  # states that came after their candle had been handed out, and held more trades

    def see(self, candle: Candle, now_ms: int) -> None:
        """A state from the stream. The one with the most trades is the latest, whatever the order they came in."""
        if candle.open_time_ms > self._newest_ms:
            self._newest_ms, self._newest_since_ms = candle.open_time_ms, now_ms
        if candle.open_time_ms < self.next_ms:
            last = self._last
            self.late += (last is not None and candle.open_time_ms == last.open_time_ms and candle.trades > last.trades)
            return
        held = self._states.get(candle.open_time_ms)
        if held is None or candle.trades >= held.trades:
            self._states[candle.open_time_ms] = candle
        if len(self._states) > MOST_HELD:
            del self._states[min(self._states)]

    def cut(self) -> None:
        """The connection ended: what it last said of an open candle may not be that candle's end."""
        self._states.clear()

    def ready(self, now_ms: int) -> list[Candle]:
        """Hand out what the stream has completed."""
        out: list[Candle] = []
        # While the newest one is young, the one before may still change; all older ones have long been settled.
        settled_ms = self._newest_ms - (self._interval_ms if now_ms < self._newest_since_ms + self._settle_ms else 0)
        while self.next_ms < settled_ms and (state := self._states.get(self.next_ms)) is not None:
            out.append(state)
            self._hand_out(state)
        return out

    def missing(self, now_ms: int) -> tuple[int, int] | None:
        """[start, stop) of open times to fetch now: closed grace_ms ago, not handed out. None if there are none."""
        stop_ms = (now_ms - self._grace_ms) // self._interval_ms * self._interval_ms
        return (self.next_ms, stop_ms) if stop_ms > self.next_ms else None

    def fetched(self, asked_from_ms: int, candles: Sequence[Candle], now_ms: int) -> list[Candle]:
        """Hand out the history's answer to missing(), by open time. What it lacks before its last one never was."""
        out = [candle for candle in candles if candle.open_time_ms >= self.next_ms]
        for candle in out:
            self._hand_out(candle)
        overdue = now_ms >= self.next_ms + self._interval_ms + self._absent_after_ms
        if not out and asked_from_ms == self.next_ms and overdue and self._newest_ms > self.next_ms:
            self._skip_to(min((time_ms for time_ms in self._states if time_ms > self.next_ms), default=self._newest_ms))
        return out

    def _hand_out(self, candle: Candle) -> None:
        self._skip_to(candle.open_time_ms)
        self._last, self.next_ms = candle, candle.close_time_ms
        for time_ms in [time_ms for time_ms in self._states if time_ms < self.next_ms]:
            del self._states[time_ms]

    def _skip_to(self, open_time_ms: int) -> None:
        self.absent += (open_time_ms - self.next_ms) // self._interval_ms
        self.next_ms = open_time_ms
