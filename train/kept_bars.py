"""Bars as named arrays for the steps of a job, and what names their content."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies.bars import Bars

BAR_COLUMNS = tuple(column.name for column in fields(Bars) if column.name not in ("symbol", "interval_ms"))

Arrays = dict[str, NDArray[Any]]


def arrays_of_bars(bars: Mapping[str, Bars]) -> Arrays:
    """By "SYMBOL.bars.COLUMN"; a column that a symbol does not have is left out."""
    return {_name(symbol, column): getattr(run, column) for symbol, run in bars.items() for column in BAR_COLUMNS
            if getattr(run, column) is not None}


def intervals_of(bars: Mapping[str, Bars]) -> dict[str, int]:
    """{symbol: ms of a bar}, which the arrays do not say."""
    return {symbol: run.interval_ms for symbol, run in bars.items()}


def bars_of_arrays(arrays: Mapping[str, NDArray[Any]], interval_ms: Mapping[str, int]) -> dict[str, Bars]:
    """The bars again, read into memory."""
    return {symbol: Bars(symbol, interval, **{column: np.array(arrays[_name(symbol, column)])
                                              for column in BAR_COLUMNS if _name(symbol, column) in arrays})
            for symbol, interval in interval_ms.items()}


def digests_of(bars: Mapping[str, Bars]) -> dict[str, str]:
    """{symbol: SHA-256 in hex of all columns of its bars}."""
    return {symbol: _digest(run) for symbol, run in bars.items()}


def _digest(bars: Bars) -> str:
    whole = hashlib.sha256()
    for column in BAR_COLUMNS:
        values = getattr(bars, column)
        whole.update(b"-" if values is None else np.ascontiguousarray(values).tobytes())
    return whole.hexdigest()


def _name(symbol: str, column: str) -> str:
    return f"{symbol}.bars.{column}"
