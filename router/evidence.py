"""Evidence that a head has an edge, valid whenever it is looked at: a bet against "it has none".

Null hypothesis: E[gain - c * loss] <= 0 for every trade given what was known when it was entered; c = 1 is "no profit
after costs". A gambler who bets on X >= -1 with E[X | past] <= 0 multiplies wealth by 1 + lambda * X and cannot expect
to gain, so by Ville's inequality P(wealth ever >= 1 / alpha) <= alpha. Looking after every trade costs nothing (Shafer
2021, "Testing by betting"; Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by betting").

What makes X fair here:

- One bet per block of the clock, all symbols together. Trades that overlap or are correlated are not one bet each: the
  outcome of one is partly known when the next is entered, and multiplying them pretends that it was not.
- No trade crosses a block: only those count that were entered early enough to be closed, by their horizon, and reported
  within it. That is known at entry, so leaving the others out biases nothing. Leaving out those that happened to end
  late would: with a near target and a far stop, the early enders are the winners.
- X = sum over the counted trades / K, where K was fixed before the block began and only the first K by (entry time,
  id) count. Whether a trade is among the first K is known at its entry. Dividing by the number of trades that came
  would not be fair: a stop frees its slot, so losing blocks hold more trades, and their losses would be averaged away.
- A trade's stake is its return on margin. Margin is isolated, so it loses at most the whole of it: X >= -1.

Wealth is never reset, neither by a throttle nor by a resume: each reset would be another chance to be lucky, and the
promise of alpha is for all of a policy's life.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le, Lt, MinLen

from policies.errors import InvalidInput

WEALTH_CAP = 1e300  # a bet that is worth this much stops growing; capping only lowers wealth, so it stays valid


@dataclass(frozen=True)
class EvidenceSettings:
    """c: losses weigh c times gains. alpha: the chance of ever believing a head without an edge.

    horizon_ms: the longest life of a trade. block_horizons: length of a block in horizons.
    grace_horizons: time, in horizons, that a closed trade is given to be reported before its block ends.
    bet_fractions: the lambdas; wealth is spread over them evenly. High, as a trade rarely risks much of its margin, but
    below 1, so that one liquidation does not end the bet for good.
    rate_blocks: over how many past bets the number of trades in a block is averaged for K; the first K is 1.
    """

    c: Annotated[float, Gt(0)] = 1.0
    alpha: Annotated[float, Gt(0), Lt(1)] = 0.05
    horizon_ms: Annotated[int, Gt(0)] = 900_000
    block_horizons: Annotated[int, Ge(2)] = 3
    grace_horizons: Annotated[float, Ge(0), Lt(1)] = 0.1
    bet_fractions: Annotated[tuple[Annotated[float, Gt(0), Le(1)], ...], MinLen(1)] = (0.3, 0.9)
    rate_blocks: Annotated[int, Ge(1)] = 20

    @property
    def block_ms(self) -> int:
        return self.block_horizons * self.horizon_ms

    @property
    def last_entry_ms(self) -> int:
        """The latest entry, from the start of its block, with which a trade counts."""
        return self.block_ms - self.horizon_ms - math.ceil(self.grace_horizons * self.horizon_ms)


class Evidence:
    """The wealth of one head's bets. For each ledger row: `advance(row.at_ms)` first, then `observe`.

    late: reports of trades, or of revisions, that came after their block was bet; they changed nothing.
    overrun: trades that ended after their block, beyond the horizon they had promised; they did not count.
    not_counted: trades entered too late in their block, or beyond its first K.
    The test holds as long as reports are not late or overrun because of how the trade went: watch these figures.
    """

    def __init__(self, settings: EvidenceSettings | None = None) -> None:
        self.settings = settings or EvidenceSettings()
        self.blocks = 0
        self.trades = 0
        self.late = 0
        self.overrun = 0
        self.not_counted = 0
        self.peak_e_value = 1.0
        self._wealth = [1.0] * len(self.settings.bet_fractions)
        self._waiting: dict[int, dict[str, tuple[int, float]]] = {}  # block -> trade id -> (entry_ms, stake)
        self._block_of: dict[str, int] = {}
        self._closed_blocks = 0  # blocks with a lower number are over
        self._counts: deque[int] = deque(maxlen=self.settings.rate_blocks)

    @property
    def e_value(self) -> float:
        """Mean wealth over the bet fractions, starting from 1. Large is evidence of an edge."""
        return math.fsum(self._wealth) / len(self._wealth)

    @property
    def believed(self) -> bool:
        """Whether the e-value has ever reached 1 / alpha: Ville's bound is on ever, so it need not be there now."""
        return self.peak_e_value >= 1.0 / self.settings.alpha

    def observe(self, trade_id: str, entry_ms: int, exit_ms: int, return_on_margin: float) -> None:
        """A trade became known, or a revision of one. return_on_margin: net PnL over margin; below -1 counts as -1.

        A revision replaces the trade as long as its block is not bet; a bet that is made stands.
        """
        if not math.isfinite(return_on_margin):
            raise InvalidInput("return_on_margin", "finite", return_on_margin)
        settings = self.settings
        if (earlier := self._block_of.pop(trade_id, None)) is not None:
            del self._waiting[earlier][trade_id]
        block, since_start_ms = divmod(entry_ms, settings.block_ms)
        if since_start_ms > settings.last_entry_ms:
            self.not_counted += 1
        elif exit_ms > (block + 1) * settings.block_ms:
            self.overrun += 1
        elif block < self._closed_blocks:
            self.late += 1
        else:
            self._waiting.setdefault(block, {})[trade_id] = (entry_ms, self._stake(return_on_margin))
            self._block_of[trade_id] = block

    def advance(self, now_ms: int) -> None:
        """Bet all blocks that are over at now_ms, in their order. Going back in time changes nothing."""
        over = now_ms // self.settings.block_ms
        if over <= self._closed_blocks:
            return
        for block in sorted(block for block in self._waiting if block < over):
            trades = self._waiting.pop(block)
            for trade_id in trades:
                del self._block_of[trade_id]
            if trades:
                self._bet(trades)
        self._closed_blocks = over

    def _stake(self, return_on_margin: float) -> float:
        """gain - c * loss, divided by c if that is above 1, so that it is at least -1."""
        c, value = self.settings.c, max(return_on_margin, -1.0)
        return (value if value > 0 else c * value) / max(c, 1.0)

    def _bet(self, trades: dict[str, tuple[int, float]]) -> None:
        cap = math.ceil(sum(self._counts) / len(self._counts)) if self._counts else 1
        first = sorted((entry_ms, trade_id, stake) for trade_id, (entry_ms, stake) in trades.items())[:cap]
        x = math.fsum(stake for _, _, stake in first) / cap
        self._wealth = [min(wealth * (1.0 + fraction * x), WEALTH_CAP)
                        for wealth, fraction in zip(self._wealth, self.settings.bet_fractions, strict=True)]
        self._counts.append(len(trades))
        self.blocks += 1
        self.trades += len(first)
        self.not_counted += len(trades) - len(first)
        self.peak_e_value = max(self.peak_e_value, self.e_value)
