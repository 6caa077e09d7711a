"""What an actor observes of a market, and where its episodes can begin."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from bar_makers import MINUTE, jumpy_bars
from hypothesis import given, settings
from hypothesis import strategies as st
from market_frames import jumpy_market, made_rows

from feature_repo.features import DECISION_V1
from feature_repo.generated import GeneratedMarket
from feature_repo.transforms import compute_features
from policies.errors import InvalidInput
from train.dataset import FeatureRows
from train.rl.market_rows import ALL_TIME, SETTLED, MarketRows, Standard, TimeRange, frame_of, market_rows, of_frame


def generated(bars: int = 400) -> tuple[MarketRows, FeatureRows]:
    run = GeneratedMarket(3, bars=bars).bars("SOL")
    found = compute_features(run)
    rows = FeatureRows(found.event_time_ms, found.values)
    return market_rows({"SOL": run}, {"SOL": rows})[0][0], rows


def test_a_row_is_standardised_and_known_at_the_close_of_its_bar_and_what_is_missing_is_zero() -> None:
    rows, raw = generated()
    assert rows.known.sum() == len(raw)
    assert rows.bars.close_time_ms[rows.known].tolist() == raw.event_time_ms.tolist()
    assert rows.features.dtype == np.float32
    assert (rows.features[~rows.known] == 0).all()
    missing = np.isnan(raw.values)
    assert missing.any()
    assert (rows.features[rows.known][missing] == 0).all()
    there = rows.features[rows.known][:, ~missing.any(axis=0)]
    varying = there.std(axis=0) > 0
    assert varying.sum() > 35
    assert np.abs(there.mean(axis=0)).max() < 0.1
    np.testing.assert_allclose(there.std(axis=0)[varying], 1.0, atol=0.1)


def test_the_standardisation_sees_nothing_but_the_training_range() -> None:
    _, raw = generated()
    half = TimeRange(0, int(raw.event_time_ms[len(raw) // 2]))
    later = raw.values.copy()
    later[len(raw) // 2 + 1:] *= 100.0
    before, after = (Standard.fitted([FeatureRows(raw.event_time_ms, values)], half) for values in (raw.values, later))
    np.testing.assert_array_equal(before.mean, after.mean)
    np.testing.assert_array_equal(before.scale, after.scale)
    whole = Standard.fitted([FeatureRows(raw.event_time_ms, later)], ALL_TIME)
    assert (whole.scale > before.scale).sum() > 30


def test_a_feature_that_does_not_vary_is_scaled_by_its_typical_magnitude_and_one_that_is_never_there_is_zero() -> None:
    values = np.random.default_rng(0).normal(size=(50, len(DECISION_V1)))
    values[:, 4], values[:, 5] = 7.0, np.nan
    fitted = Standard.fitted([FeatureRows(np.arange(50), values)], ALL_TIME)
    assert (fitted.mean[4], fitted.scale[4]) == (7.0, np.float32(DECISION_V1.scales[4]))
    assert (fitted.mean[5], fitted.scale[5]) == (0.0, np.float32(DECISION_V1.scales[5]))
    assert (fitted.scale > 0).all()
    with pytest.raises(InvalidInput, match="training"):
        Standard.fitted([FeatureRows(np.arange(50), values)], TimeRange(100, 200))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_starts_are_all_bars_from_which_a_whole_episode_can_be_played(seed: int, episode_bars: int) -> None:
    rng = np.random.default_rng(seed)
    kept = np.sort(rng.choice(60, 50, replace=False))
    bars = jumpy_bars(seed, 50)
    bars = dataclasses.replace(bars, open_time_ms=kept * MINUTE)
    known = rng.random(50) < 0.95
    rows = MarketRows(bars, np.zeros((50, 60), np.float32), known)
    within = TimeRange(int(kept[8]) * MINUTE, int(kept[40]) * MINUTE)
    expected = [start for start in range(50 - episode_bars)
                if known[start:start + episode_bars + 1].all()
                and (np.diff(kept[start:start + episode_bars + 1]) == 1).all()
                and bars.close_time_ms[start] >= within.start_ms
                and bars.close_time_ms[start + episode_bars] <= within.stop_ms]
    assert rows.starts(episode_bars, within).tolist() == expected


def test_too_few_bars_have_no_start() -> None:
    assert len(jumpy_market(0, 20).starts(20)) == 0
    assert len(jumpy_market(0, 20).starts(16)) == 1


def test_a_frame_says_the_same_as_bars_and_rows() -> None:
    bars = jumpy_bars(1, 50)
    rows = made_rows(bars, 1)
    frame = frame_of(bars, rows)
    again, found = of_frame(frame, bars.symbol)
    assert frame.columns.tolist()[:7] == ["open_time_ms", "open", "high", "low", "close", "volume", SETTLED]
    for name in ("open_time_ms", "open", "high", "low", "close", "volume", "funding_rate"):
        np.testing.assert_array_equal(getattr(again, name), getattr(bars, name))
    np.testing.assert_array_equal(found.event_time_ms, rows.event_time_ms)
    np.testing.assert_array_equal(found.values, rows.values)
    without, _ = of_frame(frame.drop(columns=SETTLED))
    assert without.funding_rate is None


def test_a_frame_without_a_column_is_refused_with_its_name() -> None:
    bars = jumpy_bars(1, 50)
    frame = frame_of(bars, made_rows(bars))
    with pytest.raises(InvalidInput, match="missing: close, ret_15"):
        MarketRows.from_frame(frame.drop(columns=["ret_15", "close"]))
    broken = frame.copy()
    broken.loc[20, "high"] = np.nan
    with pytest.raises(InvalidInput, match=r"bars.*\[20\]"):
        MarketRows.from_frame(broken)


def test_rows_of_another_width_are_refused_and_rows_at_no_close_are_left_out() -> None:
    bars = jumpy_bars(1, 50)
    standard = Standard(np.zeros(60, np.float32), np.ones(60, np.float32))
    with pytest.raises(InvalidInput, match=r"rows\.values"):
        MarketRows.made(bars, FeatureRows(bars.close_time_ms, np.zeros((50, 59))), standard)
    late = FeatureRows(bars.close_time_ms[10:20] + 1, np.ones((10, 60)))
    assert not MarketRows.made(bars, late, standard).known.any()
    with pytest.raises(InvalidInput, match="start_ms < stop_ms"):
        TimeRange(5, 5)
