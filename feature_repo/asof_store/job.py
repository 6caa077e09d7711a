"""A query that has not run yet, as the RetrievalJob that Feast hands to its users."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import RepoConfig
from feast.saved_dataset import SavedDatasetStorage

from .queries import ROW_COLUMN
from .sources import save


@dataclass(frozen=True)
class EntityRows:
    """The frame to be joined. kept: its columns as they are answered; joined: number, time and keys of each row."""

    kept: pa.Table
    joined: pa.Table


class AsofRetrievalJob(RetrievalJob):
    """Runs its query anew whenever it is asked, on a connection of its own. `timeout` is not applied.

    entity: without it the result is that of the query.
    """

    def __init__(self, config: RepoConfig, query: str, entity: EntityRows | None = None,
                 on_demand: Sequence[OnDemandFeatureView] = (), full_feature_names: bool = False,
                 metadata: RetrievalMetadata | None = None) -> None:
        super().__init__()
        self._config, self._query, self._entity = config, query, entity
        self._on_demand, self._full_feature_names, self._metadata = list(on_demand), full_feature_names, metadata

    @property
    def full_feature_names(self) -> bool:
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        return self._on_demand

    @property
    def metadata(self) -> RetrievalMetadata | None:
        return self._metadata

    def to_sql(self) -> str:
        """DuckDB's SQL. The table `entity` in it is the entity frame: row_id, moment, key_0, key_1, ..."""
        return self._query

    def persist(self, storage: SavedDatasetStorage, allow_overwrite: bool = False, timeout: int | None = None) -> None:
        """Write the result, on-demand features included, to parquet."""
        save(self._config, storage.to_data_source(), self.to_arrow(timeout=timeout), allow_overwrite)

    def to_df(self, validation_reference: Any = None, timeout: int | None = None) -> pd.DataFrame:
        """As in the base class, without its second copy for an index that is there already."""
        return self.to_arrow(validation_reference, timeout).to_pandas()

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        return self._to_arrow_internal(timeout).to_pandas()

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        connection = connect(self._config.offline_store.threads)
        try:
            if self._entity is None:
                return connection.execute(self._query).to_arrow_table()
            connection.register("entity", self._entity.joined)
            found = connection.execute(self._query).to_arrow_table()
        finally:
            connection.close()
        return _side_by_side(self._entity.kept, found)


_databases: dict[tuple[int, int | None], duckdb.DuckDBPyConnection] = {}


def connect(threads: int | None) -> duckdb.DuckDBPyConnection:
    """A connection to a database in memory that knows UTC only, fetches nothing and remembers no file.

    The database is made once per process, since its threads cost as much as a join; not before a fork, whose child
    would have it without them.
    """
    key = (os.getpid(), threads)
    if key not in _databases:
        _databases[key] = _database(threads)
    connection = _databases[key].cursor()
    connection.execute("SET TimeZone = 'UTC'")
    return connection


def _database(threads: int | None) -> duckdb.DuckDBPyConnection:
    # Below the threshold of rows DuckDB joins by nested loops, and it takes an Arrow table, whose length it does not
    # know, for a small one: measured, 10 s instead of 0.06 s for 40,000 rows against 500,000.
    settings: dict[str, Any] = {"autoinstall_known_extensions": False, "asof_loop_join_threshold": 0,
                                "enable_external_file_cache": False, "preserve_insertion_order": False,
                                **({"threads": threads} if threads else {})}
    return duckdb.connect(":memory:", config=settings)


def _side_by_side(kept: pa.Table, found: pa.Table) -> pa.Table:
    """The entity columns and, row for row, what was found."""
    rows = found[ROW_COLUMN].to_numpy()
    order = np.empty(len(rows), np.int64)
    order[rows] = np.arange(len(rows))
    features = found.drop_columns([ROW_COLUMN]).combine_chunks().take(pa.array(order))
    for name in features.column_names:
        kept = kept.append_column(features.schema.field(name), features[name])
    return kept
