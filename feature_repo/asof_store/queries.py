"""The SQL of the store: the point-in-time join of all views as one query, and the newest row per key.

Each source row has a place, ROW(event time, created, position in the files), and the join is
`ASOF LEFT JOIN ... ON keys AND until >= place`. So ties of the event time are decided inside the join, and no pass
over the source looks for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL

from .sources import Parquet, quoted, text

ROW_COLUMN, AT_COLUMN = "row_id", "moment"  # of the entity table; its keys are key_0, key_1, ...
POSITION = "file_index * 1099511627776 + file_row_number"  # 2**40 rows a file
LATEST = "'infinity'::TIMESTAMPTZ, 9223372036854775807"


@dataclass(frozen=True)
class ViewJoin:
    """What one view adds to the entity rows.

    key_column_by_name: join key in the source -> column of the entity table. name_by_feature: feature -> result column.
    ttl None: rows never expire. known_only: rows created after the entity's time are not seen.
    """

    source: Parquet
    key_column_by_name: Mapping[str, str]
    name_by_feature: Mapping[str, str]
    timestamp_field: str
    created_field: str | None
    ttl: timedelta | None
    known_only: bool


def point_in_time(views: Sequence[ViewJoin], first: datetime | None, last: datetime | None) -> str:
    """One row per row of the table `entity`, in any order: its number, then the features view by view.

    first, last: earliest and latest time in the entity table; what lies outside is not read.
    """
    chosen = [f"e.{ROW_COLUMN}"]
    for number, view in enumerate(views):
        for place, name in enumerate(view.name_by_feature.values()):
            value = f"v{number}.f{place}"
            if view.ttl:  # the newest row is expired only if all are, so the cut may come after the join
                value = f"CASE WHEN e.{AT_COLUMN} <= v{number}.ts + {_interval(view.ttl)} THEN {value} END"
            chosen.append(f"{value} AS {quoted(name)}")
    joins = [f"FROM (SELECT *, CASE WHEN {AT_COLUMN} IS NOT NULL THEN ROW({AT_COLUMN}, {LATEST}) END AS until "
             "FROM entity) e"]
    # A join sorts what the joins before it have found: the widest view comes last.
    for number, view in sorted(enumerate(views), key=lambda pair: len(pair[1].name_by_feature)):
        keys = [f"e.{column} = v{number}.k{place}" for place, column in enumerate(view.key_column_by_name.values())]
        joins.append(f"ASOF LEFT JOIN ({_history(view, first, last)}) v{number} ON "
                     + " AND ".join([*keys, f"e.until >= v{number}.place"]))
    return f"SELECT {', '.join(chosen)}\n" + "\n".join(joins)


def newest(source: Parquet, keys: Sequence[str], features: Sequence[str], timestamp_field: str,
           created_field: str | None, start: datetime, stop: datetime) -> str:
    """Per key the row with the greatest place among those with start <= event time <= stop."""
    columns = [quoted(name) for name in dict.fromkeys([*keys, *features, timestamp_field,
                                                       *([created_field] if created_field else [])])]
    group = f"PARTITION BY {', '.join(map(quoted, keys))} " if keys else ""
    order = f"{_utc(quoted(timestamp_field))} DESC, {_created(source, created_field)} DESC, {POSITION} DESC"
    return (f"SELECT {', '.join(_dummy_key(keys) + columns)} FROM {source.relation} "
            f"WHERE {' AND '.join(_between(quoted(timestamp_field), start, stop))} "
            f"QUALIFY row_number() OVER ({group}ORDER BY {order}) = 1")


def everything(source: Parquet, keys: Sequence[str], others: Sequence[str], timestamp_field: str,
               start: datetime | None, stop: datetime | None) -> str:
    """Keys and other columns of all rows with start <= event time <= stop, where these are given."""
    filters = _between(quoted(timestamp_field), start, stop)
    columns = [quoted(name) for name in dict.fromkeys([*keys, *others])]
    return (f"SELECT {', '.join(_dummy_key(keys) + columns)} FROM {source.relation}"
            + (f" WHERE {' AND '.join(filters)}" if filters else ""))


def _history(view: ViewJoin, first: datetime | None, last: datetime | None) -> str:
    """Keys k0.., event time ts, place, features f0.. of every row that may be joined."""
    source = view.source
    ts, created = _utc(source.column(view.timestamp_field)), _created(source, view.created_field)
    keys = [f"{source.column(name)} AS k{place}" for place, name in enumerate(view.key_column_by_name)]
    features = [f"{source.column(name)} AS f{place}" for place, name in enumerate(view.name_by_feature)]
    oldest = first - view.ttl if first and view.ttl else None
    filters = [f"{ts} IS NOT NULL", *_between(source.column(view.timestamp_field), oldest, last)]
    columns = [*keys, f"{ts} AS ts", f"ROW({ts}, {created}, {POSITION}) AS place", *features]
    rows = f"SELECT {', '.join(columns)} FROM {source.relation} WHERE {' AND '.join(filters)}"
    return _known(view, rows, f"{source.column(view.created_field)} IS NOT NULL") \
        if view.known_only and view.created_field else rows


def _known(view: ViewJoin, rows: str, has_created: str) -> str:
    """The rows again, each under the moments from which on it is the newest one known.

    A row is seen from greatest(ts, created) on. At such a moment the best row is the one with the greatest place among
    those already seen, a running maximum, so the join by `until >= place` holds again with place = that moment.
    """
    keys = [f"k{place}" for place in range(len(view.key_column_by_name))]
    features = [f"best.f{place}" for place in range(len(view.name_by_feature))]
    group = f"PARTITION BY {', '.join(keys)} " if keys else ""
    return (f"WITH known AS (SELECT *, row_number() OVER (ORDER BY place) AS rank, "
            f"greatest(ts, place[2]) AS seen FROM ({rows} AND {has_created})), "
            f"moments AS (SELECT seen, rank, max(rank) OVER ({group}ORDER BY seen, rank ROWS UNBOUNDED PRECEDING) "
            f"AS best_rank FROM known) "
            f"SELECT {''.join(f'best.{key}, ' for key in keys)}best.ts, "
            f"ROW(moments.seen, moments.seen, moments.rank) AS place{''.join(f', {name}' for name in features)} "
            f"FROM moments JOIN known best ON best.rank = moments.best_rank")


def _dummy_key(keys: Sequence[str]) -> list[str]:
    """Feast's online stores keep the row of a view without entities under this key."""
    return [] if keys else [f"{text(DUMMY_ENTITY_VAL)} AS {quoted(DUMMY_ENTITY_ID)}"]


def _created(source: Parquet, field: str | None) -> str:
    """Rows without a created time come first: any created one is preferred to them."""
    never = "'-infinity'::TIMESTAMPTZ"
    return f"coalesce({_utc(source.column(field))}, {never})" if field else never


def _utc(column: str) -> str:
    """Naive times are UTC, since that is the connection's time zone."""
    return f"{column}::TIMESTAMPTZ"


def _between(column: str, start: datetime | None, stop: datetime | None) -> list[str]:
    bounds = ((">=", start), ("<=", stop))
    return [f"{_utc(column)} {sign} {text(_iso(bound))}::TIMESTAMPTZ" for sign, bound in bounds if bound is not None]


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(sep=" ", timespec="microseconds")


def _interval(span: timedelta) -> str:
    return f"to_microseconds({span // timedelta(microseconds=1)})"
