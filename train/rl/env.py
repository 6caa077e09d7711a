"""The trading environment, one account at a time: the definition that the vectorised twin is held to.

A step is one bar. The observation is what is known at the bar's close; the action is decided on it, its order meets the
next bar, and the reward is what that bar made of the account. Adding to a position (pyramiding), taking some of it off
(scaling out), reversing and closing are all the same action: the exposure that is wanted from here on.
"""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from policies.actor import observations, order_amounts, position_numbers, wanted
from policies.engine.account import Account
from policies.engine.position import Order, Part
from policies.engine.rules import Sizing, bar_at
from policies.engine.stepping import LEAST_EQUITY
from policies.errors import InvalidInput
from train.rl.env_settings import EnvSettings
from train.rl.market_rows import ALL_TIME, MarketRows, Standard, TimeRange
from train.rl.reward import drawdown_fraction, step_reward
from train.rl.spaces import action_space, observation_space
from train.rl.starts import drawn_ahead

Observation = NDArray[np.float32]


class HyperliquidTradingEnv(gymnasium.Env[Observation, NDArray[np.float32]]):
    """One symbol, one account in USD, episodes that begin flat at random closes of the training range.

    data_df: a frame as `train.rl.market_rows.frame_of` makes it, or rows that are made already. training: the range
    that starts are drawn from so that a whole episode lies in it, and that the standardisation is fitted on. standard:
    of a frame, instead of one that is fitted.

    Observation, action: see `policies.actor`. Reward: `train.rl.reward`. terminated: equity is below the ruin's share
    of the start. truncated: episode_bars are over; an open position is valued at the close, not closed. info: equity
    (USD), order (the `Order` that met the bar, or None), parts (what was closed in the bar), time_ms (of the
    observation).
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - gymnasium's own name and kind

    def __init__(self, data_df: pd.DataFrame | MarketRows, initial_balance: float = 10_000.0,
                 settings: EnvSettings | None = None, training: TimeRange = ALL_TIME,
                 standard: Standard | None = None) -> None:
        self.settings = settings or EnvSettings()
        self.settings.rules(initial_balance)  # refuses what the twin would
        self.rows = data_df if isinstance(data_df, MarketRows) else MarketRows.from_frame(data_df, standard, training)
        self.initial_balance = initial_balance
        self.action_space, self.observation_space = action_space(), observation_space()
        self._starts = self.rows.starts(self.settings.episode_bars, training)
        if not len(self._starts):
            raise InvalidInput("training", f"a range with {self.settings.episode_bars + 1} bars that follow each other "
                               "and have features", training)
        self._account = Account(initial_balance, self.settings.costs, self.rows.bars.interval_ms)
        self._ahead: list[int] = []
        self._bar = self._last = -1
        self._peak = self._worth = initial_balance
        self._drawdown = 0.0

    def reset(self, *, seed: int | None = None,
              options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """options: {"start_ms": close of a bar} begins there instead of at random, in the training range or not."""
        super().reset(seed=seed)
        if seed is not None:
            self._ahead = []
        self._bar = self._chosen(options) if options else self._drawn()
        self._last = self._bar + self.settings.episode_bars
        self._account = Account(self.initial_balance, self.settings.costs, self.rows.bars.interval_ms)
        self._account.last_close = float(self.rows.bars.close[self._bar])
        self._peak = self._worth = self.initial_balance
        self._drawdown = 0.0
        return self._observed(), self._told(None, ())

    def step(self, action: ArrayLike) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        if not 0 <= self._bar < self._last:
            raise InvalidInput("step", "within an episode: call reset first", self._bar)
        order = self._order(action)
        self._bar += 1
        parts = self._account.step(bar_at(self.rows.bars, self._bar), order)
        equity, before, drawdown = self._account.equity, self._worth, self._drawdown
        self._worth = max(equity, LEAST_EQUITY * self.initial_balance)
        self._peak = max(self._peak, self._worth)
        self._drawdown = drawdown_fraction(self._worth, self._peak)
        reward = step_reward(before, self._worth, drawdown, self._drawdown, self.settings)
        terminated = equity < self.settings.ruin * self.initial_balance
        truncated = self._bar >= self._last and not terminated
        if terminated:
            self._last = self._bar
        return self._observed(), reward, terminated, truncated, self._told(order, parts)

    def _drawn(self) -> int:
        if not self._ahead:
            self._ahead = drawn_ahead(self.np_random, self._starts).tolist()[::-1]
        return self._ahead.pop()

    def _chosen(self, options: dict[str, Any]) -> int:
        starts = self.rows.starts(self.settings.episode_bars)
        place = np.searchsorted(self.rows.bars.close_time_ms[starts], options.get("start_ms", -1))
        if set(options) != {"start_ms"} or place == len(starts) or (
                self.rows.bars.close_time_ms[starts[place]] != options["start_ms"]):
            raise InvalidInput("options", "{'start_ms': the close of a bar after which a whole episode lies}", options)
        return int(starts[place])

    def _order(self, action: ArrayLike) -> Order | None:
        """None inside the band."""
        asked, limits, held = wanted(action, self.settings.limits), self.settings.limits, self._account.position
        exposure = held.sign * held.quantity * self._account.last_close / self._worth if held else 0.0
        amount = float(order_amounts(asked.exposure, exposure, limits))
        if math.isnan(amount):
            return None
        return Order(amount, Sizing.TARGET_FRACTION, leverage=limits.leverage, stop_pct=float(asked.stop),
                     target_pct=float(asked.target))

    def _observed(self) -> Observation:
        account, held, limits = self._account, self._account.position, self.settings.limits
        alone = (account.last_close, self._worth, self._peak, account.free_cash, limits)
        numbers = position_numbers(0, 0, 0, 0, 0, 0, *alone) if held is None else position_numbers(
            held.sign, held.quantity, held.entry, held.stop_pct, held.target_pct, held.bars_held, *alone)
        return observations(self.rows.features[self._bar], numbers)

    def _told(self, order: Order | None, parts: tuple[Part, ...]) -> dict[str, Any]:
        return {"equity": self._account.equity, "order": order, "parts": parts,
                "time_ms": int(self.rows.bars.close_time_ms[self._bar])}
