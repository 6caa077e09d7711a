"""An offline store for Feast on DuckDB's ASOF JOIN. It needs feast[duckdb] and this folder, and nothing else.

Select it in feature_store.yaml by its class path, wherever the folder lies:

    offline_store:
      type: feature_repo.asof_store.AsofOfflineStore
      threads: 2          # optional, 1 to 1024; default: all cores

Sources are parquet FileSources: a file, a glob or a folder, or an s3:// address if DuckDB's httpfs is installed. A
relative path lies under the folder of feature_store.yaml.

What `get_historical_features` joins to an entity row with time t, view by view:

- of the rows with equal join keys and event time <= t the newest, if event time >= t - ttl (both limits included; no
  ttl or a ttl of zero: no lower limit). Otherwise nulls. A null in a key or in t joins nothing;
- of several with the same event time the one with the latest created time (null is earlier than any); of several with
  the same created time as well, the one that comes last in its file, and of files the last in the listing's order;
- with `filter_by_created_timestamp`, only rows with created time <= t are looked at;
- naive times are UTC; times are compared in whole microseconds.

The result has the rows of the entity frame in its order, its columns first. Feast's own DuckDB store joins the same
values and promises no order. Where this store differs from it:

- ties of both times are decided as above; there, any of the rows may come;
- an alias for some join keys of a view leaves the others as they are; there, the others are not compared at all;
- views without entities can be materialized; there, it is an error;
- a folder may be a source, and relative paths start at feature_store.yaml; there, at the working directory;
- a feature whose name ends in `_y` can be joined; there, it is an error;
- a saved dataset holds on-demand features; there, it does not.

Refused with NotImplementedError: entity frames in SQL, retrieval without an entity frame, sources other than parquet,
on-demand views in mode `substrait`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from feast.data_source import DataSource
from feast.feature_logging import LoggingConfig, LoggingSource
from feast.feature_view import DUMMY_ENTITY_ID, FeatureView
from feast.infra.offline_stores.file_source import FileLoggingDestination
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalMetadata
from feast.infra.offline_stores.offline_utils import (
    get_pyarrow_schema_from_batch_source,
    infer_event_timestamp_from_entity_df,
)
from feast.infra.registry.base_registry import BaseRegistry
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import FeastConfigBaseModel, RepoConfig
from pydantic import Field, StrictStr

from .job import AsofRetrievalJob, EntityRows
from .queries import AT_COLUMN, ROW_COLUMN, ViewJoin, everything, newest, point_in_time
from .sources import append, log, parquet_of, target_of


class AsofOfflineStoreConfig(FeastConfigBaseModel):
    """The block `offline_store`. threads: of one query; None: all cores."""

    type: StrictStr = f"{__name__}.AsofOfflineStore"
    threads: int | None = Field(default=None, ge=1, le=1024)


class AsofOfflineStore(OfflineStore):
    """Feast calls these; the rules are those on top of this file."""

    supports_filter_by_created_timestamp = True

    @staticmethod
    def get_historical_features(config: RepoConfig, feature_views: list[FeatureView], feature_refs: list[str],
                                entity_df: pd.DataFrame | str | None, registry: BaseRegistry, project: str,
                                full_feature_names: bool = False, filter_by_created_timestamp: bool = False,
                                **options: Any) -> AsofRetrievalJob:
        if not isinstance(entity_df, pd.DataFrame) or options:
            raise NotImplementedError("AsofOfflineStore.get_historical_features needs entity_df as a pandas DataFrame, "
                                      f"got {type(entity_df).__name__} {sorted(options)}")
        on_demand = OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry)
        if any(view.mode == "substrait" for view in on_demand):
            raise NotImplementedError("AsofOfflineStore does not apply on-demand views in mode substrait")
        time_column = infer_event_timestamp_from_entity_df(dict(zip(entity_df.columns, entity_df.dtypes, strict=True)))
        times = _times(entity_df[time_column])
        first, last = (None, None) if times.isna().all() else (times.min(), times.max())
        aliases = _entity_columns(feature_views)
        views = [_view_join(config, view, feature_refs, aliases, full_feature_names, filter_by_created_timestamp)
                 for view in feature_views]
        metadata = RetrievalMetadata(feature_refs, [name for name in entity_df.columns if name != time_column],
                                     first, last)
        return AsofRetrievalJob(config, point_in_time([view for view in views if view.name_by_feature], first, last),
                                _entity_rows(entity_df, time_column, times, aliases), on_demand, full_feature_names,
                                metadata)

    @staticmethod
    def pull_latest_from_table_or_query(config: RepoConfig, data_source: DataSource, join_key_columns: list[str],
                                        feature_name_columns: list[str], timestamp_field: str,
                                        created_timestamp_column: str | None, start_date: datetime,
                                        end_date: datetime) -> AsofRetrievalJob:
        source = parquet_of(config, data_source, map_names=False)
        return AsofRetrievalJob(config, newest(source, join_key_columns, feature_name_columns, timestamp_field,
                                               created_timestamp_column or None, start_date, end_date))

    @staticmethod
    def pull_all_from_table_or_query(config: RepoConfig, data_source: DataSource, join_key_columns: list[str],
                                     feature_name_columns: list[str], timestamp_field: str,
                                     created_timestamp_column: str | None = None, start_date: datetime | None = None,
                                     end_date: datetime | None = None) -> AsofRetrievalJob:
        source = parquet_of(config, data_source, map_names=False)
        others = [*feature_name_columns, timestamp_field, created_timestamp_column or ""]
        others = [name for name in others if name not in ("", "__log_date")]  # the second is no column of the logs
        return AsofRetrievalJob(config, everything(source, join_key_columns, others, timestamp_field, start_date,
                                                   end_date))

    @staticmethod
    def offline_write_batch(config: RepoConfig, feature_view: FeatureView, table: pa.Table,
                            progress: Callable[[int], Any] | None) -> None:
        source = feature_view.batch_source
        if source is None:
            raise ValueError(f"Feature view {feature_view.name!r} has no batch source")
        target = target_of(config, source)
        expected = get_pyarrow_schema_from_batch_source(config, source)[1]
        if expected != table.column_names:
            raise ValueError(f"{feature_view.name}: the columns must be {expected} in this order, "
                             f"got {table.column_names}")
        append(target, table)
        if progress:
            progress(table.num_rows)

    @staticmethod
    def write_logged_features(config: RepoConfig, data: pa.Table | Path, source: LoggingSource,
                              logging_config: LoggingConfig, registry: BaseRegistry) -> None:
        destination = logging_config.destination
        if not isinstance(destination, FileLoggingDestination):
            raise NotImplementedError("AsofOfflineStore.write_logged_features writes to a FileLoggingDestination, "
                                      f"not {type(destination).__name__}")
        log(destination.path, pq.read_table(data) if isinstance(data, Path) else data, destination.partition_by)


def _join_keys(view: FeatureView) -> dict[str, str]:
    """Join key in the source -> column of the entity frame; empty for a view without entities."""
    names = [column.name for column in view.entity_columns if column.name != DUMMY_ENTITY_ID]
    return {name: view.projection.join_key_map.get(name, name) for name in names}


def _entity_columns(views: Sequence[FeatureView]) -> dict[str, str]:
    """Column of the entity frame -> column of the entity table."""
    names = dict.fromkeys(name for view in views for name in _join_keys(view).values())
    return {name: f"key_{place}" for place, name in enumerate(names)}


def _view_join(config: RepoConfig, view: FeatureView, feature_refs: Sequence[str], aliases: dict[str, str],
               full_feature_names: bool, known_only: bool) -> ViewJoin:
    source = view.batch_source
    if source is None:
        raise ValueError(f"Feature view {view.name!r} has no batch source")
    start = f"{view.projection.name_to_use()}:"
    prefix = f"{view.projection.name_alias or view.name}__" if full_feature_names else ""
    features = [ref.removeprefix(start) for ref in feature_refs if ref.startswith(start)]
    return ViewJoin(parquet_of(config, source, map_names=True),
                    {key: aliases[column] for key, column in _join_keys(view).items()},
                    {feature: prefix + feature for feature in features}, source.timestamp_field,
                    source.created_timestamp_column or None, view.ttl or None, known_only)


def _times(column: pd.Series) -> pd.Series:
    """Times of the entity rows, as Feast reads them: text and objects are parsed, naive ones are UTC."""
    if isinstance(column.dtype, pd.DatetimeTZDtype):
        return column  # spares pandas its look for repeated values
    return pd.to_datetime(column.infer_objects(), utc=True)


def _entity_rows(frame: pd.DataFrame, time_column: str, times: pd.Series, aliases: dict[str, str]) -> EntityRows:
    kept = frame if pd.api.types.is_datetime64_any_dtype(frame[time_column]) else frame.assign(**{time_column: times})
    table = pa.Table.from_pandas(kept, preserve_index=False).replace_schema_metadata(None)
    missing = [name for name in aliases if name not in table.column_names]
    if missing:
        raise ValueError(f"the entity frame must have the columns {list(aliases)}, it lacks {missing}")
    columns = {ROW_COLUMN: pa.array(np.arange(len(frame))), AT_COLUMN: pa.array(times)}
    columns |= {alias: table[name] for name, alias in aliases.items()}
    return EntityRows(_as_duckdb_answers(table), pa.table(columns))


def _as_duckdb_answers(table: pa.Table) -> pa.Table:
    """Columns in the types in which they would come back from a query."""
    for place, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            table = table.set_column(place, field.name, table[place].cast(field.type.value_type))
        elif pa.types.is_timestamp(field.type) and field.type.tz:
            table = table.set_column(place, field.name, table[place].cast(pa.timestamp("us", "UTC"), safe=False))
    return table
