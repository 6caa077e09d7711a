"""Where rows of feature groups come from: one protocol, and its forms over bars and over recorded feeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from feature_repo.array_frames import WindowFrame
from feature_repo.features import ARRAYS, GROUPS, MINUTE_MS, WINDOW
from feature_repo.feeds.recorded import RecordedFeeds
from feature_repo.frames import GroupFrame
from feature_repo.market import Market
from feature_repo.transforms import BAR_GROUPS, LOOKBACK_BARS, bar_frames, window_frame


class FrameSource(Protocol):
    """Where rows come from: bars, recorded feeds, the live exchange, what the bot pushes."""

    def frames(self, symbol: str, start_ms: int, stop_ms: int) -> dict[str, GroupFrame]:
        """By group, the rows that became known in [start_ms, stop_ms] and those that were still fresh at start_ms.

        A group without any may be left out.
        """
        ...


class WindowSource(Protocol):
    """Where windows of bars come from: recorded bars, or the live exchange."""

    def windows(self, symbol: str, start_ms: int, stop_ms: int) -> WindowFrame:
        """Those that became known in [start_ms, stop_ms] or were still fresh at start_ms; live, the newest alone."""
        ...


class BarSource:
    """The groups that one-minute bars are the source of."""

    def __init__(self, market: Market) -> None:
        self._market = market

    def frames(self, symbol: str, start_ms: int, stop_ms: int) -> dict[str, GroupFrame]:
        reach_ms = max(GROUPS[group].ttl_ms for group in BAR_GROUPS) + LOOKBACK_BARS * MINUTE_MS
        found = bar_frames(self._market.bars(symbol, start_ms - reach_ms, stop_ms))
        return {group: frame.reaching(start_ms, stop_ms) for group, frame in found.items()}

    def windows(self, symbol: str, start_ms: int, stop_ms: int) -> WindowFrame:
        reach_ms = ARRAYS[WINDOW].ttl_ms + LOOKBACK_BARS * MINUTE_MS
        bars = self._market.bars(symbol, start_ms - reach_ms, stop_ms)
        return window_frame(bars).reaching(start_ms, stop_ms)


class RecordedSource:
    """Books, quotes, trades, sentiment and older funding of a folder."""

    def __init__(self, feeds: RecordedFeeds) -> None:
        self._feeds = feeds

    def frames(self, symbol: str, start_ms: int, stop_ms: int) -> dict[str, GroupFrame]:
        return {group: frame.reaching(start_ms, stop_ms) for group, frame in self._feeds.frames(symbol).items()}


def sources_of(market: Market) -> list[FrameSource]:
    """Everything that features of a market are made of, the bars first."""
    sources: list[FrameSource] = [BarSource(market)]
    if market.folder is not None:
        sources.append(RecordedSource(RecordedFeeds(market.folder)))
    return sources


def gathered(sources: Sequence[FrameSource], symbol: str, start_ms: int, stop_ms: int) -> dict[str, GroupFrame]:
    """Rows of all sources by group. Of a group that several have, the first that has any row is taken."""
    found: dict[str, GroupFrame] = {}
    for source in sources:
        for group, frame in source.frames(symbol, start_ms, stop_ms).items():
            if group not in found or not len(found[group]):
                found[group] = frame
    return found
