from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from feature_repo.features import BARS, DECISION_V1, PRICE, SERVICES, WINDOWS
from feature_repo.generated import GeneratedMarket
from feature_repo.transforms import LOOKBACK_BARS, BarWindow, bar_frames, compute_features
from policies.bars import Bars

MakeBars = Callable[..., Bars]


def column(name: str) -> int:
    return DECISION_V1.names.index(name)


def test_services_name_each_feature_once_and_know_its_group_and_age() -> None:
    for service in SERVICES:
        assert len(service.names) == len(set(service.names))
        assert set(service.required_groups + service.optional_groups) == set(service.ttl_ms) == set(service.groups)
        assert {spec.name for spec in service.stored} == {n for names in service.groups.values() for n in names}
        assert (service.scales > 0).all()
    assert set(DECISION_V1.indicators) == set(DECISION_V1.optional_groups)
    assert max(spec.window for spec in DECISION_V1.specs if spec.group == BARS) <= LOOKBACK_BARS


def test_bars_one_by_one_give_the_rows_of_the_whole_history_to_the_last_bit(random_bars: MakeBars) -> None:
    bars = random_bars(700)
    holed = replace(bars, open_time_ms=bars.open_time_ms + np.where(np.arange(700) >= 400, 120_000, 0))
    for run in (bars, holed):
        window, whole = BarWindow("BTC"), bar_frames(run)
        pushed = [window.push(run.slice(place, place + 1)) for place in range(len(run))]
        for group, frame in whole.items():
            assert np.concatenate([p[group].event_time_ms for p in pushed]).tolist() == frame.event_time_ms.tolist()
            assert np.concatenate([p[group].values for p in pushed]).tobytes() == frame.values.tobytes()


def test_bars_that_are_known_already_complete_nothing(random_bars: MakeBars) -> None:
    window, bars = BarWindow("BTC"), random_bars(300)
    assert len(window.push(bars.slice(0, 200))[BARS]) == 200 - LOOKBACK_BARS + 1
    assert len(window.push(bars.slice(0, 200))[BARS]) == 0
    assert window.push(bars.slice(150, 210))[BARS].event_time_ms.tolist() == bars.close_time_ms[200:210].tolist()


def test_prices_in_their_own_units_follow_their_formulas(random_bars: MakeBars) -> None:
    bars = random_bars(400)
    frame = bar_frames(bars)[PRICE]
    for row in range(0, len(frame), 31):
        at = row + LOOKBACK_BARS - 1
        c, r = bars.close[: at + 1], np.diff(np.log(bars.close[: at + 1]))
        expected = [np.median(c[-5:]), c[-1] / c[-2] - 1, np.sqrt(np.mean(r[-60:] ** 2))]
        assert frame.values[row].tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("source", ["random", "generated"])
def test_row_from_its_lookback_alone_is_equal_to_the_last_bit(source: str, random_bars: MakeBars) -> None:
    bars = random_bars(3_000) if source == "random" else GeneratedMarket(3, bars=3_000).bars("SOL")
    frame = compute_features(bars)
    for row in range(0, len(frame), 37):
        alone = compute_features(bars.slice(row, row + LOOKBACK_BARS))
        assert alone.event_time_ms.tolist() == [frame.event_time_ms[row]]
        assert alone.values[0].tobytes() == frame.values[row].tobytes()


def test_altered_future_changes_nothing(random_bars: MakeBars) -> None:
    bars, cut = random_bars(1_000), 600
    later = np.arange(len(bars)) >= cut
    wild = replace(bars, open=np.where(later, 7.0, bars.open), close=np.where(later, 9.0, bars.close),
                   high=np.where(later, 11.0, bars.high), low=np.where(later, 5.0, bars.low),
                   volume=np.where(later, 1e9, bars.volume))
    known = cut - LOOKBACK_BARS + 1
    assert compute_features(wild).values[:known].tobytes() == compute_features(bars).values[:known].tobytes()
    assert compute_features(wild).values[known].tobytes() != compute_features(bars).values[known].tobytes()


