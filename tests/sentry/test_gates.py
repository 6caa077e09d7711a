from __future__ import annotations

import math
import random

import numpy as np
import pytest

from policies.track_record import TrackRecord
from policies.types import Judgement
from sentry.gates import BookBreaker, Gates, GateSettings, LatencyWindow, judge, judge_figures

SETTINGS = GateSettings()
NAN = math.nan


def record_of(*returns: float) -> TrackRecord:
    record = TrackRecord()
    for number, net_return in enumerate(returns):
        record.record(str(number), net_return)
    return record


@pytest.mark.parametrize(("drawdown", "profit_factor", "trades", "p95", "judgement", "rule"), [
    (0.0, 2.0, 200, 100.0, "approve", "within_limits"),
    (4.0, 1.5, 100, 250.0, "approve", "within_limits"),  # at the limits
    (4.01, 0.1, 500, 999.0, "halt", "drawdown_percent"),  # the most severe first
    (3.9, 1.49, 100, 999.0, "throttle", "profit_factor"),
    (3.9, 0.2, 99, 100.0, "approve", "within_limits"),  # too few trades to tell
    (3.9, 0.2, 99, 250.1, "reduce", "latency_p95_ms"),
    (0.0, 2.0, 200, math.inf, "reduce", "latency_p95_ms"),
    (0.0, 2.0, 200, None, "approve", "within_limits"),
    (0.0, math.inf, 200, None, "approve", "within_limits"),
    (NAN, 2.0, 200, 100.0, "halt", "drawdown_percent"),
    (0.0, NAN, 200, 100.0, "throttle", "profit_factor"),
    (0.0, 2.0, NAN, 100.0, "approve", "within_limits"),
    (0.0, 1.0, NAN, 100.0, "throttle", "profit_factor"),
    (0.0, 2.0, 200, NAN, "reduce", "latency_p95_ms"),
])
def test_most_severe_gate_speaks(drawdown: float, profit_factor: float, trades: float, p95: float | None,
                                 judgement: str, rule: str) -> None:
    finding = judge_figures(drawdown, profit_factor, trades, p95, SETTINGS)
    assert (finding.judgement, finding.rule) == (judgement, rule)
    assert finding.figure is None or math.isfinite(finding.figure)  # fit for a row of the ledger


def test_head_without_trades_is_approved() -> None:
    assert judge(TrackRecord(), None, SETTINGS).judgement is Judgement.APPROVE


def test_track_record_is_judged_by_its_figures() -> None:
    assert judge(record_of(0.01, -0.041), None, SETTINGS).rule == "drawdown_percent"
    assert judge(record_of(*[0.001, -0.001] * 50), None, SETTINGS).rule == "profit_factor"
    assert judge(record_of(*[0.0] * 100), None, SETTINGS).rule == "profit_factor"  # neither gain nor loss: unknown


def test_p95_equals_the_sorted_percentile_of_the_last_asks() -> None:
    rng = random.Random(5)
    window, asks = LatencyWindow(40, 10), []
    for _ in range(300):
        latency = rng.choice([rng.uniform(1, 500), 100.0, math.inf])
        window.add(latency)
        asks = [*asks, latency][-40:]
        expected = sorted(asks)[math.ceil(0.95 * len(asks)) - 1] if len(asks) >= 10 else None
        assert window.p95() == expected


@pytest.mark.parametrize("missed", [None, NAN, -1.0, math.inf])
def test_missed_deadline_counts_as_infinite(missed: float | None) -> None:
    window = LatencyWindow(20, 20)
    for latency in [10.0] * 18 + [missed] * 2:
        window.add(latency)
    assert window.p95() == math.inf


def gates_after(latencies: list[float | None]) -> Gates:
    gates = Gates(SETTINGS)
    for latency in latencies:
        gates.observe_latency("p", latency)
    return gates


