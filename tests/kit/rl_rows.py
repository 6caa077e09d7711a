"""Small rows of a generated market for tests of reinforcement learning: features of bars alone, no feature store."""

from __future__ import annotations

from pathlib import Path

from feature_repo.generated import GeneratedMarket
from feature_repo.transforms import compute_features
from train.dataset import FeatureRows
from train.rl.market_rows import Standard
from train.rl.rows import JobRows, keep_rows, ranges_of
from train.steps import Steps

SYMBOLS = ("BTC", "ETH")


def small_rows(count: int = 3_000, seed: int = 3) -> JobRows:
    """About 60 % for training, 15 % for validation, 25 % for the test."""
    market = GeneratedMarket(seed, 1.0, SYMBOLS, count)
    bars = {symbol: market.bars(symbol) for symbol in SYMBOLS}
    frames = {symbol: compute_features(run) for symbol, run in bars.items()}
    rows = {symbol: FeatureRows(frame.event_time_ms, frame.values) for symbol, frame in frames.items()}
    ranges = ranges_of(bars, 0.15, 0.25, 16)
    return JobRows(bars, rows, ranges, Standard.fitted(list(rows.values()), ranges.training))


def rows_folder(folder: Path, count: int = 3_000) -> Path:
    """The same as the step of a job in this folder."""
    keep_rows(Steps(folder), small_rows(count))
    return folder
