"""PPO and SAC as RLlib configures them, over the vectorised environment. Importing this imports Ray.

The environment is registered with Tune, by a function that reads its rows from disk, so a worker anywhere can make it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.sac import SAC, SACConfig
from ray.rllib.algorithms.sac.torch.default_sac_torch_rl_module import DefaultSACTorchRLModule
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import TorchDeterministic, TorchSquashedGaussian
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.execution.rollout_ops import synchronous_parallel_sample
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    LEARNER_RESULTS,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
)
from ray.tune.registry import register_env

from policies.keyed_random import generator
from train.rl.env_runner import ArrayEnvRunner
from train.rl.experience import Experience
from train.rl.export import layer_names
from train.rl.rows import load_rows
from train.rl.settings import SAC as SAC_NAME
from train.rl.settings import PpoSettings, RlSettings, SacSettings
from train.rl.spaces import action_space, observation_space
from train.rl.vector_env import VectorTradingEnv

ENVIRONMENT = "hub_trading"


def make_environment(context: dict[str, Any]) -> VectorTradingEnv:
    """context: rows, folder of the job's steps; settings; seed; num_envs, which RLlib adds."""
    rows = load_rows(Path(context["rows"]))
    return VectorTradingEnv(_market(context["rows"]), context["num_envs"], context["settings"], rows.ranges.training,
                            context["seed"])


def built(settings: RlSettings, folder: Path, seed: int, steps_before: int = 0) -> Algorithm:
    """The algorithm, ready to train. folder: of the job's steps. steps_before: of the same training, before it was
    interrupted: its environments draw other episodes then.
    """
    logging.getLogger("ray.rllib").setLevel(logging.ERROR)  # RLlib has set another one on being imported
    # Sums must not depend on how many threads made them; and threads that wait for each other beside a hub, or another
    # job, made the updates of these small networks several times slower.
    torch.set_num_threads(1)
    register_env(ENVIRONMENT, make_environment)
    context = {"rows": str(folder), "settings": settings.env, "seed": seed + steps_before}
    config = _config(settings)
    # The environment itself cuts actions to [-1, 1]; RLlib would do it item by item.
    config.environment(ENVIRONMENT, env_config=context, normalize_actions=False, clip_actions=False)
    algorithm = config.debugging(seed=seed, log_level="ERROR").framework("torch").build_algo()
    begin_at(algorithm, settings)
    return algorithm


def weights_of(algorithm: Any) -> dict[str, Any]:
    """What acts, by name: the module of the environment runner, which has no critics."""
    found: dict[str, Any] = algorithm.get_module().get_state()
    return found


def module_with(settings: RlSettings, weights: Mapping[str, Any]) -> Any:
    """RLlib's module alone, for asking what it would do without exploring."""
    module = _config(settings).environment(
        observation_space=observation_space(), action_space=action_space()).get_rl_module_spec(
        spaces={DEFAULT_MODULE_ID: (observation_space(), action_space())}, inference_only=True).build()
    module.set_state(dict(weights))
    return module


def begin_at(algorithm: Any, settings: RlSettings) -> None:
    """Let the first actions be about those of the default bracket, with the profile's spread around them.

    Left alone, they are about the middle of the ranges, a stop of 2.7 %, at which positions are so small that nothing
    they do can be told from noise.
    """
    limits, brackets, own = settings.env.limits, settings.brackets, settings.own
    levels = (_place(brackets.sl_pct, limits.least_stop_pct, limits.most_stop_pct),
              _place(brackets.tp_pct, limits.least_target_pct, limits.most_target_pct))
    mean = [0.0, *(np.arctanh(levels) if settings.algo == SAC_NAME else levels)]
    state = algorithm.learner_group.get_state(components="learner/rl_module")
    module = state["learner"]["rl_module"][DEFAULT_MODULE_ID]
    last = layer_names(module, settings.algo)[-1]
    module[f"{last}.bias"] = np.array([*mean, *np.log(own.first_deviations)], np.float32)
    module[f"{last}.weight"] = module[f"{last}.weight"] * np.float32(0.1)
    algorithm.learner_group.set_state(state)
    algorithm.env_runner_group.sync_weights(from_worker_or_learner_group=algorithm.learner_group,
                                            policies=[DEFAULT_MODULE_ID], inference_only=True)


def _place(value: float, low: float, high: float) -> float:
    """The action, within (-1, 1), that asks for this level."""
    return float(np.clip(2.0 * (value - low) / (high - low) - 1.0, -0.99, 0.99))


def _config(settings: RlSettings) -> AlgorithmConfig:
    if settings.algo == SAC_NAME:
        return sac_config(settings.sac, settings.steps_per_update)
    return ppo_config(settings.ppo)


def ppo_config(settings: PpoSettings) -> AlgorithmConfig:
    return (PPOConfig()
            .env_runners(num_env_runners=0, num_envs_per_env_runner=settings.envs, env_runner_cls=ArrayEnvRunner,
                         gym_env_vectorize_mode="vector_entry_point", rollout_fragment_length=settings.rollout)
            .training(train_batch_size_per_learner=settings.envs * settings.rollout,
                      minibatch_size=settings.batch_rows, num_epochs=settings.epochs, lr=settings.learning_rate,
                      gamma=settings.gamma, lambda_=settings.gae, clip_param=settings.clip,
                      entropy_coeff=settings.entropy, grad_clip=0.5)
            .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=list(settings.hidden), fcnet_activation="tanh",
                                                       vf_share_layers=False)))


