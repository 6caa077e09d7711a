"""What was counted: daily histograms of every feature by symbol, in one DuckDB file, kept as long as drift needs them.

A row of `histograms` is a feature's day: its list, symbol, day (days since 1970), scale and counts of the bins of
`drift`. DuckDB locks its file against other processes for as long as it is open, so it is opened for each call and
closed after it; a call that meets another process in the file says so and changed nothing. One thread of one process
may write.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from feature_repo.drift import PLACES, Counts, DriftFeatures, DriftReport, DriftSettings, count_days, judge_day
from feature_repo.features import DECISION_V1, FeatureList
from policies.errors import HubError, InvalidInput

SCHEMA = f"""
create table if not exists histograms (
    list varchar not null, symbol varchar not null, day integer not null, feature varchar not null,
    scale double not null, counts uinteger[{PLACES}] not null);
create table if not exists counted (list varchar not null, symbol varchar not null, until_ms bigint not null);
"""


class StatisticsUnavailable(HubError):
    """The file of statistics cannot be opened: in use by another process, or not DuckDB's. Nothing was changed."""

    code = "statistics_unavailable"


class FeatureStatistics:
    """Daily histograms of one feature list, and the drift that they show.

    path: of the file, made at the first record. Days are kept for the reference of each of the days that an alarm looks
    at: reference_days + days_running, newest included.
    """

    def __init__(self, path: Path, features: FeatureList = DECISION_V1, settings: DriftSettings | None = None,
                 judged: DriftFeatures | None = None) -> None:
        self.path, self.features = path, features
        self.settings = settings or DriftSettings()
        self.judged = judged or DriftFeatures.of(features)
        if self.judged.names != features.names:
            raise InvalidInput("drift.names", f"those of {features.name}, in order", self.judged.names)

    @property
    def kept_days(self) -> int:
        settings = self.settings
        return settings.reference_days + max(settings.days_running, settings.level_days_running)

    def record(self, symbol: str, event_time_ms: ArrayLike, values: ArrayLike) -> int:
        """Count rows of a symbol that are newer than every row counted of it before; returns how many that were.

        Callers may bring a growing or overlapping history: each row counts once, whatever the cut of the calls. A row
        that comes after a newer one was counted is left out. event_time_ms: (N,) rising. values: (N, F) in the order of
        the list, NaN where missing. Days older than kept_days are removed.
        """
        times, rows = self._checked(event_time_ms, values)
        with self._writing() as connection:
            until_ms = self._counted_until_ms(connection, symbol)
            fresh = slice(0 if until_ms is None else int(np.searchsorted(times, until_ms, side="right")), None)
            times, rows = times[fresh], rows[fresh]
            if len(times) == 0:
                return 0
            days, counts = count_days(times, rows, self.features.scales)
            self._add(connection, symbol, days, counts, int(times[-1]))
        return len(times)

    def forget(self, symbol: str) -> None:
        """Remove all that was counted of a symbol, so that its history can be counted anew."""
        with self._writing() as connection:
            for table in ("histograms", "counted"):
                connection.execute(f"delete from {table} where list = ? and symbol = ?", [self.features.name, symbol])

    def counted_until_ms(self, symbol: str) -> int | None:
        """Event time of the newest row counted; None before the first."""
        with self._reading() as connection:
            return None if connection is None else self._counted_until_ms(connection, symbol)

    def symbols(self) -> tuple[str, ...]:
        with self._reading() as connection:
            if connection is None:
                return ()
            found = connection.execute("select distinct symbol from histograms where list = ? order by symbol",
                                       [self.features.name]).fetchall()
        return tuple(symbol for symbol, in found)

    def histograms(self, symbol: str | None = None) -> tuple[NDArray[np.int64], Counts]:
        """(D,) days since 1970, rising, and (D, F, PLACES) counts; of all symbols together if symbol is None.

        A feature that was not yet counted on a day, or with another scale, has no rows there.
        """
        with self._reading() as connection:
            if connection is None:
                return np.empty(0, np.int64), np.empty((0, len(self.features), PLACES), np.int64)
            return self._read(connection, symbol)

    def drift(self, symbol: str | None, day: int) -> DriftReport:
        """Drift of one day (days since 1970) of a symbol, or of all pooled: one broken symbol shows less there."""
        days, counts = self.histograms(symbol)
        return judge_day(day, days, counts, self.judged, self.settings, symbol)

    def history(self, symbol: str | None, first_day: int | None = None, last_day: int | None = None
                ) -> list[DriftReport]:
        """Drift of each day that is kept, oldest first. Early days have what is kept before them as their reference."""
        days, counts = self.histograms(symbol)
        return [judge_day(day, days, counts, self.judged, self.settings, symbol) for day in days.tolist()
                if (first_day is None or day >= first_day) and (last_day is None or day <= last_day)]

    def _checked(self, event_time_ms: ArrayLike, values: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        times, rows = np.asarray(event_time_ms, np.int64), np.asarray(values, np.float64)
        if rows.shape != (len(times), len(self.features)):
            raise InvalidInput("values", f"{len(times)} rows of {len(self.features)} numbers", rows.shape)
        if not (np.diff(times) > 0).all():
            raise InvalidInput("event_time_ms", "rising", int(times[1:][np.diff(times) <= 0][0]))
        return times, rows

    def _counted_until_ms(self, connection: duckdb.DuckDBPyConnection, symbol: str) -> int | None:
        found = connection.execute("select until_ms from counted where list = ? and symbol = ?",
                                   [self.features.name, symbol]).fetchone()
        return None if found is None else int(found[0])

    def _add(self, connection: duckdb.DuckDBPyConnection, symbol: str, days: NDArray[np.int64], counts: Counts,
             until_ms: int) -> None:
        """Only the first of the days can have been counted in part before."""
        held_days, held = self._read(connection, symbol, first_day=int(days[0]))
        if len(held_days):
            counts[0] += held[0]
        oldest = int(days[-1]) - self.kept_days + 1
        keep = days >= oldest
        days, counts = days[keep], counts[keep]
        named = [self.features.name, symbol]
        connection.execute("delete from histograms where list = ? and symbol = ? and (day >= ? or day < ?)",
                           [*named, int(days[0]), oldest])
        connection.register("fresh", self._table(symbol, days, counts))
        connection.execute("insert into histograms select * from fresh")
        connection.execute("delete from counted where list = ? and symbol = ?", named)
        connection.execute("insert into counted values (?, ?, ?)", [*named, until_ms])

    def _table(self, symbol: str, days: NDArray[np.int64], counts: Counts) -> pa.Table:
        features, rows = len(self.features), len(days) * len(self.features)
        flat = pa.array(counts.astype(np.uint32).ravel())
        return pa.table({"list": pa.array([self.features.name] * rows), "symbol": pa.array([symbol] * rows),
                         "day": pa.array(np.repeat(days, features).astype(np.int32)),
                         "feature": pa.array(list(self.features.names) * len(days)),
                         "scale": pa.array(np.tile(self.features.scales, len(days))),
                         "counts": pa.FixedSizeListArray.from_arrays(flat, PLACES)})

    def _read(self, connection: duckdb.DuckDBPyConnection, symbol: str | None, first_day: int = 0
              ) -> tuple[NDArray[np.int64], Counts]:
        of_symbol = "" if symbol is None else "and symbol = ?"
        table = connection.execute(
            f"select day, feature, scale, counts from histograms where list = ? and day >= ? {of_symbol}",
            [self.features.name, first_day, *([] if symbol is None else [symbol])]).to_arrow_table().combine_chunks()
        days, row_day = np.unique(table["day"].to_numpy().astype(np.int64), return_inverse=True)
        counts = np.zeros((len(days), len(self.features), PLACES), np.int64)
        place_of = {spec.name: place for place, spec in enumerate(self.features.specs)}
        places = np.array([place_of.get(name, -1) for name in table["feature"].to_pylist()], np.int64)
        fits = (places >= 0) & (self.features.scales[places] == table["scale"].to_numpy())
        flat = table["counts"].combine_chunks().flatten().to_numpy().reshape(-1, PLACES)
        np.add.at(counts, (row_day[fits], places[fits]), flat[fits].astype(np.int64))
        return days, counts

    @contextmanager
    def _writing(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """One transaction: all of it, or nothing if the body raises."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._open(read_only=False) as connection:
            connection.begin()
            connection.execute(SCHEMA)
            yield connection
            connection.commit()

    @contextmanager
    def _reading(self) -> Iterator[duckdb.DuckDBPyConnection | None]:
        """None before the first record."""
        if not self.path.exists():
            yield None
            return
        with self._open(read_only=True) as connection:
            known = connection.execute("select 1 from duckdb_tables() where table_name = 'counted'").fetchone()
            yield connection if known else None

    def _open(self, read_only: bool) -> duckdb.DuckDBPyConnection:
        try:
            return duckdb.connect(str(self.path), read_only=read_only)
        except (duckdb.IOException, duckdb.ConnectionException) as error:
            first_line = str(error).splitlines()[0]
            raise StatisticsUnavailable(f"feature statistics {self.path}: {first_line}") from error
