from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from feature_repo.features import ARRAYS, BARS, WINDOW
from feature_repo.transforms import LOOKBACK_BARS, BarWindow, bar_event_times, window_frame
from feature_repo.windows import CHANNELS, WINDOW_BARS, WINDOW_NUMBERS, bar_channels, windows
from policies.bars import Bars
from policies.errors import InvalidInput

MakeBars = Callable[..., Bars]


def by_hand(bars: Bars, place: int) -> list[np.float32]:
    previous = bars.close[place - 1] if place else bars.open[0]
    prices = (bars.open[place], bars.high[place], bars.low[place], bars.close[place])
    return [*(np.float32(math.log(price / previous)) for price in prices), np.float32(math.log1p(bars.volume[place]))]


def without(bars: Bars, *places: int) -> Bars:
    kept = np.delete(np.arange(len(bars)), places)
    assert bars.funding_rate is not None
    return Bars(bars.symbol, bars.interval_ms, bars.open_time_ms[kept], bars.open[kept], bars.high[kept],
                bars.low[kept], bars.close[kept], bars.volume[kept], bars.funding_rate[kept]).check()


def test_channels_are_the_formula_bar_by_bar(random_bars: MakeBars) -> None:
    bars = random_bars(50)
    channels = bar_channels(bars)
    assert channels.dtype == np.float32
    assert channels.shape == (50, len(CHANNELS))
    for place in range(50):
        assert channels[place] == pytest.approx(by_hand(bars, place), rel=2e-7, abs=1e-12)
    assert channels[0, 0] == 0.0, "the first bar has its own open as previous close"


@pytest.mark.parametrize("volume", [math.inf, math.nan, -1.0])
def test_bars_of_a_volume_that_is_no_finite_number_are_refused(random_bars: MakeBars, volume: float) -> None:
    bars = random_bars(5)
    bars.volume[3] = volume
    with pytest.raises(InvalidInput, match=r"bars\.[A-Z]+\[3\].*" + str(volume)):
        bars.check()


def test_windows_are_neighbouring_bars_oldest_first_and_no_copy(random_bars: MakeBars) -> None:
    bars = random_bars(200)
    found, channels = windows(bars, 60), bar_channels(bars)
    assert found.shape == (141, 300)
    assert found.strides == (len(CHANNELS) * 4, 4), "a view: rows overlap in memory"
    for place in (0, 7, 140):
        assert found[place].tolist() == channels[place:place + 60].reshape(-1).tolist()
    assert windows(bars.slice(0, 59), 60).shape == (0, 300)
    with pytest.raises(InvalidInput, match="length"):
        windows(bars, 0)


def test_the_group_is_as_wide_as_its_bars() -> None:
    assert ARRAYS[WINDOW].most == WINDOW_NUMBERS == WINDOW_BARS * len(CHANNELS) == 600
    assert [ARRAYS[WINDOW].admits(count) for count in (0, 5, 300, 301, 600, 605)] == [
        False, True, True, False, True, False]


def test_a_window_never_holds_a_bar_that_closes_later_nor_depends_on_what_follows(random_bars: MakeBars) -> None:
    """Each row is made again from nothing but the bars that had closed by then."""
    bars = without(random_bars(600), 200, 201, 420)
    frame = window_frame(bars)
    for time_ms in np.random.default_rng(4).integers(bars.open_time_ms[0], bars.close_time_ms[-1], 60):
        known = bars.slice(0, int(np.searchsorted(bars.close_time_ms, time_ms, "right")))
        place = frame.until(int(time_ms)) - 1
        again = window_frame(known)
        assert len(again) == place + 1
        if place < 0:
            continue
        assert frame.event_time_ms[place] <= time_ms
        assert frame.row(place).tobytes() == again.row(place).tobytes()
        newest = int(np.searchsorted(known.close_time_ms, frame.event_time_ms[place]))
        expected = bar_channels(known)[newest - WINDOW_BARS + 1:newest + 1]
        assert frame.row(place).tobytes() == expected.tobytes()


def test_there_is_a_window_just_where_there_are_features_and_none_across_a_gap(random_bars: MakeBars) -> None:
    bars = without(random_bars(500), 300)
    frame = window_frame(bars)
    assert frame.event_time_ms.tolist() == bar_event_times(bars)[BARS].tolist()
    assert len(frame) == 499 - 2 * (LOOKBACK_BARS - 1)
    spans = [bars.open_time_ms[newest] - bars.open_time_ms[newest - WINDOW_BARS] for newest in frame.newest]
    assert set(spans) == {WINDOW_BARS * bars.interval_ms}, "the bar before the first one included"


def test_rows_of_a_stretch_are_the_last_numbers_of_each_window(random_bars: MakeBars) -> None:
    frame = window_frame(random_bars(200))
    found = frame.rows(10, 30, 300)
    assert found.shape == (20, 300)
    assert found.tobytes() == np.array([frame.row(place)[-300:] for place in range(10, 30)]).tobytes()
    assert np.shares_memory(frame.row(10), frame.channels)


def test_what_is_reached_became_known_in_the_stretch_or_was_fresh_at_its_start(random_bars: MakeBars) -> None:
    frame = window_frame(random_bars(300))
    start, stop = int(frame.event_time_ms[50]) + 1, int(frame.event_time_ms[90])
    reached = frame.reaching(start, stop).event_time_ms
    assert reached.tolist() == [time for time in frame.event_time_ms if start - ARRAYS[WINDOW].ttl_ms <= time <= stop]


def test_the_incremental_window_is_the_one_of_the_whole_history(random_bars: MakeBars) -> None:
    bars = without(random_bars(400), 250)
    whole, window = window_frame(bars), BarWindow("BTC")
    assert len(window.window()) == 0
    steps = [0, 100, 122, 123, 150, 249, 250, 260, 371, 372, 399]
    for start, stop in pairwise(steps):
        window.push(bars.slice(start, stop))
        now_ms = int(bars.close_time_ms[stop - 1])
        newest = window.window()
        place = whole.until(now_ms) - 1
        if place < 0 or whole.event_time_ms[place] != now_ms:
            assert len(newest) == 0
        else:
            assert newest.event_time_ms.tolist() == [now_ms]
            assert newest.row(0).tobytes() == whole.row(place).tobytes()
