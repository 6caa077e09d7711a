"""Walk-forward folds: fit on what was known, stop and choose on the stretch after it, test on the stretch after that.

    |------------- fit -------------|- validation -|--- test ---|            fold 0
    |-------------------- fit --------------------|-- validation --|--- test ---|            fold 1

The training range grows, the test ranges lie end to end and cover everything after the first training range. A label
is made of the bars after its row, so a row near a boundary knows what lies behind it. Two rules keep that out of what
is learnt: purging leaves out every row whose label was not known at the boundary, and an embargo leaves out the last
`embargo_ms` before it besides (Lopez de Prado 2018, Advances in Financial Machine Learning, chapter 7).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policies.errors import InvalidInput

Places = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Rows to fit on and rows to stop early and choose by, as ascending places; all of `fit` is known before the first
    of `validation`. validation_start_ms: the boundary between them."""

    fit: Places
    validation: Places
    validation_start_ms: int


@dataclass(frozen=True)
class Fold(Split):
    """test: places of the rows with test_start_ms <= event time < test_stop_ms; nothing of them is known to `fit` and
    `validation`. Labels of the test's last rows look past test_stop_ms: nobody learns from them in this fold.
    """

    test: Places
    test_start_ms: int
    test_stop_ms: int


def folds(event_time_ms: Places, known_ms: Places, count: int, initial_share: float = 0.5,
          validation_share: float = 0.2, embargo_ms: int = 0) -> list[Fold]:
    """`count` folds over rows in any order, several at the same time allowed.

    event_time_ms, known_ms: int64 (N,), when a row and when its label was known, the second not before the first.
    initial_share: of the whole range of times, before the first test; the rest is cut into tests of equal length.
    validation_share: of each training range, its last part. InvalidInput if a part of a fold would be empty.
    """
    _require_rows(event_time_ms, known_ms)
    if not count >= 1:
        raise InvalidInput("count", ">= 1", count)
    if not 0 < initial_share < 1:
        raise InvalidInput("initial_share", "> 0 and < 1", initial_share)
    first_ms, stop_ms = int(event_time_ms.min()), int(event_time_ms.max()) + 1
    start_ms = first_ms + round(initial_share * (stop_ms - first_ms))
    edges_ms = [start_ms + (stop_ms - start_ms) * number // count for number in range(count + 1)]
    return [_fold(event_time_ms, known_ms, validation_share, embargo_ms, start, stop)
            for start, stop in itertools.pairwise(edges_ms)]


def final_fit(event_time_ms: Places, known_ms: Places, validation_share: float = 0.2, embargo_ms: int = 0) -> Split:
    """The split over all rows, for the candidate that is handed over: its test is what comes after today.

    It takes what the folds have chosen; no figure of its own is measured on these rows.
    """
    _require_rows(event_time_ms, known_ms)
    return _split(event_time_ms, known_ms, validation_share, embargo_ms, None)


def _fold(event_time_ms: Places, known_ms: Places, validation_share: float, embargo_ms: int, test_start_ms: int,
          test_stop_ms: int) -> Fold:
    split = _split(event_time_ms, known_ms, validation_share, embargo_ms, test_start_ms)
    test = np.flatnonzero((event_time_ms >= test_start_ms) & (event_time_ms < test_stop_ms))
    _require_filled(f"test from {test_start_ms} to {test_stop_ms}", test)
    return Fold(split.fit, split.validation, split.validation_start_ms, test, test_start_ms, test_stop_ms)


def _split(event_time_ms: Places, known_ms: Places, validation_share: float, embargo_ms: int,
           stop_ms: int | None) -> Split:
    """Of what was known at stop_ms; None is after everything."""
    if not 0 < validation_share < 1:
        raise InvalidInput("validation_share", "> 0 and < 1", validation_share)
    if not embargo_ms >= 0:
        raise InvalidInput("embargo_ms", ">= 0", embargo_ms)
    first_ms = int(event_time_ms.min())
    span_ms = (int(event_time_ms.max()) + 1 if stop_ms is None else stop_ms) - first_ms
    boundary_ms = first_ms + round((1 - validation_share) * span_ms)
    fit = _settled(event_time_ms, known_ms, boundary_ms, embargo_ms)
    after = event_time_ms >= boundary_ms
    if stop_ms is not None:
        after &= _settled(event_time_ms, known_ms, stop_ms, embargo_ms)
    split = Split(np.flatnonzero(fit), np.flatnonzero(after), boundary_ms)
    _require_filled(f"fit until {boundary_ms}", split.fit)
    _require_filled(f"validation from {boundary_ms}", split.validation)
    return split


def _settled(event_time_ms: Places, known_ms: Places, boundary_ms: int, embargo_ms: int) -> NDArray[np.bool_]:
    """Rows before the boundary and its embargo whose label is known at the boundary."""
    return (event_time_ms < boundary_ms - embargo_ms) & (known_ms <= boundary_ms)


def _require_rows(event_time_ms: Places, known_ms: Places) -> None:
    if not (event_time_ms.ndim == 1 and event_time_ms.shape == known_ms.shape and len(event_time_ms)):
        raise InvalidInput("event_time_ms, known_ms", "as many as each other, at least one",
                           (event_time_ms.shape, known_ms.shape))
    if not (known_ms >= event_time_ms).all():
        raise InvalidInput("known_ms", "not before event_time_ms", int((known_ms - event_time_ms).min()))


def _require_filled(name: str, places: Places) -> None:
    if not len(places):
        raise InvalidInput(name, "at least one row, after purging and embargo", 0)
