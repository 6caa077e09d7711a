"""The one definition of what raw bars look like to a network: five numbers per one-minute bar, and windows of them.

The array group `window` is the last WINDOW_BARS bars of a symbol, oldest first, bar by bar. A head or an embedder that
was made for fewer bars takes the last numbers of it.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from policies.bars import Bars
from policies.errors import InvalidInput

CHANNELS: tuple[str, ...] = ("open", "high", "low", "close", "volume")  # of a bar, in this order
WINDOW_BARS = 120
WINDOW_NUMBERS = WINDOW_BARS * len(CHANNELS)


def bar_channels(bars: Bars) -> NDArray[np.float32]:
    """(N, 5): log(open / p), log(high / p), log(low / p), log(close / p), log(1 + volume in base units).

    p is the close of the bar before, whenever that was; the first bar, which has none before it, takes its own open.
    Computed in float64, elementwise, and rounded once, so a row does not depend on how long the history is.
    """
    previous = np.concatenate([bars.open[:1], bars.close[:-1]])
    columns = [np.log(price / previous) for price in (bars.open, bars.high, bars.low, bars.close)]
    return np.column_stack([*columns, np.log1p(bars.volume)]).astype(np.float32)


def windows(bars: Bars, length: int) -> NDArray[np.float32]:
    """(max(0, N - length + 1), length * 5): the channels of every `length` neighbouring bars, oldest first.

    A read-only view on one copy of the channels. Row i ends with bar i + length - 1. The first bar of row 0 has its own
    open as previous close; gaps between bars are not looked for.
    """
    if length < 1:
        raise InvalidInput("length", ">= 1", length)
    channels = bar_channels(bars)
    width = length * len(CHANNELS)
    if len(channels) < length:
        return np.empty((0, width), np.float32)
    return sliding_window_view(channels.reshape(-1), width)[::len(CHANNELS)]
