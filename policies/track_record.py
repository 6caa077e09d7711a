"""A policy's live track record: profit factor and drawdown of its executed trades since its last reset.

Both the sentry's gates and the router's ladder judge a head by this fold, so it stands below both.

Profit factor = sum of gains / sum of losses of the trades' net returns; a trade's return is its net PnL (fees and
funding in) over the account's equity at entry. Drawdown = largest fall of the cumulated returns from their running
peak, in percent of that equity; the peak starts at 0 when the record is reset.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass
class TrackRecord:
    """Trades in the order in which they became final. Adding is O(1); a revision refolds the list."""

    trade_ids: dict[str, int] = field(default_factory=dict)
    returns: list[float] = field(default_factory=list)
    gain: float = 0.0
    loss: float = 0.0
    gain_squares: float = 0.0
    loss_squares: float = 0.0
    wins: int = 0
    max_drawdown_percent: float = 0.0
    _total: float = 0.0
    _peak: float = 0.0

    @property
    def trades(self) -> int:
        return len(self.returns)

    @property
    def losses(self) -> int:
        return self.trades - self.wins

    @property
    def profit_factor(self) -> float:
        """gain / loss; infinite with gains and no loss, NaN with neither."""
        if self.loss > 0:
            return self.gain / self.loss
        return math.inf if self.gain > 0 else math.nan

    def record(self, trade_id: str, net_return: float) -> None:
        """Add a trade, or replace the one of that id in its place (a revision of its outcome)."""
        if not math.isfinite(net_return):
            raise ValueError(f"net_return of {trade_id} must be finite, got {net_return}")
        place = self.trade_ids.get(trade_id)
        if place is None:
            self.trade_ids[trade_id] = len(self.returns)
            self.returns.append(net_return)
            self._add(net_return)
            return
        self.returns[place] = net_return
        self._refold()

    def reset(self) -> None:
        """Forget all trades: after a throttle, a halt or a resume."""
        self.__init__()  # type: ignore[misc]

    def _refold(self) -> None:
        returns, ids = self.returns, self.trade_ids
        self.__init__()  # type: ignore[misc]
        self.returns, self.trade_ids = returns, ids
        for net_return in returns:
            self._add(net_return)

    def _add(self, net_return: float) -> None:
        if net_return > 0:
            self.gain += net_return
            self.gain_squares += net_return * net_return
            self.wins += 1
        else:
            self.loss -= net_return
            self.loss_squares += net_return * net_return
        self._total += net_return
        self._peak = max(self._peak, self._total)
        self.max_drawdown_percent = max(self.max_drawdown_percent, 100.0 * (self._peak - self._total))
