"""RLlib sampling from the trading environment: its vectorised twin and our runner against RLlib's own `sync`.

Both have the same network and as many environments; what differs is who moves them on, and who keeps what they gave.
RLlib's own runner over the twin is shown besides. The floor is the twin alone, with actions drawn in advance. What was
sampled is played again by a single environment, and must have been rewarded alike at every step.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from ci.bench.environment import Work, generated, ours, tasks
from ci.bench.load import NotMeasured
from reports.report import Aim, BenchRow, Side, compared
from train.rl.env import HyperliquidTradingEnv
from train.rl.env_settings import EnvSettings
from train.rl.market_rows import MarketRows
from train.rl.vector_env import VectorTradingEnv

WORK = "RLlib sampling"
AIM = Aim(least_to_peer=10.0)
HIDDEN = (64, 64)
PEER_SHARE = 8  # the peer samples this many times less a run, so that it does not take most of the time

Say = Callable[[str], None]


def run(say: Say, rounds: int = 5, envs: int = 256, steps: int = 64, bars: int = 20_000, seed: int = 1,
        settings: EnvSettings | None = None) -> list[BenchRow]:
    """One row. steps: of each environment in a run."""
    rows, settings = generated(bars, seed), settings or EnvSettings()

    def twin(context: Any) -> VectorTradingEnv:
        return VectorTradingEnv(rows, context["num_envs"], settings, seed=seed)

    def alone(context: Any) -> HyperliquidTradingEnv:
        return HyperliquidTradingEnv(rows[0], settings=settings)

    mine, halfway = (runner(twin, "vector_entry_point", envs, arrays) for arrays in (True, False))
    peer = runner(alone, "sync", envs, False)
    replayed = check_replay(rows, settings, mine.sample(num_timesteps=envs * steps))
    few = envs * max(1, steps // PEER_SHARE)
    works: dict[str, Work] = {"ours": lambda: _sampled(mine, envs * steps), "peer": lambda: _sampled(peer, few),
                              "halfway": lambda: _sampled(halfway, envs * steps),
                              "floor": ours(tasks(rows, envs, seed, settings)[0])}
    for work in works.values():
        work()
    say(f"{replayed} sampled steps rewarded as by the single environment; {rounds} rounds")
    rates: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds):
        there = list(works)[::1 if number % 2 == 0 else -1]
        for name in [*there, *reversed(there)]:
            rates[name].append(_rate(works[name]))
    return [compared(f"{WORK}, {envs} environments, network of {HIDDEN[0]} x {HIDDEN[1]}", "1/s",
                     Side("train.rl.env_runner.ArrayEnvRunner over VectorTradingEnv", rates["ours"]),
                     Side("RLlib's runner, sync over the single environment", rates["peer"]),
                     Side("VectorTradingEnv alone", rates["floor"]), AIM,
                     [Side("RLlib's runner over VectorTradingEnv", rates["halfway"])],
                     {"steps_replayed_in_a_single_environment": replayed})]


def runner(make: Callable[[Any], Any], mode: str, envs: int, arrays: bool) -> Any:
    """RLlib's runner of environments, or ours that keeps arrays, in this process."""
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
    from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

    from train.rl.env_runner import ArrayEnvRunner

    config = (PPOConfig().environment(make, normalize_actions=False, clip_actions=False).framework("torch")
              .debugging(log_level="ERROR", seed=0)
              .env_runners(num_env_runners=0, num_envs_per_env_runner=envs, gym_env_vectorize_mode=mode)
              .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=list(HIDDEN), fcnet_activation="tanh")))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*Overriding environment")  # each runner registers its own under one name
        return (ArrayEnvRunner if arrays else SingleAgentEnvRunner)(config=config)


def check_replay(rows: list[MarketRows], settings: EnvSettings, episodes: list[Any]) -> int:
    """How many steps of the longest episode were played again; NotMeasured if one is rewarded otherwise."""
    episode = max(episodes, key=lambda one: one.t if one.t_started == 0 else 0)
    features = np.asarray(episode.get_observations()[0])[:60]
    matching = [(one, place) for one in rows for place in np.flatnonzero((one.features == features).all(axis=1))]
    if len(matching) != 1:
        raise NotMeasured(f"the sampled episode begins at {len(matching)} bars")
    one, place = matching[0]
    env = HyperliquidTradingEnv(one, settings=settings)
    env.reset(options={"start_ms": int(one.bars.close_time_ms[place])})
    rewards = [env.step(action)[1] for action in episode.get_actions()]
    if rewards != np.asarray(episode.get_rewards()).tolist():
        raise NotMeasured("what RLlib has sampled is not what the single environment rewards")
    return len(rewards)


def _sampled(made: Any, steps: int) -> int:
    return sum(len(episode) for episode in made.sample(num_timesteps=steps))


def _rate(work: Callable[[], int]) -> float:
    start = time.perf_counter()
    steps = work()
    return steps / (time.perf_counter() - start)
