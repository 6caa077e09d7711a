"""Windows to learn from: whole, closed in time, and no bar of them shared with those that validate."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from feature_repo.generated import GeneratedMarket
from feature_repo.windows import bar_channels, windows
from policies.bars import Bars
from policies.errors import InvalidInput
from train.mae_windows import WindowSet, split_windows, whole_windows

MINUTE, LENGTH = 60_000, 10
MARKET = GeneratedMarket(seed=3, symbols=("BTC", "ETH"), bars=400)
BARS = {symbol: MARKET.bars(symbol) for symbol in MARKET.symbols}
START = int(BARS["BTC"].open_time_ms[0])


def without(bars: Bars, first: int, stop: int) -> Bars:
    return bars.slice(0, first).followed_by(bars.slice(stop, len(bars)))


def brute(bars: Bars, opens_ms: int, closes_ms: int) -> list[bytes]:
    """Every window without a gap, before it or in it, that opens and closes within these moments."""
    channels, found = bar_channels(bars), []
    for first in range(len(bars) - LENGTH + 1):
        own = slice(max(0, first - 1), first + LENGTH)
        whole = (np.diff(bars.open_time_ms[own]) == MINUTE).all()
        if whole and bars.open_time_ms[first] >= opens_ms and bars.close_time_ms[first + LENGTH - 1] <= closes_ms:
            found.append(channels[first:first + LENGTH].tobytes())
    return found


@pytest.mark.parametrize("until", [START + 400 * MINUTE, START + 250 * MINUTE + 30_000, START + 251 * MINUTE])
def test_windows_are_those_that_a_walk_over_the_bars_finds(until: int) -> None:
    gappy = {"BTC": without(BARS["BTC"], 60, 75), "ETH": without(BARS["ETH"], 230, 231)}
    split = split_windows(gappy, LENGTH, until, 0.2)
    assert START < split.parted_ms < until
    for chosen, opens, closes in ((split.fit, 0, split.parted_ms), (split.validation, split.parted_ms, until - 1)):
        expected = [row for symbol in ("BTC", "ETH") for row in brute(gappy[symbol], opens, closes)]
        assert [row.tobytes() for row in chosen.take(np.arange(len(chosen)))] == expected
        assert len(expected) > 30


def test_bars_that_close_at_or_after_the_given_moment_change_nothing() -> None:
    until = START + 300 * MINUTE
    later = {symbol: dataclasses.replace(bars, volume=np.where(bars.close_time_ms >= until, 1e6, bars.volume))
             for symbol, bars in BARS.items()}
    splits = [split_windows(bars, LENGTH, until, 0.2) for bars in (BARS, later)]
    assert splits[0].fit.digest() == splits[1].fit.digest()
    assert splits[0].validation.digest() == splits[1].validation.digest()
    assert split_windows(later, LENGTH, until + 1, 0.2).validation.digest() != splits[1].validation.digest()


def test_too_few_bars_are_refused() -> None:
    for until in (START, START + 5 * MINUTE, START + 12 * MINUTE):
        with pytest.raises(InvalidInput, match="bars"):
            split_windows(BARS, LENGTH, until, 0.2)


def test_a_set_copies_only_what_is_taken() -> None:
    split = split_windows(BARS, LENGTH, START + 400 * MINUTE, 0.2)
    assert all(view.base is not None for view in split.fit.views)
    taken = split.fit.take(np.array([5, 0, 5]))
    assert taken.shape == (3, LENGTH * 5)
    assert np.array_equal(taken[0], taken[2])
    assert np.array_equal(taken[1], windows(BARS["BTC"], LENGTH)[0])
    assert np.array_equal(split.fit.spread(2)[1], split.fit.take(np.array([len(split.fit) - 1]))[0])


def test_any_array_is_a_set_of_its_rows() -> None:
    images = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    assert np.array_equal(WindowSet.of(images).take(np.array([1]))[0], images[1].reshape(-1))


def test_windows_to_judge_by_begin_at_the_moment_given() -> None:
    from_ms = START + 100 * MINUTE
    found = whole_windows(BARS["ETH"], LENGTH, from_ms, LENGTH)
    assert np.array_equal(found, windows(BARS["ETH"], LENGTH)[100::LENGTH])
