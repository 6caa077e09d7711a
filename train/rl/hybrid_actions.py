"""The trading environment's action in its discrete-continuous form: execute, direction, leverage, tp, sl.

The same orders in other words, for a policy that decides with classes what is a class.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete
from numpy.typing import NDArray

from policies.actor import ActorLimits
from policies.errors import InvalidInput
from train.rl.env import HyperliquidTradingEnv, Observation

SHORT, LONG = 0, 1


class HybridActions(gymnasium.ActionWrapper[Observation, dict[str, Any], NDArray[np.float32]]):
    """execute: 0 asks for flat and the rest does not matter, 1 for a position. direction: SHORT or LONG.

    leverage, tp, sl: (1,) in [-1, 1], cut to it. leverage stands for 1 to limits.leverage; a leverage of L puts
    risk_per_trade * L / limits.leverage of equity at the stop. tp and sl stand for the limits' targets and stops.
    """

    def __init__(self, env: HyperliquidTradingEnv) -> None:
        super().__init__(env)
        self.limits: ActorLimits = env.settings.limits
        if not self.limits.leverage * self.limits.dead_zone <= 1.0:
            raise InvalidInput("limits.dead_zone", "<= 1 / leverage, so that a leverage of 1 is a position",
                               self.limits.dead_zone)
        self.action_space = Dict({"execute": Discrete(2), "direction": Discrete(2),
                                  **{name: Box(-1.0, 1.0, (1,), np.float32) for name in ("leverage", "tp", "sl")}})

    def action(self, action: dict[str, Any]) -> NDArray[np.float32]:
        """(size, stop, target). InvalidInput if a class is none."""
        for name in ("execute", "direction"):
            if action[name] not in (0, 1):
                raise InvalidInput(f"action.{name}", "0 or 1", action[name])
        place, most = np.clip(float(action["leverage"][0]), -1.0, 1.0), self.limits.leverage
        size = (1.0 + (place + 1.0) / 2.0 * (most - 1.0)) / most
        sign = 0.0 if not action["execute"] else 1.0 if action["direction"] == LONG else -1.0
        return np.array([sign * size, action["sl"][0], action["tp"][0]], dtype=np.float32)
