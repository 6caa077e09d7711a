"""The offline store's files: `<folder>/<view>/<part>/<YYYY-MM>.parquet`, one part per symbol, one file per month.

Rows are only ever added. A row that says the same as the one held is left out, one that says otherwise (an exchange
has corrected a bar) is added with its own `created`, and readers take the newest of an event time. So whoever writes
the same rows again adds nothing, and a back-fill that was interrupted goes on where it was.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

EVENT, CREATED = "event_timestamp", "created"
STAMP = pa.timestamp("ms", tz="UTC")
EMPTY = "empty.parquet"  # of a view's schema, so that a view can be read before its first row


@dataclass(frozen=True)
class Extent:
    """What the store holds of one part of a view. first_ms, last_ms: event times."""

    view: str
    part: str
    rows: int
    first_ms: int
    last_ms: int


class OfflineFiles:
    """Readers see each file whole, old or new; writers, of whatever process, take turns."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def pattern(self, view: str) -> str:
        """Where a reader finds every file of a view."""
        return str(self.folder / view / "*" / "*.parquet")

    def declare(self, view: str, columns: pa.Schema) -> None:
        """Make the view readable. columns: all but event time and `created`."""
        path = self.folder / view / "_" / EMPTY
        if not path.exists():
            schema = pa.schema([*columns, pa.field(EVENT, STAMP), pa.field(CREATED, STAMP)])
            _write(path, schema.empty_table())

    def append(self, view: str, part: str, columns: pa.Table, event_time_ms: NDArray[np.int64], created_ms: int) -> int:
        """Add rows of one part; returns how many were new. event_time_ms: (N,), in any order."""
        with self.turn():
            months = event_time_ms.astype("datetime64[ms]").astype("datetime64[M]")
            return sum(self._append_month(view, part, str(month), columns.filter(pa.array(months == month)),
                                          event_time_ms[months == month], created_ms) for month in np.unique(months))

    def event_times(self, view: str, part: str, first_ms: int, last_ms: int,
                    where: tuple[str, str] | None = None) -> NDArray[np.int64]:
        """Event times in [first_ms, last_ms] of which a part holds rows, each once, rising.

        where: a column and its text; rows with another one do not count.
        """
        columns = [EVENT] if where is None else [EVENT, where[0]]
        files = [path for path in sorted(self._part(view, part).glob("*.parquet"))
                 if _range_of(path)[1] <= last_ms and _range_of(path)[2] >= first_ms]
        tables = [pq.read_table(path, columns=columns, partitioning=None) for path in files]
        if where is not None:
            tables = [table.filter(pc.equal(table[where[0]], where[1])) for table in tables]
        held = [table[EVENT].cast(pa.int64()).to_numpy() for table in tables]
        times = np.unique(np.concatenate(held)) if held else np.empty(0, np.int64)
        return times[(times >= first_ms) & (times <= last_ms)]

    def extents(self) -> list[Extent]:
        """What there is, by view and part."""
        return [extent for view in sorted(path.name for path in self.folder.iterdir() if path.is_dir())
                for part in sorted((self.folder / view).iterdir())
                if part.name != "_" and (extent := _extent(view, part)) is not None]

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Held by whoever changes the folder. A file is read, added to and replaced: two that did so at once would
        lose the rows of one.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self.folder / ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # let go of when the file is closed, also by a process that is killed
            yield

    def _part(self, view: str, part: str) -> Path:
        """Any name becomes one folder: a slash, or dots alone, would lead elsewhere."""
        return self.folder / view / quote(part, safe="").replace(".", "%2E")

    def _append_month(self, view: str, part: str, month: str, columns: pa.Table, event_time_ms: NDArray[np.int64],
                      created_ms: int) -> int:
        path = self._part(view, part) / f"{month}.parquet"
        stamps = pa.array(event_time_ms, pa.int64()).cast(STAMP)
        created = pa.array(np.full(len(event_time_ms), created_ms), pa.int64()).cast(STAMP)
        fresh = _last_of_each(columns.append_column(EVENT, stamps).append_column(CREATED, created))
        held = pq.read_table(path, partitioning=None) if path.exists() else None
        if held is not None:
            fresh = _news(held, fresh)
        if fresh.num_rows:
            whole = fresh if held is None else pa.concat_tables([held, fresh.cast(held.schema)])
            _write(path, whole.sort_by([(EVENT, "ascending"), (CREATED, "ascending")]))
        return fresh.num_rows


def _last_of_each(table: pa.Table) -> pa.Table:
    """Of rows with the same keys and event time the last one."""
    frame = table.to_pandas()
    return table.filter(pa.array(~frame.duplicated(_keys(table), keep="last").to_numpy()))


def _keys(table: pa.Table) -> list[str]:
    """What a row is about: all that is neither a number nor a list of numbers."""
    return [field.name for field in table.schema if field.name != CREATED
            and not pa.types.is_floating(field.type) and not pa.types.is_list(field.type)]


def _news(held: pa.Table, fresh: pa.Table) -> pa.Table:
    """The rows of `fresh` that `held` does not hold with the same numbers. A later `created` is no difference."""
    if pc.min(fresh[EVENT]).as_py() > pc.max(held[EVENT]).as_py():
        return fresh
    numbers = [field.name for field in fresh.schema if pa.types.is_floating(field.type)]
    keys = _keys(fresh)
    latest = held.to_pandas().sort_values([EVENT, CREATED], kind="stable").drop_duplicates(keys, keep="last")
    asked, latest = fresh.to_pandas().set_index(keys), latest.set_index(keys)
    ours, theirs = asked[numbers].to_numpy(), latest[numbers].reindex(asked.index).to_numpy()
    same = ((ours == theirs) | (np.isnan(ours) & np.isnan(theirs))).all(axis=1)
    for name in (field.name for field in fresh.schema if pa.types.is_list(field.type)):
        pairs = zip(asked[name], latest[name].reindex(asked.index), strict=True)
        same &= np.fromiter((np.array_equal(one, other) for one, other in pairs), bool, len(asked))
    return fresh.filter(pa.array(~(asked.index.isin(latest.index) & same)))


def _write(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = path.with_suffix(".part")  # matched by no view
    with part.open("wb") as file:
        pq.write_table(table, file, compression="zstd")
        file.flush()
        os.fsync(file.fileno())  # before the name: a power cut must not leave an empty file under it
    os.replace(part, path)


def _extent(view: str, part: Path) -> Extent | None:
    found = [_range_of(path) for path in sorted(part.glob("*.parquet"))]
    if not found:
        return None
    return Extent(view, unquote(part.name), sum(rows for rows, _, _ in found), min(low for _, low, _ in found),
                  max(high for _, _, high in found))


def _range_of(path: Path) -> tuple[int, int, int]:
    """(rows, first and last event time in ms) from the file's own statistics."""
    metadata = pq.read_metadata(path)
    place = metadata.schema.names.index(EVENT)
    spans = [metadata.row_group(group).column(place).statistics for group in range(metadata.num_row_groups)]
    return (metadata.num_rows, min(int(span.min.timestamp() * 1000) for span in spans),
            max(int(span.max.timestamp() * 1000) for span in spans))
