"""Embeds a market's whole history by one embedder into the offline store, and goes on where it was interrupted."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from feature_repo.array_feed import WindowEmbedder
from feature_repo.array_frames import EmbeddingFrame, WindowFrame
from feature_repo.back_fill import CHUNK_MS, Filled
from feature_repo.features import MARKET_EMBEDDING, MINUTE_MS, VERSION_FEATURE
from feature_repo.market import Market
from feature_repo.store import FeatureRepo
from feature_repo.transforms import LOOKBACK_BARS, window_frame

BATCH_ROWS = 1_024


class EmbeddingFill:
    """Of a bar that is embedded by this version already, nothing is made anew."""

    def __init__(self, market: Market, repo: FeatureRepo, embedder: WindowEmbedder) -> None:
        self._market, self._repo, self._embedder = market, repo, embedder

    def run(self, symbol: str, created_ms: int) -> Iterator[Filled]:
        """One step per month of bars. created_ms: wall clock, when it was written."""
        bars = self._market.bars(symbol)
        if not len(bars):
            return
        start_ms, stop_ms = int(bars.close_time_ms[0]), int(bars.close_time_ms[-1])
        for first_ms in range(start_ms, stop_ms + 1, CHUNK_MS):
            last_ms = min(first_ms + CHUNK_MS - 1, stop_ms)
            known = window_frame(bars.between(first_ms - (LOOKBACK_BARS + 1) * MINUTE_MS, last_ms))
            known = known.slice(known.until(first_ms - 1), known.until(last_ms))
            frame = self._embedded(symbol, self._lacking(symbol, known))
            added = self._repo.append_market_embeddings(frame, created_ms) if len(frame) else 0
            yield Filled(symbol, last_ms, added, (last_ms - start_ms) / max(stop_ms - start_ms, 1))

    def _lacking(self, symbol: str, known: WindowFrame) -> WindowFrame:
        if not len(known):
            return known
        held = self._repo.offline.event_times(
            MARKET_EMBEDDING, symbol, int(known.event_time_ms[0]), int(known.event_time_ms[-1]),
            where=(VERSION_FEATURE, self._embedder.version))
        missing = np.isin(known.event_time_ms, held, invert=True)
        return WindowFrame(known.event_time_ms[missing], known.channels, known.newest[missing])

    def _embedded(self, symbol: str, windows: WindowFrame) -> EmbeddingFrame:
        starts = range(0, len(windows), BATCH_ROWS)
        batches = [self._embedder.embed(windows.rows(start, start + BATCH_ROWS, self._embedder.window))
                   for start in starts]
        values = np.concatenate(batches) if batches else np.empty((0, 1), np.float32)
        return EmbeddingFrame(symbol, self._embedder.version, windows.event_time_ms, values)
