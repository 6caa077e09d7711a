"""Fills the offline store from a market's whole history, month by month, and goes on where it was interrupted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from feature_repo.features import BARS, DECISION_V1, GROUPS, HOUR_MS, MINUTE_MS
from feature_repo.frames import GroupFrame, assemble
from feature_repo.market import Market
from feature_repo.sources import FrameSource, gathered
from feature_repo.statistics import FeatureStatistics
from feature_repo.store import FeatureRepo
from feature_repo.transforms import BAR_GROUPS

CHUNK_MS = 30 * 24 * HOUR_MS


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
        """Add what the store does not hold; one step per month of bars. created_ms: the clock's now.

        Feeds without bars beside them (books were recorded in other months) are added whole in the first step.
        """
        bars = self._market.bars(symbol)
        start_ms, stop_ms = int(bars.close_time_ms[0]), int(bars.close_time_ms[-1])
        added = self._append(symbol, self._beside_bars(symbol, created_ms), created_ms)
        held_ms = self._repo.offline.newest_ms(BARS, symbol)
        # What another market left behind lies elsewhere in time: its newest row says nothing of this one.
        since_ms = start_ms if held_ms is None or not start_ms <= held_ms <= stop_ms else held_ms + 1
        for first_ms in range(since_ms, stop_ms + 1, CHUNK_MS):
            last_ms = min(first_ms + CHUNK_MS - 1, stop_ms)
            frames = gathered(self._sources, symbol, first_ms, last_ms)
            added += self._append(symbol, {group: frames[group] for group in BAR_GROUPS}, created_ms)
            self._count(symbol, frames, first_ms)
            yield Filled(symbol, last_ms, added, (last_ms - start_ms) / max(stop_ms - start_ms, 1))
            added = 0
        if since_ms > stop_ms or added:
            yield Filled(symbol, stop_ms, added, 1.0)

    def _beside_bars(self, symbol: str, until_ms: int) -> dict[str, GroupFrame]:
        frames = gathered(self._sources[1:], symbol, 0, until_ms)
        return {group: frame for group, frame in frames.items() if group in GROUPS}

    def _append(self, symbol: str, frames: dict[str, GroupFrame], created_ms: int) -> int:
        return sum(self._repo.append(symbol, frame, created_ms) for frame in frames.values() if len(frame))

    def _count(self, symbol: str, frames: dict[str, GroupFrame], first_ms: int) -> None:
        times = frames[BARS].event_time_ms
        times = times[np.searchsorted(times, first_ms - MINUTE_MS):]
        if self._statistics is not None and len(times):
            self._statistics.record(symbol, times, assemble(DECISION_V1, frames, times))
