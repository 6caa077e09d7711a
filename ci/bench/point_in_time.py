"""The point-in-time join of a training frame: our offline store against Feast's own, and against DuckDB alone.

`python -m ci.bench.point_in_time` measures. 20 symbols, one parquet file each in each of two views, 16 and 4 features;
an entity frame of 40,000 rows in random order. All start from files and a fresh connection. Ours and the peer are timed
from Feast's `get_historical_features` to the pandas frame, the floor from sending its SQL to the Arrow table.
"""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.types import Float64, String

from ci.bench.load import NotMeasured
from reports.report import BenchRow

WORK = "Point-in-time training join, 40,000 rows x 20 features"
PEER = "Feast's own DuckDB store"
AIM_PEER, AIM_FLOOR = 300.0, 3.0
OURS = "feature_repo.asof_store.AsofOfflineStore"

SYMBOLS, FEATURES_PER_VIEW = 20, (16, 4)
FIRST_MS, STEP_MS = 1_700_000_000_000, 60_000

Say = Callable[[str], None]


@dataclass(frozen=True)
class Shape:
    """What is joined. history_rows: of each view, over all symbols, one a minute and symbol."""

    name: str
    history_rows: int
    ttl: timedelta
    asked_rows: int = 40_000
    peer_rounds: int = 1

    @property
    def rows_per_symbol(self) -> int:
        return self.history_rows // SYMBOLS


# Feast's own store pairs each asked row with all rows inside its ttl: a long ttl on a long history is out of its reach.
SHAPES = (Shape("40,000 rows of history, ttl 1 day", 40_000, timedelta(days=1)),
          Shape("500,000 rows of history, ttl 10 minutes", 500_000, timedelta(minutes=10), peer_rounds=3))


def run(say: Say, rounds: int = 20, shapes: Sequence[Shape] = SHAPES, seed: int = 1) -> list[BenchRow]:
    """One row per shape; the first is the one with an aim against the peer. Raises NotMeasured if values differ."""
    rows = []
    for place, shape in enumerate(shapes):
        with tempfile.TemporaryDirectory(prefix="point-in-time-") as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows.append(_measure(say, Path(folder), shape, rounds, seed, with_peer_aim=place == 0))
    return rows


def _measure(say: Say, folder: Path, shape: Shape, rounds: int, seed: int, with_peer_aim: bool) -> BenchRow:
    rng = np.random.default_rng(seed)
    write_history(folder, shape, rng)
    asked = asked_frame(shape, rng)
    ours, peer = (store(folder, shape, kind) for kind in (OURS, "duckdb"))
    arrow = pa.Table.from_pandas(asked, preserve_index=False)
    works = {"ours": lambda: _timed(lambda: joined(ours, asked)), "floor": lambda: _floor(folder, shape, arrow)}
    say(f"{shape.name}: {PEER}")
    peers = [_timed(lambda: joined(peer, asked)) for _ in range(shape.peer_rounds)]
    say(f"{shape.name}: ours and the floor, {rounds} rounds")
    for work in works.values():
        work()  # imports and page cache
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds):
        for name in ("ours", "floor", "floor", "ours") if number % 2 == 0 else ("floor", "ours", "ours", "floor"):
            times[name].append(works[name]()[0])
    unequal = unequal_values(joined(ours, asked), peers[0][1])
    if unequal:
        raise NotMeasured(f"{shape.name}: {unequal} of {shape.asked_rows * sum(FEATURES_PER_VIEW)} values differ")
    say(f"{shape.name}: every value equal; spread of ours {_spread(times['ours'])}, of the floor "
        f"{_spread(times['floor'])}, of the peer {_spread([took for took, _ in peers])}")
    return _row(shape, times["ours"], times["floor"], [took for took, _ in peers], with_peer_aim)


def _row(shape: Shape, ours: Sequence[float], floor: Sequence[float], peer: Sequence[float],
         with_peer_aim: bool) -> BenchRow:
    ours_s, floor_s, peer_s = (statistics.median(times) for times in (ours, floor, peer))
    aim = (f">= {AIM_PEER:g}x the peer, " if with_peer_aim else "") + f"<= {AIM_FLOOR:g}x the floor, every value equal"
    met = ours_s <= AIM_FLOOR * floor_s and (not with_peer_aim or peer_s >= AIM_PEER * ours_s)
    return BenchRow(f"{WORK}: {shape.name}", ours_s, "s", PEER, peer_s, floor_s, peer_s / ours_s, ours_s / floor_s, aim,
                    met, floor="DuckDB ASOF JOIN", runs={"hub": list(ours), "peer": list(peer), "floor": list(floor)})


