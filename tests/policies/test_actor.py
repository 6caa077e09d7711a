"""The numbers of a reinforcement-learning policy: ranges, signs, and the worked examples that their words promise."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.actor import (
    FEATURES,
    OBSERVATION,
    POSITION,
    POSITION_FROM,
    ActorLimits,
    flat_position,
    observations,
    order_amounts,
    position_numbers,
    standardised,
    wanted,
)
from policies.errors import InvalidInput

LIMITS = ActorLimits()
PLACE = st.floats(-1.5, 1.5)
FLAT: dict[str, Any] = {"sign": 0, "quantity": 0, "entry": 0, "stop_pct": 0, "target_pct": 0, "bars_held": 0,
                        "last_close": 100, "equity": 10_000, "peak": 10_000, "free_cash": 10_000}
LONG = {**FLAT, "sign": 1, "quantity": 10, "entry": 100, "stop_pct": 0.01, "target_pct": 0.02, "bars_held": 3,
        "free_cash": 9_800}


def numbers(**changes: Any) -> dict[str, float]:
    found = position_numbers(**{**LONG, **changes}, limits=LIMITS)
    return dict(zip(POSITION, found.tolist(), strict=True))


def test_full_size_at_the_narrowest_stop_is_the_most_that_is_allowed() -> None:
    asked = wanted([[1, -1, -1], [-1, -1, 1], [0, 0, 0]], LIMITS)
    assert asked.exposure.tolist() == [0.5, -0.5, 0.0] == [LIMITS.most_exposure, -LIMITS.most_exposure, 0]
    assert asked.stop.tolist() == pytest.approx([0.004, 0.004, 0.027])
    assert asked.target.tolist() == pytest.approx([0.004, 0.15, 0.077])


@given(PLACE, PLACE, PLACE)
def test_no_action_risks_more_than_asked_for_or_leaves_the_documented_levels(size: float, stop: float,
                                                                          target: float) -> None:
    asked = wanted([size, stop, target], LIMITS)
    assert abs(asked.exposure) * asked.stop <= LIMITS.risk_per_trade * (1 + 1e-12)
    assert abs(asked.exposure) <= LIMITS.most_exposure
    assert 0.004 <= asked.stop <= 0.05 + 1e-12
    assert 0.004 <= asked.target <= 0.15 + 1e-12
    assert (asked.exposure == 0) == (abs(size) < LIMITS.dead_zone)
    assert asked.exposure * size >= 0


@given(st.lists(st.tuples(PLACE, PLACE, PLACE), min_size=1, max_size=5))
def test_many_actions_at_once_ask_for_what_each_asks_for(actions: list[tuple[float, float, float]]) -> None:
    together = wanted(actions, LIMITS)
    alone = [wanted(action, LIMITS) for action in actions]
    for name in ("exposure", "stop", "target"):
        assert getattr(together, name).tolist() == [float(getattr(one, name)) for one in alone]


@pytest.mark.parametrize("action", [[math.nan, 0, 0], [0, math.inf, 0], [0, 0], [[0, 0, 0, 0]]])
def test_an_action_that_is_no_action_is_refused(action: Any) -> None:
    with pytest.raises(InvalidInput, match="size, stop, target"):
        wanted(action, LIMITS)


def test_no_order_is_sent_for_a_small_change_on_the_same_side_or_for_staying_flat() -> None:
    to = [0.5, 0.5, 0.3, 0.0, 0.0, 0.05, -0.05, 0.5]
    held = [0.5, 0.376, 0.1, 0.0, 0.1, 0.0, 0.05, 0.37]
    amounts = order_amounts(to, held, LIMITS)
    sent = [None if math.isnan(amount) else amount for amount in amounts.tolist()]
    assert sent == [None, None, 0.3, None, 0.0, 0.05, -0.05, 0.5]


def test_a_long_position_is_described_in_its_own_units() -> None:
    assert numbers(last_close=101) == pytest.approx(
        {"side": 1, "exposure": 0.101 / 0.5, "unrealised": 0.5, "age": 0.2, "to_stop": 2.0, "to_target": 0.5,
         "drawdown": 0, "free": 0.98})


def test_a_short_position_is_the_mirror_of_a_long_one() -> None:
    short = numbers(sign=-1, last_close=99)
    assert short == pytest.approx({**numbers(last_close=101), "side": -1, "exposure": 0.099 / 0.5})


def test_a_flat_account_shows_only_its_drawdown_and_its_cash() -> None:
    flat = numbers(**{**FLAT, "equity": 9_800, "peak": 10_000, "free_cash": 9_800})
    assert flat == pytest.approx(dict.fromkeys(POSITION, 0.0) | {"drawdown": 0.5, "free": 1.0})
    assert flat_position().tolist() == list((numbers(**FLAT)).values())


def test_numbers_of_a_position_are_cut_where_the_words_say() -> None:
    worst = numbers(last_close=50, bars_held=100, equity=100, peak=10_000)
    assert (worst["unrealised"], worst["age"], worst["to_stop"], worst["to_target"], worst["drawdown"]) == (
        -5, 1, 0, 2, 5)
    assert numbers(last_close=200)["to_target"] == 0


def test_a_table_of_accounts_gives_the_rows_that_each_gives() -> None:
    rng = np.random.default_rng(0)
    sign = rng.integers(-1, 2, 50)
    given_ = {"sign": sign, "quantity": np.abs(sign) * rng.random(50), "entry": np.abs(sign) * rng.uniform(50, 150, 50),
             "stop_pct": rng.uniform(0.004, 0.05, 50), "target_pct": rng.uniform(0.004, 0.15, 50),
             "bars_held": rng.integers(0, 40, 50), "last_close": rng.uniform(50, 150, 50),
             "equity": rng.uniform(5_000, 20_000, 50), "peak": np.full(50, 20_000), "free_cash": rng.random(50)}
    whole = position_numbers(**given_, limits=LIMITS)
    for row in range(50):
        alone = position_numbers(**{name: column[row] for name, column in given_.items()}, limits=LIMITS)
        assert alone.tobytes() == whole[row].tobytes()
    assert np.isfinite(whole).all()
    assert (whole[sign == 0][:, :6] == 0).all()


def test_features_are_standardised_cut_and_zero_where_missing() -> None:
    mean, scale = np.array([1, 0, 0], np.float32), np.array([2, 1, 1], np.float32)
    z = standardised([[5, 100, np.nan], [1, -100, 0.5]], mean, scale)
    assert z.dtype == np.float32
    assert z.tolist() == [[2, 5, 0], [0, -5, 0.5]]


def test_an_observation_has_the_documented_size_and_zeros_in_its_room() -> None:
    features = np.arange(120, dtype=np.float32).reshape(2, 60)
    whole = observations(features, flat_position())
    assert whole.shape == (2, OBSERVATION)
    assert whole.dtype == np.float32
    assert (whole[:, FEATURES] == features).all()
    assert (whole[:, POSITION_FROM:68] == flat_position()).all()
    assert not whole[:, 68:].any()


@pytest.mark.parametrize("changes", [
    {"risk_per_trade": 0.5}, {"leverage": 0.5}, {"least_stop_pct": 0.0}, {"dead_zone": 0.0}, {"band": math.nan},
    {"least_stop_pct": 0.1}, {"most_target_pct": 0.001}, {"horizon_bars": 0}])
def test_limits_outside_their_ranges_are_refused_by_name(changes: dict[str, float]) -> None:
    with pytest.raises(InvalidInput, match=r"limits\."):
        ActorLimits(**changes)


def test_the_row_for_compiled_walks_holds_every_limit_in_order_and_the_most_allowed() -> None:
    assert ActorLimits(band=0.3).row().tolist() == [0.002, 5.0, 0.004, 0.05, 0.004, 0.15, 0.1, 0.3, 15.0, 0.5]
