from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.types import STRATEGIES, Action, Direction, LlmView
from sentry.ledger import encoded
from sentry.shield import ShieldSettings, shield

SETTINGS = ShieldSettings()
ACTION = Action(Direction.LONG, 0.01, 5.0, 0.01, 0.008, 0.0, 0.5)

wild = st.floats(allow_nan=True, allow_infinity=True)


def around(low: float, high: float) -> st.SearchStrategy[float]:
    return st.one_of(st.floats(low, high), st.sampled_from([low, high]), wild)


actions = st.builds(Action, st.sampled_from(list(Direction)), around(0, 1), around(1, 60), around(0, 0.1),
                    around(0, 0.1), around(0, 0.01), around(0, 1))
views = st.one_of(st.none(), st.builds(LlmView, actions, around(0, 1)))


def finite(action: Action) -> bool:
    values = action.to_dict()
    return all(math.isfinite(values[name]) for name in values if name != "direction")


@given(actions, st.sampled_from(STRATEGIES), around(0, 1), views, st.booleans(), around(0, 1))
def test_shield_only_ever_lowers_risk_and_a_second_look_changes_nothing(
        action: Action, strategy: str, confidence: float, llm: LlmView | None, no_new_risk: bool, scale: float) -> None:
    shielded = shield(action, strategy, confidence, llm, no_new_risk, scale, SETTINGS)
    after = shielded.action
    assert finite(after)
    if finite(action):
        assert after.risk_fraction <= max(0.0, action.risk_fraction)
    assert after.risk_fraction <= SETTINGS.risk_per_trade
    assert 0 <= after.size_fraction <= SETTINGS.max_position_pct
    assert 1 <= after.leverage <= SETTINGS.max_leverage
    assert after.min_conf >= SETTINGS.min_conf
    if after.direction is not Direction.FLAT:
        assert after.direction is action.direction
        assert after.size_fraction > 0
        assert confidence >= after.min_conf
        assert not no_new_risk
        assert after.risk_fraction <= SETTINGS.risk_per_trade * scale
        assert after.size_fraction <= min(action.size_fraction, SETTINGS.max_position_pct * scale)
        assert after.leverage <= action.leverage
        if strategy in SETTINGS.directional_strategies:
            assert after.sl_pct >= SETTINGS.min_sl_pct
        if llm is not None:
            assert llm.action.direction is not Direction.FLAT
            assert after.risk_fraction <= llm.action.risk_fraction
            assert after.leverage <= llm.action.leverage
    else:
        assert after.risk_fraction == 0
    again = shield(after, strategy, confidence, llm, no_new_risk, scale, SETTINGS)
    assert again.action == after
    encoded({"changes": [change.to_dict() for change in shielded.changes]})  # can be recorded


def test_action_within_every_limit_is_left_alone() -> None:
    shielded = shield(ACTION, "momentum", 0.6, LlmView(ACTION, 0.9), False, 1.0, SETTINGS)
    assert (shielded.action, shielded.changes) == (ACTION, ())


def after(action: Action, strategy: str = "momentum", confidence: float = 0.9, llm: LlmView | None = None,
          scale: float = 1.0) -> tuple[Action, set[str]]:
    shielded = shield(action, strategy, confidence, llm, False, scale, SETTINGS)
    return shielded.action, {change.rule for change in shielded.changes}


def test_leverage_and_size_are_capped() -> None:
    action, rules = after(replace(ACTION, leverage=40.0, size_fraction=0.9, sl_pct=0.004))
    assert action.leverage == 20.0
    assert {"max_leverage", "max_position_pct", "risk_per_trade"} == rules
    assert action.risk_fraction == pytest.approx(0.002)


def test_tight_stop_is_widened_for_directional_strategies_without_more_risk() -> None:
    tight = replace(ACTION, sl_pct=0.002)
    action, rules = after(tight)
    assert (action.sl_pct, rules) == (0.004, {"min_sl_pct", "risk_never_rises"})
    assert action.risk_fraction == pytest.approx(tight.risk_fraction)
    assert after(tight, "market_making") == (tight, set())


def test_low_confidence_becomes_flat_by_the_stricter_threshold() -> None:
    assert after(ACTION, confidence=0.5)[0].direction is Direction.LONG
    assert after(ACTION, confidence=0.49)[0].direction is Direction.FLAT
    assert after(replace(ACTION, min_conf=0.7), confidence=0.65)[0].direction is Direction.FLAT
    assert after(replace(ACTION, min_conf=0.1), confidence=0.49)[0] == ACTION.flat()


def test_tripped_breaker_allows_no_new_risk() -> None:
    shielded = shield(ACTION, "momentum", 0.9, None, True, 1.0, SETTINGS)
    assert shielded.action == ACTION.flat()
    assert {change.rule for change in shielded.changes} == {"no_new_risk"}


def test_stricter_of_llm_and_learner_wins() -> None:
    llm = LlmView(Action(Direction.SHORT, 0.02, 3.0, 0.01, 0.001, 0.0, 0.5), 0.8)
    action, rules = after(ACTION, llm=llm)
    assert (action.direction, action.leverage) == (Direction.LONG, 3.0)
    assert action.risk_fraction == pytest.approx(llm.action.risk_fraction)
    assert rules == {"llm_is_stricter"}


def test_flat_llm_leaves_no_size() -> None:
    assert after(ACTION, llm=LlmView(replace(ACTION, direction=Direction.FLAT), 0.8))[0] == ACTION.flat()


def test_probation_lowers_the_limits() -> None:
    action, rules = after(replace(ACTION, size_fraction=0.05), scale=0.5)
    assert (action.risk_fraction, rules) == (pytest.approx(0.001), {"risk_per_trade"})
    assert after(ACTION, scale=0.0)[0].direction is Direction.FLAT


@pytest.mark.parametrize(("field", "value"), [
    ("size_fraction", math.nan), ("size_fraction", -0.1), ("size_fraction", 1.1), ("leverage", math.inf),
    ("leverage", 0.5), ("sl_pct", 0.0), ("sl_pct", math.nan), ("tp_pct", -0.01), ("limit_offset_pct", -1.0),
    ("min_conf", math.nan), ("min_conf", 1.5),
])
def test_value_that_means_nothing_becomes_no_position(field: str, value: float) -> None:
    broken = replace(ACTION, **{field: value})
    action, rules = after(broken)
    assert (action.direction, action.size_fraction, rules) == (Direction.FLAT, 0.0, {"out_of_range"})
    assert finite(action)
    assert after(ACTION, llm=LlmView(broken, 0.8))[0].direction is Direction.FLAT


@pytest.mark.parametrize("confidence", [math.nan, -0.1, 1.1, math.inf])
def test_confidence_that_means_nothing_becomes_no_position(confidence: float) -> None:
    assert after(ACTION, confidence=confidence)[0].direction is Direction.FLAT
