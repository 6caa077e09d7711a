"""What a step is rewarded with, by sums done by hand."""

from __future__ import annotations

import pytest

from train.rl.env_settings import EnvSettings
from train.rl.reward import drawdown_fraction, step_reward


def test_the_reward_is_in_trade_risks_and_only_a_drawdown_that_grows_is_penalised() -> None:
    settings = EnvSettings(drawdown_penalty=2.0)
    assert step_reward(10_000.0, 10_020.0, 0.0, 0.0, settings) == pytest.approx(1.0)
    assert step_reward(10_000.0, 9_980.0, 0.0, drawdown_fraction(9_980, 10_000), settings) == pytest.approx(-1.1)
    assert step_reward(9_980.0, 10_000.0, drawdown_fraction(9_980, 10_000), 0.0, settings) == pytest.approx(1.002004)
    assert step_reward(10_000.0, 11_000.0, 0.0, 0.0, settings) == 2.0
    assert step_reward(10_000.0, 5_000.0, 0.0, 0.5, settings) == -2.0
