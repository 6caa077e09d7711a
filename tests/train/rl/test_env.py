"""The trading environment: what gymnasium asks of it, what it promises, and that positions can grow and shrink."""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import Any

import numpy as np
import pytest
from bar_makers import jumpy_bars
from gymnasium.utils.env_checker import check_env
from market_frames import jumpy_market, made_rows

from policies.actor import ActorLimits
from policies.engine.rules import Costs
from policies.errors import InvalidInput
from train.rl.env import HyperliquidTradingEnv
from train.rl.env_settings import EnvSettings
from train.rl.market_rows import MarketRows, TimeRange, frame_of

SHORT = EnvSettings(episode_bars=20)


def environment(seed: int = 0, settings: EnvSettings = SHORT, **fields: Any) -> HyperliquidTradingEnv:
    return HyperliquidTradingEnv(jumpy_market(seed), settings=settings, **fields)


def still_market(n: int = 60) -> MarketRows:
    """Prices that rise by a tenth of a percent a bar, without gaps, so that nothing but orders happens."""
    market = jumpy_market(0, n)
    close = 100.0 * 1.001 ** np.arange(n)
    opens = np.concatenate([[100.0], close[:-1]])
    return dataclasses.replace(market, bars=dataclasses.replace(
        market.bars, open=opens, high=close, low=opens, close=close, funding_rate=None))


def test_gymnasiums_own_check_finds_nothing_to_say() -> None:
    bars = jumpy_bars(1, 120)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # There is nothing to render, and only registered environments can be checked for it.
        check_env(HyperliquidTradingEnv(frame_of(bars, made_rows(bars)), 10_000, SHORT), skip_render_check=True)


def test_an_episode_begins_flat_at_a_close_and_is_cut_off_after_its_bars() -> None:
    env = environment()
    observation, told = env.reset(seed=3)
    assert env.observation_space.contains(observation)
    assert (told["equity"], told["order"], told["parts"]) == (10_000.0, None, ())
    assert observation[60:].tolist() == [0.0] * 7 + [1.0] + [0.0] * 32
    for number in range(20):
        observation, _, terminated, truncated, later = env.step(np.array([0.5, 0.0, 0.0]))
        assert env.observation_space.contains(observation)
        assert later["time_ms"] == told["time_ms"] + (number + 1) * 60_000
        assert (terminated, truncated) == (False, number == 19)
    with pytest.raises(InvalidInput, match="call reset"):
        env.step(np.zeros(3))


def test_episodes_begin_and_end_inside_the_training_range_and_reach_all_of_it() -> None:
    rows = jumpy_market(2, 200)
    close = rows.bars.close_time_ms
    training = TimeRange(int(close[50]), int(close[90]))
    env = HyperliquidTradingEnv(rows, settings=SHORT, training=training)
    begun = {env.reset(seed=seed)[1]["time_ms"] for seed in range(300)}
    assert begun == set(close[50:71].tolist())


def test_a_seed_decides_the_starts_and_none_goes_on_with_others() -> None:
    first, second = environment(), environment()
    assert [first.reset(seed=5)[1]["time_ms"]] + [first.reset()[1]["time_ms"] for _ in range(80)] == (
        [second.reset(seed=5)[1]["time_ms"]] + [second.reset()[1]["time_ms"] for _ in range(80)])
    assert len({first.reset()[1]["time_ms"] for _ in range(80)}) > 40


def test_a_start_can_be_asked_for_and_one_without_room_is_refused() -> None:
    env = environment()
    close = env.rows.bars.close_time_ms
    assert env.reset(options={"start_ms": int(close[40])})[1]["time_ms"] == close[40]
    for bad in ({"start_ms": int(close[185])}, {"start_ms": int(close[40]) + 1}, {"start": 1}):
        with pytest.raises(InvalidInput, match="options"):
            env.reset(options=bad)


def test_a_range_without_room_for_an_episode_is_refused() -> None:
    with pytest.raises(InvalidInput, match="training"):
        environment(settings=EnvSettings(episode_bars=500))


def test_pyramiding_and_scaling_out_follow_the_size_that_is_asked_for() -> None:
    env = HyperliquidTradingEnv(still_market(), settings=EnvSettings(ActorLimits(band=0.05), Costs(), 30))
    env.reset(seed=0)
    quantities, entries, reasons = [], [], []
    for size in (0.3, 0.6, 1.0, 0.6, 0.3, 0.0, -0.5):
        told = env.step(np.array([size, -1.0, 1.0]))[4]
        held = env._account.position
        quantities.append(held.sign * held.quantity if held else 0.0)
        entries.append(held.entry if held else math.nan)
        reasons += [part.exit_reason for part in told["parts"]]
    ratios = np.array(quantities) / quantities[0]
    np.testing.assert_allclose(ratios, [1, 2, 10 / 3, 2, 1, 0, -5 / 3], rtol=0.02)
    assert entries[0] < entries[1] < entries[2], "the average entry rises as more is bought higher"
    assert entries[2] == entries[3] == entries[4], "what is taken off leaves it"
    assert reasons == ["manual"] * 3


def test_inside_the_band_nothing_is_ordered_and_levels_stay() -> None:
    env = HyperliquidTradingEnv(still_market(), settings=SHORT)
    env.reset(seed=0)
    assert env.step(np.array([0.5, -1.0, 1.0]))[4]["order"] is not None
    assert env.step(np.array([0.6, -1.0, 0.0]))[4]["order"] is None
    assert env._account.position is not None
    assert env._account.position.target_pct == ActorLimits().most_target_pct
    assert env.step(np.array([0.9, -1.0, 0.0]))[4]["order"] is not None
    assert env._account.position.target_pct == pytest.approx(0.077)


def test_a_trade_that_is_stopped_out_costs_the_risk_of_a_trade_and_what_trading_costs() -> None:
    market = still_market()
    low = market.bars.low.copy()
    low[31] *= 0.9
    market = dataclasses.replace(market, bars=dataclasses.replace(market.bars, low=low))
    env = HyperliquidTradingEnv(market, settings=SHORT)
    env.reset(options={"start_ms": int(market.bars.close_time_ms[30])})
    _, reward, _, _, told = env.step(np.array([1.0, -1.0, 1.0]))
    assert [part.exit_reason for part in told["parts"]] == ["stop"]
    assert -1.6 < reward < -1.2
    assert told["equity"] == pytest.approx(10_000 * (1 - 0.002 - 0.5 * (2 * 0.00045 + 0.0001)), abs=0.1)


@pytest.mark.parametrize("bad", [[math.nan, 0.0, 0.0], [0.0, math.inf, 0.0], [0.0, 0.0], 0.0])
def test_an_action_that_is_none_is_refused_and_the_bar_stays(bad: Any) -> None:
    env = environment()
    before = env.reset(seed=1)[1]["time_ms"]
    with pytest.raises(InvalidInput, match="action"):
        env.step(bad)
    assert env.step(np.zeros(3))[4]["time_ms"] == before + 60_000


@pytest.mark.parametrize("balance", [0.0, math.nan, -5.0])
def test_a_senseless_balance_is_refused(balance: float) -> None:
    with pytest.raises(InvalidInput, match="cash"):
        environment(initial_balance=balance)
