"""Puts each bar's features into the online store when the clock reaches the bar's close, and never before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from feature_repo.features import MINUTE_MS
from feature_repo.market import Market
from feature_repo.store import FeatureRepo, OnlineRow
from feature_repo.transforms import LOOKBACK_BARS, FeatureFrame, compute_features


@dataclass(frozen=True)
class Fed:
    """rows_written: symbols whose vector was written. event_time_ms: by symbol, of what the online store holds now."""

    rows_written: int
    event_time_ms: dict[str, int]


class BarFeeder:
    """The only writer of the online store. Replay: prepare() once, then advance(); live: poll().

    It trusts the store's own event times rather than its memory, so a Redis that was restarted, flushed or put back
    is filled again by the next call.
    """

    def __init__(self, market: Market, repo: FeatureRepo, symbols: Sequence[str]) -> None:
        self._market, self._repo, self.symbols = market, repo, tuple(symbols)
        self._frames: dict[str, FeatureFrame] = {}
        self._written_ms: dict[str, int] = {}

    def prepare(self, start_ms: int, stop_ms: int) -> dict[str, FeatureFrame]:
        """Compute the features of bars that close in [start_ms, stop_ms], for advance(); returned by symbol."""
        frames = {}
        for symbol in self.symbols:
            bars = self._market.bars(symbol, start_ms - LOOKBACK_BARS * MINUTE_MS, stop_ms)
            frame = compute_features(bars)
            first, end = (int(np.searchsorted(frame.event_time_ms, start_ms, "left")),
                          int(np.searchsorted(frame.event_time_ms, stop_ms, "right")))
            frames[symbol] = frame.slice(first, end)
        self._frames, self._written_ms = frames, {}
        return dict(frames)

    def advance(self, now_ms: int) -> Fed:
        """Make the online store hold, of each symbol, the newest row whose bar had closed at now_ms.

        A symbol without such a row is left alone. FeaturesUnavailable if Redis is away; call again when it is back.
        """
        rows = [row for symbol in self.symbols if (row := self._row_at(symbol, now_ms)) is not None]
        if not rows:
            return Fed(0, {})
        held = self._repo.online_event_times([row.symbol for row in rows])
        groups = self._repo.features.groups
        due = [row for row in rows if self._written_ms.get(row.symbol) != row.event_time_ms
               or held[row.symbol] != dict.fromkeys(groups, row.event_time_ms)]
        if due:
            self._repo.write_online(due)
            self._written_ms.update((row.symbol, row.event_time_ms) for row in due)
        return Fed(len(due), {row.symbol: row.event_time_ms for row in rows})

    def poll(self, now_ms: int) -> Fed:
        """Fetch the last closed bars of every symbol, compute their newest rows and advance to now_ms.

        Everything is fetched, computed and written again each time: an exchange may correct its latest bars.
        """
        for symbol in self.symbols:
            bars = self._market.bars(symbol, now_ms - (LOOKBACK_BARS + 3) * MINUTE_MS, now_ms)
            self._frames[symbol] = compute_features(bars)
        self._written_ms = {}
        return self.advance(now_ms)

    def _row_at(self, symbol: str, now_ms: int) -> OnlineRow | None:
        frame = self._frames.get(symbol)
        place = -1 if frame is None else int(np.searchsorted(frame.event_time_ms, now_ms, "right")) - 1
        if frame is None or place < 0:
            return None
        return OnlineRow(symbol, int(frame.event_time_ms[place]), tuple(frame.values[place].tolist()))
