"""Columns of recorded parquet and CSV files, checked cell by cell: a refusal names file, column, row and value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray

from policies.errors import InvalidInput


def read_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """These columns of a file, at least one row; InvalidInput if it lacks one or can't be read."""
    try:
        held = pq.read_schema(path).names if path.suffix == ".parquet" else pd.read_csv(path, nrows=0).columns
        missing = [name for name in columns if name not in held]
        if missing:
            raise InvalidInput(f"{path}", f"a table with the columns {', '.join(columns)}", f"no {', '.join(missing)}")
        table = (pq.read_table(path, columns=list(columns)).to_pandas() if path.suffix == ".parquet"
                 else pd.read_csv(path, usecols=list(columns)))
    except (OSError, ValueError) as error:  # pyarrow's and pandas' parsers raise ValueErrors of their own
        raise InvalidInput(f"{path}", "a readable parquet or CSV file", str(error)) from error
    if table.empty:
        raise InvalidInput(f"{path}", "a table with at least one row", "none")
    return table


def times_of(path: Path, table: pd.DataFrame, name: str = "timestamp", rising: bool = True,
             round_up: bool = False) -> NDArray[np.int64]:
    """(N,) ms since 1970 UTC. A column of integers holds milliseconds, one of text ISO 8601.

    rising: refuse a time that is not later than the one before. round_up: parts of a millisecond count as a whole one,
    for times at which something became known; else they are cut off.
    """
    column = table[name]
    if pd.api.types.is_integer_dtype(column):
        times = column.to_numpy(np.int64)
    else:
        stamps = pd.to_datetime(column, utc=True, errors="coerce", format="ISO8601")
        refuse_first(path, name, stamps.notna().to_numpy(), "ISO 8601 or whole milliseconds", column.to_numpy())
        stamps = stamps.dt.ceil("ms") if round_up else stamps
        times = stamps.dt.tz_localize(None).to_numpy("datetime64[ms]").astype(np.int64)
    if rising:
        refuse_first(path, name, np.r_[True, np.diff(times) > 0], "later than the row before", times)
    return times


def numbers_of(path: Path, table: pd.DataFrame, name: str, least: float, above: bool, most: float = math.inf,
               may_be_empty: bool = False) -> NDArray[np.float64]:
    """(N,) finite numbers, > least if `above`, else >= least, and <= most; with may_be_empty an empty cell is NaN."""
    values = pd.to_numeric(table[name], errors="coerce").to_numpy(np.float64)
    fine = np.isfinite(values) & ((values > least) if above else (values >= least)) & (values <= most)
    if may_be_empty:
        fine |= table[name].isna().to_numpy()
    legal = f"a finite number {'>' if above else '>='} {least:g}" + (f" and <= {most:g}" if most < math.inf else "")
    refuse_first(path, name, fine, legal, table[name].to_numpy())
    return values


def refuse_first(path: Path, column: str, fine: NDArray[np.bool_], legal: str, values: NDArray) -> None:
    """InvalidInput naming the first row that is not fine."""
    if not fine.all():
        row = int(np.argmin(fine))
        raise InvalidInput(f"{path}, column {column}, row {row}", legal, str(values[row]))