def test_values_follow_their_formulas_written_out(random_bars: MakeBars) -> None:
    bars = random_bars(1_500)
    frame = compute_features(bars)
    for row in range(0, len(frame), 61):
        at = row + LOOKBACK_BARS - 1
        assert frame.event_time_ms[row] == bars.open_time_ms[at] + 60_000
        expected = written_out(bars, at)
        for name, value in expected.items():
            assert frame.values[row, column(name)] == pytest.approx(value, rel=1e-9, abs=1e-9, nan_ok=True), name
        assert set(expected) == {*DECISION_V1.groups[BARS], "funding_missing", "funding_rate"}


def written_out(bars: Bars, at: int) -> dict[str, float]:
    """The formulas of the feature list for one bar, each by a reduction of its own."""
    r = np.diff(np.log(bars.close[: at + 1]))
    c, h, low, v = (a[: at + 1] for a in (bars.close, bars.high, bars.low, bars.volume))
    v120 = np.sqrt(np.mean(r[-120:] ** 2))
    angle = 2 * np.pi * ((bars.open_time_ms[at] + 60_000) % 86_400_000) / 86_400_000
    assert bars.funding_rate is not None
    settled = [rate for rate in bars.funding_rate[at - 120: at + 1] if rate != 0]  # at most two hours old
    out = {"ret_1": r[-1] / v120, "volume_z_1": (v[-1] - v[-120:].mean()) / v[-120:].std(), "day_sin": np.sin(angle),
           "day_cos": np.cos(angle), "log_vol_120": np.log(v120 / 0.001), "funding_missing": float(not settled),
           "funding_rate": settled[-1] if settled else np.nan}
    for w in WINDOWS:
        top, bottom = h[-w:].max(), low[-w:].min()
        out[f"ret_{w}"] = np.log(c[-1] / c[-1 - w]) / v120 / np.sqrt(w)
        out[f"range_{w}"] = np.log(top / bottom) / v120 / np.sqrt(w)
        out[f"position_{w}"] = 2 * (c[-1] - bottom) / (top - bottom) - 1
        out[f"up_share_{w}"] = 2 * np.mean(r[-w:] > 0) - 1
        new, old = r[-w:], r[-w - 1:-1]
        out[f"autocorrelation_{w}"] = (new @ old) / np.sqrt((new @ new) * (old @ old))
        if w != 120:
            out[f"vol_ratio_{w}"] = np.log(np.sqrt(np.mean(r[-w:] ** 2)) / v120)
            out[f"volume_ratio_{w}"] = np.log(v[-w:].mean() / v[-120:].mean())
    return out


def test_constant_prices_and_zero_volume_give_finite_values(random_bars: MakeBars) -> None:
    bars = random_bars(300)
    flat = np.full(300, 50.0)
    still = replace(bars, open=flat, high=flat, low=flat, close=flat, volume=np.zeros(300))
    wide = replace(still, high=flat * 1.5, low=flat * 0.5)
    halted = replace(bars, volume=np.where(np.arange(300) > 250, 0.0, bars.volume))
    for odd in (still, wide, halted):
        values = compute_features(odd).values[:, : column("funding_rate")]
        assert np.isfinite(values).all()
        assert np.abs(values).max() <= 20


def test_missing_funding_is_said_and_leaves_the_technical_features_whole(random_bars: MakeBars) -> None:
    bars = random_bars(500)
    without = compute_features(replace(bars, funding_rate=None)).values
    assert (without[:, column("funding_missing")] == 1).all()
    assert np.isnan(without[:, column("funding_rate")]).all()
    with_some = compute_features(bars).values
    missing = with_some[:, column("funding_missing")] == 1
    assert 0 < missing.sum() < len(missing)
    assert (np.isnan(with_some[:, column("funding_rate")]) == missing).all()
    assert np.isfinite(with_some[:, DECISION_V1.places[BARS]]).all()


def test_window_with_a_gap_has_no_row(random_bars: MakeBars) -> None:
    bars = random_bars(400)
    times = bars.open_time_ms + np.where(np.arange(400) >= 200, 60_000, 0)
    frame = compute_features(replace(bars, open_time_ms=times))
    assert len(frame) == (200 - LOOKBACK_BARS + 1) * 2
    assert len(compute_features(bars.slice(0, LOOKBACK_BARS - 1))) == 0