def write_history(folder: Path, shape: Shape, rng: np.random.Generator) -> None:
    """One file per view and symbol, as the hub writes them."""
    times = pa.array(FIRST_MS + STEP_MS * np.arange(shape.rows_per_symbol), pa.timestamp("ms", tz="UTC"))
    for view, count in enumerate(FEATURES_PER_VIEW):
        (folder / f"view_{view}").mkdir()
        for symbol in _symbols():
            features = {name: rng.normal(size=len(times)) for name in _names(view, count)}
            pq.write_table(pa.table({"symbol": [symbol] * len(times), "event_timestamp": times, "created": times,
                                     **features}), folder / f"view_{view}" / f"{symbol}.parquet", compression="zstd")


def asked_frame(shape: Shape, rng: np.random.Generator) -> pd.DataFrame:
    """Random symbols and milliseconds within the history; `number` tells the rows apart."""
    stamps = FIRST_MS + rng.integers(0, shape.rows_per_symbol * STEP_MS, shape.asked_rows)
    return pd.DataFrame({"symbol": np.array(_symbols())[rng.integers(0, SYMBOLS, shape.asked_rows)],
                         "event_timestamp": pd.to_datetime(stamps, unit="ms", utc=True),
                         "number": np.arange(shape.asked_rows)})


def store(folder: Path, shape: Shape, kind: str) -> FeatureStore:
    """Feast with both views, on this offline store."""
    made = FeatureStore(config=RepoConfig(
        project="bench", provider="local", registry=str(folder / f"{kind}.pb"), offline_store={"type": kind},
        online_store={"type": "sqlite", "path": str(folder / "online.db")}, entity_key_serialization_version=3,
        repo_path=folder))
    symbol = Entity(name="symbol", join_keys=["symbol"], value_type=ValueType.STRING)
    views = [FeatureView(name=f"view_{view}", entities=[symbol], ttl=shape.ttl,
                         schema=[Field(name="symbol", dtype=String),
                                 *(Field(name=name, dtype=Float64) for name in _names(view, count))],
                         source=FileSource(name=f"files_{view}", path=str(folder / f"view_{view}" / "*.parquet"),
                                           timestamp_field="event_timestamp", created_timestamp_column="created"))
             for view, count in enumerate(FEATURES_PER_VIEW)]
    made.apply([symbol, *views])
    return made


def joined(feast: FeatureStore, asked: pd.DataFrame) -> pd.DataFrame:
    refs = [f"view_{view}:{name}" for view, count in enumerate(FEATURES_PER_VIEW) for name in _names(view, count)]
    return feast.get_historical_features(asked, refs).to_df()


def unequal_values(ours: pd.DataFrame, other: pd.DataFrame) -> int:
    """How many feature values differ, bit by bit but for NaN, once both are ordered by `number`."""
    names = [name for view, count in enumerate(FEATURES_PER_VIEW) for name in _names(view, count)]
    left, right = (frame.sort_values("number")[["number", *names]].to_numpy(np.float64) for frame in (ours, other))
    if left.shape != right.shape:
        return left.size
    return int((~((left == right) | (np.isnan(left) & np.isnan(right)))).sum())


def _floor(folder: Path, shape: Shape, asked: pa.Table) -> tuple[float, Any]:
    """The join as one would write it by hand: ties are left to chance and rows come in any order."""
    columns, joins = ["e.*"], ["FROM asked e"]
    for view, count in enumerate(FEATURES_PER_VIEW):
        columns += [f"CASE WHEN e.event_timestamp <= v{view}.event_timestamp + to_seconds({shape.ttl.total_seconds()}) "
                    f"THEN {name} END AS {name}" for name in _names(view, count)]
        joins.append(f"ASOF LEFT JOIN read_parquet('{folder}/view_{view}/*.parquet') v{view} "
                     f"ON e.symbol = v{view}.symbol AND e.event_timestamp >= v{view}.event_timestamp")
    with duckdb.connect(":memory:", config={"asof_loop_join_threshold": 0}) as connection:
        connection.execute("SET TimeZone = 'UTC'; SET preserve_insertion_order = false")
        connection.register("asked", asked)
        query = f"SELECT {', '.join(columns)} {' '.join(joins)}"
        return _timed(lambda: connection.execute(query).to_arrow_table())


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def _symbols() -> list[str]:
    return [f"S{place:02}" for place in range(SYMBOLS)]


def _names(view: int, count: int) -> list[str]:
    return [f"f{view}_{place}" for place in range(count)]


def _spread(times: Sequence[float]) -> str:
    return f"{min(times):.3g} - {max(times):.3g} s"


def main() -> None:
    for row in run(print):
        print(f"{row.work}\n  {row.figure:.4g} s; peer {row.peer_figure:.4g} s ({row.ratio_to_peer:.0f}x), floor "
              f"{row.floor_figure:.4g} s ({row.ratio_to_floor:.2f}x); aim {row.aim}: {'met' if row.met else 'NOT met'}")


if __name__ == "__main__":
    main()
