"""Slots: of many decisions, those that find the slot free, for many parameter sets at once."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from bar_makers import MINUTE, jumpy_bars

from policies.errors import InvalidInput
from policies.fills import BracketFills, BracketTrade, Costs, bar_at, simulate_brackets
from policies.slots import simulate_slots
from policies.types import Action, Direction


def test_each_slot_equals_stepping_one_trade_after_the_other() -> None:
    bars, rng = jumpy_bars(3), np.random.default_rng(3)
    times = bars.close_time_ms[::2]
    sign, leverage = rng.choice([-1, 0, 1], (5, len(times))), rng.choice([2.0, 10.0, 40.0], (5, 1))
    tp, sl = rng.uniform(0.002, 0.02, (2, 5, 1))
    horizon = np.array([[1], [5], [9], [15], [30]])
    slots = simulate_slots(bars, times, sign, leverage, tp, sl, horizon)
    for slot in range(5):
        own = np.flatnonzero(slots.slot == slot)
        expected, free_ms = [], 0
        for place, time_ms in enumerate(times.tolist()):
            if sign[slot, place] == 0 or time_ms < free_ms:
                continue
            side = Direction.LONG if sign[slot, place] > 0 else Direction.SHORT
            trade = BracketTrade(Action(side, 0.04, leverage[slot, 0], tp[slot, 0], sl[slot, 0]), time_ms, 100.0, 1e4,
                                 int(horizon[slot, 0]), MINUTE)
            for bar in range(time_ms // MINUTE, len(bars)):
                if trade.step(bar_at(bars, bar)):
                    break
            if trade.result is None:
                break
            free_ms = trade.result.exit_time_ms
            expected.append((place, free_ms, trade.result.net_return_on_margin, trade.result.exit_price))
        fills = slots.fills
        assert [(int(slots.place[i]), int(bars.close_time_ms[fills.exit_index[i]]), fills.net_return_on_margin[i],
                 fills.exit_price[i]) for i in own] == expected
        assert len(expected) > 5


def test_limit_entries_equal_stepping_one_trade_after_the_other() -> None:
    bars, rng = jumpy_bars(4), np.random.default_rng(4)
    times = bars.close_time_ms[::2]
    sign, offset = rng.choice([-1, 1], (4, len(times))), np.array([[0.0], [0.0004], [0.002], [0.02]])
    tp, sl = rng.uniform(0.002, 0.02, (2, 4, 1))
    slots = simulate_slots(bars, times, sign, 10.0, tp, sl, 9, limit_offset_pct=offset)
    counts = []
    for slot in range(4):
        expected, missed, free_ms = [], 0, 0
        for place, time_ms in enumerate(times.tolist()):
            if time_ms < free_ms:
                continue
            side = Direction.LONG if sign[slot, place] > 0 else Direction.SHORT
            entry = time_ms // MINUTE
            action = Action(side, 0.04, 10.0, tp[slot, 0], sl[slot, 0], float(offset[slot, 0]))
            trade = BracketTrade(action, time_ms, float(bars.close[entry - 1]), 1e4, 9, MINUTE)
            for bar in range(entry, len(bars)):
                if trade.step(bar_at(bars, bar)):
                    break
            if trade.result is None:
                break
            free_ms = trade.result.exit_time_ms
            missed += trade.result.exit_reason == "not_filled"
            if trade.result.exit_reason != "not_filled":
                expected.append((place, free_ms, trade.result.net_return_on_margin, trade.result.entry_price,
                                 trade.result.exit_price, trade.result.fees, trade.result.funding))
        own, fills = np.flatnonzero(slots.slot == slot), slots.fills
        assert [(int(slots.place[i]), int(bars.close_time_ms[fills.exit_index[i]]), fills.net_return_on_margin[i],
                 fills.entry_price[i], fills.exit_price[i], fills.fees[i], fills.funding[i]) for i in own] == expected
        counts.append((len(expected), missed))
    assert counts[0][1] == 0
    assert all(filled > 5 and missed > 5 for filled, missed in counts[1:3]), counts


def test_sparse_decisions_are_all_taken_and_equal_the_bracket_walk() -> None:
    bars = jumpy_bars(5)
    entries = np.arange(1, 380, 12)
    slots = simulate_slots(bars, bars.open_time_ms[entries], np.ones(len(entries)), 5.0, 0.01, 0.01, 10, Costs())
    walked = simulate_brackets(bars, entries, 1, 5.0, 0.01, 0.01, 10, Costs())
    np.testing.assert_array_equal(slots.place, np.arange(len(entries)))
    for field in dataclasses.fields(BracketFills):
        np.testing.assert_array_equal(getattr(slots.fills, field.name), getattr(walked, field.name))


def test_a_slot_that_enters_in_every_settling_bar_never_earns_its_funding() -> None:
    bars = jumpy_bars(6)
    assert bars.funding_rate is not None
    settling = np.flatnonzero(bars.funding_rate)[1:-1]
    for sign in (np.sign(bars.funding_rate[settling]), -np.sign(bars.funding_rate[settling])):
        slots = simulate_slots(bars, bars.open_time_ms[settling], sign, 2.0, 0.5, 0.4, 1)
        due = (sign * bars.funding_rate[settling] * bars.open[settling])[slots.place] / slots.fills.entry_price
        assert len(due) == len(settling)
        np.testing.assert_allclose(slots.fills.funding, np.maximum(due, 0.0), rtol=1e-12)


def test_a_decision_from_before_the_first_bar_is_passed_over() -> None:
    bars = jumpy_bars(0).slice(10, 100)
    slots = simulate_slots(bars, [0, int(bars.open_time_ms[0]), int(bars.open_time_ms[3])], [1, 1, 1], 5.0, 0.5, 0.5, 1)
    np.testing.assert_array_equal(slots.place, [2])


def test_no_decisions_are_no_trades() -> None:
    assert len(simulate_slots(jumpy_bars(0), [], np.zeros((3, 0)), 5.0, 0.01, 0.01, 10).slot) == 0


@pytest.mark.parametrize("bad", [{"decision_time_ms": [5, 4]}, {"direction": [1, 2]}, {"direction": [1]},
                                 {"leverage": [[1.0], [2.0]]}, {"tp_pct": np.nan},
                                 {"limit_offset_pct": np.nan}, {"limit_offset_pct": -0.001}, {"horizon_bars": 0}])
def test_senseless_decisions_are_refused_by_name(bad: dict[str, Any]) -> None:
    arguments = {"decision_time_ms": [0, MINUTE], "direction": [1, 1], "leverage": 5.0, "tp_pct": 0.01, "sl_pct": 0.01,
                 "horizon_bars": 5} | bad
    with pytest.raises(InvalidInput, match=next(iter(bad))):
        simulate_slots(jumpy_bars(0), **arguments)
