"""Which strategy deserves the capital: a Gaussian Thompson bandit over the strategies' rewards.

A strategy's rewards are Normal with unknown mean and variance; the conjugate prior is Normal-Gamma (Murphy 2007,
"Conjugate Bayesian analysis of the Gaussian distribution", section 3), so the mean's posterior is a Student t. The
variance is learnt because it differs by strategy and by how much of the risk budget a bot uses.

A strategy's weight is the share of Thompson draws in which its mean reward is the best, above a floor that keeps every
strategy exploring. That is what one draw per trade would allocate on average, without moving all the capital at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt

from policies.errors import InvalidInput, UnknownEntity
from policies.keyed_random import generator
from policies.types import STRATEGIES


@dataclass(frozen=True)
class AllocationSettings:
    """prior_trades: weight of the prior mean 0. prior_sd: a reward's spread before any is seen, in reward units.

    floor: least weight of each strategy. draws: Thompson draws behind one proposal.
    """

    prior_trades: Annotated[float, Gt(0)] = 1.0
    prior_sd: Annotated[float, Gt(0)] = 1.0
    floor: Annotated[float, Ge(0)] = 0.02
    draws: Annotated[int, Ge(1)] = 256


PRIOR_SHAPE = 2.0  # Gamma shape of the precision: the prior on the spread weighs as much as four trades


@dataclass
class RewardSums:
    """Sufficient statistics of one strategy's rewards; a forgotten reward is subtracted."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def student_t(self, settings: AllocationSettings) -> tuple[float, float, float]:
        """Location, scale and degrees of freedom of the posterior of the mean reward."""
        weight = settings.prior_trades + self.count
        location = self.total / weight
        shape = PRIOR_SHAPE + self.count / 2
        spread = max(0.0, self.squares - weight * location**2)  # about the posterior mean, the prior's part included
        rate = PRIOR_SHAPE * settings.prior_sd**2 + spread / 2
        return location, math.sqrt(rate / (shape * weight)), 2 * shape


class StrategyAllocationBandit:
    """Weights over strategies, learnt from rewards. Asking changes nothing."""

    def __init__(self, seed: int = 0, strategies: Sequence[str] = STRATEGIES,
                 settings: AllocationSettings | None = None) -> None:
        self.seed, self.strategies = seed, tuple(strategies)
        self.settings = settings or AllocationSettings()
        if not 0 <= self.settings.floor * len(self.strategies) <= 1:
            raise InvalidInput("allocation.floor", f"between 0 and 1/{len(self.strategies)}", self.settings.floor)
        self.updates = 0
        self._sums = {strategy: RewardSums() for strategy in self.strategies}

    def propose_weights(self, key: object = None) -> dict[str, float]:
        """{strategy: weight}, sum 1, each at least the floor. The same (state, key) gives the same weights.

        key: what the proposal is for, such as a ledger position; by default the number of updates seen.
        """
        settings, count = self.settings, len(self.strategies)
        location, scale, freedom = np.array([self._sums[name].student_t(settings) for name in self.strategies]).T
        rng = generator(self.seed, "allocation", self.updates if key is None else key)
        draws = location + scale * rng.standard_t(freedom, size=(settings.draws, count))
        wins = np.bincount(draws.argmax(axis=1), minlength=count)
        weights = settings.floor + (1 - count * settings.floor) * wins / settings.draws
        return dict(zip(self.strategies, weights.tolist(), strict=True))

    def update(self, strategy: str, reward: float) -> None:
        """Learn the reward of a trade of that strategy."""
        self._add(strategy, reward, 1)

    def forget(self, strategy: str, reward: float) -> None:
        """Take back a reward that was learnt, before the one of a superseding revision is learnt."""
        if self._known(strategy).count == 0:
            raise InvalidInput("strategy", "one with a learnt reward", strategy)
        self._add(strategy, reward, -1)

    def _add(self, strategy: str, reward: float, sign: int) -> None:
        if not math.isfinite(reward):
            raise InvalidInput("reward", "finite", reward)
        sums = self._known(strategy)
        sums.count += sign
        sums.total += sign * reward
        sums.squares += sign * reward * reward
        self.updates += 1

    def _known(self, strategy: str) -> RewardSums:
        if strategy not in self._sums:
            raise UnknownEntity("strategy", strategy, list(self.strategies))
        return self._sums[strategy]


def blend(bandit: Mapping[str, float], llm: Mapping[str, float], share: float) -> dict[str, float]:
    """share * bandit + (1 - share) * llm, over the bandit's strategies; sums to 1.

    bandit: weights that sum to 1. llm: any non-negative weights, scaled to sum 1 here; if it has none for these
    strategies it has no opinion and the bandit's weights stand. share: 0..1. InvalidInput on anything else.
    """
    if not 0 <= share <= 1:
        raise InvalidInput("learning.allocation_hybrid_blend", "between 0 and 1", share)
    for strategy, weight in llm.items():
        if not 0 <= weight < math.inf:
            raise InvalidInput(f"llm.strategy_weights.{strategy}", ">= 0 and finite", weight)
    total = math.fsum(llm.get(strategy, 0.0) for strategy in bandit)
    if total == 0:
        return dict(bandit)
    return {strategy: share * weight + (1 - share) * llm.get(strategy, 0.0) / total
            for strategy, weight in bandit.items()}
