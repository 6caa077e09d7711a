"""What training learns from, as the feature store knew it: bars, feature rows, windows, and labels of the engine.

The same steps serve the first heads of a new hub and the nightly search for better ones.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from feature_repo.features import BARS, DECISION_V1, FUNDING, MINUTE_MS
from feature_repo.feeds.events import MarketUnavailable
from feature_repo.generated import GeneratedMarket
from feature_repo.hyperliquid import PAGE_BARS
from feature_repo.market import ChosenMarket, Market, choose_market
from feature_repo.sources import FrameSource, gathered, sources_of
from feature_repo.store import FeatureRepo, LabelRows
from feature_repo.transforms import LOOKBACK_BARS
from feature_repo.windows import CHANNELS, windows
from policies.bars import Bars
from policies.bundle import Bundle, pack_bundle
from policies.errors import InvalidInput
from policies.fills import Costs
from train.dataset import Brackets, Dataset, FeatureRows, rows_by_symbol
from train.seen import UNTIL_MS

LIVE_BARS = PAGE_BARS - UNTIL_MS // MINUTE_MS  # before a floored time, that a live venue has for as long as it stands
Progress = Callable[[str], None]


def open_market(kind: str, data_dir: str | None, symbols: Sequence[str], seed: int, signal: float,
                generated_bars: int) -> Market:
    """kind: auto, or one of feature_repo.market.KINDS. seed, signal, generated_bars: of a generated market."""
    if kind == "generated":
        return ChosenMarket(GeneratedMarket(seed, signal, symbols, generated_bars), "asked for by the caller")
    return choose_market(data_dir, None if kind == "auto" else kind, symbols=symbols, seed=seed)


def live_start_ms(market: Market, until_ms: int | None, bars: int) -> int | None:
    """Where to begin to ask for that many bars before until_ms; None: where the market begins, or no time is given.

    A live market has no beginning: it holds its newest PAGE_BARS bars, and what lies before them slides away each
    minute. A job's until_ms stands for UNTIL_MS of wall time, so at most LIVE_BARS before it are the same bars all
    along, and an interrupted search finds its steps again.
    """
    if market.name != "hyperliquid" or until_ms is None:
        return None
    return until_ms - min(bars, LIVE_BARS) * MINUTE_MS


def bars_until(market: Market, symbols: Sequence[str], until_ms: int | None, lookback_bars: int,
               least_bars: int = 2 * LOOKBACK_BARS) -> dict[str, Bars]:
    """The last `lookback_bars` bars of each symbol, of a live market LIVE_BARS at most; none that closes after until_ms
    (None: to the end). InvalidInput if there are fewer than least_bars; MarketUnavailable while a live market does not
    tell its funding."""
    bars, start_ms = {}, live_start_ms(market, until_ms, lookback_bars)
    for symbol in symbols:
        run = funded(market, market.bars(symbol, start_ms=start_ms, stop_ms=until_ms))
        if until_ms is not None:
            run = run.slice(0, int(np.searchsorted(run.close_time_ms, until_ms, "right")))
        if len(run) < least_bars:
            raise InvalidInput("COINS", f"symbols with at least {least_bars} bars for training, whatever LOOKBACK is",
                               f"{symbol} with {len(run)}")
        bars[symbol] = run.slice(max(0, len(run) - lookback_bars), len(run))
    return bars


def span_of(bars: Mapping[str, Bars]) -> dict[str, int]:
    """{from_ms, until_ms} of everything that these bars tell of, for a manifest: a forward test begins after it."""
    return {"from_ms": min(int(run.open_time_ms[0]) for run in bars.values()),
            "until_ms": max(int(run.close_time_ms[-1]) for run in bars.values())}


def funded(market: Market, bars: Bars) -> Bars:
    """The bars of a market; MarketUnavailable if it is live and their funding could not be had.

    It always has some. Without it a short would be judged as if it were free of funding, and nothing would tell.
    """
    if market.name == "hyperliquid" and bars.funding_rate is None:
        raise MarketUnavailable(f"Hyperliquid did not tell the funding of {bars.symbol}; try again in a minute")
    return bars


def joined_rows(market: Market, repo: FeatureRepo, bars: Mapping[str, Bars],
                progress: Progress) -> dict[str, FeatureRows]:
    """For each bar that has features, everything that was known at its close, by the feature repo's join."""
    rows = {}
    for symbol, run in bars.items():
        rows[symbol] = _joined(repo, sources_of(market), funded(market, run))
        progress(f"features: {symbol}, {len(rows[symbol])} rows joined point in time")
    return rows


def window_rows(bars: Bars, event_time_ms: NDArray[np.int64], length: int) -> NDArray[np.float32]:
    """(N, length * 5): for each time, which must be a bar's close, the window of bars that ends with it.

    Its first bar is never the first one of `bars`, whose channels have no close before them; InvalidInput if one's is.
    """
    if length == 0:
        return np.empty((len(event_time_ms), 0), np.float32)
    places = np.searchsorted(bars.close_time_ms, event_time_ms)
    fine = (places > length - 1) & (places < len(bars))
    if not fine.all() or not (bars.close_time_ms[places] == event_time_ms).all():
        raise InvalidInput("event_time_ms", f"closes of bars with at least {length} bars before them", bars.symbol)
    return np.ascontiguousarray(windows(bars, length)[places - length + 1]).reshape(-1, length * len(CHANNELS))


def thinned(rows: Mapping[str, FeatureRows], limit: int) -> dict[str, FeatureRows]:
    """Every so many rows of each symbol, so that all together are about `limit`."""
    step = -(-sum(map(len, rows.values())) // limit)
    return {symbol: FeatureRows(part.event_time_ms[::step], part.values[::step]) for symbol, part in rows.items()}


def bracket_name(brackets: Brackets, costs: Costs) -> str:
    """What distinguishes these labels from those of another trade on the same bar."""
    return ",".join(f"{name}={value:g}" for part in (brackets, costs) for name, value in asdict(part).items())


def keep_labels(repo: FeatureRepo, dataset: Dataset, bracket: str) -> None:
    """Add labels to the offline store, each known from when its trades were over."""
    for symbol in np.unique(dataset.symbol):
        own = dataset.take(dataset.symbol == symbol)
        returns = np.column_stack([own.long_return, own.short_return])
        repo.append_labels(LabelRows(str(symbol), bracket, own.event_time_ms, own.known_ms, returns),
                           time.time_ns() // 1_000_000)


def write_packed(path: Path, bundle: Bundle) -> None:
    """A reader sees the old file or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = path.with_suffix(f".{os.getpid()}.part")  # two that train at once must not share it
    part.write_bytes(pack_bundle(bundle))
    os.replace(part, path)


def _joined(repo: FeatureRepo, sources: Sequence[FrameSource], run: Bars) -> FeatureRows:
    start_ms, stop_ms = int(run.open_time_ms[0]), int(run.close_time_ms[-1])
    frames = gathered(sources, run.symbol, start_ms, stop_ms)
    if run.funding_rate is not None and run.funding_rate.any() and not len(frames.get(FUNDING, ())):
        # A live market is asked again for these, further back: it may not answer now.
        raise MarketUnavailable(f"the funding of {run.symbol} was told before and is not now; try again in a minute")
    for frame in frames.values():
        if len(frame):
            repo.append(run.symbol, frame, time.time_ns() // 1_000_000)
    times = frames[BARS].event_time_ms
    table = repo.training_frame([run.symbol], times[times >= start_ms])
    return rows_by_symbol(table, DECISION_V1.names)[run.symbol]
