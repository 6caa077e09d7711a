"""The input rows that a checker asks a head or an encoder: usual ones, and such as a market gives on its worst days."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from policies.keyed_random import generator

Rows = NDArray[np.float64]

WINDOW_ARRAY = "window"  # the array group of bars
BAR_NUMBERS = 5  # of a bar: log of open, high, low and close over the close before, and log(1 + volume)
EXTREME = 20.0  # beyond what any scale-free feature is meant to be
MINUTE_MOVES = (1e-5, 1e-3, 0.03)  # standard deviations of a one-minute log return: still, usual, a crash
LOG_VOLUMES = (0.0, 5.0, 18.0)  # about which log(1 + volume) lies in each


def normal_rows(width: int) -> Rows:
    """(65, width): 40 standard normal rows, 24 three times as wide, and one of zeros."""
    rng = generator(0, "check_policy")
    return np.concatenate([rng.normal(size=(40, width)), 3.0 * rng.normal(size=(24, width)), np.zeros((1, width))])


def head_rows(features: int, arrays: Mapping[str, int]) -> Rows:
    """(N, features + sum(arrays)): normal rows, and behind them extreme features with arrays as they are stored."""
    usual, rng = normal_rows(features + sum(arrays.values())), generator(0, "extreme rows")
    signs = [np.ones(features), -np.ones(features), *rng.choice([-1.0, 1.0], size=(4, features))]
    parts = [EXTREME * np.array(signs)]
    for group in sorted(arrays):
        stored = _bar_rows if group == WINDOW_ARRAY else _spread_rows
        parts.append(stored(arrays[group], len(signs)))
    if not arrays:
        return np.concatenate([usual, parts[0]])
    calm = [rng.normal(size=(len(signs), features)), *parts[1:]]  # so that a window is also met beside usual features
    return np.concatenate([usual, np.hstack(parts), np.hstack(calm)])


def window_rows(count: int) -> Rows:
    """(N, count): normal rows, windows of bars as markets make them, and one in which nothing was ever traded."""
    return np.concatenate([normal_rows(count), _bar_rows(count, 6)])


def _bar_rows(count: int, rows: int) -> Rows:
    """(rows, count): the last numbers of windows, row by row stiller or wilder; the first without price or volume."""
    rng, bars = generator(0, "bars"), -(-count // BAR_NUMBERS)
    windows = np.zeros((rows, bars, BAR_NUMBERS))
    for row in range(1, rows):
        kind = (row - 1) % len(MINUTE_MOVES)
        move, volume = MINUTE_MOVES[kind], LOG_VOLUMES[kind]
        opened, closed = 0.1 * move * rng.normal(size=bars), move * rng.normal(size=bars)
        reach = move * np.abs(rng.normal(size=(2, bars)))
        high, low = np.maximum(opened, closed) + reach[0], np.minimum(opened, closed) - reach[1]
        traded = np.maximum(0.0, volume + rng.normal(size=bars))
        windows[row] = np.column_stack([opened, high, low, closed, traded])
    return windows.reshape(rows, -1)[:, -count:]


def _spread_rows(count: int, rows: int) -> Rows:
    """(rows, count): numbers of an unknown array, the first row all zeros, then each wider than the one before."""
    widths = EXTREME * np.arange(rows) / max(1, rows - 1)
    return widths[:, None] * generator(0, "spread").choice([-1.0, 1.0], size=(rows, count))