def sac_config(settings: SacSettings, steps_per_update: int) -> AlgorithmConfig:
    """training_intensity is how many transitions are learnt from for each that is sampled."""
    hidden = list(settings.hidden)
    return (SACConfig(algo_class=ExperiencedSac)
            .env_runners(num_env_runners=0, num_envs_per_env_runner=settings.envs, env_runner_cls=ArrayEnvRunner,
                         gym_env_vectorize_mode="vector_entry_point", rollout_fragment_length=settings.rollout)
            .training(train_batch_size_per_learner=settings.batch_rows, gamma=settings.gamma, tau=settings.tau,
                      actor_lr=settings.actor_rate, critic_lr=settings.critic_rate, alpha_lr=settings.alpha_rate,
                      initial_alpha=settings.alpha, training_intensity=settings.batch_rows / steps_per_update,
                      num_steps_sampled_before_learning_starts=settings.first_steps, grad_clip=10.0,
                      replay_buffer_config={"type": "EpisodeReplayBuffer", "capacity": settings.remembered,
                                            "no_local_replay_buffer": True})
            .rl_module(rl_module_spec=RLModuleSpec(module_class=SacModule), model_config=DefaultModelConfig(
                fcnet_hiddens=hidden[:-1] or hidden, fcnet_activation="relu", head_fcnet_hiddens=hidden[-1:],
                head_fcnet_activation="relu", fusionnet_hiddens=hidden[-1:], fusionnet_activation="relu"))
            .reporting(min_sample_timesteps_per_iteration=1, min_time_s_per_iteration=0))


class SquashedMean(TorchSquashedGaussian):
    """What SAC does without exploring is its mean after the squash. RLlib 2.60 gives the mean before it, which is no
    action that the training knows."""

    def to_deterministic(self) -> TorchDeterministic:
        return TorchDeterministic(loc=self._squash(self.loc))


class SacModule(DefaultSACTorchRLModule):
    """RLlib's module, with that."""

    def get_inference_action_dist_cls(self) -> type[SquashedMean]:
        return SquashedMean


class ExperiencedSac(SAC):
    """RLlib's SAC (module, loss, learner, sampling) with transitions remembered in arrays.

    Each training step samples one rollout of every account, and updates so often that updates keep their share of all
    steps sampled.
    """

    config: Any  # set by the base class, as are these
    metrics: Any
    learner_group: Any
    env_runner_group: Any

    def setup(self, config: Any) -> None:
        super().setup(config)
        self.experience = Experience(config.replay_buffer_config["capacity"])
        self.updates = 0
        self._owed = 0.0  # updates, fractions included

    def training_step(self) -> None:
        episodes, results = synchronous_parallel_sample(  # type: ignore[misc]
            worker_set=self.env_runner_group, concat=True, _uses_new_env_runners=True, _return_metrics=True)
        self.metrics.aggregate(results, key=ENV_RUNNER_RESULTS)
        added = remember(self.experience, cast("list[Any]", episodes))
        config = self.config
        if len(self.experience) < config.num_steps_sampled_before_learning_starts:
            return
        self._owed += added * config.training_intensity / config.train_batch_size_per_learner
        rng = generator(config.seed or 0, "experience", self.updates)
        for _ in range(int(self._owed)):
            self._update(rng)
        self._owed -= int(self._owed)
        self.env_runner_group.sync_weights(from_worker_or_learner_group=self.learner_group,
                                           policies=[DEFAULT_MODULE_ID], inference_only=True)

    def _update(self, rng: np.random.Generator) -> None:
        count = self.config.train_batch_size_per_learner
        drawn = self.experience.drawn(count, rng)
        ones = np.ones(count, np.float32)
        batch = SampleBatch({
            Columns.OBS: drawn["observation"], Columns.NEXT_OBS: drawn["following"],
            Columns.ACTIONS: drawn["action"], Columns.REWARDS: drawn["reward"],
            Columns.TERMINATEDS: drawn["terminated"], "weights": ones, "n_step": ones})
        sampled = self.metrics.peek((ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME), default=0)
        results = self.learner_group.update(batch=MultiAgentBatch({DEFAULT_MODULE_ID: batch}, env_steps=count),
                                            timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: sampled})
        self.metrics.aggregate(results, key=LEARNER_RESULTS)
        self.updates += 1


def remember(experience: Experience, episodes: list[Any]) -> int:
    """Add RLlib's episodes; how many transitions there were."""
    added = 0
    for episode in episodes:
        seen, actions = episode.get_observations(), episode.get_actions()
        if not len(actions):
            continue
        ends = np.zeros(len(actions), bool)
        ends[-1] = episode.is_terminated
        experience.add(seen[:-1], actions, np.asarray(episode.get_rewards(), np.float32), seen[1:], ends)
        added += len(actions)
    return added


@lru_cache(2)
def _market(folder: str) -> list[Any]:
    return load_rows(Path(folder)).market
