"""The store against Feast's own DuckDB store and against a plain loop, on random frames with every kind of tie."""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import ibis
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, RepoConfig, RequestSource
from feast.data_format import DeltaFormat
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.feature_logging import LoggingConfig
from feast.infra.offline_stores.file_source import FileLoggingDestination, SavedDatasetFileStorage
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, Int64, String
from feast.value_type import ValueType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import feature_repo.asof_store
from feature_repo.asof_store import AsofOfflineStore, AsofOfflineStoreConfig

START = datetime(2024, 3, 1, tzinfo=UTC)
TTL_MIN = 5
OURS = f"{AsofOfflineStore.__module__}.AsofOfflineStore"
UTC_MS = pa.timestamp("ms", tz="UTC")


class Quote(NamedTuple):
    """A row of the view `quotes`. minute, created: of the day; created None: unknown."""

    symbol: str
    minute: float
    created: int | None
    price: float | None
    count: int | None


class Fill(NamedTuple):
    """A row of the view `fills`, whose source has no created time and naive event times."""

    symbol: str
    venue: int
    minute: float
    fee: float


class Asked(NamedTuple):
    symbol: str | None
    other: str
    venue: int
    minute: float


class Shop:
    """One set of definitions and files under two stores: ours, and Feast's own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("quotes", "fills", "market"):
            (root / name).mkdir()
        self.write_quotes([Quote("A", 0, 0, 1.0, 1)])
        self.write_fills([Fill("A", 1, 0, 1.0)])
        self.write_market([(0, 1.0)])
        self.ours, self.feasts = (FeatureStore(config=self._config(kind)) for kind in (OURS, "duckdb"))
        self.ours.apply(self._definitions())
        # Feast's own store keeps one connection, whose cache takes files that are written twice within a moment for the
        # old ones: "Out of buffer".
        ibis.get_backend().raw_sql("SET enable_external_file_cache = false")

    def _config(self, kind: str) -> RepoConfig:
        return RepoConfig(project="shop", provider="local", registry=str(self.root / "registry.pb"),
                          online_store={"type": "sqlite", "path": str(self.root / "online.db")},
                          offline_store={"type": kind}, entity_key_serialization_version=3, repo_path=self.root)

    def _definitions(self) -> list[Any]:
        symbol = Entity(name="symbol", join_keys=["symbol"], value_type=ValueType.STRING)
        venue = Entity(name="venue", join_keys=["venue"], value_type=ValueType.INT64)
        names = [Field(name="symbol", dtype=String)]
        quotes = FeatureView(
            name="quotes", entities=[symbol], ttl=timedelta(minutes=TTL_MIN),
            schema=[*names, Field(name="price", dtype=Float64), Field(name="count", dtype=Int64)],
            source=FileSource(name="quotes_files", path=str(self.root / "quotes" / "*.parquet"),
                              timestamp_field="event_timestamp", created_timestamp_column="created",
                              field_mapping={"raw_price": "price"}))
        fills = FeatureView(
            name="fills", entities=[symbol, venue], ttl=timedelta(0),
            schema=[*names, Field(name="venue", dtype=Int64), Field(name="fee", dtype=Float64)],
            source=FileSource(name="fills_file", path=str(self.root / "fills" / "all.parquet"), timestamp_field="at"))
        market = FeatureView(
            name="market", entities=[], ttl=timedelta(minutes=TTL_MIN), schema=[Field(name="mood_y", dtype=Float64)],
            source=FileSource(name="market_file", path="market", timestamp_field="event_timestamp"))
        asked = RequestSource(name="asked", schema=[Field(name="size", dtype=Float64)])

        @on_demand_feature_view(sources=[quotes, asked], schema=[Field(name="notional", dtype=Float64)], mode="pandas")
        def sized(inputs: pd.DataFrame) -> pd.DataFrame:
            return pd.DataFrame({"notional": inputs["price"] * inputs["size"]})

        shadow = quotes.with_name("shadow").with_join_key_map({"symbol": "other"})
        main = quotes.with_name("main")  # Feast can't sort the views of a service of which one has an alias
        both = FeatureService(name="both", features=[quotes, fills])
        again = FeatureService(name="again", features=[main[["price"]], fills, shadow[["price"]]])
        partly = FeatureService(name="partly", features=[fills.with_name("f").with_join_key_map({"symbol": "other"})])
        return [symbol, venue, quotes, fills, market, sized, both, again, partly]

    def write_quotes(self, rows: Sequence[Quote]) -> None:
        """Every second row in the second file."""
        for place in (0, 1):
            part = rows[place::2]
            pq.write_table(pa.table({
                "symbol": pa.array([row.symbol for row in part], pa.string()),
                "event_timestamp": pa.array([stamp(row.minute) for row in part], UTC_MS),
                "created": pa.array([None if row.created is None else stamp(row.created) for row in part], UTC_MS),
                "raw_price": pa.array([row.price for row in part], pa.float64()),
                "count": pa.array([row.count for row in part], pa.int64()),
            }), self.root / "quotes" / f"{place}.parquet")

    def write_fills(self, rows: Sequence[Fill]) -> None:
        pq.write_table(pa.table({
            "symbol": pa.array([row.symbol for row in rows], pa.string()),
            "venue": pa.array([row.venue for row in rows], pa.int64()),
            "at": pa.array([stamp(row.minute).replace(tzinfo=None) for row in rows], pa.timestamp("us")),
            "fee": pa.array([row.fee for row in rows], pa.float64()),
        }), self.root / "fills" / "all.parquet")

    def write_market(self, rows: Sequence[tuple[float, float]]) -> None:
        pq.write_table(pa.table({"event_timestamp": pa.array([stamp(minute) for minute, _ in rows], UTC_MS),
                                 "mood_y": [mood for _, mood in rows]}), self.root / "market" / "all.parquet")


def stamp(minute: float) -> datetime:
    return START + timedelta(minutes=minute)


def entity_frame(rows: Sequence[Asked]) -> pd.DataFrame:
    """`label` numbers the rows; the index says nothing."""
    frame = pd.DataFrame(rows, columns=list(Asked._fields)).astype({"venue": "int64"})
    frame["event_timestamp"] = pd.to_datetime([stamp(minute) for minute in frame.pop("minute")], utc=True)
    frame["label"] = np.arange(len(frame))
    frame.index = pd.Index([7] * len(frame))
    return frame


def answers(store: FeatureStore, rows: Sequence[Asked], features: Any, **options: Any) -> pa.Table:
    return store.get_historical_features(entity_frame(rows), features, **options).to_arrow()


def listed(table: pa.Table, *order: str) -> list[str]:
    """Rows as text: NaN equals NaN there, and -0.0 is not 0.0."""
    return [repr(row) for row in (table.sort_by([(name, "ascending") for name in order]) if order else table)
            .to_pylist()]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return Shop(tmp_path_factory.mktemp("shop"))


MINUTES = st.integers(0, 24).map(lambda half: half / 2)
PRICES = st.none() | st.floats(allow_nan=True, allow_infinity=True)
QUOTES = st.lists(st.builds(Quote, st.sampled_from("AB"), MINUTES, st.none() | st.integers(0, 12), PRICES,
                            st.none() | st.integers(-5, 5)), min_size=1, max_size=25)
FILLS = st.lists(st.builds(Fill, st.sampled_from("AB"), st.integers(1, 2), MINUTES, st.floats()), min_size=1,
                 max_size=15, unique_by=lambda row: row[:3])
ASKED = st.lists(st.builds(Asked, st.sampled_from(["A", "B", "C", None]), st.sampled_from("AB"), st.integers(1, 2),
                           MINUTES), min_size=1, max_size=12).flatmap(lambda rows: st.permutations(rows + rows[:2]))
QUICKLY = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]}


@settings(max_examples=30, **QUICKLY)
@given(quotes=QUOTES, fills=FILLS, asked=ASKED, full=st.booleans(), known=st.booleans())
def test_every_value_is_that_of_feasts_own_store(shop: Shop, quotes: list[Quote], fills: list[Fill],
                                                 asked: list[Asked], full: bool, known: bool) -> None:
    # Where event and created time are both equal, Feast's own store may answer any of the rows: one of them is kept.
    shop.write_quotes(list({(row.symbol, row.minute, row.created): row for row in quotes}.values()))
    shop.write_fills(fills)
    for name in ("both", "again") if full else ("both",):  # twice the same feature needs full names
        found, theirs = (answers(store, asked, store.get_feature_service(name), full_feature_names=full,
                                 filter_by_created_timestamp=known) for store in (shop.ours, shop.feasts))
        assert found.schema.equals(theirs.schema), (found.schema, theirs.schema)
        assert listed(found) == listed(theirs, "label")


def newest_quote(quotes: Sequence[Quote], symbol: str | None, minute: float, known: bool) -> Quote | None:
    """The rule in a plain loop; of rows equal in both times the later one in the later file."""
    files = [*quotes[0::2], *quotes[1::2]]
    best: tuple[Any, Quote] | None = None
    for place, row in enumerate(files):
        if row.symbol != symbol or row.minute > minute or row.minute < minute - TTL_MIN:
            continue
        if known and (row.created is None or row.created > minute):
            continue
        rank = (row.minute, -1 if row.created is None else row.created, place)
        if best is None or rank > best[0]:
            best = (rank, row)
    return best[1] if best else None


@settings(max_examples=60, **QUICKLY)
@given(quotes=QUOTES, asked=ASKED, known=st.booleans())
def test_every_value_is_that_of_a_plain_loop_even_where_both_times_tie(shop: Shop, quotes: list[Quote],
                                                                       asked: list[Asked], known: bool) -> None:
    shop.write_quotes(quotes)
    found = answers(shop.ours, asked, ["quotes:price", "quotes:count"], filter_by_created_timestamp=known)
    assert found["label"].to_pylist() == list(range(len(asked)))
    for row, question in zip(found.to_pylist(), asked, strict=True):
        quote = newest_quote(quotes, question.symbol, question.minute, known)
        expected = (quote.price, quote.count) if quote else (None, None)
        assert repr((row["price"], row["count"])) == repr(expected)


@settings(max_examples=15, **QUICKLY)
@given(quotes=QUOTES, start=MINUTES, length=MINUTES)
def test_newest_rows_to_materialize_are_those_of_feasts_own_store(shop: Shop, quotes: list[Quote], start: float,
                                                                  length: float) -> None:
    shop.write_quotes(list({(row.symbol, row.minute, row.created): row for row in quotes}.values()))
    source = shop.ours.get_feature_view("quotes").batch_source
    found, theirs = (store._get_provider().offline_store.pull_latest_from_table_or_query(
        store.config, source, ["symbol"], ["raw_price", "count"], "event_timestamp", "created", stamp(start),
        stamp(start + length)).to_arrow() for store in (shop.ours, shop.feasts))
    assert found.schema.equals(theirs.schema)
    assert listed(found, "symbol") == listed(theirs, "symbol")


def test_a_row_newer_than_the_asked_time_is_never_joined_and_one_as_old_as_the_ttl_is(shop: Shop) -> None:
    shop.write_quotes([Quote("A", 5, 0, 5.0, 1)])
    asked = [Asked("A", "A", 1, minute) for minute in (4.999, 5, 5 + TTL_MIN, 5.001 + TTL_MIN)]
    assert answers(shop.ours, asked, ["quotes:price"])["price"].to_pylist() == [None, 5.0, 5.0, None]


def test_times_may_be_naive_text_or_of_another_unit_and_zone(shop: Shop) -> None:
    shop.write_quotes([Quote("A", 5, 0, 5.0, 1)])
    stamps = pd.to_datetime([stamp(5), stamp(4)])
    for times in (stamps, stamps.tz_localize(None), stamps.as_unit("ns"), stamps.as_unit("ms"),
                  stamps.tz_convert("Asia/Tokyo"), stamps.astype(str), [stamp(5), stamp(4)]):
        frame = pd.DataFrame({"symbol": ["A", "A"], "event_timestamp": times})
        found, theirs = (store.get_historical_features(frame.copy(), ["quotes:price"]).to_arrow()
                         for store in (shop.ours, shop.feasts))
        assert found["price"].to_pylist() == [5.0, None]
        assert (found.schema, listed(found)) == (theirs.schema, listed(theirs.sort_by([("price", "ascending")])))


def test_the_only_time_column_is_taken_and_all_other_columns_come_back(shop: Shop) -> None:
    shop.write_quotes([Quote("A", 5, 0, 5.0, 1)])
    frame = pd.DataFrame({"weight": np.float32([0.5]), "when": pd.to_datetime([stamp(6)]), "symbol": ["A"],
                          "group": pd.Categorical(["x"]), "flag": [True], "price_y": [None]})
    found, theirs = (store.get_historical_features(frame, ["quotes:price"]).to_arrow().drop_columns("price_y")
                     for store in (shop.ours, shop.feasts))
    assert found.column_names == ["weight", "when", "symbol", "group", "flag", "price"]
    assert found.to_pylist() == theirs.to_pylist()
    assert found.schema.equals(theirs.schema)


def test_the_frame_of_the_caller_stays_as_it_is(shop: Shop) -> None:
    frame = entity_frame([Asked("A", "A", 1, 3), Asked("B", "A", 1, 1)])
    before = frame.copy()
    shop.ours.get_historical_features(frame, ["quotes:price"]).to_df()
    pd.testing.assert_frame_equal(frame, before)


def test_a_missing_time_joins_nothing(shop: Shop) -> None:
    shop.write_quotes([Quote("A", 5, 0, 5.0, 1)])
    for times in ([pd.NaT, pd.Timestamp(stamp(6))], [pd.NaT, pd.NaT]):
        frame = pd.DataFrame({"symbol": ["A", "A"], "event_timestamp": pd.to_datetime(times, utc=True)})
        prices = shop.ours.get_historical_features(frame, ["quotes:price"]).to_arrow()["price"].to_pylist()
        assert prices == [None, None if times[1] is pd.NaT else 5.0]


def test_an_alias_for_some_keys_leaves_the_others_compared(shop: Shop) -> None:
    # Feast's own store compares only the aliased key here, and so answers the fee of venue 2.
    shop.write_fills([Fill("B", 1, 1, 0.1), Fill("B", 2, 2, 0.2)])
    service = shop.ours.get_feature_service("partly")
    assert answers(shop.ours, [Asked("A", "B", 1, 3)], service)["fee"].to_pylist() == [0.1]
    assert answers(shop.feasts, [Asked("A", "B", 1, 3)], service)["fee"].to_pylist() == [0.2]


def test_a_view_without_entities_is_joined_by_time_alone_and_materialized(shop: Shop) -> None:
    shop.write_market([(1, 0.1), (2, 0.2)])
    asked = [Asked("A", "A", 1, minute) for minute in (2, 1.5, 0, 9)]
    assert answers(shop.ours, asked, ["market:mood_y"])["mood_y"].to_pylist() == [0.2, 0.1, None, None]
    shop.ours.materialize(stamp(0), stamp(1.5), feature_views=["market"])
    assert shop.ours.get_online_features(["market:mood_y"], [{"__dummy_id": ""}]).to_dict()["mood_y"] == [0.1]


def test_materialized_values_are_the_newest_of_the_range(shop: Shop) -> None:
    shop.write_quotes([Quote("A", 1, 1, 1.0, 1), Quote("A", 2, 1, 2.0, 2), Quote("A", 2, 3, 2.5, 2),
                       Quote("A", 9, 9, 9.0, 9)])
    shop.ours.materialize(stamp(0), stamp(3), feature_views=["quotes"])
    online = shop.ours.get_online_features(["quotes:price"], [{"symbol": "A"}]).to_dict()
    assert online["price"] == [2.5]


def test_on_demand_features_are_computed_and_saved_with_the_rest(shop: Shop, tmp_path: Path) -> None:
    shop.write_quotes([Quote("A", 5, 0, 5.0, 1)])
    frame = entity_frame([Asked("A", "A", 1, 6), Asked("A", "A", 1, 5)]).assign(size=[2.0, 3.0])
    job = shop.ours.get_historical_features(frame, ["quotes:price", "sized:notional"])
    assert job.to_df()["notional"].tolist() == [10.0, 15.0]
    for path in (tmp_path / "saved.parquet", tmp_path / "saved"):
        storage = SavedDatasetFileStorage(path=str(path))
        shop.ours.create_saved_dataset(from_=job, name=path.name, storage=storage)
        assert pq.read_table(path)["notional"].to_pylist() == [10.0, 15.0]
        with pytest.raises(SavedDatasetLocationAlreadyExists):
            job.persist(storage)
        job.persist(storage, allow_overwrite=True)
        assert shop.ours.get_saved_dataset(path.name).to_df()["notional"].tolist() == [10.0, 15.0]


def test_the_job_runs_when_it_is_asked_and_tells_its_query(shop: Shop) -> None:
    shop.write_quotes([Quote("A", 5, 0, 5.0, 1)])
    job = shop.ours.get_historical_features(entity_frame([Asked("A", "A", 1, 6)]), ["quotes:price"])
    shop.write_quotes([Quote("A", 5, 0, 5.5, 1)])
    assert job.to_df()["price"].tolist() == [5.5]
    assert "ASOF LEFT JOIN" in job.to_sql()
    assert job.metadata is not None
    assert (job.metadata.min_event_timestamp, job.metadata.features) == (stamp(6), ["quotes:price"])


def test_pulling_everything_keeps_both_ends_of_the_range(shop: Shop) -> None:
    shop.write_fills([Fill("A", 1, minute, minute) for minute in range(5)])
    source = shop.ours.get_feature_view("fills").batch_source
    pull = AsofOfflineStore.pull_all_from_table_or_query
    parts = (shop.ours.config, source, ["symbol"], ["fee"], "at")
    assert sorted(pull(*parts, None, stamp(1), stamp(3)).to_arrow()["fee"].to_pylist()) == [1.0, 2.0, 3.0]
    assert pull(*parts).to_arrow().num_rows == 5


def test_batches_are_appended_to_a_file_or_a_folder_but_not_to_a_glob(shop: Shop) -> None:
    shop.write_fills([Fill("A", 1, 0, 0.5)])
    shop.write_market([(0, 1.0)])
    more = pq.read_table(shop.root / "fills" / "all.parquet")
    shop.ours.write_to_offline_store("fills", more.to_pandas())
    assert pq.read_table(shop.root / "fills" / "all.parquet")["fee"].to_pylist() == [0.5, 0.5]
    market = pq.read_table(shop.root / "market" / "all.parquet")
    view = shop.ours.get_feature_view("market")
    AsofOfflineStore.offline_write_batch(shop.ours.config, view, market, None)
    files = sorted((shop.root / "market").glob("*.parquet"))
    assert pq.read_table(shop.root / "market")["mood_y"].to_pylist() == [1.0, 1.0]
    for added in files:
        if added.name != "all.parquet":
            added.unlink()
    with pytest.raises(ValueError, match="in this order"):
        AsofOfflineStore.offline_write_batch(shop.ours.config, view, market.rename_columns(["a", "b"]), None)
    with pytest.raises(NotImplementedError, match="existing parquet file or folder"):
        AsofOfflineStore.offline_write_batch(shop.ours.config, shop.ours.get_feature_view("quotes"), market, None)


def test_logged_features_are_added_to_the_folder(shop: Shop, tmp_path: Path) -> None:
    logging = LoggingConfig(destination=FileLoggingDestination(path=str(tmp_path / "logs")))
    rows = pa.table({"x": [1, 2]})
    pq.write_table(rows, tmp_path / "rows.parquet")
    for given_rows in (rows, tmp_path / "rows.parquet"):
        AsofOfflineStore.write_logged_features(shop.ours.config, given_rows, None, logging, None)
    assert pq.read_table(tmp_path / "logs")["x"].to_pylist() == [1, 2, 1, 2]


def test_what_it_cannot_do_is_refused_by_name(shop: Shop) -> None:
    with pytest.raises(NotImplementedError, match="entity_df as a pandas DataFrame"):
        shop.ours.get_historical_features("SELECT 1", ["quotes:price"])
    with pytest.raises(NotImplementedError, match="start_date"):
        shop.ours.get_historical_features(features=["quotes:price"], start_date=stamp(0), end_date=stamp(1))
    with pytest.raises(ValueError, match="lacks"):
        shop.ours.get_historical_features(pd.DataFrame({"event_timestamp": [stamp(0)]}), ["quotes:price"])
    delta = FileSource(name="d", path="d", file_format=DeltaFormat(), timestamp_field="t")
    with pytest.raises(NotImplementedError, match="DeltaFormat"):
        AsofOfflineStore.pull_all_from_table_or_query(shop.ours.config, delta, [], [], "t")
    for threads in (0, 1025):
        with pytest.raises(ValueError, match="threads"):
            AsofOfflineStoreConfig(threads=threads)


def test_it_imports_nothing_of_this_project() -> None:
    allowed = {"duckdb", "feast", "numpy", "pandas", "pyarrow", "pydantic", *sys.stdlib_module_names}  # Feast needs all
    for path in Path(feature_repo.asof_store.__file__).parent.glob("*.py"):
        found = list(ast.walk(ast.parse(path.read_text())))
        named = {alias.name for node in found if isinstance(node, ast.Import) for alias in node.names}
        named |= {node.module or "" for node in found if isinstance(node, ast.ImportFrom) and node.level == 0}
        assert {name.partition(".")[0] for name in named} <= allowed
        assert all(node.level <= 1 for node in found if isinstance(node, ast.ImportFrom))  # within its own folder
