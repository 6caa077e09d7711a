"""The one definition of the features of bars: bars in, feature rows out. Training, feeding and tests all call it.

A row depends on the last `LOOKBACK_BARS` bars and on nothing else, to the last bit: window sums are built by adding the
lags newest first, elementwise over the whole history, so the order of additions in a row does not depend on how long
the history is or where it starts (a cumulative sum, or a reduction whose axis numpy may choose, would). `BarWindow`,
the incremental form, therefore is the same code on the last bars, and equal bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from feature_repo.array_frames import WindowFrame
from feature_repo.features import BARS, DECISION_V1, FUNDING, GROUPS, PRICE, WINDOWS
from feature_repo.frames import GroupFrame, assemble
from feature_repo.windows import bar_channels
from policies.bars import Bars
from policies.errors import InvalidInput

BAR_GROUPS = (BARS, PRICE, FUNDING)
LOOKBACK_BARS = 122  # 120 products of neighbouring returns need 121 returns, these need 122 closes
LONGEST = max(WINDOWS)
DAY_MS = 86_400_000
LEAST_VOLATILITY = 1e-5  # a tenth of a basis point per bar: below it "in units of volatility" means nothing
LEAST_VOLUME_RATIO = 1e-3

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class FeatureFrame:
    """event_time_ms: int64 (N,), closes of the bars, rising. values: float64 (N, F) in the order of DECISION_V1;
    finite except where an optional group is missing."""

    event_time_ms: NDArray[np.int64]
    values: Floats

    def __len__(self) -> int:
        return len(self.event_time_ms)

    def slice(self, start: int, stop: int) -> FeatureFrame:
        return FeatureFrame(self.event_time_ms[start:stop], self.values[start:stop])


def compute_features(bars: Bars) -> FeatureFrame:
    """Vectors of `decision_v1` by what bars alone tell; every group that has another source is missing."""
    frames = bar_frames(bars)
    times = frames[BARS].event_time_ms
    return FeatureFrame(times, assemble(DECISION_V1, frames, times))


def bar_frames(bars: Bars) -> dict[str, GroupFrame]:
    """Frames of the groups that one-minute bars are the source of: BARS, PRICE, FUNDING.

    BARS and PRICE have a row for each bar whose last LOOKBACK_BARS bars follow each other without a gap; other bars
    have none. FUNDING has one for each bar in which a rate was settled.
    """
    return {BARS: _rows(BARS, bars, _scale_free), PRICE: _rows(PRICE, bars, _own_units), FUNDING: _funding(bars)}


def bar_event_times(bars: Bars) -> dict[str, NDArray[np.int64]]:
    """Event times of the frames that `bar_frames` makes of these bars, without their values."""
    whole = bars.close_time_ms[_whole(bars)]
    return {BARS: whole, PRICE: whole, FUNDING: _funding(bars).event_time_ms}


def window_frame(bars: Bars) -> WindowFrame:
    """The group WINDOW: a row wherever BARS has one, so its bars, and the one before them, have no gap."""
    newest = _whole(bars)
    return WindowFrame(bars.close_time_ms[newest], bar_channels(bars), newest)


class BarWindow:
    """The incremental form: takes bars as they close and gives the frames that they complete.

    It holds the last LOOKBACK_BARS bars of one symbol: just what the newest window needs.
    """

    def __init__(self, symbol: str) -> None:
        self.symbol = symbol
        self._held: Bars | None = None

    def push(self, bars: Bars) -> dict[str, GroupFrame]:
        """Frames of these newly closed bars. Bars at or before the newest one held are known and left out."""
        if bars.symbol != self.symbol:
            raise InvalidInput("bars.symbol", self.symbol, bars.symbol)
        known_ms = -1 if self._held is None else int(self._held.open_time_ms[-1])
        fresh = bars.slice(int(np.searchsorted(bars.open_time_ms, known_ms, "right")), len(bars))
        if not len(fresh):
            return {group: GroupFrame.empty(group) for group in BAR_GROUPS}
        joined = fresh if self._held is None else self._held.followed_by(fresh)
        self._held = joined.slice(max(0, len(joined) - LOOKBACK_BARS), len(joined))
        return {group: frame.slice(frame.until(int(fresh.open_time_ms[0])), len(frame))
                for group, frame in bar_frames(joined).items()}

    def window(self) -> WindowFrame:
        """The window that the newest bar completed; empty if there is none."""
        return WindowFrame.empty() if self._held is None else window_frame(self._held)


def _whole(bars: Bars) -> NDArray[np.int64]:
    """Places of the bars whose last LOOKBACK_BARS bars, themselves included, follow each other without a gap."""
    rows = max(0, len(bars) - LOOKBACK_BARS + 1)
    times = bars.close_time_ms
    span_ms = times[len(bars) - rows:] - times[:rows]
    return np.flatnonzero(span_ms == (LOOKBACK_BARS - 1) * bars.interval_ms) + (len(bars) - rows)


def _rows(group: str, bars: Bars, columns_of: Callable[[Bars, int], dict[str, Floats]]) -> GroupFrame:
    rows = len(bars) - LOOKBACK_BARS + 1
    if rows <= 0:
        return GroupFrame.empty(group)
    columns = columns_of(bars, rows)
    whole = _whole(bars)
    values = np.column_stack([columns[name] for name in GROUPS[group].names])
    return GroupFrame(group, bars.close_time_ms[whole], values[whole - (len(bars) - rows)])


def _scale_free(bars: Bars, rows: int) -> dict[str, Floats]:
    return {**_price_features(bars, rows), **_volume_features(bars.volume, rows),
            **_day_features(bars.close_time_ms[-rows:])}


def _own_units(bars: Bars, rows: int) -> dict[str, Floats]:
    closes = bars.close[-rows - 4:]
    returns = np.diff(np.log(bars.close))
    return {"median_price": np.median(sliding_window_view(closes, 5), axis=1),
            "change_1m": bars.close[-rows:] / bars.close[-rows - 1:-1] - 1,
            "volatility_60": np.sqrt(_window_sums(returns * returns, rows)[60] / 60)}


def _funding(bars: Bars) -> GroupFrame:
    """A rate that is settled within a bar is known at its close. 0 stands for none, as in `Bars`."""
    if bars.funding_rate is None:
        return GroupFrame.empty(FUNDING)
    settled = bars.funding_rate != 0
    return GroupFrame(FUNDING, bars.close_time_ms[settled], bars.funding_rate[settled][:, None])


def _price_features(bars: Bars, rows: int) -> dict[str, Floats]:
    log_close = np.log(bars.close)
    returns = np.diff(log_close)
    squares = _window_sums(returns * returns, rows)
    earlier_squares = _window_sums(returns[:-1] * returns[:-1], rows)
    products = _window_sums(returns[1:] * returns[:-1], rows)
    ups = _window_sums((returns > 0).astype(np.float64), rows)
    volatility = np.maximum(np.sqrt(squares[LONGEST] / LONGEST), LEAST_VOLATILITY)
    columns = {"ret_1": returns[-rows:] / volatility, "log_vol_120": np.log(volatility / 0.001)}
    for w in WINDOWS:
        high = sliding_window_view(bars.high, w)[-rows:].max(axis=1)
        low = sliding_window_view(bars.low, w)[-rows:].min(axis=1)
        deviation = volatility * np.sqrt(w)
        columns[f"ret_{w}"] = (log_close[-rows:] - log_close[-rows - w:-w]) / deviation
        columns[f"range_{w}"] = np.minimum(np.log(high / low) / deviation, 20.0)
        columns[f"position_{w}"] = 2 * _ratio(bars.close[-rows:] - low, high - low, 0.5) - 1
        columns[f"up_share_{w}"] = 2 * ups[w] / w - 1
        columns[f"autocorrelation_{w}"] = _ratio(products[w], np.sqrt(squares[w]) * np.sqrt(earlier_squares[w]), 0.0)
        if w != LONGEST:
            own = np.maximum(np.sqrt(squares[w] / w), LEAST_VOLATILITY)
            columns[f"vol_ratio_{w}"] = np.log(own / volatility)
    return columns


def _volume_features(volume: Floats, rows: int) -> dict[str, Floats]:
    sums = _window_sums(volume, rows)
    mean = sums[LONGEST] / LONGEST
    variance = np.maximum(_window_sums(volume * volume, rows)[LONGEST] / LONGEST - mean * mean, 0.0)
    deviation = np.maximum(np.sqrt(variance), 1e-3 * mean)
    columns = {"volume_z_1": _ratio(volume[-rows:] - mean, deviation, 0.0)}
    for w in WINDOWS[:-1]:
        ratio = np.maximum(_ratio(sums[w] / w, mean, 1.0), LEAST_VOLUME_RATIO)
        columns[f"volume_ratio_{w}"] = np.log(ratio)
    return columns


def _day_features(event_time_ms: NDArray[np.int64]) -> dict[str, Floats]:
    angle = 2 * np.pi * (event_time_ms % DAY_MS) / DAY_MS
    return {"day_sin": np.sin(angle), "day_cos": np.cos(angle)}


def _window_sums(series: Floats, rows: int) -> dict[int, Floats]:
    """{w: (rows,) sums of the w newest values up to each of the last `rows` places}, lags added newest first."""
    total = np.zeros(rows)
    sums: dict[int, Floats] = {}
    for lag in range(LONGEST):
        end = len(series) - lag
        total += series[end - rows:end]
        if lag + 1 in WINDOWS:
            sums[lag + 1] = total.copy()
    return sums


def _ratio(above: Floats, below: Floats, otherwise: float) -> Floats:
    """above / below, and `otherwise` where below is not positive."""
    fine = below > 0
    return np.where(fine, above / np.where(fine, below, 1.0), otherwise)
