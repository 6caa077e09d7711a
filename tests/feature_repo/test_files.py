from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from feature_repo.files import ENOUGH_BARS, FileMarket, symbol_of
from policies.errors import InvalidInput, UnknownEntity

MINUTE = 60_000
MAY, JUNE = 1_746_057_600_000, 1_748_736_000_000  # 2025-05-01, 2025-06-01


def table(start_ms: int, count: int) -> pd.DataFrame:
    close = 100.0 + np.arange(count) * 0.5
    times = pd.to_datetime(start_ms + MINUTE * np.arange(count), unit="ms", utc=True).astype("datetime64[ms, UTC]")
    return pd.DataFrame({"timestamp": times, "open": close, "high": close + 1, "low": close - 1, "close": close,
                         "volume": np.full(count, 3.0)})


def record(folder: Path, name: str, rows: pd.DataFrame) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        rows.to_csv(path, index=False)
    else:
        rows.to_parquet(path)
    return path


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    record(tmp_path, "spot/BTCUSDT_1m_a_b.parquet", table(MAY, 500))
    record(tmp_path, "spot/SOLUSDT_1m_a_b.parquet", table(JUNE, 300))
    record(tmp_path, "perp/BTCUSDT_1m_a_b.parquet", table(JUNE, 200))
    record(tmp_path, "perp/BTCUSDT_1m_c_d.parquet", table(MAY, 100))
    record(tmp_path, "perp/SOLUSDT_1m_a_b.parquet", table(JUNE + 50 * MINUTE, 200))
    record(tmp_path, "away/BTC_1m_a_b.parquet", table(JUNE, 90))
    record(tmp_path, "away/SOL_1m_a_b.parquet", table(JUNE, 90))
    record(tmp_path, "perp/BTCUSDT_5m_a_b.parquet", table(MAY, 1_000))
    return tmp_path


def test_without_symbols_each_one_comes_from_its_longest_run(recorded: Path) -> None:
    market = FileMarket(recorded)
    assert market.symbols == ("BTC", "SOL")
    assert [len(market.bars(symbol)) for symbol in market.symbols] == [500, 300]
    assert "BTC spot 2025-05-01" in market.describe()
    with pytest.raises(InvalidInput, match="same time"):
        market.common_range(("BTC", "SOL"))


def test_symbols_asked_for_together_come_from_the_venue_where_they_overlap_longest(recorded: Path) -> None:
    market = FileMarket(recorded, symbols=("SOL", "BTC"))
    assert [market.run(symbol).venue for symbol in ("SOL", "BTC")] == ["perp", "perp"]
    start_ms, stop_ms = market.common_range(("SOL", "BTC"))
    assert (start_ms, stop_ms) == (JUNE + 50 * MINUTE, JUNE + 200 * MINUTE)
    for symbol in market.symbols:
        assert len(market.bars(symbol, start_ms, stop_ms)) == 150
    with pytest.raises(InvalidInput, match="recorded together"):
        FileMarket(recorded, venue="spot", symbols=("SOL", "BTC"))


def test_venue_that_is_named_is_the_only_one(recorded: Path) -> None:
    assert len(FileMarket(recorded, venue="perp").bars("BTC")) == 200
    with pytest.raises(InvalidInput, match=r"market\.venue"):
        FileMarket(recorded, venue="nowhere")


def test_range_is_half_open_and_unknown_symbols_are_named(recorded: Path) -> None:
    market = FileMarket(recorded)
    assert market.bars("BTC", MAY + MINUTE, MAY + 3 * MINUTE).open_time_ms.tolist() == [MAY + MINUTE, MAY + 2 * MINUTE]
    with pytest.raises(UnknownEntity, match="ETH"):
        market.bars("ETH")


def test_funding_falls_into_the_bar_of_its_minute(tmp_path: Path) -> None:
    record(tmp_path, "v/BTC_1m_a_b.parquet", table(MAY, 200))
    settled = pd.to_datetime([MAY - 1, MAY + 60 * MINUTE + 7, MAY + 120 * MINUTE], unit="ms", utc=True)
    funding = pd.DataFrame({"timestamp": settled, "funding_rate": [9.0, 1e-5, -2e-5]})
    record(tmp_path, "v/BTC_funding_1h_a_b.parquet", funding)
    rates = FileMarket(tmp_path).bars("BTC").funding_rate
    assert rates is not None
    assert {int(i): rates[i] for i in np.flatnonzero(rates)} == {60: 1e-5, 120: -2e-5}


