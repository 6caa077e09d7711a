"""The benchmark of the trading environment: its rows, and that it measures nothing where the forms disagree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ci.bench import environment
from ci.bench.environment import BLOCK, WORK, Task, check_equal, gathering, generated, run, tasks
from ci.bench.load import NotMeasured
from train.rl.env import HyperliquidTradingEnv
from train.rl.env_settings import EnvSettings
from train.rl.vector_env import VectorTradingEnv

SETTINGS = EnvSettings(episode_bars=30)


def small_task(number: int = 0) -> Task:
    return tasks(generated(300, 1), 4, 1, SETTINGS)[number]


def test_rows_compare_all_sides_on_equal_trajectories() -> None:
    told: list[str] = []
    rows = run(told.append, rounds=1, envs=4, bars=300, settings=SETTINGS)
    assert [row.work for row in rows] == [f"{WORK}, 4 accounts, random actions at every bar",
                                          f"{WORK}, 4 accounts, random actions held for 15 bars"]
    for row in rows:
        assert row.figure is not None
        assert row.peer_figure is not None
        assert row.ratio_to_peer == pytest.approx(row.peer_figure / row.figure)
        assert row.detail["steps_equal_in_every_bit"] == 4 * 30
        assert {BLOCK, "DummyVecEnv of 4, Stable-Baselines3"} <= set(row.runs)
        assert len(row.runs["hub"]) == 2
    assert rows[0].detail["trades_a_step"] > 2 * rows[1].detail["trades_a_step"]


def another_equity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_backtest", lambda *_: np.zeros(30))


def another_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    step = HyperliquidTradingEnv.step

    def raised(self: HyperliquidTradingEnv, action: Any) -> Any:
        found = step(self, action)
        return (found[0], np.nextafter(found[1], 9.0), *found[2:])

    monkeypatch.setattr(HyperliquidTradingEnv, "step", raised)


def another_observation(monkeypatch: pytest.MonkeyPatch) -> None:
    step = VectorTradingEnv.step

    def shifted(self: VectorTradingEnv, actions: Any) -> Any:
        found = step(self, actions)
        return (np.nextafter(found[0], np.float32(9.0)), *found[1:])

    monkeypatch.setattr(VectorTradingEnv, "step", shifted)


@pytest.mark.parametrize(("broken", "said"), [(another_equity, "backtest"), (another_reward, "earns"),
                                              (another_observation, "observes")])
def test_forms_that_disagree_in_a_bit_are_not_measured(broken: Callable[[pytest.MonkeyPatch], None], said: str,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    task = small_task()
    assert check_equal(task) == 4 * 30
    broken(monkeypatch)
    with pytest.raises(NotMeasured, match=said):
        check_equal(task)


def test_held_actions_change_every_so_many_bars() -> None:
    changes = np.flatnonzero(np.diff(small_task(1).actions[:, 0, 0])) + 1
    assert changes.tolist() == [15, 30]


def test_the_floor_gathers_one_observation_for_each_account_and_step() -> None:
    assert gathering(small_task())() == 31 * 4
