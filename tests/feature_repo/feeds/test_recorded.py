from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from feature_repo.book import FLOW_WINDOW_MS, Trades, flow_features
from feature_repo.features import DEPTH, FEAR_GREED, FLOW, FUNDING, GROUPS, QUOTE
from feature_repo.feeds.recorded import QUOTE_TTL_MS, RecordedFeeds
from feature_repo.frames import GroupFrame
from policies.errors import InvalidInput

NOW = 1_756_900_800_000  # 2025-09-03 12:00 UTC
MINUTE, DAY = 60_000, 86_400_000
SYMBOLS = ("BTC", "ETH", "SOL")


def stamps(times_ms: list[float]) -> pd.DatetimeIndex:
    """Times in ms after NOW, to the microsecond."""
    return pd.to_datetime([round((NOW + time_ms) * 1000) for time_ms in times_ms], unit="us", utc=True)


def table(columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> pd.DataFrame:
    """rows: the exchange's time, our time, then the columns."""
    made = pd.DataFrame([row[2:] for row in rows], columns=list(columns))
    made.insert(0, "recv", stamps([row[1] for row in rows]))
    made.insert(0, "timestamp", stamps([row[0] for row in rows]))
    return made


def bbo(*rows: tuple[float, float, float, float, str]) -> pd.DataFrame:
    return table(("price", "size", "side"), list(rows))


def traded(*rows: tuple[float, float, float, float, str, str]) -> pd.DataFrame:
    return table(("price", "size", "side", "trade_id"), list(rows))


def books(*times: tuple[float, float], levels: int = 20) -> pd.DataFrame:
    """Row i has bids 100 - level and asks 101 + level, all of size 1 + i."""
    rows: list[tuple[Any, ...]] = []
    for i, (exchange, received) in enumerate(times):
        there = [level < levels for level in range(20)]
        bids = [cell for k in range(20) for cell in ((100.0 - k, 1.0 + i) if there[k] else (math.nan, math.nan))]
        asks = [cell for k in range(20) for cell in ((101.0 + k, 1.0 + i) if there[k] else (math.nan, math.nan))]
        rows.append((exchange, received, *bids, *asks))
    names = [f"{side}_{what}_{k}" for side in ("bid", "ask") for k in range(20) for what in ("price", "size")]
    return table(tuple(names), rows)


def record(folder: Path, name: str, rows: pd.DataFrame) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        rows.to_csv(path, index=False)
    else:
        rows.to_parquet(path)
    return path


def after(frame: GroupFrame) -> list[int]:
    return (frame.event_time_ms - NOW).tolist()


def same(one: GroupFrame, other: GroupFrame) -> bool:
    return (one.event_time_ms.tolist() == other.event_time_ms.tolist()
            and one.values.tobytes() == other.values.tobytes())


def test_what_is_not_recorded_has_no_frame(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        feeds = RecordedFeeds(folder)
        assert feeds.symbols == ()
        assert feeds.frames("BTC") == {}
        assert len(feeds.frame(QUOTE, "BTC")) == 0
        assert feeds.describe() == "recorded feeds: none"
    with pytest.raises(InvalidInput, match="group"):
        feeds.frame("price", "BTC")


def test_each_symbol_gets_what_was_recorded_of_it_and_of_the_market(tmp_path: Path) -> None:
    record(tmp_path, "hyperliquid_l2/BTC_bbo_a.parquet", bbo((0, 1, 99.0, 1.0, "bid"), (0, 1, 100.0, 1.0, "ask")))
    record(tmp_path, "hyperliquid_l2/ETH_l2_20_a.parquet", books((0, 1)))
    day = pd.DataFrame({"timestamp": stamps([0]), "fear_greed": [25]})
    record(tmp_path, "sentiment/fear_greed_1d_a_b.parquet", day)
    feeds = RecordedFeeds(tmp_path)
    assert feeds.symbols == ("BTC", "ETH")
    assert set(feeds.frames("BTC")) == {QUOTE, FEAR_GREED}
    assert set(feeds.frames("ETH")) == {DEPTH, FEAR_GREED}
    assert set(feeds.frames("SOL")) == {FEAR_GREED}
    assert feeds.describe() == "recorded feeds: BTC bbo, ETH l2_20, fear_greed of the market"


def test_row_is_known_at_the_later_of_both_clocks_and_not_a_microsecond_before(tmp_path: Path) -> None:
    record(tmp_path, "hyperliquid_l2/BTC_l2_20_a.parquet", books((0, 5.001), (20, 10), (30, 40)))
    assert after(RecordedFeeds(tmp_path, every_ms=1).frames("BTC")[DEPTH]) == [6, 20, 40]


def test_side_that_changes_is_paired_with_the_last_known_other_side(tmp_path: Path) -> None:
    record(tmp_path, "hyperliquid_l2/BTC_bbo_a.parquet", bbo(
        (0, 1, 99.0, 1.0, "bid"), (2, 3, 101.0, 2.0, "ask"), (4, 5, 100.0, 3.0, "bid"), (6, 7, 98.0, 4.0, "bid"),
        (6, 7, 100.0, 5.0, "ask")))
    frame = RecordedFeeds(tmp_path, every_ms=1).frames("BTC")[QUOTE]
    assert after(frame) == [3, 5, 7]
    assert frame.values[:, :4].tolist() == [[99, 101, 1, 2], [100, 101, 3, 2], [98, 100, 4, 5]]


def test_side_that_was_not_heard_of_for_a_quotes_lifetime_makes_no_quote(tmp_path: Path) -> None:
    record(tmp_path, "hyperliquid_l2/BTC_bbo_a.parquet", bbo(
        (0, 0, 99.0, 1.0, "bid"), (0, 0, 101.0, 1.0, "ask"), (1, QUOTE_TTL_MS, 98.0, 1.0, "bid"),
        (2, QUOTE_TTL_MS + 1, 97.0, 1.0, "bid")))
    assert after(RecordedFeeds(tmp_path, every_ms=1).frames("BTC")[QUOTE]) == [0, QUOTE_TTL_MS]
    record(tmp_path, "hyperliquid_l2/ETH_bbo_a.parquet", bbo((0, 0, 99.0, 1.0, "bid")))
    assert len(RecordedFeeds(tmp_path).frames("ETH")[QUOTE]) == 0


def test_two_recordings_become_one_in_which_nothing_goes_back(tmp_path: Path) -> None:
    record(tmp_path, "hyperliquid_l2/BTC_l2_20_a.parquet", books((10, 11), (20, 31), (40, 41)))
    record(tmp_path, "hyperliquid_l2/BTC_l2_20_b.csv", books((10, 15), (25, 30), (40, 45), (50, 51)))
    frame = RecordedFeeds(tmp_path, every_ms=1).frames("BTC")[DEPTH]
    assert after(frame) == [11, 30, 41, 51]  # 20 was overtaken by 25, and what came twice counts once
    assert frame.values[:, 0].tolist() == [490 * size for size in (1, 2, 3, 4)]


def test_trade_that_was_recorded_twice_counts_once_as_it_was_received_first(tmp_path: Path) -> None:
    record(tmp_path, "hyperliquid_l2/BTC_trades_a.parquet", traded(
        (0, 9, 100.0, 1.0, "buy", "1"), (0, 1, 100.0, 1.0, "buy", "1"), (5, 20, 100.0, 2.0, "sell", "2")))
    record(tmp_path, "hyperliquid_l2/BTC_trades_b.csv", traded(
        (5, 6, 100.0, 2.0, "sell", "2"), (7, 8, 100.0, 4.0, "buy", "2")))  # an id that came back in a later block
    trades = RecordedFeeds(tmp_path).trades("BTC")
    assert trades is not None
    assert (trades.event_time_ms - NOW).tolist() == [1, 6, 8]
    assert trades.size.tolist() == [1, 2, 4]
    assert trades.is_buy.tolist() == [True, False, True]


def test_flow_begins_when_a_whole_window_was_recorded_and_again_after_a_break(tmp_path: Path) -> None:
    times = [0, 30_000, 59_999, 60_000, 70_000, 200_000, 240_000, 260_000]
    record(tmp_path, "hyperliquid_l2/BTC_trades_a.parquet",
           traded(*[(t, t, 100.0, 1.0, "buy", str(t)) for t in times]))
    frame = RecordedFeeds(tmp_path, every_ms=1).frames("BTC")[FLOW]
    assert after(frame) == [60_000, 70_000, 260_000]
    assert frame.values[:, 1].tolist() == [300, 400, 200]


def test_funding_is_known_at_the_close_of_the_minute_of_its_settlement(tmp_path: Path) -> None:
    for name, times, rates in (("a", [7, 60 * MINUTE + 30], [1e-5, 2e-5]),
                               ("b", [60 * MINUTE + 30, 121 * MINUTE - 1], [2e-5, -3e-5])):
        rows = pd.DataFrame({"timestamp": stamps(times), "funding_rate": rates})
        record(tmp_path, f"hyperliquid/BTC_funding_1h_{name}.parquet", rows)
    frame = RecordedFeeds(tmp_path).frames("BTC")[FUNDING]
    assert after(frame) == [MINUTE, 61 * MINUTE, 121 * MINUTE]
    assert frame.values[:, 0].tolist() == [1e-5, 2e-5, -3e-5]


def test_fear_and_greed_is_known_when_its_day_is_over_and_the_same_for_all(tmp_path: Path) -> None:
    midnight = -12 * 60 * MINUTE
    rows = pd.DataFrame({"timestamp": stamps([midnight, midnight + DAY]), "fear_greed": [25, 80]})
    record(tmp_path, "sentiment/fear_greed_1d_a_b.csv", rows)
    feeds = RecordedFeeds(tmp_path)
    assert after(feeds.frames("BTC")[FEAR_GREED]) == [midnight + DAY, midnight + 2 * DAY]
    assert feeds.frames("BTC")[FEAR_GREED].values[:, 0].tolist() == [0.25, 0.8]
    assert feeds.frames("ETH")[FEAR_GREED] is feeds.frames("BTC")[FEAR_GREED]


def test_csv_reads_like_parquet(tmp_path: Path) -> None:
    rows = {"bbo": bbo((0.5, 1.2, 99.0, 1.0, "bid"), (0.5, 1.2, 101.0, 2.0, "ask")), "l2_20": books((0, 1.7), levels=3),
            "trades": traded((0, 1, 1.0, 1.0, "buy", "7"), (0, 61_000, 1.0, 1.0, "sell", "9"))}
    for kind, made in rows.items():
        record(tmp_path / "one", f"hyperliquid_l2/BTC_{kind}_a.parquet", made)
        record(tmp_path / "two", f"hyperliquid_l2/BTC_{kind}_a.csv", made)
    one, other = RecordedFeeds(tmp_path / "one"), RecordedFeeds(tmp_path / "two")
    assert set(one.frames("BTC")) == {QUOTE, DEPTH, FLOW}
    for group, frame in one.frames("BTC").items():
        assert same(frame, other.frames("BTC")[group])


@pytest.mark.parametrize(("kind", "column", "value"), [
    ("bbo", "price", "abc"), ("bbo", "price", math.nan), ("bbo", "size", 0.0), ("bbo", "side", "buy"),
    ("bbo", "timestamp", "yesterday"), ("bbo", "recv", ""), ("bbo", "price", 1e300),
    ("trades", "side", "bid"), ("trades", "price", -1.0), ("trades", "trade_id", None),
    ("l2_20", "bid_price_1", 100.0), ("l2_20", "ask_price_19", 101.0), ("l2_20", "bid_size_3", -1.0),
    ("l2_20", "ask_size_19", math.nan), ("l2_20", "bid_price_7", "x"),
])
def test_bad_cell_is_named_with_file_column_row_and_value(tmp_path: Path, kind: str, column: str, value: Any) -> None:
    made = {"bbo": bbo(*[(i, i, 99.0, 1.0, "bid") for i in range(4)]), "l2_20": books(*[(i, i) for i in range(4)]),
            "trades": traded(*[(i, i, 99.0, 1.0, "buy", str(i)) for i in range(4)])}[kind].astype(object)
    made[column] = [value if row == 2 else cell for row, cell in enumerate(made[column])]
    path = record(tmp_path, f"hyperliquid_l2/BTC_{kind}_a.csv", made)
    with pytest.raises(InvalidInput) as refused:
        RecordedFeeds(tmp_path).frames("BTC")
    assert f"{path}, column {column}, row 2" in str(refused.value)
    assert refused.value.value in (str(value), "nan")


@pytest.mark.parametrize(("name", "rows", "named"), [
    ("hyperliquid/BTC_funding_1h_a.csv", {"timestamp": [60_000], "funding_rate": [-1.5]}, "column funding_rate, row 0"),
    ("sentiment/fear_greed_1d_a.csv", {"timestamp": [0, DAY], "fear_greed": [50, 101]}, "column fear_greed, row 1"),
    ("sentiment/fear_greed_1d_a.csv", {"timestamp": [DAY, 0], "fear_greed": [50, 50]}, "column timestamp, row 1"),
    ("hyperliquid_l2/BTC_bbo_a.csv", {"timestamp": [0], "price": [1.0]}, "no recv, size, side"),
])
def test_broken_file_is_named(tmp_path: Path, name: str, rows: dict[str, list[float]], named: str) -> None:
    path = record(tmp_path, name, pd.DataFrame(rows))
    with pytest.raises(InvalidInput) as refused:
        RecordedFeeds(tmp_path).frames("BTC")
    assert str(path) in str(refused.value)
    assert named in str(refused.value)


@pytest.fixture(scope="module")
def recorded_folder() -> Path:
    if not (folder := os.environ.get("HUB_DATA_DIR")):
        pytest.skip("the recorded market: HUB_DATA_DIR is not set")
    return Path(folder)


@pytest.fixture(scope="module")
def recorded(recorded_folder: Path) -> RecordedFeeds:
    return RecordedFeeds(recorded_folder, every_ms=1)


def raw(folder: Path, symbol: str, kind: str) -> pd.DataFrame:
    """The rows of all files of a kind, with `known`: ms, rounded up, at which they were received."""
    rows = pd.concat([pd.read_parquet(path) for path in sorted((folder / "hyperliquid_l2").glob(f"{symbol}_{kind}_*"))])
    known = np.maximum(rows["recv"], rows["timestamp"])
    return rows.assign(known=-(-known.to_numpy("datetime64[us]").astype(np.int64) // 1000)).reset_index(drop=True)


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_no_recorded_row_is_lost(recorded: RecordedFeeds, recorded_folder: Path, symbol: str) -> None:
    frames = recorded.frames(symbol)
    assert len(frames[QUOTE]) == raw(recorded_folder, symbol, "bbo")["known"].nunique() > 1_000
    first_received = raw(recorded_folder, symbol, "l2_20").drop_duplicates("timestamp")
    assert len(frames[DEPTH]) == first_received["known"].nunique() > 400
    trades = recorded.trades(symbol)
    assert trades is not None
    assert len(trades) == raw(recorded_folder, symbol, "trades")["trade_id"].nunique()
    funding = pd.concat([pd.read_parquet(path) for path in (recorded_folder / "hyperliquid").glob(f"{symbol}_fund*")])
    assert len(frames[FUNDING]) == len(funding)
    assert frames[FUNDING].values.sum() == pytest.approx(funding["funding_rate"].sum())
    assert len(frames[FEAR_GREED]) == 2_826


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_recorded_quotes_are_the_last_rows_of_both_sides(recorded: RecordedFeeds, recorded_folder: Path,
                                                         symbol: str) -> None:
    frame = recorded.frames(symbol)[QUOTE]
    rows = raw(recorded_folder, symbol, "bbo").sort_values("known", kind="stable")
    for place in np.linspace(0, len(frame) - 1, 60).astype(int):
        known = rows[rows["known"] <= frame.event_time_ms[place]]
        bid, ask = (known[known["side"] == side].iloc[-1] for side in ("bid", "ask"))
        sizes, mid = bid["size"] + ask["size"], (bid["price"] + ask["price"]) / 2
        micro = (bid["price"] * ask["size"] + ask["price"] * bid["size"]) / sizes
        assert frame.values[place] == pytest.approx([
            bid["price"], ask["price"], bid["size"], ask["size"], (ask["price"] - bid["price"]) / mid * 1e4,
            (bid["size"] - ask["size"]) / sizes, (micro / mid - 1) * 1e4], rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_recorded_books_are_summed_as_by_hand(recorded: RecordedFeeds, recorded_folder: Path, symbol: str) -> None:
    frame = recorded.frames(symbol)[DEPTH]
    rows = raw(recorded_folder, symbol, "l2_20").drop_duplicates("timestamp").drop_duplicates("known", keep="last")
    for place in range(0, len(frame), 9):
        row = rows.iloc[place]
        b5, a5, b20, a20 = (math.fsum(row[f"{side}_price_{i}"] * row[f"{side}_size_{i}"] for i in range(k))
                            for k in (5, 20) for side in ("bid", "ask"))
        assert frame.event_time_ms[place] == row["known"]
        assert frame.values[place] == pytest.approx(
            [b5, a5, b20, a20, (b5 - a5) / (b5 + a5), (b20 - a20) / (b20 + a20)], rel=1e-12)


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_recorded_flow_is_what_brute_force_and_one_window_at_a_time_give(recorded: RecordedFeeds, symbol: str) -> None:
    trades, frame = recorded.trades(symbol), recorded.frames(symbol)[FLOW]
    assert isinstance(trades, Trades)
    assert len(frame) > 100
    for place in np.linspace(0, len(frame) - 1, 60).astype(int):
        first, end = np.searchsorted(trades.event_time_ms, frame.event_time_ms[place] - np.array([FLOW_WINDOW_MS, 0]),
                                     "right")
        window = trades.take(np.arange(first, end))
        signed = np.where(window.is_buy, 1, -1) * window.price * window.size
        total = math.fsum(abs(signed))
        assert frame.values[place] == pytest.approx([math.fsum(signed) / total, total], rel=1e-9, abs=1e-12)
        alone = flow_features(window, every_ms=FLOW_WINDOW_MS)
        assert alone.values[-1].tobytes() == frame.values[place].tobytes()


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_recorded_rows_lie_within_their_bounds(recorded: RecordedFeeds, symbol: str) -> None:
    frames = recorded.frames(symbol)
    columns = {name: frame.values[:, place] for group, frame in frames.items()
               for place, name in enumerate(GROUPS[group].names)}
    assert all(np.isfinite(values).all() for values in columns.values())
    assert (columns["spread_bps"] > 0).all()
    assert (np.abs(columns["microprice_bps"]) <= columns["spread_bps"] / 2 + 1e-9).all()
    assert (columns["bid_depth_20"] >= columns["bid_depth_5"]).all()
    for name in ("imbalance_1", "imbalance_5", "imbalance_20", "flow_imbalance_60"):
        assert (np.abs(columns[name]) <= 1).all()
        assert columns[name].std() > 0.1


@pytest.mark.parametrize("every_ms", [1, 5_000])
def test_no_recorded_row_depends_on_what_was_received_later(tmp_path: Path, recorded_folder: Path,
                                                            every_ms: int) -> None:
    kinds = ("bbo", "l2_20", "trades")
    cut_ms = -(-int(raw(recorded_folder, "ETH", "trades")["known"].quantile(0.7)) // 5_000) * 5_000  # a bucket's end
    for kind in kinds:
        rows = raw(recorded_folder, "ETH", kind)
        later = rows["known"] >= cut_ms
        for name in [name for name in rows.columns if "size" in name]:
            rows[name] = np.where(later, rows[name] * 7, rows[name])
        shuffled = pd.concat([rows[~later], rows[later].iloc[::3]]).sample(frac=1.0, random_state=1)
        shuffled = shuffled.sort_values("known", kind="stable") if kind == "trades" else shuffled
        record(tmp_path, f"hyperliquid_l2/ETH_{kind}_x.parquet", shuffled.drop(columns="known"))
    known, garbled = (RecordedFeeds(folder, every_ms).frames("ETH") for folder in (recorded_folder, tmp_path))
    for group in (QUOTE, DEPTH, FLOW):
        count = known[group].until(cut_ms - 1)
        assert count > 5
        if group == FLOW:  # the order of trades received in the same millisecond is lost in the shuffle: last bits
            assert garbled[group].until(cut_ms - 1) == count
            assert garbled[group].values[:count] == pytest.approx(known[group].values[:count], rel=1e-9)
        else:
            assert same(known[group].slice(0, count), garbled[group].slice(0, garbled[group].until(cut_ms - 1)))
        assert not same(known[group], garbled[group])
