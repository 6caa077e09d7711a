from __future__ import annotations

import math
from typing import Any

import pytest
from fake_fold import outcome

from policies.errors import InvalidInput
from sentry.outcome_checks import AMOUNTS, checked_outcome, require_pnl, require_times, require_whole

TRADE = {"decided_ms": 1_000, "direction": "long", "acts": True}


@pytest.mark.parametrize("name", AMOUNTS)
def test_no_amount_may_be_nan_or_infinite(name: str) -> None:
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(InvalidInput) as refusal:
            checked_outcome(outcome("d1", **{name: value}))
        assert refusal.value.field == name


def test_missing_and_unknown_fields_are_named() -> None:
    whole = outcome("d1")
    for name in whole:
        with pytest.raises(InvalidInput) as refusal:
            checked_outcome({key: value for key, value in whole.items() if key != name})
        assert refusal.value.field == name
    with pytest.raises(InvalidInput, match="luck"):
        checked_outcome({**whole, "luck": 1})


def test_times_go_from_decision_to_entry_to_exit_to_now() -> None:
    require_times(checked_outcome(outcome("d1")), TRADE, 2_000)
    for change, now_ms in (({"exit_time_ms": 999}, 2_000), ({}, -1), ({"entry_time_ms": 2_001}, 9_000)):
        with pytest.raises(InvalidInput):
            require_times(checked_outcome(outcome("d1", **change)), TRADE, now_ms)


@pytest.mark.parametrize(("trade", "pnl", "fits"), [
    ({"direction": "long", "acts": True}, 10.0, True), ({"direction": "long", "acts": True}, -10.0, False),
    ({"direction": "short", "acts": True}, -10.0, True), ({"direction": "flat", "acts": False}, -10.0, True),
    ({"direction": "flat", "acts": False}, 10.0, True), ({"direction": "flat", "acts": True}, 10.0, False),
])
def test_pnl_follows_the_direction_which_only_the_bot_knows_where_the_hub_said_flat(
        trade: dict[str, Any], pnl: float, fits: bool) -> None:
    reported = checked_outcome(outcome("d1", pnl=pnl))
    if fits:
        require_pnl(reported, trade)
    else:
        with pytest.raises(InvalidInput, match="pnl"):
            require_pnl(reported, trade)


@pytest.mark.parametrize("value", [True, 1.0, "1", None, -1, 11])
def test_whole_number_is_one_within_its_range(value: object) -> None:
    with pytest.raises(InvalidInput):
        require_whole({"n": value}, "n", 0, 10)
