"""Many accounts, each on a bar of its own, moved on together by what actors ask for: one compiled call a step.

To the last bit, `account.Account` with the orders of `policies.actor.wanted` and `order_amounts`, and observations of
`policies.actor.observations`.

Episodes: an account begins flat at the close of a bar, and that is its first observation. An action is decided at the
close of the bar last seen; its order meets the next bar. An episode is cut off (`truncated`) at the close of its last
bar, where an open position is valued, not closed; it is over (`terminated`) when equity falls below a share of the
start. The step after either begins the account's next episode instead: its action is not looked at, its reward is 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt, Le, Lt
from numpy.typing import ArrayLike, NDArray

from policies.actor import ACTION, OBSERVATION, POSITION_FROM, ActorLimits
from policies.engine.rules import Costs
from policies.errors import InvalidInput
from policies.types import require_finite

LEAST_EQUITY = 1e-9  # of the cash at the start: what an account that has lost all counts as, to divide by


@dataclass(frozen=True)
class EpisodeRules:
    """What all accounts have in common. cash: USD at the start of an episode.

    drawdown_penalty, reward_clip: of the reward, see `step`. ruin: share of `cash` below which equity ends an episode.
    """

    limits: ActorLimits
    costs: Costs
    cash: Annotated[float, Gt(0), Le(1e15)]
    drawdown_penalty: Annotated[float, Ge(0), Le(1_000)]
    reward_clip: Annotated[float, Gt(0), Le(1_000)]
    ruin: Annotated[float, Ge(0), Lt(1)]

    def __post_init__(self) -> None:
        require_finite("rules.cash", self.cash, 1e-9, 1e15)
        require_finite("rules.drawdown_penalty", self.drawdown_penalty, 0.0, 1_000.0)
        require_finite("rules.reward_clip", self.reward_clip, 1e-9, 1_000.0)
        require_finite("rules.ruin", self.ruin, 0.0, 1.0 - 1e-9)

    def row(self) -> NDArray[np.float64]:
        """For the compiled step."""
        return np.concatenate([self.limits.row(), [self.cash, self.drawdown_penalty, self.reward_clip, self.ruin],
                               self.costs.row()])


class SteppedAccounts:
    """N accounts over B bars, which may be those of several symbols one after another.

    prices: float64 (B, 5), open, high, low, close, funding rate of each bar, as `rules.price_rows` has them. features:
    float32 (B, 60), as observed at the bar's close. An episode must lie in bars of one symbol that follow each other;
    that is for whoever chooses it.

    What the last step wrote, and the next one writes again: observations float32 (N, 100); rewards float64 (N,);
    terminated, truncated bool (N,).
    """

    def __init__(self, prices: NDArray[np.float64], features: NDArray[np.float32], count: int,
                 rules: EpisodeRules) -> None:
        from policies.engine import kernel  # imports numba, which those that step one account do without

        if prices.shape != (len(features), 5) or features.shape[1:] != (POSITION_FROM,):
            raise InvalidInput("prices, features", f"(B, 5) and (B, {POSITION_FROM})", (prices.shape, features.shape))
        if not count >= 1:
            raise InvalidInput("count", ">= 1", count)
        self.rules, self._kernel = rules, kernel
        self._prices = np.require(prices, np.float64, ["C", "W"])
        self._features = np.require(features, np.float32, ["C", "W"])
        self._settings = rules.row()
        self._states, self._episodes = np.zeros((count, kernel.STATE)), np.zeros((count, kernel.EPISODE))
        self._no_actions = np.zeros((count, ACTION))
        self.observations = np.zeros((count, OBSERVATION), np.float32)  # zeros behind the position are never written
        self.rewards = np.zeros(count)
        self.terminated, self.truncated = np.zeros(count, bool), np.zeros(count, bool)

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def equity(self) -> NDArray[np.float64]:
        """(N,) USD at the close of the bar last seen."""
        return self._episodes[:, self._kernel.EQUITY].copy()

    @property
    def bar(self) -> NDArray[np.int64]:
        """(N,) places of the bars last seen."""
        return self._episodes[:, self._kernel.PLACE].astype(np.int64)

    @property
    def held(self) -> NDArray[np.float64]:
        """(N,) base units, signed."""
        return self._states[:, self._kernel.HELD].copy()

    @property
    def parts_closed(self) -> NDArray[np.int64]:
        """(N,) parts of positions that were closed in the episode."""
        return self._states[:, self._kernel.PARTS].astype(np.int64)

    @property
    def orders(self) -> NDArray[np.float64]:
        """(N, 3) of the last step: exposure asked for (NaN: no order), stop, target; NaN where an episode began."""
        kernel = self._kernel
        return self._states[:, [kernel.AMOUNT, kernel.NEW_STOP, kernel.NEW_TARGET]]

    def choose(self, which: NDArray[np.int64], first: ArrayLike, last: ArrayLike) -> None:
        """The next episodes of some accounts: they begin at the next step, at the close of bar `first`.

        which: places of accounts. first, last: bars, for each of them or one for all, first < last < B.
        """
        low, high = np.asarray(first, dtype=np.int64), np.asarray(last, dtype=np.int64)
        if not ((low >= 0) & (low < high) & (high < len(self._prices))).all():
            raise InvalidInput("first, last", f"0 <= first < last < {len(self._prices)}", (first, last))
        kernel = self._kernel
        self._episodes[which, kernel.PLACE], self._episodes[which, kernel.LAST] = low, high
        self._episodes[which, kernel.FRESH] = 1.0

    def begin(self, first: ArrayLike, last: ArrayLike) -> None:
        """All accounts begin an episode now."""
        self.choose(np.arange(len(self)), first, last)
        self.step(self._no_actions)

    def step(self, actions: ArrayLike) -> None:
        """Move every account on by one bar. actions: (N, 3), cut to [-1, 1].

        The reward is the change of equity in trade risks, (equity / equity before - 1) / risk_per_trade, less
        drawdown_penalty * (what the drawdown has risen by) / 0.04, cut to +-reward_clip.
        InvalidInput, with nothing moved, if an action is not finite or an episode that ended has no next one.
        """
        given = np.ascontiguousarray(actions, dtype=np.float64)
        if given.shape != self._no_actions.shape:
            raise InvalidInput("actions", f"of shape {self._no_actions.shape}", given.shape)
        refused = self._kernel.step_actors(
            self._states, self._episodes, self._prices, self._features, self._settings, given, self.observations,
            self.rewards, self.terminated, self.truncated)
        if refused == self._kernel.NOT_FINITE:
            raise InvalidInput("actions", "finite", actions)
        if refused == self._kernel.NO_EPISODE:
            raise InvalidInput("accounts", "each in an episode that goes on, or with a next one chosen", "some are not")
