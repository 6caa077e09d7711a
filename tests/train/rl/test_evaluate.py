"""What an actor earns on later bars: the same as the environment and the backtest say, row by row."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from rl_rows import small_rows
from small_models import actor_bundle

from feature_repo.features import DECISION_V1
from policies.actor_head import ActorHead
from policies.heads import load_head
from train.backtest import backtest
from train.dataset import Brackets, FeatureRows
from train.rl.env import HyperliquidTradingEnv
from train.rl.env_settings import EnvSettings
from train.rl.evaluate import constant, held_long, play, rows_within, serve, stretches_in
from train.rl.market_rows import Standard

ENV = EnvSettings(episode_bars=120)
ROWS = small_rows()


def wavering(seen: np.ndarray) -> np.ndarray:
    """Some rule of what is observed, position included."""
    return np.column_stack([np.sin(3 * seen[:, 0] + seen[:, 60]), -0.9 + 0.05 * np.cos(seen[:, 1]),
                            np.full(len(seen), -0.8)])


def test_playing_stretches_earns_what_the_environment_says_of_each() -> None:
    market, test = ROWS.market, ROWS.ranges.test
    stretches = stretches_in(market, test, ENV.episode_bars)
    played = play(wavering, market, stretches, ENV)
    assert len(stretches.first) >= 10
    for place in (0, 4, len(stretches.first) - 1):
        env = HyperliquidTradingEnv(market[stretches.symbol[place]], settings=ENV)
        seen, _ = env.reset(options={"start_ms": int(stretches.start_ms[place])})
        over = False
        while not over:
            seen, _, terminated, truncated, told = env.step(wavering(seen[None])[0])
            over = terminated or truncated
        assert played.net_return[place] == told["equity"] / 10_000.0 - 1.0


def test_stretches_lie_in_their_range_and_share_no_bar() -> None:
    market, test = ROWS.market, ROWS.ranges.test
    stretches = stretches_in(market, test, ENV.episode_bars)
    for number, one in enumerate(market):
        first = stretches.first[stretches.symbol == number]
        assert (np.diff(first) >= ENV.episode_bars).all()
        assert one.bars.close_time_ms[first[0]] >= test.start_ms
        assert one.bars.close_time_ms[first[-1] + ENV.episode_bars] <= test.stop_ms


def test_flat_earns_nothing_and_a_book_is_the_mean_of_its_symbols() -> None:
    market, stretches = ROWS.market, stretches_in(ROWS.market, ROWS.ranges.test, ENV.episode_bars)
    assert not play(constant(0, 0, 0), market, stretches, ENV).net_return.any()
    held = play(constant(1, -1, 1), market, stretches, ENV)
    times = np.unique(stretches.start_ms)
    by_hand = [held.net_return[stretches.start_ms == time].mean() for time in times]
    assert held.by_time == pytest.approx(by_hand)
    assert held.figures()["net_return_percent"] == pytest.approx(100 * sum(by_hand))


def test_buying_and_holding_earns_the_move_of_the_price_less_the_costs() -> None:
    market, stretches = ROWS.market, stretches_in(ROWS.market, ROWS.ranges.test, ENV.episode_bars)
    held = held_long(market, stretches, ENV)
    first, bars = int(stretches.first[0]), market[0].bars
    entry = bars.open[first + 1] * 1.0001
    moved = bars.close[first + ENV.episode_bars] / entry - 1.0
    funding = 0.0 if bars.funding_rate is None else float(
        bars.funding_rate[first + 1:first + 1 + ENV.episode_bars].sum())
    assert held.net_return[0] == pytest.approx(0.5 * (moved - 0.00045 - funding), abs=3e-5)


def test_serving_trades_what_the_served_head_would_trade_bar_by_bar() -> None:
    """The fast path against the definition: the head itself asked row by row, its brackets filled one by one."""
    bundle = actor_bundle(features=DECISION_V1.names, optional_features=DECISION_V1.may_be_missing,
                          tensors={"mean": ROWS.standard.mean, "scale": ROWS.standard.scale})
    head = load_head(bundle)
    assert isinstance(head, ActorHead)
    market, test = ROWS.market, ROWS.ranges.test
    parts = {one.symbol: one.bars.close_time_ms[rows_within(one, test)] for one in market}
    rows = {name: FeatureRows(times, ROWS.rows[name].values[np.isin(ROWS.rows[name].event_time_ms, times)])
            for name, times in parts.items()}
    asked = backtest(head, ROWS.bars, rows, 15, ENV.costs)
    answers = {row.tobytes(): action for name in rows
               for row, action in zip(_seen(rows[name], ROWS.standard), head.act(rows[name].values), strict=True)}
    served = serve(lambda seen: np.array([answers[row[:60].tobytes()] for row in seen]), market, test, ENV,
                   Brackets())
    assert len(served.trades) > 20
    assert [replace(trade, net_return=0.0) for trade in served.trades] == \
        [replace(trade, net_return=0.0) for trade in asked.trades]
    assert [t.net_return for t in served.trades] == pytest.approx([t.net_return for t in asked.trades], rel=1e-12)


def _seen(rows: FeatureRows, standard: Standard) -> np.ndarray:
    from policies.actor import standardised

    return standardised(rows.values, standard.mean, standard.scale)


def test_nothing_after_the_range_can_change_what_is_served_in_it() -> None:
    market, validation = ROWS.market, ROWS.ranges.validation
    cut = [type(one)(one.bars.slice(0, stop), one.features[:stop], one.known[:stop]) for one in market
           for stop in [int(np.searchsorted(one.bars.close_time_ms, validation.stop_ms, "right"))]]
    assert serve(wavering, market, validation, ENV, Brackets()).trades == \
        serve(wavering, cut, validation, ENV, Brackets()).trades
