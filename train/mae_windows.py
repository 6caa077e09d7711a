"""Which windows an auto-encoder learns from: whole ones, closed before a moment; the latest of them validate."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from feature_repo.windows import windows
from policies.bars import Bars
from policies.errors import InvalidInput

CHUNK = 65_536  # windows that are copied at once


@dataclass(frozen=True)
class WindowSet:
    """Chosen rows of arrays that share their memory with longer histories.

    views: each float32 (N, numbers of a window), all of one width. view, row: int64 (M,), where window i lies.
    """

    views: tuple[NDArray[np.float32], ...]
    view: NDArray[np.int64]
    row: NDArray[np.int64]

    @classmethod
    def of(cls, values: NDArray[np.float32]) -> WindowSet:
        """All rows of one array (N, ...), each flattened."""
        flat = values.reshape(len(values), -1)
        return cls((flat,), np.zeros(len(flat), np.int64), np.arange(len(flat)))

    def __len__(self) -> int:
        return len(self.row)

    def take(self, places: NDArray[np.int64]) -> NDArray[np.float32]:
        """(K, numbers of a window), a copy, in the order of places."""
        taken = np.empty((len(places), self.views[0].shape[1]), np.float32)
        for number, view in enumerate(self.views):
            own = self.view[places] == number
            taken[own] = view[self.row[places[own]]]
        return taken

    def spread(self, most: int) -> NDArray[np.float32]:
        """At most `most` windows, evenly spaced over the set."""
        count = min(most, len(self))
        return self.take(np.linspace(0, len(self) - 1, count).round().astype(np.int64))

    def digest(self) -> bytes:
        """SHA-256 of every number in order."""
        total = hashlib.sha256()
        for start in range(0, len(self), CHUNK):
            total.update(self.take(np.arange(start, min(start + CHUNK, len(self)))).tobytes())
        return total.digest()


@dataclass(frozen=True)
class Split:
    """Windows to learn from, and later ones that share no bar with them. from_ms, parted_ms, until_ms: the first bar's
    open, where validation begins, and before when every bar has closed.
    """

    fit: WindowSet
    validation: WindowSet
    from_ms: int
    parted_ms: int
    until_ms: int


def split_windows(bars: Mapping[str, Bars], seq_len: int, until_ms: int, validation_share: float) -> Split:
    """The windows of all symbols that close before until_ms, parted at one moment for all of them.

    A window belongs to `fit` if its last bar has closed by then, to `validation` if its first bar opens no earlier.
    What spans a gap between bars is left out. Raises InvalidInput where one of the two stays empty.
    """
    known = {symbol: part.slice(0, int(np.searchsorted(part.close_time_ms, until_ms))) for symbol, part in bars.items()}
    known = {symbol: part.check() for symbol, part in sorted(known.items()) if len(part) >= seq_len}
    if not known:
        raise InvalidInput("bars", f"of some symbol, {seq_len} or more closed before {until_ms}",
                           {symbol: len(part) for symbol, part in bars.items()})
    first = min(int(part.open_time_ms[0]) for part in known.values())
    last = max(int(part.close_time_ms[-1]) for part in known.values())
    parted = first + round((1 - validation_share) * (last - first))
    fit, validation = [], []
    for part in known.values():
        whole = _whole(part, seq_len)
        opened, closed = part.open_time_ms[whole], part.close_time_ms[whole + seq_len - 1]
        fit.append(whole[closed <= parted])
        validation.append(whole[opened >= parted])
    views = tuple(windows(part, seq_len) for part in known.values())
    split = Split(_chosen(views, fit), _chosen(views, validation), first, parted, until_ms)
    if not (len(split.fit) and len(split.validation)):
        raise InvalidInput("bars", "windows on both sides of where validation begins",
                           (len(split.fit), len(split.validation)))
    return split


def whole_windows(bars: Bars, seq_len: int, from_ms: int, every: int = 1) -> NDArray[np.float32]:
    """(N, numbers of a window): every `every`-th window without a gap whose first bar opens at or after from_ms."""
    whole = _whole(bars, seq_len)
    return np.ascontiguousarray(windows(bars, seq_len)[whole[bars.open_time_ms[whole] >= from_ms][::every]])


def _whole(bars: Bars, seq_len: int) -> NDArray[np.int64]:
    """First places of the windows that follow their previous bar, and themselves, without a gap."""
    gaps = np.concatenate([[0], np.cumsum(np.diff(bars.open_time_ms) != bars.interval_ms)])
    first = np.arange(max(0, len(bars) - seq_len + 1))
    return first[gaps[np.maximum(first - 1, 0)] == gaps[first + seq_len - 1]]


def _chosen(views: tuple[NDArray[np.float32], ...], rows: list[NDArray[np.int64]]) -> WindowSet:
    view = np.concatenate([np.full(len(part), number, np.int64) for number, part in enumerate(rows)])
    return WindowSet(views, view, np.concatenate(rows))
