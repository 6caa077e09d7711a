"""The spaces of the trading environment: what an action and an observation may be."""

from __future__ import annotations

import numpy as np
from gymnasium.spaces import Box

from policies.actor import ACTION, FEATURES, FURTHEST, FURTHEST_LEVEL, OBSERVATION, POSITION, POSITION_FROM

UNBOUNDED = 1e6  # of a number that has no bound of its own: exposure and free cash are shares of an equity that falls

# Lowest and highest of each number of the position.
POSITION_BOUNDS = {"side": (-1.0, 1.0), "exposure": (0.0, UNBOUNDED), "unrealised": (-FURTHEST, FURTHEST),
                   "age": (0.0, 1.0), "to_stop": (0.0, FURTHEST_LEVEL), "to_target": (0.0, FURTHEST_LEVEL),
                   "drawdown": (0.0, FURTHEST), "free": (-UNBOUNDED, UNBOUNDED)}


def action_space() -> Box:
    """(size, stop, target)."""
    return Box(-1.0, 1.0, (ACTION,), np.float32)


def observation_space() -> Box:
    """float32 (100,): features, position, and zeros, whose bounds are there because a space without room is none."""
    low, high = np.full(OBSERVATION, -1.0, np.float32), np.full(OBSERVATION, 1.0, np.float32)
    low[FEATURES], high[FEATURES] = -FURTHEST, FURTHEST
    for place, name in enumerate(POSITION, POSITION_FROM):
        low[place], high[place] = POSITION_BOUNDS[name]
    return Box(low, high, dtype=np.float32)