def test_venue_without_funding_has_none(recorded: Path) -> None:
    assert FileMarket(recorded).bars("BTC").funding_rate is None


def settle(folder: Path, symbol: str, bars: int) -> None:
    """Funding of a venue in MAY, every eight hours."""
    times = pd.to_datetime(np.arange(MAY, MAY + bars * MINUTE, 480 * MINUTE), unit="ms", utc=True)
    record(folder, f"{symbol}_funding_8h_a_b.parquet", pd.DataFrame({"timestamp": times, "funding_rate": 1e-4}))


@pytest.mark.parametrize("symbols", [None, ("BTC",), ("BTC", "SOL")])
@pytest.mark.parametrize(("bars", "venue"), [(ENOUGH_BARS, "perp"), (ENOUGH_BARS - 1, "spot")])
def test_bars_that_know_their_funding_come_before_longer_ones_if_they_are_enough(
        tmp_path: Path, symbols: tuple[str, ...] | None, bars: int, venue: str) -> None:
    for name in ("BTC", "SOL"):
        record(tmp_path, f"spot/{name}USDT_1m_a_b.parquet", table(MAY, ENOUGH_BARS + 100))
        record(tmp_path, f"perp/{name}_1m_a_b.parquet", table(MAY, bars))
        settle(tmp_path / "perp", name, bars)
    market = FileMarket(tmp_path, symbols=symbols)
    assert market.run("BTC").venue == venue
    assert (market.bars("BTC").funding_rate is not None) == (venue == "perp")
    assert FileMarket(tmp_path, "spot", symbols).run("BTC").venue == "spot"


def test_a_market_without_funding_says_so(tmp_path: Path) -> None:
    for name in ("BTC", "SOL"):
        record(tmp_path, f"perp/{name}_1m_a_b.parquet", table(MAY, 900))
    settle(tmp_path / "perp", "SOL", 900)
    days = "perp 2025-05-01..2025-05-01"
    assert FileMarket(tmp_path).describe() == f"recorded one-minute bars: BTC {days} (no funding), SOL {days}"


@pytest.mark.parametrize("as_text", [True, False])
def test_csv_with_iso_times_or_milliseconds_reads_like_parquet(tmp_path: Path, as_text: bool) -> None:
    rows = table(MAY, 50)
    record(tmp_path, "a/BTC_1m_a_b.parquet", rows)
    written = rows if as_text else rows.assign(timestamp=MAY + MINUTE * np.arange(50))
    record(tmp_path, "b/BTC_1m_a_b.csv", written)
    one, other = FileMarket(tmp_path, venue="a").bars("BTC"), FileMarket(tmp_path, venue="b").bars("BTC")
    for name in ("open_time_ms", "open", "high", "low", "close", "volume"):
        assert (getattr(one, name) == getattr(other, name)).all()


@pytest.mark.parametrize(("column", "value", "named"), [
    ("close", "abc", "column close, row 3"), ("open", float("nan"), "column open, row 3"),
    ("volume", -1.0, "column volume, row 3"), ("low", 0.0, "column low, row 3"),
    ("high", 1.0, "column high, row 3"), ("low", 1e6, "column low, row 3"),
    ("timestamp", MAY, "column timestamp, row 3"), ("timestamp", MAY + 2 * MINUTE + 5, "column timestamp, row 3"),
])
def test_bad_cell_is_named_with_file_column_and_row(tmp_path: Path, column: str, value: Any, named: str) -> None:
    rows = table(MAY, 10).astype(object).assign(timestamp=MAY + MINUTE * np.arange(10))
    rows[column] = [value if row == 3 else cell for row, cell in enumerate(rows[column])]
    path = record(tmp_path, "v/BTC_1m_a_b.csv", rows)
    with pytest.raises(InvalidInput) as refused:
        FileMarket(tmp_path).bars("BTC")
    assert str(path) in str(refused.value)
    assert named in str(refused.value)


def test_missing_column_unreadable_file_and_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="<SYMBOL>_1m"):
        FileMarket(tmp_path)
    path = record(tmp_path, "v/BTC_1m_a_b.parquet", table(MAY, 5).drop(columns="volume"))
    with pytest.raises(InvalidInput, match="no volume"):
        FileMarket(tmp_path).bars("BTC")
    path.write_bytes(b"not parquet")
    with pytest.raises(InvalidInput, match="readable"):
        FileMarket(tmp_path)


def test_symbol_names() -> None:
    assert [symbol_of(name) for name in ("BTCUSDT", "BTC", "SOLUSDC", "hype")] == ["BTC", "BTC", "SOL", "HYPE"]
