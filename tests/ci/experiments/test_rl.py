"""RL against constants and peers: margins with intervals, and peers that trade nothing but the later bars."""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rl_rows import SYMBOLS, small_rows

from ci.experiments.rl import FIRST_MARKET, margin_of, planted_runs, recorded_table, table_of
from ci.experiments.rl_jobs import best_constant, supervised_peer
from train.rl.env_settings import EnvSettings
from train.rl.evaluate import constant, play, stretches_in
from train.rl.settings import RlSettings

SETTINGS = RlSettings(SYMBOLS, env=EnvSettings(episode_bars=120))


def row(algo: str, margin: float, market: int = 1) -> dict[str, Any]:
    return {"market": market, "algo": algo, "margin_percent": margin, "served_margin_percent": margin / 2,
            "played_percent": margin, "played_fall_percent": 0.1, "constant_played_percent": 0.0,
            "served_percent": 0.1, "served_trades": 10.0, "served_profit_factor": None}


@pytest.mark.parametrize(("margins", "met"), [((1.0, 1.2, 0.9), True), ((0.2, 0.25, 0.22), False),
                                              ((3.0, -1.0, 1.0), False), ((1.0,), None)])
def test_a_margin_is_met_if_it_is_large_and_surely_above_nothing(margins: tuple[float, ...], met: bool | None) -> None:
    found = margin_of("ppo", [row("ppo", margin) for margin in margins] + [row("sac", -9.0)])
    assert found.met is met
    assert found.figure == pytest.approx(sum(margins) / len(margins))


def test_beating_a_constant_that_loses_is_not_enough() -> None:
    rows = [{**row("ppo", margin), "played_percent": -0.1} for margin in (1.0, 1.2, 0.9)]
    assert margin_of("ppo", rows).met is False


def test_every_seed_is_a_market_that_nothing_was_tuned_on() -> None:
    runs = planted_runs(argparse.Namespace(seeds=3, steps=5_000, lookback=3_000), ("ppo", "sac"))
    assert [run.settings.seed for run in runs] == [FIRST_MARKET, FIRST_MARKET + 1, FIRST_MARKET + 2] * 2
    assert len({run.name for run in runs}) == 6
    assert FIRST_MARKET > 105


def test_the_best_constant_action_is_the_best_of_its_grid_on_the_training_range() -> None:
    rows = small_rows()
    best = best_constant(rows, SETTINGS)
    stretches = stretches_in(rows.market, rows.ranges.training, SETTINGS.env.episode_bars)
    for action in ((0.0, 0.0, 0.0), (1.0, -1.0, 1.0), (-1.0, 0.0, 1.0), (0.5, -0.8, -0.4)):
        earned = play(constant(*action), rows.market, stretches, SETTINGS.env).figures()["net_return_percent"]
        assert best.training_percent >= earned - 1e-12
    assert best.training_percent >= 0.0


def test_a_supervised_peer_trades_the_test_range_only_and_learns_nothing_from_it() -> None:
    rows = small_rows()
    trades = supervised_peer("linear", rows, SETTINGS, 1).report.trades
    assert trades
    assert all(rows.ranges.test.start_ms <= trade.entry_time_ms < rows.ranges.test.stop_ms for trade in trades)
    later = {name: replace(run, close=np.where(run.close_time_ms > rows.ranges.test.start_ms, run.low, run.close))
             for name, run in rows.bars.items()}
    again = supervised_peer("linear", replace(rows, bars=later), SETTINGS, 1).report.trades
    assert trades[0].entry_time_ms == again[0].entry_time_ms
    assert trades[0].direction == again[0].direction


def test_tables_show_every_row_and_a_line_for_each_name() -> None:
    assert table_of([row("ppo", 1.0), row("sac", math.pi)]).row_count == 2
    names = [{"name": name, "seed": seed, "played_percent": 1.0, "served_percent": None}
             for name in ("ppo", "flat") for seed in (1, 2)]
    assert recorded_table(names).row_count == 2
