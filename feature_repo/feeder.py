"""Brings what is known of every group into the online store when the clock reaches it, never before, and offline."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from feature_repo.array_feed import ArrayFeed, WindowEmbedder
from feature_repo.array_frames import embedding_frames
from feature_repo.features import MINUTE_MS
from feature_repo.frames import GroupFrame
from feature_repo.sources import FrameSource, gathered
from feature_repo.store import FeatureRepo, OnlineRow


@dataclass(frozen=True)
class Fed:
    """rows_written: online, of a group and a symbol each. lost: whether the online store held nothing any more; then
    it now holds what is held here, and `restore` brings back the rest."""

    rows_written: int
    lost: bool = False


class Feeder:
    """The only writer of the stores. Replay: prepare() once per stretch of time, then advance(); live: poll().

    It trusts the online store's own event times rather than its memory: a store that has lost something (Redis was
    restarted or flushed) gets it again from what is held here, and the rest from the offline store.
    arrays: windows and embeddings, written beside the features; None: none are.
    """

    def __init__(self, sources: Sequence[FrameSource], repo: FeatureRepo, symbols: Sequence[str],
                 arrays: ArrayFeed | None = None) -> None:
        self._sources, self._repo, self.symbols, self._arrays = tuple(sources), repo, tuple(symbols), arrays
        self._frames: dict[tuple[str, str], GroupFrame] = {}
        self._written: dict[tuple[str, str], int] = {}
        self._lock = threading.Lock()

    def prepare(self, start_ms: int, stop_ms: int) -> dict[tuple[str, str], GroupFrame]:
        """Hold what becomes known in [start_ms, stop_ms], and what is still fresh at start_ms; by symbol and group."""
        frames = self.known(start_ms, stop_ms)
        with self._lock:
            self._frames, self._written = frames, {}
            if self._arrays is not None:
                self._arrays.hold(start_ms, stop_ms)
        return dict(frames)

    def advance(self, now_ms: int) -> Fed:
        """Make the online store hold the newest row of every group that was known at now_ms.

        A group without such a row is left alone. FeaturesUnavailable if Redis is away; call again when it is back.
        """
        with self._lock:
            held = self._repo.online_event_times(self.symbols)
            lost = bool(self._written) and not any(held.values())
            rows = [row for key in self._frames if (row := self._row_at(key, now_ms)) is not None]
            due = [row for row in rows if held[row.symbol].get(row.group) != row.event_time_ms
                   or self._written.get((row.symbol, row.group)) != row.event_time_ms]
            self._repo.write_online(due)
            self._written.update(((row.symbol, row.group), row.event_time_ms) for row in due)
            return Fed(len(due) + self._advance_arrays(now_ms, held), lost)

    def poll(self, now_ms: int) -> Fed:
        """Read the last minutes of every source again, since an exchange may correct them, and advance to now_ms."""
        frames = self.known(now_ms - 3 * MINUTE_MS, now_ms)
        with self._lock:
            for key, frame in frames.items():
                if not frame.equals(self._frames.get(key)):
                    self._written.pop(key, None)
            self._frames |= frames
            if self._arrays is not None:
                self._arrays.hold(now_ms - 3 * MINUTE_MS, now_ms)
        return self.advance(now_ms)

    def put(self, symbol: str, frame: GroupFrame) -> None:
        """Take in rows of a group at once, for the next advance, before its source is read again."""
        with self._lock:
            self._frames[symbol, frame.group] = frame
            self._written.pop((symbol, frame.group), None)

    def use_embedder(self, embedder: WindowEmbedder | None) -> None:
        """Embed by this one from the next advance on, the present windows included. None: by none."""
        with self._lock:
            if self._arrays is not None:
                self._arrays.use(embedder)

    @property
    def embedding_problem(self) -> str:
        """Why the newest windows could not be embedded, for people; empty if they were."""
        return "" if self._arrays is None else self._arrays.problem

    def restore(self, now_ms: int) -> int:
        """Bring back from the offline store what was known at now_ms; returns how many rows.

        It may run beside advance: a row that this puts back by a moment is written again by the next advance.
        """
        return self._repo.materialize(now_ms)

    def keep(self, frames: Mapping[tuple[str, str], GroupFrame], created_ms: int) -> int:
        """Add rows, by symbol and group, to the offline store; returns how many were new."""
        return sum(self._repo.append(symbol, frame, created_ms) for (symbol, _), frame in frames.items() if len(frame))

    def keep_embeddings(self, created_ms: int) -> int:
        """Add the embeddings that were made since the last time to the offline store; returns how many were new.

        Those of a moment that nobody looked at are not made here: a back-fill adds them.
        """
        with self._lock:
            made = [] if self._arrays is None else self._arrays.take_embedded()
        return sum(self._repo.append_market_embeddings(frame, created_ms) for frame in embedding_frames(made))

    def known(self, start_ms: int, stop_ms: int) -> dict[tuple[str, str], GroupFrame]:
        """What the sources have of [start_ms, stop_ms], and what was still fresh at start_ms; by symbol and group."""
        return {(symbol, group): frame for symbol in self.symbols
                for group, frame in gathered(self._sources, symbol, start_ms, stop_ms).items()}

    def _advance_arrays(self, now_ms: int, held: Mapping[str, Mapping[str, int]]) -> int:
        if self._arrays is None:
            return 0
        due = self._arrays.due(now_ms, held)
        self._repo.write_arrays(due)
        self._arrays.wrote(due)
        return len(due)

    def _row_at(self, key: tuple[str, str], now_ms: int) -> OnlineRow | None:
        frame = self._frames[key]
        place = frame.until(now_ms) - 1
        if place < 0:
            return None
        return OnlineRow(*key, int(frame.event_time_ms[place]), tuple(frame.values[place].tolist()))
