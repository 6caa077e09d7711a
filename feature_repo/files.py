"""Recorded bars from a folder: `<venue>/<SYMBOL>_<interval>_<start>_<end>.parquet` or `.csv`, stamped with open times.

A symbol may have several runs that do not follow each other, on several venues. A market serves one run of each symbol:
the longest one, or, when symbols are asked for together, the runs of one venue that overlap longest, because a book of
several symbols must be replayed on one time line. Funding comes from `<SYMBOL>_funding_<interval>_<start>_<end>` files.

What is traded are perpetuals, and on bars without funding a short is judged as if it were free of it. So runs with
funding come before longer ones without, such as of a spot market. Only where they are shorter than ENOUGH_BARS, less
than a search asks for, the longer ones are taken, and `describe` says that they have no funding. Who wants others names
the venue, or a folder that holds nothing else.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from feature_repo.features import MINUTE_MS
from feature_repo.tables import numbers_of, read_table, refuse_first, times_of
from policies.bars import Bars
from policies.errors import InvalidInput, UnknownEntity

BAR_COLUMNS = ("timestamp", "open", "high", "low", "close", "volume")
RUN_NAME = re.compile(r"^(?P<symbol>[A-Za-z0-9]+)_1m_\w+\.(parquet|csv)$")
ENOUGH_BARS = 42_000  # of which 60 % are for training: the 25,200 that a search looks at when nobody says how many
FUNDING_NAME = re.compile(r"^(?P<symbol>[A-Za-z0-9]+)_funding_\w+\.(parquet|csv)$")


@dataclass(frozen=True)
class Run:
    """One file of minutes. Open times in [start_ms, stop_ms). funded: whether funding of that time lies beside it."""

    venue: str
    symbol: str
    path: Path
    start_ms: int
    stop_ms: int
    funded: bool


class FileMarket:
    """Minutes of `folder`. venue: only that one. symbols: serve these, from runs of one venue that overlap longest.

    Without symbols, each symbol that the folder holds is served from its longest run. Runs with funding come first if
    they are long enough.
    """

    name = "files"

    def __init__(self, folder: Path, venue: str | None = None, symbols: Sequence[str] | None = None) -> None:
        if not folder.is_dir():
            raise InvalidInput("market.data_dir", "a folder", str(folder))
        self.folder = folder
        self._runs = _chosen_together(_runs(folder, venue), symbols) if symbols else _longest_each(_runs(folder, venue))
        if not self._runs:
            raise InvalidInput("market.data_dir", "a folder with <venue>/<SYMBOL>_1m_<start>_<end>.parquet or .csv",
                               str(folder), f"venue {venue}" if venue else "")
        self.symbols = tuple(symbols) if symbols else tuple(sorted(self._runs))
        self.origin = "+".join(sorted({run.venue for run in self._runs.values()}))
        self._read: dict[str, Bars] = {}

    def bars(self, symbol: str, start_ms: int | None = None, stop_ms: int | None = None) -> Bars:
        run = self.run(symbol)
        if symbol not in self._read:
            self._read[symbol] = _read_run(run)
        return self._read[symbol].between(run.start_ms if start_ms is None else start_ms,
                                          run.stop_ms if stop_ms is None else stop_ms)

    def run(self, symbol: str) -> Run:
        if symbol not in self._runs:
            raise UnknownEntity("symbol", symbol, list(self.symbols))
        return self._runs[symbol]

    def common_range(self, symbols: Sequence[str]) -> tuple[int, int]:
        """[start_ms, stop_ms) in which all these symbols have bars."""
        runs = [self.run(symbol) for symbol in symbols]
        start_ms, stop_ms = _overlap(runs)
        if start_ms >= stop_ms:
            raise InvalidInput("market.symbols", "recorded at the same time", list(symbols),
                               "ask for them together: FileMarket(folder, symbols=...)")
        return start_ms, stop_ms

    def describe(self) -> str:
        served = ", ".join(_described(symbol, self._runs[symbol]) for symbol in self.symbols)
        return f"recorded one-minute bars: {served}"


def symbol_of(name: str) -> str:
    """BTCUSDT -> BTC, BTC -> BTC."""
    return re.sub(r"(USDT|USDC|USD)$", "", name.upper()) or name.upper()


def _runs(folder: Path, venue: str | None) -> list[Run]:
    """Every run of minutes, sorted by path; of one venue only if it is named."""
    if venue is not None and not (folder / venue).is_dir():
        raise InvalidInput("market.venue", f"a folder of {folder}", venue)
    runs = []
    for path in sorted(folder.glob(f"{venue or '*'}/*")):
        match = RUN_NAME.match(path.name)
        if match:
            symbol, (start_ms, stop_ms) = symbol_of(match["symbol"]), _extent(path)
            settled = [_extent(file) for file in _funding_files(path.parent, symbol)]
            funded = any(first_ms < stop_ms and end_ms > start_ms for first_ms, end_ms in settled)
            runs.append(Run(path.parent.name, symbol, path, start_ms, stop_ms, funded))
    return runs


def _funding_files(venue: Path, symbol: str) -> list[Path]:
    """Sorted by name."""
    named = ((path, FUNDING_NAME.match(path.name)) for path in sorted(venue.iterdir()))
    return [path for path, match in named if match and symbol_of(match["symbol"]) == symbol]


def _extent(path: Path) -> tuple[int, int]:
    """Open times [first, last + 1 minute) of a file: of parquet from its statistics, so that no column is read.

    A file whose times are not sorted is found when its bars are read.
    """
    if path.suffix == ".parquet" and (known := _extent_of_statistics(path)) is not None:
        return known
    times = times_of(path, read_table(path, ("timestamp",)))
    return int(times[0]), int(times[-1]) + MINUTE_MS


def _extent_of_statistics(path: Path) -> tuple[int, int] | None:
    """None if the file does not say, or keeps its times in another way than as timestamps."""
    try:
        metadata = pq.read_metadata(path)
        place = metadata.schema.names.index("timestamp")
        groups = [metadata.row_group(group).column(place).statistics for group in range(metadata.num_row_groups)]
        low, high = min(group.min for group in groups), max(group.max for group in groups)
        return int(low.timestamp() * 1000), int(high.timestamp() * 1000) + MINUTE_MS
    except (OSError, pa.ArrowInvalid, ValueError, AttributeError, TypeError):
        return None


def _longest_each(runs: list[Run]) -> dict[str, Run]:
    ordered = sorted(runs, key=lambda run: (*_order([run]), str(run.path)))
    return {run.symbol: run for run in reversed(ordered)}


def _chosen_together(runs: list[Run], symbols: Sequence[str]) -> dict[str, Run]:
    """One run per symbol, all of one venue, first by `_order`; ties by path."""
    best: tuple[tuple[bool, int, str], dict[str, Run]] | None = None
    for venue in sorted({run.venue for run in runs}):
        by_symbol = [[r for r in runs if r.venue == venue and r.symbol == symbol] for symbol in symbols]
        for choice in itertools.product(*by_symbol):
            start_ms, stop_ms = _overlap(choice)
            key = (*_order(choice), str(choice[0].path))
            if stop_ms > start_ms and (best is None or key < best[0]):
                best = key, dict(zip(symbols, choice, strict=True))
    if best is None:
        held = sorted({f"{run.venue}/{run.symbol}" for run in runs})
        raise InvalidInput("market.symbols", "recorded together by one venue", list(symbols), f"there are {held}")
    return best[1]


def _order(runs: Sequence[Run]) -> tuple[bool, int]:
    """Less for what is rather served: with funding and long enough first, then by the length that all have."""
    start_ms, stop_ms = _overlap(runs)
    enough = stop_ms - start_ms >= ENOUGH_BARS * MINUTE_MS
    return not (enough and all(run.funded for run in runs)), start_ms - stop_ms


def _overlap(runs: Sequence[Run]) -> tuple[int, int]:
    return max(run.start_ms for run in runs), min(run.stop_ms for run in runs)


def _read_run(run: Run) -> Bars:
    table = read_table(run.path, BAR_COLUMNS)
    times = times_of(run.path, table)
    columns = {name: numbers_of(run.path, table, name, least=0.0, above=name != "volume") for name in BAR_COLUMNS[1:]}
    for name, fine in (("high", columns["high"] >= np.maximum(columns["open"], columns["close"])),
                       ("low", columns["low"] <= np.minimum(columns["open"], columns["close"]))):
        refuse_first(run.path, name, fine, "the extreme of its bar", columns[name])
    refuse_first(run.path, "timestamp", times % MINUTE_MS == 0, "a full minute", times)
    return Bars(run.symbol, MINUTE_MS, times, funding_rate=_funding(run, times), **columns).check()


def _funding(run: Run, times: NDArray[np.int64]) -> NDArray[np.float64] | None:
    """(N,) rates on the bars in which they were settled; None if the venue has none for this run.

    A settlement is recorded some milliseconds after its minute begins: floored, it falls into that minute's bar.
    """
    rates = np.zeros(len(times))
    found = False
    for path in _funding_files(run.path.parent, run.symbol):
        table = read_table(path, ("timestamp", "funding_rate"))
        settled = times_of(path, table) // MINUTE_MS * MINUTE_MS
        values = numbers_of(path, table, "funding_rate", least=-1.0, above=True)
        places = np.minimum(np.searchsorted(times, settled), len(times) - 1)
        within = times[places] == settled
        rates[places[within]] = values[within]
        found |= bool(within.any())
    return rates if found else None


def _described(symbol: str, run: Run) -> str:
    return (f"{symbol} {run.venue} {_day(run.start_ms)}..{_day(run.stop_ms)}"
            + ("" if run.funded else " (no funding)"))


def _day(time_ms: int) -> str:
    return str(np.datetime64(time_ms, "ms").astype("datetime64[D]"))
