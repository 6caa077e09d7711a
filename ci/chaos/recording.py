"""A folder of recorded bars and feeds that stop: what `make chaos` replays, and what is known of it beforehand.

The bars are generated and written as if they had been recorded, so that every vector which a hub makes of them can be
computed again here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo.features import BARS, FEAR_GREED, GROUPS, MINUTE_MS
from feature_repo.frames import GroupFrame
from feature_repo.generated import START_MS, GeneratedMarket
from feature_repo.market import TRAINING_SHARE
from feature_repo.sentiment import DAY_MS
from feature_repo.transforms import LOOKBACK_BARS, bar_frames
from policies.bars import Bars

SYMBOLS = ("BTC", "ETH")
SEED = 7
COUNT = 6_000  # minutes
HOLE_AFTER, HOLE = 500, 10  # minutes: from the split to the hole, and its length


@dataclass(frozen=True)
class Recording:
    """split_ms: where the replay begins. Bars with open time in [hole_start_ms, hole_stop_ms) are not there.

    mood_ends_ms: event time of the last value of the fear and greed index. frames: of the bars, by symbol.
    """

    folder: Path
    split_ms: int
    hole_start_ms: int
    hole_stop_ms: int
    mood_ends_ms: int
    frames: dict[str, GroupFrame]

    @property
    def bars_stale_after_ms(self) -> int:
        """The last moment at which the last bar before the hole is fresh."""
        return self.hole_start_ms + GROUPS[BARS].ttl_ms

    @property
    def bars_back_ms(self) -> int:
        """The first close after the hole at which there are features: they look back over unbroken bars only."""
        return self.hole_stop_ms + LOOKBACK_BARS * MINUTE_MS

    @property
    def mood_stale_after_ms(self) -> int:
        return self.mood_ends_ms + GROUPS[FEAR_GREED].ttl_ms


def write_recording(folder: Path) -> Recording:
    """Write <folder>/hyperliquid and <folder>/sentiment."""
    split_ms = START_MS + int(COUNT * MINUTE_MS * TRAINING_SHARE) // MINUTE_MS * MINUTE_MS
    hole_start_ms = split_ms + HOLE_AFTER * MINUTE_MS
    hole_stop_ms = hole_start_ms + HOLE * MINUTE_MS
    market, frames = GeneratedMarket(SEED, 1.0, SYMBOLS, COUNT), {}
    for symbol in SYMBOLS:
        bars = market.bars(symbol)
        held = bars.between(START_MS, hole_start_ms).followed_by(
            bars.between(hole_stop_ms, int(bars.close_time_ms[-1])))
        frames[symbol] = bar_frames(held)[BARS]
        _write_bars(folder / "hyperliquid", held)
    day_ms = START_MS // DAY_MS * DAY_MS
    _write(folder / "sentiment" / "fear_greed_1d_chaos.parquet",
           {"timestamp": _stamps(np.array([day_ms])), "fear_greed": np.array([40.0])})
    return Recording(folder, split_ms, hole_start_ms, hole_stop_ms, day_ms + DAY_MS, frames)


def _write_bars(folder: Path, bars: Bars) -> None:
    columns = {name: getattr(bars, name) for name in ("open", "high", "low", "close", "volume")}
    _write(folder / f"{bars.symbol}_1m_chaos.parquet", {"timestamp": _stamps(bars.open_time_ms), **columns})
    assert bars.funding_rate is not None
    settled = bars.funding_rate != 0
    _write(folder / f"{bars.symbol}_funding_1h_chaos.parquet",
           {"timestamp": _stamps(bars.open_time_ms[settled]), "funding_rate": bars.funding_rate[settled]})


def _stamps(time_ms: np.ndarray) -> pa.Array:
    return pa.array(time_ms, pa.int64()).cast(pa.timestamp("ms", tz="UTC"))


def _write(path: Path, columns: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
