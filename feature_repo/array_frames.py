"""Rows of array groups: windows over time without a copy of each, and what the stores are given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from feature_repo.features import ARRAYS, VERSION_FEATURE, WINDOW
from feature_repo.windows import CHANNELS, WINDOW_BARS
from policies.errors import InvalidInput

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class WindowFrame:
    """Windows of one symbol. A window is not stored: it is cut out of the channels of the bars when it is asked for.

    event_time_ms: int64 (N,), strictly rising, the close of each window's newest bar. channels: float32 (bars, 5).
    newest: int64 (N,), place of each window's newest bar in `channels`, at least WINDOW_BARS - 1.
    """

    event_time_ms: NDArray[np.int64]
    channels: Floats
    newest: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.event_time_ms)

    def until(self, now_ms: int) -> int:
        """How many rows were known at now_ms."""
        return int(np.searchsorted(self.event_time_ms, now_ms, "right"))

    def slice(self, start: int, stop: int) -> WindowFrame:
        return WindowFrame(self.event_time_ms[start:stop], self.channels, self.newest[start:stop])

    def reaching(self, start_ms: int, stop_ms: int) -> WindowFrame:
        """The rows that became known in [start_ms, stop_ms] and those that were still fresh at start_ms."""
        since = int(np.searchsorted(self.event_time_ms, start_ms - ARRAYS[WINDOW].ttl_ms))
        return self.slice(since, self.until(stop_ms))

    def row(self, place: int) -> Floats:
        """(600,) of one window: a view, oldest bar first, bar by bar."""
        stop = int(self.newest[place]) + 1
        return self.channels[stop - WINDOW_BARS:stop].reshape(-1)

    def rows(self, start: int, stop: int, count: int) -> Floats:
        """(stop - start, count): the last `count` numbers of each window; a copy of just these."""
        bars = count // len(CHANNELS)
        places = self.newest[start:stop, None] + np.arange(1 - bars, 1)
        return self.channels[places].reshape(len(places), count)

    @classmethod
    def empty(cls) -> WindowFrame:
        return cls(np.empty(0, np.int64), np.empty((0, len(CHANNELS)), np.float32), np.empty(0, np.int64))


@dataclass(frozen=True)
class OnlineArray:
    """What the online store is to hold of an array group of a symbol. values: float32 (n,), finite. version: of the
    embedder that made it, for groups that are versioned."""

    symbol: str
    group: str
    event_time_ms: int
    values: Floats
    version: str = ""

    def __post_init__(self) -> None:
        spec = ARRAYS[self.group]
        if self.values.ndim != 1 or not 0 < len(self.values) <= spec.most:
            raise InvalidInput(f"array.values of {self.group}", f"1 to {spec.most} numbers", self.values.shape)
        if not np.isfinite(self.values).all():
            raise InvalidInput(f"array.values of {self.group}", "finite", "not so")
        if spec.versioned != bool(self.version):
            raise InvalidInput(f"array.{VERSION_FEATURE} of {self.group}",
                               "given" if spec.versioned else "empty", self.version)


@dataclass(frozen=True)
class EmbeddingFrame:
    """Embeddings of one symbol by one embedder. event_time_ms: int64 (N,), strictly rising. values: float32 (N, E)."""

    symbol: str
    version: str
    event_time_ms: NDArray[np.int64]
    values: Floats

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or len(self.values) != len(self.event_time_ms):
            raise InvalidInput("embeddings.values", f"of shape ({len(self.event_time_ms)}, E)", self.values.shape)
        if not (np.diff(self.event_time_ms) > 0).all():
            raise InvalidInput("embeddings.event_time_ms", "strictly rising", "not so")

    def __len__(self) -> int:
        return len(self.event_time_ms)


def embedding_frames(rows: Sequence[OnlineArray]) -> list[EmbeddingFrame]:
    """Rows of the market's embedding by symbol and version; of several of one moment the last one counts."""
    by_key: dict[tuple[str, str], dict[int, Floats]] = {}
    for row in rows:
        by_key.setdefault((row.symbol, row.version), {})[row.event_time_ms] = row.values
    return [EmbeddingFrame(symbol, version, np.array(sorted(held), np.int64),
                           np.array([held[time] for time in sorted(held)], np.float32))
            for (symbol, version), held in by_key.items()]
