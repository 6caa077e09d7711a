"""What training learns from: no bar too late, no window with a later bar, labels known when their trades are over."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from plain_bundles import momentum_bundle
from small_search import BARS, SYMBOLS, GarbledMarket, garbled, market, repo_of

from feature_repo.features import DECISION_V1, MINUTE_MS
from feature_repo.feeds.events import MarketUnavailable
from feature_repo.generated import START_MS, GeneratedMarket
from feature_repo.hyperliquid import PAGE_BARS
from feature_repo.transforms import LOOKBACK_BARS, compute_features
from policies.bars import Bars
from policies.bundle import read_bundle
from policies.errors import InvalidInput
from policies.fills import Costs
from train.dataset import Brackets, FeatureRows, build_dataset
from train.kept_bars import digests_of
from train.seen import UNTIL_MS
from train.training_set import (
    LIVE_BARS,
    bars_until,
    bracket_name,
    joined_rows,
    keep_labels,
    open_market,
    span_of,
    thinned,
    window_rows,
    write_packed,
)

LENGTH = 7


def run() -> Bars:
    return market(400).bars("BTC")


def window_by_hand(bars: Bars, place: int) -> list[float]:
    """The numbers of the window that ends with bar `place`, one at a time."""
    numbers = []
    for bar in range(place - LENGTH + 1, place + 1):
        before = float(bars.close[bar - 1])
        prices = (bars.open[bar], bars.high[bar], bars.low[bar], bars.close[bar])
        numbers += [math.log(float(price) / before) for price in prices]
        numbers.append(math.log(1.0 + float(bars.volume[bar])))
    return numbers


def test_windows_are_the_bars_up_to_each_close_and_nothing_else() -> None:
    bars = run()
    places = np.array([LENGTH, 50, 51, 123, len(bars) - 1])
    found = window_rows(bars, bars.close_time_ms[places], LENGTH)
    expected = np.array([window_by_hand(bars, int(place)) for place in places])
    assert found.dtype == np.float32
    assert np.allclose(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("place", [LENGTH, 60, 200, 398])
def test_later_bars_change_no_bit_of_a_window(place: int) -> None:
    bars = run()
    times = bars.close_time_ms[LENGTH:place + 1]
    other = garbled(bars, int(times[-1]))
    assert not np.array_equal(other.close, bars.close)
    assert window_rows(bars, times, LENGTH).tobytes() == window_rows(other, times, LENGTH).tobytes()


def test_a_window_that_would_begin_with_the_first_bar_is_refused() -> None:
    bars = run()
    with pytest.raises(InvalidInput, match="at least 7 bars before"):
        window_rows(bars, bars.close_time_ms[LENGTH - 1:LENGTH], LENGTH)


@pytest.mark.parametrize("off_ms", [-1, 1, 400 * MINUTE_MS])
def test_a_time_at_which_no_bar_closes_has_no_window(off_ms: int) -> None:
    bars = run()
    with pytest.raises(InvalidInput, match="event_time_ms"):
        window_rows(bars, bars.close_time_ms[100:101] + off_ms, LENGTH)


def test_no_window_is_as_wide_as_nothing() -> None:
    bars = run()
    assert window_rows(bars, bars.close_time_ms[:3], 0).shape == (3, 0)


@pytest.mark.parametrize("off_ms", [0, 1, MINUTE_MS - 1])
def test_no_bar_closes_after_the_given_time_and_the_latest_that_does_not_is_there(off_ms: int) -> None:
    until_ms = START_MS + 700 * MINUTE_MS + off_ms
    found = bars_until(market(), SYMBOLS, until_ms, 300)
    for bars in found.values():
        assert bars.close_time_ms[-1] == START_MS + 700 * MINUTE_MS
        assert len(bars) == 300


def test_without_a_time_the_last_bars_are_taken() -> None:
    found = bars_until(market(), SYMBOLS, None, 300)
    assert {int(bars.close_time_ms[-1]) for bars in found.values()} == {START_MS + BARS * MINUTE_MS}


class LiveMarket:
    """What Hyperliquid has at now_ms: its newest PAGE_BARS closed bars. tells: of how many answers it tells funding."""

    name, origin, folder, symbols = "hyperliquid", "hyperliquid", None, SYMBOLS

    def __init__(self, now_ms: int, tells: int = 1_000) -> None:
        self._closed_ms, self._of = now_ms // MINUTE_MS * MINUTE_MS, GeneratedMarket(3, 1.0, SYMBOLS, 8_000)
        self._tells = tells

    def bars(self, symbol: str, start_ms: int | None = None, stop_ms: int | None = None) -> Bars:
        oldest_ms = self._closed_ms - PAGE_BARS * MINUTE_MS
        bars = self._of.bars(symbol, max(oldest_ms, start_ms or 0), min(self._closed_ms, stop_ms or self._closed_ms))
        self._tells -= 1
        return bars if self._tells >= 0 else replace(bars, funding_rate=None)

    def describe(self) -> str:
        return "live"


@pytest.mark.parametrize("lookback", [3_000, 25_200])
def test_a_live_markets_bars_are_the_same_for_as_long_as_their_end_stands(lookback: int) -> None:
    until_ms = (START_MS + 6_000 * MINUTE_MS) // UNTIL_MS * UNTIL_MS
    found = [bars_until(LiveMarket(until_ms + later_ms), SYMBOLS, until_ms, lookback)
             for later_ms in (0, MINUTE_MS, UNTIL_MS - 1)]
    assert {len(bars) for each in found for bars in each.values()} == {min(lookback, LIVE_BARS)}
    assert digests_of(found[0]) == digests_of(found[1]) == digests_of(found[2])


def test_a_span_is_from_the_earliest_to_the_latest_bar_of_any_symbol() -> None:
    bars = {"BTC": market(100).bars("BTC", START_MS + 5 * MINUTE_MS), "ETH": market(100).bars("ETH").slice(0, 90)}
    assert span_of(bars) == {"from_ms": START_MS, "until_ms": START_MS + 100 * MINUTE_MS}


def test_nothing_is_made_of_live_bars_without_their_funding(tmp_path: Path) -> None:
    until_ms = START_MS + 6_000 * MINUTE_MS
    with pytest.raises(MarketUnavailable, match="ETH"):
        bars_until(LiveMarket(until_ms, tells=1), SYMBOLS, until_ms, 3_000)
    silent = LiveMarket(until_ms, tells=1)
    bars = bars_until(silent, ("BTC",), until_ms, 300)
    for run in (bars, {"BTC": silent.bars("BTC")}):
        with pytest.raises(MarketUnavailable, match="BTC"):
            joined_rows(silent, repo_of(tmp_path, silent.origin), run, lambda line: None)


def test_too_little_history_is_refused() -> None:
    least_ms = START_MS + 2 * LOOKBACK_BARS * MINUTE_MS
    assert len(bars_until(market(), SYMBOLS, least_ms, 9_999)["BTC"]) == 2 * LOOKBACK_BARS
    with pytest.raises(InvalidInput, match=r"COINS: .* at least 244 bars .* got BTC with 243"):
        bars_until(market(), SYMBOLS, least_ms - 1, 9_999)


def test_joined_rows_are_the_features_of_closed_bars_and_no_later_bar_reaches_them(tmp_path: Path) -> None:
    whole, cut_ms = market(900), START_MS + 600 * MINUTE_MS
    rows = {}
    for name, of in (("as it was", whole), ("garbled", GarbledMarket(whole, cut_ms))):
        bars = bars_until(of, ("BTC",), None, 900)
        rows[name] = joined_rows(of, repo_of(tmp_path / name, of.origin), bars, lambda line: None)["BTC"]
    kept, other = rows["as it was"], rows["garbled"]
    early = kept.event_time_ms <= cut_ms
    assert early.sum() > 400
    assert np.array_equal(kept.event_time_ms, other.event_time_ms)
    assert kept.values[early].tobytes() == other.values[early].tobytes()
    assert not np.array_equal(kept.values[~early], other.values[~early], equal_nan=True)
    frame = compute_features(whole.bars("BTC"))
    of_bars = ~np.isnan(kept.values).all(axis=0) & ~np.isnan(frame.values).all(axis=0)
    assert of_bars.sum() > 30
    assert np.array_equal(frame.event_time_ms, kept.event_time_ms)
    assert np.allclose(kept.values[:, of_bars], frame.values[:, of_bars], rtol=1e-6, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("limit", [10, 33, 1_000])
def test_thinned_rows_are_every_so_many_of_each_symbol(limit: int) -> None:
    rows = {symbol: FeatureRows(np.arange(60), np.arange(60.0)[:, None]) for symbol in SYMBOLS}
    found = thinned(rows, limit)
    assert 0 < sum(map(len, found.values())) <= max(limit, 2)
    steps = {int(step) for part in found.values() for step in np.diff(part.event_time_ms)}
    assert len(steps) == 1
    assert all(len(part) == len(found["BTC"]) for part in found.values())


def test_labels_of_other_trades_have_another_name() -> None:
    names = {bracket_name(Brackets(), Costs()), bracket_name(Brackets(horizon_bars=16), Costs()),
             bracket_name(Brackets(tp_pct=0.011), Costs()), bracket_name(Brackets(), Costs(taker_fee_fraction=0.001))}
    assert len(names) == 4
    assert bracket_name(Brackets(), Costs()) == bracket_name(Brackets(), Costs())


def test_a_label_is_known_to_the_store_once_its_trades_are_over_and_not_before(tmp_path: Path) -> None:
    of = market(900)
    bars, repo = bars_until(of, ("BTC",), None, 900), repo_of(tmp_path, of.origin)
    rows = joined_rows(of, repo, bars, lambda line: None)
    required = np.array([name not in DECISION_V1.may_be_missing for name in DECISION_V1.names])
    dataset = build_dataset(bars, rows, required, Brackets(), Costs())
    bracket = bracket_name(Brackets(), Costs())
    keep_labels(repo, dataset, bracket)
    moment = int(dataset.known_ms[200])
    table = repo.labels(dataset.symbol.tolist(), dataset.event_time_ms, bracket, moment)
    there = np.isfinite(table["long_return"].to_numpy(np.float64))
    assert np.array_equal(there, dataset.known_ms <= moment)
    assert np.allclose(table["long_return"].to_numpy(np.float64)[there], dataset.long_return[there])


def test_a_packed_bundle_is_put_in_place_whole(tmp_path: Path) -> None:
    path = tmp_path / "models" / "candidate_linear.pt"
    for threshold in (0.2, 0.3):
        write_packed(path, momentum_bundle(threshold=threshold))
        assert read_bundle(path) == momentum_bundle(threshold=threshold)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_market_that_is_asked_for_is_opened() -> None:
    opened = open_market("generated", None, SYMBOLS, 4, 0.5, 777)
    assert opened.origin == "generated_seed_4_signal_0.5"
    assert len(opened.bars("ETH")) == 777
    with pytest.raises(InvalidInput, match="data_dir"):
        open_market("files", None, SYMBOLS, 4, 0.5, 777)


def test_recorded_bars_end_where_they_are_told_to() -> None:
    folder = os.environ.get("HUB_DATA_DIR")
    if not folder:
        pytest.skip("recorded bars are not at hand: HUB_DATA_DIR is not set")
    opened = open_market("auto", folder, ("BTC",), 0, 1.0, 1)
    until_ms = int(opened.bars("BTC").close_time_ms[2_000]) - 1
    bars = bars_until(opened, ("BTC",), until_ms, 1_000)["BTC"]
    assert bars.close_time_ms[-1] <= until_ms
    assert len(window_rows(bars, bars.close_time_ms[-10:], 60)) == 10
