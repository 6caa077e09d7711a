from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from encoder_bundles import SIZE, encoder_bundle

from feature_repo.array_frames import EmbeddingFrame
from feature_repo.embedding_fill import EmbeddingFill
from feature_repo.features import ARRAYS, MARKET_EMBEDDING, MINUTE_MS
from feature_repo.store import FeatureRepo
from feature_repo.transforms import LOOKBACK_BARS, window_frame
from policies.bars import Bars
from policies.embedder import Embedder, load_embedder
from policies.errors import InvalidInput

MakeBars = Callable[..., Bars]
TTL_MS = ARRAYS[MARKET_EMBEDDING].ttl_ms


class OneMarket:
    """A market of these bars. Settable: how many of them there are yet."""

    name, origin, folder = "one", "one", None

    def __init__(self, *bars: Bars) -> None:
        self._bars = {one.symbol: one for one in bars}
        self.count = 10**9

    @property
    def symbols(self) -> tuple[str, ...]:
        return tuple(self._bars)

    def bars(self, symbol: str, start_ms: int | None = None, stop_ms: int | None = None) -> Bars:
        return self._bars[symbol].slice(0, self.count)

    def describe(self) -> str:
        return "bars of a test"


def embedder(seed: int = 0) -> Embedder:
    return load_embedder(encoder_bundle(seed))


def filled(market: OneMarket, repo: FeatureRepo, encoder: Embedder) -> int:
    job = EmbeddingFill(market, repo, encoder)
    return sum(step.added for symbol in market.symbols for step in job.run(symbol, 1_760_000_000_000))


@pytest.fixture
def market(random_bars: MakeBars) -> OneMarket:
    return OneMarket(random_bars(400), random_bars(400, seed=1, symbol="ETH"))


def test_every_bar_with_a_window_is_embedded_once_and_an_interrupted_run_goes_on(
        market: OneMarket, repo: FeatureRepo) -> None:
    market.count = 250
    assert filled(market, repo, embedder()) == 2 * (250 - LOOKBACK_BARS + 1)
    market.count = 400
    assert filled(market, repo, embedder()) == 2 * 150
    assert filled(market, repo, embedder()) == 0


def test_a_long_history_is_embedded_month_by_month_without_a_seam(random_bars: MakeBars, repo: FeatureRepo) -> None:
    bars = random_bars(44_000)
    market, encoder = OneMarket(bars), embedder()
    assert filled(market, repo, encoder) == 44_000 - LOOKBACK_BARS + 1
    frame = window_frame(bars)
    seam = 30 * 24 * 60 - LOOKBACK_BARS
    times = frame.event_time_ms[seam - 3:seam + 3]
    found = repo.market_embeddings(["BTC"] * 6, times, encoder.version, SIZE)
    assert found.tobytes() == encoder.embed(frame.rows(seam - 3, seam + 3, encoder.window)).tobytes()


def test_a_join_by_one_version_gives_its_rows_alone_and_only_what_was_known(
        market: OneMarket, repo: FeatureRepo) -> None:
    """Against the embedding of the newest window that had closed, made again by hand for each time and symbol."""
    encoders = embedder(), embedder(1)
    for encoder in encoders:
        filled(market, repo, encoder)
    rng = np.random.default_rng(5)
    bars = market.bars("BTC")
    times = rng.integers(bars.open_time_ms[0], bars.close_time_ms[-1] + 2 * TTL_MS, 80)
    symbols = rng.choice(market.symbols, 80)
    for encoder in encoders:
        found = repo.market_embeddings(symbols, times, encoder.version, SIZE)
        for symbol, time_ms, vector in zip(symbols, times, found, strict=True):
            known = market.bars(str(symbol))
            frame = window_frame(known.slice(0, int(np.searchsorted(known.close_time_ms, time_ms, "right"))))
            if not len(frame) or time_ms - frame.event_time_ms[-1] > TTL_MS:
                assert np.isnan(vector).all()
            else:
                expected = encoder.embed(frame.rows(len(frame) - 1, len(frame), encoder.window))[0]
                assert vector.tobytes() == expected.tobytes()
    assert np.isnan(repo.market_embeddings(symbols, times, "mae-of-nobody", SIZE)).all()


def test_an_embedding_of_a_corrected_bar_supersedes_the_one_before(repo: FeatureRepo) -> None:
    times = np.array([1_750_000_020_000, 1_750_000_080_000])
    first = EmbeddingFrame("BTC", "mae-1", times, np.array([[1, 2], [3, 4]], np.float32))
    corrected = EmbeddingFrame("BTC", "mae-1", times, np.array([[1, 2], [5, 6]], np.float32))
    other = EmbeddingFrame("BTC", "mae-2", times, np.array([[7, 8], [9, 9]], np.float32))
    assert repo.append_market_embeddings(first, int(times[-1])) == 2
    assert repo.append_market_embeddings(first, int(times[-1]) + 1) == 0
    assert repo.append_market_embeddings(corrected, int(times[-1]) + 2) == 1, "the other one says nothing new"
    assert repo.append_market_embeddings(other, int(times[-1]) + 3) == 2
    assert repo.market_embeddings(["BTC"] * 2, times, "mae-1", 2).tolist() == [[1, 2], [5, 6]]
    assert repo.market_embeddings(["BTC"] * 2, times, "mae-2", 2).tolist() == [[7, 8], [9, 9]]


def test_the_online_view_joins_what_was_written_last_with_its_version(repo: FeatureRepo) -> None:
    times = np.array([1_750_000_020_000])
    for version, value in (("mae-1", 1.0), ("mae-2", 2.0)):
        frame = EmbeddingFrame("BTC", version, times, np.full((1, 3), value, np.float32))
        repo.append_market_embeddings(frame, int(times[0]) + int(value))
    asked = pd.DataFrame({"symbol": ["BTC"], "event_timestamp": pd.to_datetime(times, unit="ms", utc=True)})
    found = repo.historical(asked, ["market_embedding:embedding", "market_embedding:embedding_version"])
    assert (found["embedding"][0].tolist(), found["embedding_version"][0]) == ([2.0] * 3, "mae-2")


def test_embeddings_out_of_order_are_refused() -> None:
    for times in ([2 * MINUTE_MS, MINUTE_MS], [MINUTE_MS]):
        with pytest.raises(InvalidInput, match="embeddings"):
            EmbeddingFrame("BTC", "mae-1", np.array(times), np.zeros((2, 4), np.float32))
