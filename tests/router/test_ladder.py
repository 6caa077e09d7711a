import math
from dataclasses import dataclass

import pytest

from policies.track_record import TrackRecord
from router.evidence import Evidence
from router.ladder import climbed, is_green_lit


@dataclass(frozen=True)
class Belief:
    believed: bool = True
    e_value: float = 25.0


def record_of(trades: int, profit_factor: float, size: float = 1e-4) -> TrackRecord:
    """Gains and losses by turns; the profit factor is that of the whole record for even numbers of trades."""
    record = TrackRecord()
    for place in range(trades):
        record.record(str(place), profit_factor * size if place % 2 == 0 else -size)
    return record


def test_all_rungs_at_their_limits_are_climbed():
    report = climbed(record_of(150, 2.0), Belief())
    assert report.green_lit
    assert report.missing == ()


@pytest.mark.parametrize(("record", "belief", "word"), [
    (record_of(148, 2.5), Belief(), "trades 148 of 150"),
    (record_of(150, 1.98), Belief(), "profit factor 1.98 of 2"),
    (record_of(150, 2.5, size=0.031), Belief(), "drawdown 3.10 %"),
    (record_of(150, 2.5), Belief(False, 3.14159), "e-value 3.14"),
])
def test_each_rung_is_needed_and_named_when_missing(record, belief, word):
    report = climbed(record, belief)
    assert not report.green_lit
    assert len(report.missing) == 1
    assert word in report.missing[0]


def test_new_head_misses_everything_but_the_drawdown():
    report = climbed(TrackRecord(), Evidence())
    assert [phrase.split()[0] for phrase in report.missing] == ["trades", "profit", "evidence"]


def test_nan_drawdown_is_not_climbed():
    record = record_of(150, 2.5)
    record.max_drawdown_percent = math.nan
    assert not climbed(record, Belief()).green_lit


@pytest.mark.parametrize(("profit_factor", "was", "another", "lit"), [
    (2.5, False, True, True),
    (1.7, True, False, True),
    (1.7, True, True, False),
    (1.7, False, False, False),
    (1.4, True, False, False),
])
def test_profit_factor_between_the_limits_keeps_its_role_until_another_is_green_lit(profit_factor, was, another, lit):
    assert is_green_lit(record_of(150, profit_factor), Belief(), was, another) is lit


def test_reset_record_puts_the_light_out():
    record = record_of(150, 2.5)
    record.reset()
    assert not is_green_lit(record, Belief(), was_green_lit=True, another_green_lit=False)
