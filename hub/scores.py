"""Sentiment that the bot has pushed: the ledger is where it was acknowledged, decisions and stores follow."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from feature_repo.features import DECISION_V1, GROUPS, HOUR_MS, SCORED_SOURCES
from feature_repo.frames import GroupFrame
from hub.decide import Features
from hub.recorded_scores import SENTIMENT, RecordedScore, score_of
from policies.errors import HubError
from policies.rows import Row
from sentry.ledger import LedgerReader

KEPT_MS = 24 * HOUR_MS  # of rows in memory: more than any stretch of time that a feeder prepares, and a ttl


def with_scores(features: Features, scores: Mapping[tuple[str, str], RecordedScore], symbol: str,
                now_ms: int) -> Features:
    """The features with every score that was recorded after the one that the online store held.

    So an acknowledged score is seen even where it has not reached the store yet.
    """
    if features.values is None:
        return features
    values, times = list(features.values), dict(features.event_time_ms)
    for group in SCORED_SOURCES:
        newest = scores.get((symbol, group))
        if newest is None or not times.get(group, -1) < newest.known_ms <= now_ms:
            continue
        times[group] = newest.known_ms
        fresh = now_ms - newest.known_ms <= GROUPS[group].ttl_ms
        for place, value in zip(DECISION_V1.places[group], (newest.score, newest.confidence), strict=True):
            values[place] = value if fresh else np.nan
        values[DECISION_V1.indicators[group]] = float(not fresh)
    episode = features.episode
    if episode is not None:
        by_name = dict(zip(DECISION_V1.names, values, strict=True))
        episode = {name: by_name[name] if name in _SCORED else value for name, value in episode.items()}
    return replace(features, values=tuple(values), event_time_ms=times, episode=episode)


_SCORED = frozenset(name for group in SCORED_SOURCES for name in GROUPS[group].names)


class LedgerScores:
    """A source of frames. A score is known from the moment at which it was recorded, whenever it was made.

    Of two of a source and symbol the later made one counts, and of several recorded at one moment the last. symbols:
    those of the feeder; a ledger may know others.
    """

    def __init__(self, ledger: Path, symbols: Collection[str]) -> None:
        self._path, self._symbols = ledger, frozenset(symbols)
        self._reader: LedgerReader | None = None
        self._position = 0
        self._rows: dict[tuple[str, str], dict[int, RecordedScore]] = {}
        self._newest: dict[tuple[str, str], RecordedScore] = {}

    def catch_up(self) -> dict[tuple[str, str], GroupFrame]:
        """Take in what was recorded since; returns the new rows, by symbol and group."""
        news: dict[tuple[str, str], dict[int, RecordedScore]] = {}
        for row in self._new_rows():
            self._position = row.position
            detail = row.body["detail"]
            if row.body["what"] != SENTIMENT or detail["symbol"] not in self._symbols:
                continue
            key, score = (detail["symbol"], detail["source"]), score_of(row)
            held = self._newest.get(key)
            if held is None or score.made_ms >= held.made_ms:
                self._newest[key] = score
                news.setdefault(key, {})[score.known_ms] = score
        for key, rows in news.items():
            kept = {**self._rows.get(key, {}), **rows}
            self._rows[key] = {time: score for time, score in kept.items() if time >= max(kept) - KEPT_MS}
        return {(symbol, group): _frame(group, rows) for (symbol, group), rows in news.items()}

    def frame(self, symbol: str, group: str) -> GroupFrame:
        """The rows of the last day."""
        return _frame(group, self._rows.get((symbol, group), {}))

    def frames(self, symbol: str, start_ms: int, stop_ms: int) -> dict[str, GroupFrame]:
        return {group: self.frame(symbol, group).reaching(start_ms, stop_ms) for group in SCORED_SOURCES}

    def _new_rows(self) -> list[Row]:
        if self._reader is None:
            try:
                self._reader = LedgerReader(self._path)
            except HubError:  # the ledger's writer has not made it yet
                return []
        return list(self._reader.rows(self._position, kinds={"observation"}))


def _frame(group: str, rows: Mapping[int, RecordedScore]) -> GroupFrame:
    times = sorted(rows)
    values = [(rows[time].score, rows[time].confidence) for time in times]
    return GroupFrame(group, np.array(times, np.int64), np.array(values, np.float64).reshape(len(times), 2))
