"""Small markets with features for tests of the trading environment."""

from __future__ import annotations

import dataclasses

import numpy as np
from bar_makers import jumpy_bars

from feature_repo.features import DECISION_V1
from policies.bars import Bars
from train.dataset import FeatureRows
from train.rl.market_rows import MarketRows, Standard


def made_rows(bars: Bars, seed: int = 0, first: int = 3) -> FeatureRows:
    """Random numbers at every close from bar `first` on; an optional feature is missing half of the time."""
    rng = np.random.default_rng(seed)
    values = rng.normal(1.0, 3.0, (len(bars) - first, len(DECISION_V1)))
    values[rng.random(len(values)) < 0.5, DECISION_V1.names.index(DECISION_V1.may_be_missing[0])] = np.nan
    return FeatureRows(bars.close_time_ms[first:], values)


def jumpy_market(seed: int, n: int = 200, symbol: str = "X", volatility: float = 0.004) -> MarketRows:
    bars = dataclasses.replace(jumpy_bars(seed, n, volatility), symbol=symbol)
    count = len(DECISION_V1)
    return MarketRows.made(bars, made_rows(bars, seed), Standard(np.ones(count, np.float32),
                                                                 np.full(count, 3.0, np.float32)))
