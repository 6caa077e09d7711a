"""The vectorised twin: the same trajectories as single environments, to the last bit, in the order gymnasium names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from market_frames import jumpy_market

from policies.actor import ActorLimits
from policies.engine.rules import Costs
from policies.errors import InvalidInput
from train.rl.env import HyperliquidTradingEnv
from train.rl.env_settings import EnvSettings
from train.rl.market_rows import MarketRows, TimeRange
from train.rl.vector_env import VectorTradingEnv

ENVS = 4
SETTINGS = (EnvSettings(episode_bars=15),
            EnvSettings(ActorLimits(0.005, 25.0, 1e-4, 0.5, 1e-4, 0.05, band=0.0), Costs(0.001, 0.0, 0.003, 0.01), 15,
                        reward_clip=50.0, ruin=0.97))


def both(seed: int, told: EnvSettings, volatility: float = 0.004) -> tuple[VectorTradingEnv, SyncVectorEnv]:
    rows = jumpy_market(seed, 80, volatility=volatility)
    return VectorTradingEnv([rows], ENVS, told), SyncVectorEnv(
        [lambda: HyperliquidTradingEnv(rows, settings=told)] * ENVS, autoreset_mode=AutoresetMode.NEXT_STEP)


def compared(seed: int, told: EnvSettings, steps: int, volatility: float) -> tuple[int, int]:
    """How often episodes were over and cut off in steps that are all compared."""
    twin, sync = both(seed, told, volatility)
    rng = np.random.default_rng(seed)
    np.testing.assert_array_equal(twin.reset(seed=seed)[0], sync.reset(seed=seed)[0])
    over = cut = 0
    for _ in range(steps):
        actions = rng.uniform(-1.3, 1.3, (ENVS, 3)).round(1).astype(np.float32)
        ours, theirs = twin.step(actions), sync.step(actions)
        assert ours[0].tobytes() == theirs[0].tobytes()
        for mine, other in zip(ours[1:4], theirs[1:4], strict=True):
            np.testing.assert_array_equal(mine, other)
        np.testing.assert_array_equal(twin.accounts.equity, theirs[4]["equity"])
        over, cut = over + int(ours[2].sum()), cut + int(ours[3].sum())
    return over, cut


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(SETTINGS), st.sampled_from([0.001, 0.01]))
def test_the_twin_gives_the_trajectories_of_single_environments_bit_for_bit(seed: int, told: EnvSettings,
                                                                            volatility: float) -> None:
    compared(seed, told, 40, volatility)


def test_episodes_that_are_ruined_and_cut_off_are_compared_too() -> None:
    over, cut = compared(4, SETTINGS[1], 120, 0.01)
    assert over > 5
    assert cut > 5


def test_the_step_that_ends_an_episode_returns_its_last_observation_and_the_next_one_begins_another() -> None:
    env = VectorTradingEnv([jumpy_market(0, volatility=0.0005)], 2, EnvSettings(episode_bars=3), seed=1)
    env.reset()
    for number in range(3):
        observations, rewards, _, truncated, told = env.step(np.full((2, 3), 0.9))
        assert truncated.all() == (number == 2)
    assert (observations[:, 60] == 1.0).all(), "still in the position"
    assert told["_final_equity"].all()
    np.testing.assert_array_equal(told["final_equity"], env.accounts.equity)
    observations, rewards, _, truncated, told = env.step(np.full((2, 3), 0.9))
    assert not truncated.any()
    assert (rewards == 0).all()
    assert (observations[:, 60] == 0.0).all()
    assert told == {}


def begun(env: VectorTradingEnv, episodes: int) -> set[tuple[str, int]]:
    """Symbols and closes at which episodes of one bar begin."""
    found = set()
    env.reset()
    for _ in range(episodes):
        found |= {(one.symbol, int(one.bars.close_time_ms[bar])) for one, bar in map(env.bar_of, range(env.num_envs))}
        env.step(np.zeros((env.num_envs, 3)))
        env.step(np.zeros((env.num_envs, 3)))
    return found


def test_episodes_of_all_symbols_begin_in_the_start_range_and_nowhere_else() -> None:
    rows = [jumpy_market(1, 120, "A"), jumpy_market(2, 90, "B")]
    close = rows[0].bars.close_time_ms
    within = TimeRange(int(close[60]), int(close[80]))
    env = VectorTradingEnv(rows, 8, EnvSettings(episode_bars=1), within, seed=0)
    assert begun(env, 60) == {(name, int(time_ms)) for name in "AB" for time_ms in close[60:80]}


def test_accounts_draw_apart_from_each_other_and_a_seed_repeats_them() -> None:
    def closes(env: VectorTradingEnv, seed: int | Sequence[int | None] | None) -> list[int]:
        env.reset(seed=seed)
        return [env.bar_of(place)[1] for place in range(env.num_envs)]

    rows = [jumpy_market(1, 200)]
    first, second = (VectorTradingEnv(rows, 6, SETTINGS[0], seed=7) for _ in range(2))
    assert closes(first, None) == closes(second, 7) == closes(second, list(range(7, 13)))
    assert len(set(closes(first, None))) > 3
    assert closes(first, None) != closes(first, None), "without a seed they go on"
    kept = closes(first, [None, 8, None, None, None, None])
    assert kept[1] == closes(second, 7)[1]
    with pytest.raises(InvalidInput, match="seed"):
        first.reset(seed=[1, 2])


def test_starts_and_symbols_can_be_asked_for() -> None:
    rows = [jumpy_market(1, 120, "A"), jumpy_market(2, 90, "B")]
    env = VectorTradingEnv(rows, 2, EnvSettings(episode_bars=5))
    times = rows[0].bars.close_time_ms[[100, 50]]
    env.reset(options={"start_ms": times, "symbol": ["A", "B"]})
    assert [(env.bar_of(place)[0].symbol, env.bar_of(place)[1]) for place in range(2)] == [("A", 100), ("B", 50)]
    wrong: list[dict[str, Any]] = [{"start_ms": times, "symbol": ["B", "A"]}, {"start_ms": times + 1},
                                   {"start_ms": times, "symbol": ["A", "C"]}, {"start": times}]
    for bad in wrong:
        with pytest.raises(InvalidInput, match="options"):
            env.reset(options=bad)


@pytest.mark.parametrize("copy", [True, False])
def test_observations_are_kept_apart_unless_asked_otherwise(copy: bool) -> None:
    env = VectorTradingEnv([jumpy_market(0)], 3, SETTINGS[0], seed=1, copy=copy)
    first, _ = env.reset()
    before = first.copy()
    second = env.step(np.ones((3, 3)))[0]
    assert np.array_equal(first, before) == copy
    assert (second is first) != copy


def test_a_step_before_the_reset_and_a_range_without_room_are_refused() -> None:
    rows: list[MarketRows] = [jumpy_market(0)]
    with pytest.raises(InvalidInput, match="call reset"):
        VectorTradingEnv(rows, 3, SETTINGS[0]).step(np.zeros((3, 3)))
    with pytest.raises(InvalidInput, match="start_range"):
        VectorTradingEnv(rows, 3, EnvSettings(episode_bars=500))
    env = VectorTradingEnv(rows, 3, SETTINGS[0])
    env.reset(seed=0)
    with pytest.raises(InvalidInput, match="actions"):
        env.step(np.full((3, 3), np.nan))
