"""Parquet behind a Feast FileSource: how DuckDB reads it, and the few ways in which it is written."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from feast.data_format import ParquetFormat
from feast.data_source import DataSource
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.infra.offline_stores.file_source import FileSource
from feast.repo_config import RepoConfig

BELOW = "/**/*.parquet"  # of a folder


@dataclass(frozen=True)
class Parquet:
    """Where a source lies and how its columns are called there. column_by_name: the mapped names only."""

    path: str
    column_by_name: Mapping[str, str] = field(default_factory=dict)

    @property
    def relation(self) -> str:
        return f"read_parquet({text(self.path)})"

    def column(self, name: str) -> str:
        """The quoted column that holds `name`."""
        return quoted(self.column_by_name.get(name, name))


def parquet_of(config: RepoConfig, source: DataSource | None, map_names: bool) -> Parquet:
    """map_names: names are those behind the source's field mapping; else those in the file."""
    path = path_of(config, source)
    mapping = dict(source.field_mapping or {}) if source is not None and map_names else {}
    if mapping:
        with duckdb.connect(":memory:") as connection:
            present = set(connection.execute(f"SELECT * FROM read_parquet({text(path)}) LIMIT 0").to_arrow_table()
                          .column_names)
        mapping = {old: new for old, new in mapping.items() if old in present}
    return Parquet(path, {new: old for old, new in mapping.items()})


def path_of(config: RepoConfig, source: DataSource | None) -> str:
    """A file, a glob or a remote address; a folder becomes the glob of all parquet files below it.

    A relative path lies under the folder of feature_store.yaml.
    """
    if not isinstance(source, FileSource) or not isinstance(source.file_format, ParquetFormat | None):
        raise NotImplementedError(f"AsofOfflineStore reads FileSource with parquet only, not {type(source).__name__}"
                                  f" ({type(getattr(source, 'file_format', None)).__name__})")
    path = FileSource.get_uri_for_file_path(config.repo_path, source.path)
    return path + BELOW if os.path.isdir(path) else path


def target_of(config: RepoConfig, source: DataSource) -> Path:
    """The existing file or folder to which rows of a source are added."""
    path = path_of(config, source).removesuffix(BELOW)
    if not os.path.exists(path):
        raise NotImplementedError(f"AsofOfflineStore writes to an existing parquet file or folder, not to {path}")
    return Path(path)


def append(target: Path, table: pa.Table) -> None:
    """Add rows to a file, which is replaced whole, or to a folder, which gets one more file. The file's types stay."""
    if target.is_dir():
        _write_whole(table, target / f"{uuid.uuid4().hex}.parquet")
    else:
        before = pq.read_table(target, partitioning=None)
        _write_whole(pa.concat_tables([table.cast(before.schema), before]), target)


def save(config: RepoConfig, destination: DataSource, table: pa.Table, allow_overwrite: bool) -> None:
    """Write a saved dataset: one file if its path ends in .parquet, else a folder with one file."""
    path = Path(path_of(config, destination).removesuffix(BELOW))
    if path.exists() and not allow_overwrite:
        raise SavedDatasetLocationAlreadyExists(location=str(path))
    if path.suffix == ".parquet":
        _write_whole(table, path)
        return
    for old in path.glob("*.parquet"):
        old.unlink()
    _write_whole(table, path / "part-0.parquet")


def log(path: str, table: pa.Table, partition_by: list[str] | None) -> None:
    """Add logged rows to a folder, as files with new names."""
    pq.write_to_dataset(table, path, partition_cols=partition_by, basename_template=uuid.uuid4().hex + "-{i}.parquet")


def quoted(name: str) -> str:
    """A name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def text(value: str) -> str:
    """A string as an SQL literal."""
    return "'" + value.replace("'", "''") + "'"


def _write_whole(table: pa.Table, path: Path) -> None:
    """A reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")  # matched by no glob of parquet files
    pq.write_table(table, part)
    os.replace(part, path)
