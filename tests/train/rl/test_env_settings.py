"""Settings of an episode are refused by name where they make no sense."""

from __future__ import annotations

import math
from typing import Any

import pytest

from policies.errors import InvalidInput
from train.rl.env_settings import EnvSettings


@pytest.mark.parametrize("bad", [{"episode_bars": 0}, {"ruin": 1.0}, {"reward_clip": 0.0},
                                 {"drawdown_penalty": math.nan}])
def test_senseless_settings_are_refused_by_name(bad: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(bad))):
        EnvSettings(**bad)