def test_slow_policy_is_reduced_and_returns_after_a_whole_window_of_quick_answers() -> None:
    gates = gates_after([300.0] * 50)
    finding = gates.due("p", TrackRecord())
    assert finding is not None
    assert (finding.judgement, finding.figure) == (Judgement.REDUCE, 300.0)
    gates.apply("p", Judgement.REDUCE)
    assert gates.due("p", TrackRecord()) is None
    for _ in range(99):
        gates.observe_latency("p", 10.0)
        assert gates.due("p", TrackRecord()) is None
    gates.observe_latency("p", 10.0)
    finding = gates.due("p", TrackRecord())
    assert finding is not None
    assert finding.judgement is Judgement.APPROVE


def test_too_few_asks_do_not_reduce() -> None:
    assert gates_after([None] * 49).due("p", TrackRecord()) is None


def test_operators_reduction_is_not_taken_back_by_latencies() -> None:
    gates = Gates(SETTINGS)
    gates.apply("p", Judgement.REDUCE, "operator")
    for _ in range(200):
        gates.observe_latency("p", 1.0)
    assert gates.due("p", TrackRecord()) is None


def test_standing_only_worsens_until_it_is_lifted() -> None:
    gates = gates_after([10.0] * 100)
    gates.apply("p", Judgement.THROTTLE)
    assert gates.due("p", TrackRecord()) is None
    finding = gates.due("p", record_of(-0.05))
    assert finding is not None
    assert finding.judgement is Judgement.HALT
    gates.apply("p", Judgement.HALT)
    assert gates.due("p", record_of(*[0.001, -0.001] * 50)) is None
    gates.lift("p")
    assert gates.standing("p") is Judgement.APPROVE
    assert gates.latency_p95_ms("p") is None


def test_asking_changes_nothing() -> None:
    gates = gates_after([300.0] * 60)
    assert gates.due("p", TrackRecord()) == gates.due("p", TrackRecord())
    assert gates.standing("p") is Judgement.APPROVE


def test_reconfigured_gates_judge_by_the_new_limits() -> None:
    gates = gates_after([300.0] * 60)
    gates.reconfigure(GateSettings(reduce_latency_p95_ms=400.0))
    assert gates.due("p", TrackRecord()) is None
    gates.reconfigure(GateSettings(latency_window=10, latency_min_asks=5))
    assert gates.latency_p95_ms("p") is None


def test_breaker_trips_at_the_limit_and_stays_tripped() -> None:
    book = BookBreaker(SETTINGS)
    assert (book.drawdown_percent, book.due) == (0.0, False)
    for equity in (10_000.0, 12_000.0, 11_401.0):
        book.observe(equity)
    assert not book.tripped
    book.observe(11_400.0)
    assert (book.tripped, book.due, book.finding().figure) == (True, True, pytest.approx(5.0))
    book.trip()
    book.observe(20_000.0)
    assert (book.tripped, book.due) == (True, False)
    book.lift()
    assert (book.tripped, book.peak_equity, book.drawdown_percent) == (False, 20_000.0, 0.0)


def test_breaker_agrees_with_the_running_maximum() -> None:
    equity = 10_000 * np.exp(np.cumsum(np.random.default_rng(3).normal(0, 0.004, 500)))
    book = BookBreaker(GateSettings(book_drawdown_percent=3.0))
    drawdown = 100 * (1 - equity / np.maximum.accumulate(equity))
    for step, value in enumerate(equity):
        book.observe(float(value))
        assert book.drawdown_percent == pytest.approx(drawdown[step])
        assert book.tripped == bool((drawdown[: step + 1] >= 3.0).any())
    assert book.tripped


@pytest.mark.parametrize("equity", [NAN, 0.0, -5.0])
def test_equity_that_means_nothing_trips_the_breaker(equity: float) -> None:
    book = BookBreaker(SETTINGS)
    book.observe(equity)
    assert book.tripped
    assert book.finding().judgement is Judgement.HALT
