import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ci.experiments.drift import (
    CHOSEN_BEFORE,
    LEAST_WEEKS_BEFORE,
    VIOLENT_RATIO,
    Year,
    daily_and_hourly_ranges,
    false_alarms,
    main,
    quiet_weeks,
    violent_days,
    violent_seen,
)
from feature_repo.drift import DAY_MS, day_of
from feature_repo.generated import GeneratedMarket

MONDAY = day_of("2025-01-06")
WEEKS = 12


def market_of(seed: int, weeks: int = WEEKS):
    days = np.arange(MONDAY, MONDAY + 7 * weeks)
    return days, np.random.default_rng(seed).exponential(0.02, len(days))


def test_quiet_weeks_agree_with_one_week_at_a_time():
    days, ranges = market_of(1)
    judged = set(days.tolist()) - {MONDAY + 7 * 8 + 3}
    found = quiet_weeks(days, ranges, judged)
    largest = [max(ranges[7 * week:7 * week + 7]) for week in range(WEEKS)]
    expected = [MONDAY + 7 * week for week in range(LEAST_WEEKS_BEFORE, WEEKS)
                if largest[week] < np.median(largest[:week]) and week != 8]
    assert list(found) == expected
    assert expected
    assert all(list(week) == list(range(monday, monday + 7)) for monday, week in found.items())


def test_quiet_weeks_do_not_look_ahead():
    days, ranges = market_of(1)
    judged = set(days.tolist())
    later = ranges.copy()
    later[7 * 9:] *= 50
    until = {monday for monday in quiet_weeks(days, ranges, judged) if monday < MONDAY + 7 * 9}
    assert until
    assert set(quiet_weeks(days, later, judged)) == until


def test_week_with_a_day_that_was_not_recorded_is_not_quiet():
    days, ranges = market_of(1)
    found = list(quiet_weeks(days, ranges, set(days.tolist())))
    hole = int(np.flatnonzero(days == found[0] + 2)[0])
    assert found[0] not in quiet_weeks(np.delete(days, hole), np.delete(ranges, hole), set(days.tolist()))


def test_violent_day_has_an_hour_far_beyond_the_hours_before():
    days = np.arange(MONDAY, MONDAY + 20)
    hourly = np.ones((20, 24))
    hourly[16, 5], hourly[18, 5], hourly[3, 5] = VIOLENT_RATIO, VIOLENT_RATIO - 0.1, 99.0
    assert violent_days(days, hourly, set(days.tolist())) == (MONDAY + 16,)
    assert violent_days(days, hourly, {MONDAY + 18}) == ()


def test_ranges_agree_with_one_day_at_a_time():
    bars = GeneratedMarket(seed=2, symbols=("BTC",), bars=3 * 1440 + 700).bars("BTC")
    days, daily, hourly = daily_and_hourly_ranges(bars)
    first = int(bars.open_time_ms[0] // DAY_MS)
    assert days.tolist() == [first, first + 1, first + 2]  # the last one ends before noon
    for place, day in enumerate(days):
        of_day = bars.close_time_ms // DAY_MS == day
        assert daily[place] == pytest.approx(np.log(bars.high[of_day].max() / bars.low[of_day].min()))
        fifth = of_day & (bars.close_time_ms % DAY_MS // 3_600_000 == 5)
        assert hourly[place, 5] == pytest.approx(np.log(bars.high[fifth].max() / bars.low[fifth].min()))


def test_false_alarms_are_counted_on_quiet_weeks_of_the_stretch_only():
    mondays = [MONDAY, MONDAY + 14, MONDAY + 28, CHOSEN_BEFORE + 5]
    year = Year("BTC", [], {monday: range(monday, monday + 7) for monday in mondays}, (MONDAY + 9, MONDAY + 10))
    alarms = (MONDAY + 1, MONDAY + 2, MONDAY + 10, CHOSEN_BEFORE + 6)
    found = false_alarms(year, alarms, True)
    assert (found["days"], found["days_in_alarm"], found["weeks_with_alarm"]) == (21, 2, 1)
    assert found["share_of_days"] == pytest.approx(2 / 21)
    low, high = found["interval_95_of_weeks"]
    assert low < 1 / 3 < high
    assert false_alarms(year, alarms, False)["days_in_alarm"] == 1
    assert false_alarms(Year("BTC", [], {}, ()), alarms, True)["share_of_days"] is None
    assert violent_seen(year, alarms, True) == {"violent_days": 2, "alarm_the_same_day": 1,
                                                "alarm_that_day_or_the_next": 2}


def test_without_recorded_data_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert main(["--data-dir", str(tmp_path / "nowhere"), "--home", str(tmp_path)]) == 2
    assert "no recorded year of BTC and ETH" in capsys.readouterr().err
    assert not (tmp_path / "reports").exists()


def test_report_of_a_calm_market_holds_no_alarm_and_sees_broken_feeds(tmp_path: Path):
    start = CHOSEN_BEFORE - 30
    market = GeneratedMarket(seed=3, symbols=("BTC", "ETH"), bars=45 * 1440, start_ms=start * DAY_MS)
    for symbol in market.symbols:
        bars = market.bars(symbol)
        table = pd.DataFrame({"timestamp": bars.open_time_ms, "open": bars.open, "high": bars.high, "low": bars.low,
                              "close": bars.close, "volume": bars.volume})
        path = tmp_path / "binance_spot" / f"{symbol}USDT_1m_a_b.parquet"
        path.parent.mkdir(exist_ok=True)
        table.to_parquet(path)
    assert main(["--data-dir", str(tmp_path), "--home", str(tmp_path), "--until", "2025-10-09"]) == 0
    report = json.loads((tmp_path / "reports" / "drift.json").read_text())
    before, after = report["before 2025-10-01"]["BTC"], report["from 2025-10-01 on"]["BTC"]
    assert (before["judged_days"], after["judged_days"]) == (30 - 14, 8)
    assert all(not stretch["rules"]["figure > 0.3, 2 days running"]["alarms"] for stretch in (before, after))
    assert report["broken feeds"]["ETH"]["doubled"]["share_above_limit"] == 1.0
    assert report["the crash"]["BTC"] == []
    assert "<svg" in (tmp_path / "reports" / "drift.html").read_text()
