"""Sentiment that the bot has pushed, read from the ledger, where it was acknowledged; the stores follow."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from feature_repo.features import SCORED_SOURCES
from feature_repo.frames import GroupFrame
from policies.errors import HubError
from policies.rows import Row
from sentry.ledger import LedgerReader


class LedgerScores:
    """A source of frames. A score is known from the moment at which it was recorded, whenever it was made.

    Of several that were recorded at the same moment the last one counts.
    """

    def __init__(self, ledger: Path) -> None:
        self._path = ledger
        self._reader: LedgerReader | None = None
        self._position = 0
        self._rows: dict[tuple[str, str], dict[int, tuple[float, float]]] = {}

    def catch_up(self) -> set[tuple[str, str]]:
        """Take in what was recorded since; returns the (symbol, group) that have new rows."""
        changed = set()
        for row in self._new_rows():
            self._position = row.position
            if row.body["what"] == "sentiment":
                detail = row.body["detail"]
                key = (detail["symbol"], detail["source"])
                self._rows.setdefault(key, {})[row.at_ms] = (detail["score"], detail["confidence"])
                changed.add(key)
        return changed

    def frame(self, symbol: str, group: str) -> GroupFrame:
        rows = self._rows.get((symbol, group), {})
        if not rows:
            return GroupFrame.empty(group)
        times = sorted(rows)
        return GroupFrame(group, np.array(times, np.int64), np.array([rows[time] for time in times], np.float64))

    def frames(self, symbol: str, start_ms: int, stop_ms: int) -> dict[str, GroupFrame]:
        return {group: self.frame(symbol, group).reaching(start_ms, stop_ms) for group in SCORED_SOURCES}

    def _new_rows(self) -> list[Row]:
        if self._reader is None:
            try:
                self._reader = LedgerReader(self._path)
            except HubError:  # the ledger's writer has not made it yet
                return []
        return list(self._reader.rows(self._position, kinds={"observation"}))
