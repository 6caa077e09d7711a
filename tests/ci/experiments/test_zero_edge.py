import json

import numpy as np
import pytest
from scipy.stats import binom

from ci.experiments.zero_edge import (
    BRACKETS,
    CASES,
    HeadLife,
    Market,
    RoutedBook,
    Trade,
    clopper_pearson,
    live_alone,
    main,
    profit_factor_gate,
    share_row,
)
from policies.track_record import TrackRecord
from policies.types import Judgement


@pytest.mark.parametrize("head", range(len(BRACKETS)))
def test_break_even_trades_earn_nothing_whatever_the_bracket(head):
    market = Market(CASES[1], seed=1)
    horizon = CASES[1].horizon_bars
    returns = [market.trade(head, 0, horizon * number).return_on_margin for number in range(4_000)]
    assert abs(np.mean(returns)) <= 4 * np.std(returns) / np.sqrt(len(returns))
    assert min(returns) > -1


def test_costs_are_taken_from_every_trade():
    case = CASES[2]
    market = Market(case, seed=1)
    returns = [market.trade(2, 1, case.horizon_bars * number).return_on_margin for number in range(4_000)]
    assert np.mean(returns) < -2 * np.std(returns) / np.sqrt(len(returns))


def test_market_is_the_same_however_it_is_asked():
    forward, backward = Market(CASES[0], 3), Market(CASES[0], 3)
    bars = [0, 5_000, 9_000]
    assert [forward.trade(0, 0, bar) for bar in bars] == [backward.trade(0, 0, bar) for bar in reversed(bars)][::-1]


def test_trade_ends_within_its_horizon():
    market = Market(CASES[0], seed=1)
    assert all(1 <= market.trade(0, 0, bar).exit_bar - bar <= CASES[0].horizon_bars for bar in range(500))


def test_gate_throttles_from_the_hundredth_trade_on():
    record = TrackRecord()
    for number in range(100):
        assert profit_factor_gate(record) is Judgement.APPROVE
        record.record(str(number), 0.001 if number % 2 else -0.001)
    assert profit_factor_gate(record) is Judgement.THROTTLE


def test_routed_book_executes_what_it_was_asked_for_and_throttles_on_the_way():
    seen = []
    lives = RoutedBook(CASES[0], 1, gate=lambda record: seen.append(profit_factor_gate(record)) or seen[-1]).run(600)
    assert sum(life.trades for life in lives) == 600
    assert Judgement.THROTTLE in seen
    assert not any(life.ever_green_lit for life in lives)


def test_heads_alone_make_their_trades_in_the_order_of_time():
    lives = live_alone(CASES[1], seed=2, trades=200)
    assert [life.trades for life in lives] == [200] * len(BRACKETS)
    assert all(life.evidence.blocks > 0 for life in lives)
    assert [(life.evidence.late, life.evidence.overrun) for life in lives] == [(0, 0)] * len(BRACKETS)


def test_head_with_an_edge_would_be_green_lit():
    life, rng = HeadLife(2, CASES[0]), np.random.default_rng(1)
    for bar in range(0, 30_000, 10):
        life.close(Trade(bar, bar + 5, 0.08 if rng.random() < 0.75 else -0.08))
        life.look()
    assert life.ever_green_lit


def test_interval_holds_its_level_exactly():
    low, high = clopper_pearson(3, 40)
    assert binom.sf(2, 40, low) == pytest.approx(0.025)
    assert binom.cdf(3, 40, high) == pytest.approx(0.025)
    assert clopper_pearson(0, 40)[0] == 0.0
    assert clopper_pearson(40, 40)[1] == 1.0


def test_aim_is_missed_above_five_percent():
    assert share_row("w", 2, 16, 40)["met"]
    assert not share_row("w", 3, 16, 40)["met"]
    assert share_row("w", 2, 16, 40)["ratio_to_peer"] == pytest.approx(8.0)


def test_report_is_written_with_a_row_for_each_question(tmp_path):
    assert main(["--seeds", "1", "--trades", "150", "--home", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "reports" / "zero_edge.json").read_text())
    assert len(report["rows"]) == 3 * len(CASES)
    for row in report["rows"]:
        assert row["work"].startswith("worthless policies are not promoted")
        assert set(row) >= {"work", "figure", "unit", "peer", "peer_figure", "floor_figure", "ratio_to_peer",
                            "ratio_to_floor", "aim", "met"}
