"""The one definition of the features: bars in, feature rows out. Training, feeding and tests all call it.

A row depends on the last `LOOKBACK_BARS` bars and on nothing else, to the last bit: window sums are built by adding the
lags newest first, elementwise over the whole history, so the order of additions in a row does not depend on how long
the history is or where it starts (a cumulative sum, or a reduction whose axis numpy may choose, would).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from feature_repo.features import DECISION_V1, WINDOWS
from policies.bars import Bars

LOOKBACK_BARS = 122  # 120 products of neighbouring returns need 121 returns, these need 122 closes
LONGEST = max(WINDOWS)
DAY_MS = 86_400_000
LEAST_VOLATILITY = 1e-5  # a tenth of a basis point per bar: below it "in units of volatility" means nothing
LEAST_VOLUME_RATIO = 1e-3

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class FeatureFrame:
    """event_time_ms: int64 (N,), closes of the bars, rising. values: float64 (N, 40) in the order of DECISION_V1;
    finite except `funding_rate`, which is NaN where no funding was settled within the lookback."""

    event_time_ms: NDArray[np.int64]
    values: Floats

    def __len__(self) -> int:
        return len(self.event_time_ms)

    def slice(self, start: int, stop: int) -> FeatureFrame:
        return FeatureFrame(self.event_time_ms[start:stop], self.values[start:stop])


def compute_features(bars: Bars) -> FeatureFrame:
    """One row for each bar whose last LOOKBACK_BARS bars follow each other without a gap; other bars have none."""
    rows = len(bars) - LOOKBACK_BARS + 1
    if rows <= 0:
        return FeatureFrame(np.empty(0, np.int64), np.empty((0, len(DECISION_V1))))
    event_time_ms = bars.close_time_ms[LOOKBACK_BARS - 1:]
    columns = {**_price_features(bars, rows), **_volume_features(bars.volume, rows), **_day_features(event_time_ms),
               **_funding_features(bars.funding_rate, rows)}
    values = np.column_stack([columns[name] for name in DECISION_V1.names])
    span_ms = event_time_ms - bars.close_time_ms[:rows]
    unbroken = span_ms == (LOOKBACK_BARS - 1) * bars.interval_ms
    return FeatureFrame(event_time_ms[unbroken], values[unbroken])


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


def _funding_features(rate: Floats | None, rows: int) -> dict[str, Floats]:
    if rate is None:
        return {"funding_rate": np.full(rows, np.nan), "funding_missing": np.ones(rows)}
    places = np.arange(len(rate))
    latest = np.maximum.accumulate(np.where(rate != 0, places, -LONGEST))
    known = (places - latest)[-rows:] < LONGEST
    value = np.where(known, rate[np.maximum(latest[-rows:], 0)], np.nan)
    return {"funding_rate": value, "funding_missing": (~known).astype(np.float64)}


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
