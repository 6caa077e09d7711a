"""Bars of one symbol with what an actor observes of the market at each close, and where episodes can begin in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from feature_repo.features import DECISION_V1, MINUTE_MS
from policies.actor import standardised
from policies.bars import Bars
from policies.errors import InvalidInput
from train.dataset import FeatureRows

PRICES = ("open", "high", "low", "close", "volume")
SETTLED = "settled_funding_rate"  # of a frame; `funding_rate` alone is a feature, the rate that was settled last
LEAST_DEVIATION = 1e-6  # of a feature's typical magnitude: below it a feature does not vary


@dataclass(frozen=True)
class TimeRange:
    """Decisions at or after start_ms, and bars that close at or before stop_ms."""

    start_ms: int
    stop_ms: int

    def __post_init__(self) -> None:
        if not self.start_ms < self.stop_ms:
            raise InvalidInput("range", "start_ms < stop_ms", (self.start_ms, self.stop_ms))


ALL_TIME = TimeRange(-(2**62), 2**62)


@dataclass(frozen=True)
class Standard:
    """How features are standardised: mean and scale, float32 (60,), scale > 0."""

    mean: NDArray[np.float32]
    scale: NDArray[np.float32]

    @classmethod
    def fitted(cls, rows: Sequence[FeatureRows], training: TimeRange) -> Standard:
        """Mean and standard deviation of what is there of each feature in the training range, all symbols together.

        A feature that is never there has mean 0; one that does not vary has its typical magnitude as scale, so that it
        does not become a spike on the day it does.
        """
        own = np.concatenate([part.values[(part.event_time_ms >= training.start_ms)
                                          & (part.event_time_ms <= training.stop_ms)] for part in rows])
        if not len(own):
            raise InvalidInput("training", "a range with at least one row", training)
        there = np.isfinite(own)
        count = np.maximum(there.sum(axis=0), 1)
        mean = np.where(there, own, 0.0).sum(axis=0) / count
        deviation = np.sqrt((np.where(there, own - mean, 0.0) ** 2).sum(axis=0) / count)
        scale = np.where(deviation > LEAST_DEVIATION * DECISION_V1.scales, deviation, DECISION_V1.scales)
        return cls(mean.astype(np.float32), scale.astype(np.float32))


@dataclass(frozen=True)
class MarketRows:
    """features: float32 (T, 60), standardised, known at the close of each of the T bars; zeros where there are none.

    known: bool (T,), where there are features: there alone can be decided.
    """

    bars: Bars
    features: NDArray[np.float32]
    known: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.known)

    @property
    def symbol(self) -> str:
        return self.bars.symbol

    @classmethod
    def made(cls, bars: Bars, rows: FeatureRows, standard: Standard) -> MarketRows:
        """Rows that are known at no bar's close are left out."""
        if rows.values.shape != (len(rows), len(DECISION_V1)):
            raise InvalidInput("rows.values", f"of shape {len(rows), len(DECISION_V1)}", rows.values.shape)
        place = np.searchsorted(bars.close_time_ms, rows.event_time_ms)
        fits = place < len(bars)
        fits[fits] = bars.close_time_ms[place[fits]] == rows.event_time_ms[fits]
        features, known = np.zeros((len(bars), len(DECISION_V1)), np.float32), np.zeros(len(bars), bool)
        features[place[fits]] = standardised(rows.values[fits], standard.mean, standard.scale)
        known[place[fits]] = True
        return cls(bars.check(), features, known)

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, standard: Standard | None = None, training: TimeRange = ALL_TIME,
                   symbol: str = "") -> MarketRows:
        """A frame as `frame_of` makes it. standard: fitted on the training range of the frame itself if not given."""
        bars, rows = of_frame(frame, symbol)
        return cls.made(bars, rows, standard or Standard.fitted([rows], training))

    def starts(self, episode_bars: int, within: TimeRange = ALL_TIME) -> NDArray[np.int64]:
        """(S,) bars at whose close an episode can begin: its first decision is not before the range, its last bar
        closes within it, all its bars follow each other without a gap, and all have features.
        """
        span = len(self) - episode_bars
        if span <= 0:
            return np.empty(0, np.int64)
        close = self.bars.close_time_ms
        unknown = np.concatenate([[0], np.cumsum(~self.known)])
        whole = unknown[episode_bars + 1:] == unknown[:span]
        whole &= close[episode_bars:] - close[:span] == episode_bars * self.bars.interval_ms
        return np.flatnonzero(whole & (close[:span] >= within.start_ms) & (close[episode_bars:] <= within.stop_ms))


def market_rows(bars: dict[str, Bars], rows: dict[str, FeatureRows],
                training: TimeRange = ALL_TIME) -> tuple[list[MarketRows], Standard]:
    """The rows of all symbols, by name, standardised alike by what the training range holds of them."""
    names = sorted(rows)
    standard = Standard.fitted([rows[name] for name in names], training)
    return [MarketRows.made(bars[name], rows[name], standard) for name in names], standard


def frame_of(bars: Bars, rows: FeatureRows) -> pd.DataFrame:
    """One symbol as a table, a row a bar: open_time_ms, the prices, volume, settled_funding_rate if it is known, and
    the features of decision_v1 in their own units; all NaN in bars without a row.
    """
    place = np.searchsorted(rows.event_time_ms, bars.close_time_ms)
    fits = place < len(rows)
    fits[fits] = rows.event_time_ms[place[fits]] == bars.close_time_ms[fits]
    values = np.full((len(bars), len(DECISION_V1)), np.nan)
    values[fits] = rows.values[place[fits]]
    prices = {name: getattr(bars, name) for name in ("open_time_ms", *PRICES)}
    if bars.funding_rate is not None:
        prices[SETTLED] = bars.funding_rate
    return pd.concat([pd.DataFrame(prices), pd.DataFrame(values, columns=list(DECISION_V1.names))], axis=1)


def of_frame(frame: pd.DataFrame, symbol: str = "") -> tuple[Bars, FeatureRows]:
    """What `frame_of` was given. A bar has a row if all features of the required groups are there."""
    missing = [name for name in ("open_time_ms", *PRICES, *DECISION_V1.names) if name not in frame.columns]
    if missing:
        raise InvalidInput("data_df.columns", "open_time_ms, open, high, low, close, volume and the features of "
                           "decision_v1", list(frame.columns), f"missing: {', '.join(missing)}")
    prices = {name: frame[name].to_numpy(np.float64) for name in PRICES}
    settled = frame[SETTLED].to_numpy(np.float64) if SETTLED in frame.columns else None
    bars = Bars(symbol, MINUTE_MS, frame["open_time_ms"].to_numpy(np.int64), **prices, funding_rate=settled).check()
    values = frame[list(DECISION_V1.names)].to_numpy(np.float64)
    required = [place for group in DECISION_V1.required_groups for place in DECISION_V1.places[group]]
    known = np.isfinite(values[:, required]).all(axis=1)
    return bars, FeatureRows(bars.close_time_ms[known], values[known])
