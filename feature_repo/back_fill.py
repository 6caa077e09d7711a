"""Fills the offline store from a market's whole history, month by month, and goes on where it was interrupted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from feature_repo.features import BARS, DECISION_V1, HOUR_MS, MINUTE_MS
from feature_repo.frames import GroupFrame, assemble
from feature_repo.market import Market
from feature_repo.sources import FrameSource, gathered
from feature_repo.statistics import FeatureStatistics
from feature_repo.store import FeatureRepo
from feature_repo.transforms import BAR_GROUPS, LOOKBACK_BARS, bar_event_times
from policies.bars import Bars

CHUNK_MS = 30 * 24 * HOUR_MS
Chunk = tuple[int, int]  # first and last event time


@dataclass(frozen=True)
class Filled:
    """One step: what was known of a symbol until until_ms is in the store. added: rows that it did not hold before.

    share: of the symbol's history that is done, 0..1.
    """

    symbol: str
    until_ms: int
    added: int
    share: float


class BackFill:
    """sources: the bars' first. statistics: counts the vectors of every bar, if given."""

    def __init__(self, market: Market, sources: Sequence[FrameSource], repo: FeatureRepo,
                 statistics: FeatureStatistics | None = None) -> None:
        self._market, self._sources, self._repo, self._statistics = market, tuple(sources), repo, statistics

    def run(self, symbol: str, created_ms: int) -> Iterator[Filled]:
        """Add what the store does not hold; one step per month of bars. created_ms: wall clock, when it was written.

        What is missing is told by the event times that the store holds, group by group, so a hole that an outage or an
        interrupted run has left is filled, too. Feeds without bars beside them are added whole in the first step.
        """
        bars = self._market.bars(symbol)
        if not len(bars):
            return
        start_ms, stop_ms = int(bars.close_time_ms[0]), int(bars.close_time_ms[-1])
        added = self._append(symbol, gathered(self._sources[1:], symbol, 0, created_ms), created_ms)
        chunks = [(first_ms, min(first_ms + CHUNK_MS - 1, stop_ms))
                  for first_ms in range(start_ms, stop_ms + 1, CHUNK_MS)]
        lacking = {chunk for chunk in chunks if self._lacks(symbol, bars, *chunk)}
        uncounted = self._uncounted(symbol, chunks, lacking)
        for first_ms, last_ms in (chunk for chunk in chunks if chunk in lacking | uncounted):
            frames = gathered(self._sources, symbol, first_ms, last_ms)
            added += self._append(symbol, {group: frames[group] for group in BAR_GROUPS}, created_ms)
            if (first_ms, last_ms) in uncounted:
                self._count(symbol, frames, first_ms)
            yield Filled(symbol, last_ms, added, (last_ms - start_ms) / max(stop_ms - start_ms, 1))
            added = 0
        if added or not lacking | uncounted:
            yield Filled(symbol, stop_ms, added, 1.0)

    def _lacks(self, symbol: str, bars: Bars, first_ms: int, last_ms: int) -> bool:
        """Whether the store lacks a row that these bars give in [first_ms, last_ms]."""
        reach_ms = LOOKBACK_BARS * MINUTE_MS
        expected = bar_event_times(bars.between(first_ms - reach_ms, last_ms))
        offline = self._repo.offline
        return any(len(np.setdiff1d(times[(times >= first_ms) & (times <= last_ms)],
                                    offline.event_times(group, symbol, first_ms, last_ms)))
                   for group, times in expected.items())

    def _uncounted(self, symbol: str, chunks: Sequence[Chunk], lacking: set[Chunk]) -> set[Chunk]:
        """Chunks whose vectors must be counted. Counting goes forward only: if a hole is filled, it is done anew."""
        if self._statistics is None:
            return set()
        counted_ms = self._statistics.counted_until_ms(symbol)
        if counted_ms is not None and any(first_ms <= counted_ms for first_ms, _ in lacking):
            self._statistics.forget(symbol)
            counted_ms = None
        return {chunk for chunk in chunks if counted_ms is None or chunk[1] // MINUTE_MS * MINUTE_MS > counted_ms}

    def _append(self, symbol: str, frames: dict[str, GroupFrame], created_ms: int) -> int:
        return sum(self._repo.append(symbol, frame, created_ms) for frame in frames.values() if len(frame))

    def _count(self, symbol: str, frames: dict[str, GroupFrame], first_ms: int) -> None:
        times = frames[BARS].event_time_ms
        times = times[np.searchsorted(times, first_ms):]
        if self._statistics is not None and len(times):
            self._statistics.record(symbol, times, assemble(DECISION_V1, frames, times))
