"""What an episode of the trading environment is, and what is rewarded in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge, Gt, Le, Lt

from policies.actor import ActorLimits
from policies.engine.rules import BASE_TIER, Costs
from policies.engine.stepping import EpisodeRules
from policies.errors import InvalidInput


@dataclass(frozen=True)
class EnvSettings:
    """limits, costs: what an action can ask for and what trading costs. episode_bars: decisions of an episode.

    drawdown_penalty, reward_clip: of the reward (`train.rl.reward`). ruin: share of the balance at the start; an
    episode is over when equity falls below it. A loss of one trade risk (0.2 % of equity) from the peak costs, at the
    default penalty, 1 + 2 * 0.002 / 0.04 = 1.1.
    """

    limits: ActorLimits = field(default_factory=ActorLimits)
    costs: Costs = BASE_TIER
    episode_bars: Annotated[int, Ge(1), Le(10_000_000)] = 240
    drawdown_penalty: Annotated[float, Ge(0), Le(1_000)] = 2.0
    reward_clip: Annotated[float, Gt(0), Le(1_000)] = 2.0
    ruin: Annotated[float, Ge(0), Lt(1)] = 0.5

    def __post_init__(self) -> None:
        if not 1 <= self.episode_bars <= 10_000_000:
            raise InvalidInput("settings.episode_bars", "between 1 and 10000000", self.episode_bars)
        self.rules(10_000.0)  # refuses the others

    def rules(self, initial_balance: float) -> EpisodeRules:
        """For accounts that begin with so many USD."""
        return EpisodeRules(self.limits, self.costs, initial_balance, self.drawdown_penalty, self.reward_clip,
                            self.ruin)
