"""The reward of a trade: its profit in units of the risk allowed to it, less what its tail and its drawdown cost.

Every bandit of the room learns from this one number. It is made once, when a trade's outcome is recorded, from the
returns seen before it; so a reward never changes afterwards, and a revision is forgotten with the number it was
learnt with.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le

from policies.errors import InvalidInput
from policies.types import Outcome


@dataclass(frozen=True)
class RewardSettings:
    """How a net return becomes a reward.

    scale: multiplies the whole reward. cvar_alpha: the worst share of returns that counts as the tail.
    cvar_weight, drawdown_weight: reward lost per unit of tail loss and of drawdown, both in risk units.
    clip: bound of the reward on both sides. window: how many last returns make the rolling distribution.
    risk_per_trade: the per-trade risk budget, loss over equity at the stop; one risk unit.
    """

    scale: Annotated[float, Gt(0)] = 1.0
    cvar_alpha: Annotated[float, Gt(0), Le(1)] = 0.2
    cvar_weight: Annotated[float, Ge(0)] = 0.1
    drawdown_weight: Annotated[float, Ge(0)] = 0.1
    clip: Annotated[float, Gt(0)] = 5.0
    window: Annotated[int, Ge(1)] = 500
    risk_per_trade: Annotated[float, Gt(0), Le(1)] = 0.002


def net_return(outcome: Outcome, equity_at_entry: float) -> float:
    """((exit - entry) * size * direction - fees - funding) / equity at entry; positive is profit.

    Funding is a cost: positive when paid, negative when received. InvalidInput unless equity > 0 and all is finite.
    """
    if not 0 < equity_at_entry < math.inf:
        raise InvalidInput("equity_at_entry", "> 0", equity_at_entry)
    value = outcome.net_pnl / equity_at_entry
    if not math.isfinite(value):
        raise InvalidInput("outcome.net_pnl", "finite", outcome.net_pnl)
    return value


class RewardModel:
    """Rewards against the rolling distribution of the returns observed so far.

    Keep one per strategy: then the tail penalty tells strategies apart; it is one number for all trades of a moment.
    """

    def __init__(self, settings: RewardSettings | None = None) -> None:
        self.settings = settings or RewardSettings()
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []

    @property
    def cvar(self) -> float:
        """Mean of the worst floor(alpha * n) of the last n returns, over equity: negative for a losing tail.

        0 while n < 1 / alpha: fewer returns have no tail to speak of.
        """
        count = math.floor(self.settings.cvar_alpha * len(self._sorted) + 1e-9)
        return math.fsum(self._sorted[:count]) / count if count else 0.0

    def reward(self, net_return: float, drawdown_proxy: float) -> float:
        """clip(scale * (r - cvar_weight * max(0, -CVaR) - drawdown_weight * d)), all three in risk units.

        net_return: net PnL over equity at entry, signed. drawdown_proxy: the trade's worst unrealised loss over
        equity, >= 0. A risk unit is `risk_per_trade` of equity, so a full stop without costs is r = -1. Pure given
        the returns observed so far; InvalidInput on NaN, infinity or a negative drawdown.
        """
        settings = self.settings
        if not math.isfinite(net_return):
            raise InvalidInput("net_return", "finite", net_return)
        if not 0 <= drawdown_proxy < math.inf:
            raise InvalidInput("drawdown_proxy", ">= 0 and finite", drawdown_proxy)
        penalty = settings.cvar_weight * max(0.0, -self.cvar) + settings.drawdown_weight * drawdown_proxy
        value = settings.scale * (net_return - penalty) / settings.risk_per_trade
        return min(max(value, -settings.clip), settings.clip)

    def observe(self, net_return: float) -> None:
        """Add a return to the rolling distribution; the oldest beyond the window leaves it."""
        if not math.isfinite(net_return):
            raise InvalidInput("net_return", "finite", net_return)
        self._recent.append(net_return)
        insort(self._sorted, net_return)
        if len(self._recent) > self.settings.window:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]
