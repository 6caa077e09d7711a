"""Stands in for the LLM where no LLM is at hand: a deterministic, noisy trend-follower.

It looks at the last closes of the symbol, follows their direction, and is wrong on purpose in a stated share of cases.
Like an LLM it has an opinion each time it is asked; whether it trades on it when the hub leaves the decision to it is
a setting. With `trades` off, the default, such a bot stays flat then, so that whatever it earns was the hub's doing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt, Le
from numpy.typing import NDArray

from policies.keyed_random import uniform
from policies.types import Action, Direction, LlmView

OPPOSITE = {Direction.LONG: Direction.SHORT, Direction.SHORT: Direction.LONG, Direction.FLAT: Direction.FLAT}


@dataclass(frozen=True)
class LlmStubSettings:
    """lookback_bars: over which the trend is taken. flat_below: a smaller move, as a fraction, is no trend.

    noise: probability of saying the opposite. trades: whether it trades when the hub leaves the decision to it.
    The sizes are those of its trades: 0.2 % of equity at the stop, 0.002 = size_fraction * leverage * sl_pct.
    """

    lookback_bars: Annotated[int, Ge(1)] = 15
    flat_below: Annotated[float, Ge(0), Le(1)] = 0.001
    noise: Annotated[float, Ge(0), Le(1)] = 0.3
    trades: bool = False
    size_fraction: Annotated[float, Gt(0), Le(1)] = 0.05
    leverage: Annotated[float, Ge(1), Le(50)] = 5.0
    tp_pct: Annotated[float, Gt(0), Le(0.5)] = 0.012
    sl_pct: Annotated[float, Gt(0), Le(0.5)] = 0.008
    horizon_s: Annotated[int, Gt(0)] = 900


class LlmStub:
    """The same views for the same seed, symbol, strategy, time and closes."""

    def __init__(self, seed: int = 0, settings: LlmStubSettings | None = None) -> None:
        self.seed, self.settings = seed, settings or LlmStubSettings()

    def view(self, symbol: str, strategy: str, closes: NDArray[np.float64], time_ms: int) -> LlmView:
        """closes: float64 (N,), USD, oldest first, the last one known at time_ms; too few of them give no trend.

        confidence: 0.5 without a trend, rising to 0.8 at ten times `flat_below`.
        """
        say = self.settings
        move = 0.0 if len(closes) <= say.lookback_bars else float(closes[-1] / closes[-1 - say.lookback_bars] - 1.0)
        direction = Direction.LONG if move > say.flat_below else Direction.FLAT
        if move < -say.flat_below:
            direction = Direction.SHORT
        if uniform(self.seed, "llm", symbol, strategy, time_ms) < say.noise:
            direction = OPPOSITE[direction]
        strength = min(1.0, abs(move) / (10.0 * say.flat_below)) if say.flat_below > 0 else 1.0
        action = Action(direction, say.size_fraction, say.leverage, say.tp_pct, say.sl_pct)
        return LlmView(action.flat() if direction is Direction.FLAT else action, 0.5 + 0.3 * strength)

    def decides_alone(self, own: Action) -> Action:
        """What it does when the hub leaves the decision to it: the action of its view if it `trades`, else nothing."""
        return own if self.settings.trades else own.flat()
