"""The runner that keeps arrays gives RLlib's own episodes, number for number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from market_frames import jumpy_market
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.sac import SACConfig
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from policies.actor import ActorLimits
from policies.errors import InvalidInput
from train.rl.env_runner import ArrayEnvRunner
from train.rl.env_settings import EnvSettings
from train.rl.vector_env import VectorTradingEnv

ENVS = 5
ROWS = [jumpy_market(0, volatility=0.01)]
SETTINGS = EnvSettings(ActorLimits(0.005), episode_bars=17, ruin=0.98)
CONFIGS = {"ppo": PPOConfig, "sac": SACConfig}

pytestmark = [pytest.mark.filterwarnings("ignore:.*Overriding environment"),  # each runner registers under one name
              pytest.mark.filterwarnings("ignore::DeprecationWarning")]  # RLlib's, of its own parts


def config(algo: str = "ppo") -> Any:
    return (CONFIGS[algo]().framework("torch").debugging(seed=3, log_level="ERROR")
            .environment(lambda context: VectorTradingEnv(ROWS, context["num_envs"], SETTINGS),
                         normalize_actions=False, clip_actions=False)
            .env_runners(num_env_runners=0, num_envs_per_env_runner=ENVS, gym_env_vectorize_mode="vector_entry_point"))


def sampled(kind: type[SingleAgentEnvRunner], algo: str, explore: bool) -> tuple[list[SingleAgentEpisode], Any]:
    """Fragments that end at the end of episodes, and some that do not."""
    torch.manual_seed(1)
    runner = kind(config=config(algo))
    torch.manual_seed(2)
    episodes = [one for bars in (17, 1, 20, 40) for one in runner.sample(num_timesteps=ENVS * bars, explore=explore)]
    return episodes, runner.get_metrics()


def numbered(episodes: list[SingleAgentEpisode]) -> list[int]:
    """Which parts belong together, whatever their names."""
    seen: dict[str, int] = {}
    return [seen.setdefault(one.id_, len(seen)) for one in episodes]


@pytest.mark.parametrize(("algo", "explore"), [("ppo", True), ("ppo", False), ("sac", True)])
def test_episodes_and_metrics_are_rllibs_own(algo: str, explore: bool) -> None:
    (theirs, known), (ours, found) = (sampled(kind, algo, explore) for kind in (SingleAgentEnvRunner, ArrayEnvRunner))
    assert len(theirs) == len(ours) > 20
    assert {one.is_truncated for one in ours} == {True, False}
    if explore:
        assert {one.is_terminated for one in ours} == {True, False}
    assert numbered(theirs) == numbered(ours)
    for mine, other in zip(ours, theirs, strict=True):
        for what in ("get_observations", "get_actions", "get_rewards"):
            np.testing.assert_array_equal(getattr(mine, what)(), getattr(other, what)())
        assert (mine.is_terminated, mine.is_truncated, mine.t_started, mine.t, mine.is_numpy) == (
            other.is_terminated, other.is_truncated, other.t_started, other.t, other.is_numpy)
        assert set(other.extra_model_outputs) - set(mine.extra_model_outputs) == {"weights_seq_no"}
        for name in mine.extra_model_outputs:
            np.testing.assert_array_equal(mine.get_extra_model_outputs(name), other.get_extra_model_outputs(name))
        mine.validate()
    for name in ("episode_return_mean", "episode_len_mean", "num_episodes", "num_env_steps_sampled_lifetime"):
        assert found[name].peek() == known[name].peek(), name


def test_what_is_kept_is_not_written_again() -> None:
    runner = ArrayEnvRunner(config=config())
    (first, *_) = runner.sample(num_timesteps=ENVS * 5)
    before = first.get_observations().copy()
    runner.sample(num_timesteps=ENVS * 5)
    np.testing.assert_array_equal(first.get_observations(), before)


def test_whole_episodes_and_random_actions_are_left_to_rllib_and_fragments_begin_anew_after_them() -> None:
    runner = ArrayEnvRunner(config=config())
    runner.sample(num_timesteps=ENVS * 5)
    assert all(one.is_done for one in runner.sample(num_episodes=ENVS))
    assert {one.t_started for one in runner.sample(num_timesteps=ENVS * 5)} == {0}
    assert len(runner.sample(num_timesteps=ENVS * 3, random_actions=True)) == ENVS
    assert {one.t_started for one in runner.sample(num_timesteps=ENVS * 5, force_reset=True)} == {0}


class Callbacks(RLlibCallback):
    pass


@pytest.mark.parametrize("change", [{"normalize_actions": True}, {"clip_actions": True},
                                    {"callbacks_class": Callbacks}])
def test_a_configuration_that_it_would_not_follow_is_refused(change: dict[str, Any]) -> None:
    told = config()
    for name, value in change.items():
        setattr(told, name, value)
    with pytest.raises(InvalidInput, match="config"):
        ArrayEnvRunner(config=told)
