"""Signals on made bars, without a feature store: what tests of the search for levels search on."""

from __future__ import annotations

import numpy as np

from feature_repo.features import DECISION_V1
from feature_repo.generated import GeneratedMarket
from feature_repo.transforms import compute_features
from train.bo.entries import SymbolSignals, signals_of
from train.dataset import FeatureRows


def generated_signals(bars: int = 1_500, symbols: tuple[str, ...] = ("BTC", "ETH"),
                      signal: float = 1.0) -> dict[str, SymbolSignals]:
    """By symbol, of a generated market."""
    market, found = GeneratedMarket(5, signal, symbols, bars), {}
    for symbol in symbols:
        run = market.bars(symbol)
        frame = compute_features(run)
        found[symbol] = signals_of(run, FeatureRows(frame.event_time_ms, np.nan_to_num(frame.values)),
                                   DECISION_V1.names)
    return found
