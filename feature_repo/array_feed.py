"""What the online store must hold of the array groups now: each symbol's newest window, and its embedding.

Windows are cut out of bars when they are written, and embedded then, so a stretch of hours that a replay prepares costs
neither their 600 numbers a bar nor an embedding of moments that nobody asks for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from feature_repo.array_frames import OnlineArray, WindowFrame
from feature_repo.features import MARKET_EMBEDDING, WINDOW
from feature_repo.sources import WindowSource
from policies.errors import HubError

Held = Mapping[str, Mapping[str, int]]  # {symbol: {group: event time in ms}}
MOST_UNKEPT = 10_000  # embeddings that wait to be kept offline; a feeder that cannot write must not grow


class WindowEmbedder(Protocol):
    """`policies.embedder.Embedder`."""

    @property
    def version(self) -> str: ...

    @property
    def window(self) -> int: ...

    def embed(self, windows: NDArray[np.float32]) -> NDArray[np.float32]: ...


class ArrayFeed:
    """Belongs to one feeder, which calls it under its own lock."""

    def __init__(self, source: WindowSource, symbols: Sequence[str]) -> None:
        self._source, self.symbols = source, tuple(symbols)
        self._frames: dict[str, WindowFrame] = {}
        self._embedder: WindowEmbedder | None = None
        self._written: dict[tuple[str, str], tuple[int, str]] = {}
        self._embedded: dict[str, OnlineArray] = {}
        self._unkept: list[OnlineArray] = []
        self._problems: dict[str, str] = {}  # by symbol

    def hold(self, start_ms: int, stop_ms: int) -> None:
        """Read the windows of a stretch of time."""
        self._frames = {symbol: self._source.windows(symbol, start_ms, stop_ms) for symbol in self.symbols}

    def use(self, embedder: WindowEmbedder | None) -> None:
        """Embed by this one from now on; the newest windows are embedded anew. None: no embedding is written."""
        self._embedder = embedder
        self._embedded, self._problems = {}, {}

    @property
    def problem(self) -> str:
        """Why newest windows could not be written or embedded, for people; empty if they could."""
        return "; ".join(f"{symbol}: {reason}" for symbol, reason in sorted(self._problems.items()))

    def due(self, now_ms: int, held: Held) -> list[OnlineArray]:
        """The rows that the online store lacks at now_ms. held: the event times that it has.

        A symbol whose window is no window, or has no embedding, is left to grow stale, and `problem` says why; the
        others go on.
        """
        self._problems = {}
        windows, embeddings = [], []
        for symbol in self.symbols:
            try:
                if (window := self._newest(symbol, now_ms)) is not None:
                    windows.append(window)
                    embeddings += self._embedding(window)
            except HubError as error:
                self._problems[symbol] = str(error)
        return [row for row in [*windows, *embeddings] if self._is_due(row, held)]

    def wrote(self, rows: Sequence[OnlineArray]) -> None:
        """These are in the online store now."""
        self._written |= {(row.symbol, row.group): (row.event_time_ms, row.version) for row in rows}

    def take_embedded(self) -> list[OnlineArray]:
        """The embeddings that were made since the last time, for the offline store."""
        taken, self._unkept = self._unkept, []
        return taken

    def _newest(self, symbol: str, now_ms: int) -> OnlineArray | None:
        """The symbol's newest known window."""
        frame = self._frames.get(symbol)
        place = -1 if frame is None else frame.until(now_ms) - 1
        if frame is None or place < 0:
            return None
        return OnlineArray(symbol, WINDOW, int(frame.event_time_ms[place]), frame.row(place))

    def _embedding(self, window: OnlineArray) -> list[OnlineArray]:
        """Of this window, made once; none without an embedder."""
        embedder = self._embedder
        if embedder is None:
            return []
        made = self._embedded.get(window.symbol)
        if made is None or made.event_time_ms != window.event_time_ms:
            vector = embedder.embed(window.values[None, -embedder.window:])[0]
            made = OnlineArray(window.symbol, MARKET_EMBEDDING, window.event_time_ms, vector, embedder.version)
            self._embedded[window.symbol] = made
            self._unkept = [*self._unkept, made][-MOST_UNKEPT:]
        return [made]

    def _is_due(self, row: OnlineArray, held: Held) -> bool:
        return (held.get(row.symbol, {}).get(row.group) != row.event_time_ms
                or self._written.get((row.symbol, row.group)) != (row.event_time_ms, row.version))
