"""Order books as images: rows are fixed steps of time, columns the levels of both sides.

A row holds what was known at its moment: the newest book received by then. Columns, for each side (bid, ask) and each
level from the best: distance from the mid in bps, > 0, and log(1 + size in USD).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from feature_repo.book import Books
from feature_repo.features import SECOND_MS

LEVELS = 20
SIDES, NUMBERS = ("bid", "ask"), ("distance_bps", "log_size")
COLUMNS = tuple(f"{side}_{number}_{level}" for side in SIDES for level in range(LEVELS) for number in NUMBERS)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ImageSettings:
    """steps: rows of an image. oldest_ms: a book that was received longer ago says nothing of the present one."""

    step_ms: Annotated[int, Ge(1)] = SECOND_MS
    steps: Annotated[int, Ge(1)] = 20
    oldest_ms: Annotated[int, Ge(0)] = 5 * SECOND_MS


@dataclass(frozen=True)
class BookImages:
    """end_ms: int64 (N,), the moment of an image's last row, rising; nothing received later is in it. values: float32
    (N, steps, 80), columns as in COLUMNS. `fit_mae` learns from them with channels=80 and scaling="each".
    """

    end_ms: NDArray[np.int64]
    values: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.end_ms)


def book_images(books: Books, settings: ImageSettings) -> BookImages:
    """Images that end at the multiples of step_ms since 1970, none with a row that was not known.

    A row is not known where no book was received within oldest_ms before it, a side was absent, or the sides were
    crossed or locked; every image that would hold such a row is left out.
    """
    time_ms = _moments(books, settings.step_ms)
    newest = np.searchsorted(books.event_time_ms, time_ms, "right") - 1
    rows, known = book_rows(books)
    known = known[newest] & (time_ms - books.event_time_ms[newest] <= settings.oldest_ms)
    if len(time_ms) < settings.steps:
        return BookImages(np.empty(0, np.int64), np.empty((0, settings.steps, rows.shape[1]), np.float32))
    whole = np.flatnonzero(sliding_window_view(known, settings.steps).all(axis=1))
    images = sliding_window_view(rows[newest], settings.steps, axis=0).transpose(0, 2, 1)
    return BookImages(time_ms[whole + settings.steps - 1], images[whole])


def book_rows(books: Books) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """((N, 80) a row for each book, (N,) whether it has both sides in order). A level that a side lacks is given the
    distance of its last one, and size 0. Levels beyond LEVELS are left out.
    """
    best_bid, best_ask = books.bid_price[:, 0], books.ask_price[:, 0]
    known = best_ask > best_bid  # False where one is NaN
    mid = np.where(known, (best_bid + best_ask) / 2, 1.0)[:, None]
    parts = []
    for price, size, sign in ((books.bid_price, books.bid_size, -1.0), (books.ask_price, books.ask_size, 1.0)):
        price, size = _padded(price), _padded(size)
        distance = sign * 1e4 * (price / mid - 1)
        last = np.maximum.accumulate(np.where(np.isnan(distance), 0, np.arange(LEVELS)), axis=1)
        distance = np.take_along_axis(distance, last, axis=1)
        usd = np.where(np.isnan(price), 0.0, price * size)
        parts.append(np.stack([distance, np.log1p(usd)], axis=2))
    rows = np.concatenate(parts, axis=1).reshape(len(books), len(COLUMNS))
    return np.where(known[:, None], rows, 0.0).astype(np.float32), known


def _moments(books: Books, step_ms: int) -> NDArray[np.int64]:
    """Multiples of step_ms from the first book on, not later than the last."""
    if not len(books):
        return np.empty(0, np.int64)
    first, last = -(-int(books.event_time_ms[0]) // step_ms), int(books.event_time_ms[-1]) // step_ms
    return np.arange(first, last + 1, dtype=np.int64) * step_ms


def _padded(values: Floats) -> Floats:
    """(N, LEVELS): cut, or filled with NaN."""
    missing = max(0, LEVELS - values.shape[1])
    return np.pad(values[:, :LEVELS], ((0, 0), (0, missing)), constant_values=np.nan)
