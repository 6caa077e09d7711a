"""RLlib's runner of environments, with arrays instead of an object for each step of each environment.

RLlib's own runner takes every observation, action and reward apart and appends them one by one to one of its episodes;
with many small environments that is most of the time. This one keeps what a step gave as it is, and cuts it into
RLlib's episodes when the fragment is full: the same episodes, in the same order, with the same numbers.

It leaves out what RLlib does between module and environment where it is configured to: connectors of one's own,
callbacks on steps and episodes, and cutting or scaling of actions (the trading environment cuts them itself). Where one
of them is configured, it is refused. Written for Ray 2.60, whose runner offers no way to exchange this part alone.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from policies.errors import InvalidInput

OBSERVATION, ACTION, REWARD, TERMINATED, TRUNCATED, BEGUN = range(6)  # places in what is kept of a step
Step = tuple[NDArray[Any], ...]
Outputs = dict[str, NDArray[Any]]


class ArrayEnvRunner(SingleAgentEnvRunner):
    """For `config.env_runners(env_runner_cls=ArrayEnvRunner)`, over a `VectorEnv` that begins anew in the next step."""

    env: Any  # set by the base class, as is the module
    module: Any

    def __init__(self, *, config: Any, **given: Any) -> None:
        super().__init__(config=config, **given)
        if config.normalize_actions or config.clip_actions:
            raise InvalidInput("config.normalize_actions, clip_actions", "False", True)
        if config.callbacks_class is not RLlibCallback or config._module_to_env_connector is not None or (
                config._env_to_module_connector is not None):
            raise InvalidInput("config", "without callbacks and connectors of its own", "with some")
        self._seen: NDArray[np.float32] = np.empty((0, 0), np.float32)  # the observations to act on
        self._ended = np.zeros(self.num_envs, bool)  # whose next step begins another episode
        self._names = [""] * self.num_envs  # of the episodes
        self._ages = np.zeros(self.num_envs, np.int64)  # steps of them that were returned before

    def _sample(self, *, num_timesteps: int | None = None, num_episodes: int | None = None, explore: bool,
                random_actions: bool = False, force_reset: bool = False) -> list[SingleAgentEpisode]:
        """At least num_timesteps steps, as RLlib's. Whole episodes and random actions are left to it."""
        if num_timesteps is None or random_actions:
            self._needs_initial_reset = True
            return super()._sample(num_timesteps=num_timesteps, num_episodes=num_episodes, explore=explore,
                                   random_actions=random_actions, force_reset=True)
        if force_reset or self._needs_initial_reset or not len(self._seen):
            self._begin()
        first, steps, outputs, made = self._seen, [], [], 0
        while made < num_timesteps:
            begun = self._ended
            out = self._acted(explore, made)
            observed, rewards, terminated, truncated, _ = self.env.step(out[Columns.ACTIONS])
            steps.append((observed, out.pop(Columns.ACTIONS), rewards, terminated, truncated, begun))
            outputs.append(out)
            self._seen, self._ended = observed, terminated | truncated
            made += int(len(begun) - begun.sum())
        done, going = self._episodes(first, steps, outputs)
        self._done_episodes_for_metrics.extend(done)
        for one in going:
            self._ongoing_episodes_for_metrics[one.id_].append(one)
        self._log_env_steps(metric=self._metrics_num_env_steps_sampled, num_steps=made)
        self._increase_sampled_metrics(made, len(done))
        return done + going

    def _begin(self) -> None:
        self._ongoing_episodes_for_metrics.clear()
        self._seen, _ = self.env.reset(seed=self._seed if self._needs_initial_reset else None)
        self._needs_initial_reset = False
        self._ended = np.zeros(self.num_envs, bool)
        self._names = [uuid.uuid4().hex for _ in range(self.num_envs)]
        self._ages[:] = 0

    def _acted(self, explore: bool, made: int) -> Outputs:
        """What the module says of the observations, with actions, (N, ...) each."""
        module = self.module
        with torch.no_grad():
            batch = {Columns.OBS: torch.from_numpy(self._seen).to(self._device)}
            if explore:
                runners = self.config.num_env_runners or 1
                out = module.forward_exploration(
                    batch, t=(self.num_env_steps_sampled_lifetime // runners + made) * runners)
            else:
                out = module.forward_inference(batch)
            if Columns.ACTIONS not in out:
                kind = module.get_exploration_action_dist_cls() if explore else module.get_inference_action_dist_cls()
                asked = kind.from_logits(out[Columns.ACTION_DIST_INPUTS])
                asked = asked if explore else asked.to_deterministic()
                out[Columns.ACTIONS] = asked.sample()
                out[Columns.ACTION_LOGP] = asked.logp(out[Columns.ACTIONS])
        return {name: value.cpu().numpy() for name, value in out.items()}

    def _episodes(self, first: NDArray[np.float32], steps: Sequence[Step], outputs: Sequence[Outputs]
                  ) -> tuple[list[SingleAgentEpisode], list[SingleAgentEpisode]]:
        """Those that have ended, in the order in which they did, and the parts of those that go on."""
        kept: list[Any] = [np.stack([step[place] for step in steps], axis=1) for place in range(6)]
        kept[OBSERVATION] = np.concatenate([first[:, None], kept[OBSERVATION]], axis=1)
        told = {name: np.stack([out[name] for out in outputs], axis=1) for name in outputs[0]}
        done: list[tuple[int, int, SingleAgentEpisode]] = []
        going = []
        for env in range(self.num_envs):
            start = 0
            for stop in [*np.flatnonzero(kept[BEGUN][env]).tolist(), len(steps)]:
                if stop > start:
                    episode = self._episode(env, start, stop, kept, told)
                    if episode.is_done:
                        done.append((stop, env, episode))
                    else:
                        going.append(episode)
                if stop < len(steps):  # the step that began another
                    self._names[env], self._ages[env], start = uuid.uuid4().hex, 0, stop + 1
        return [one for _, _, one in sorted(done, key=lambda entry: entry[:2])], going

    def _episode(self, env: int, start: int, stop: int, kept: list[Any],
                 told: Outputs) -> SingleAgentEpisode:
        """Steps start to stop of one environment."""
        own = slice(start, stop)
        episode = SingleAgentEpisode(
            self._names[env], observations=kept[OBSERVATION][env, start:stop + 1],
            observation_space=self.env.single_observation_space, infos=[{}] * (stop - start + 1),
            actions=kept[ACTION][env, own], action_space=self.env.single_action_space, rewards=kept[REWARD][env, own],
            terminated=bool(kept[TERMINATED][env, stop - 1]), truncated=bool(kept[TRUNCATED][env, stop - 1]),
            extra_model_outputs={name: value[env, own] for name, value in told.items()},
            t_started=int(self._ages[env]), len_lookback_buffer=0)
        self._ages[env] += stop - start
        return episode
