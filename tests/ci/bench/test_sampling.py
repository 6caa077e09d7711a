"""The benchmark of RLlib's sampling: its row, and that a sample must be rewarded as by a single environment."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ci.bench.environment import generated
from ci.bench.load import NotMeasured
from ci.bench.sampling import WORK, check_replay, run, runner
from train.rl.env_settings import EnvSettings
from train.rl.vector_env import VectorTradingEnv

SETTINGS = EnvSettings(episode_bars=10)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # RLlib's, of its own parts


def test_a_row_compares_rllibs_ways_of_moving_environments_on() -> None:
    (row,) = run(lambda text: None, rounds=1, envs=3, steps=16, bars=300, settings=SETTINGS)
    assert row.work == f"{WORK}, 3 environments, network of 64 x 64"
    assert row.figure is not None
    assert row.peer_figure is not None
    assert row.ratio_to_peer == pytest.approx(row.figure / row.peer_figure)
    assert row.detail["steps_replayed_in_a_single_environment"] == 10
    assert "RLlib's runner over VectorTradingEnv" in row.runs


def test_a_sample_that_is_rewarded_otherwise_is_not_measured() -> None:
    rows = generated(300, 1)

    def twin(context: Any) -> VectorTradingEnv:
        return VectorTradingEnv(rows, context["num_envs"], SETTINGS, seed=1)

    episodes = runner(twin, "vector_entry_point", 3, True).sample(num_timesteps=30)
    assert check_replay(rows, SETTINGS, episodes) == 10
    for episode in episodes:
        episode.rewards.data = np.nextafter(episode.rewards.data, 9.0)
    with pytest.raises(NotMeasured, match="rewards"):
        check_replay(rows, SETTINGS, episodes)
