"""Are worthless policies promoted? Heads without an edge, routed for thousands of trades, looked at after each.

    python -m ci.experiments.zero_edge --seeds 40 --home var

The market is a random walk of three symbols with correlation 0.8, so whatever a head does there earns nothing: a
bracket trade in it is a stopped martingale, with a mean of exactly 0 before costs. Heads differ in their brackets,
because a near target with a far stop wins often and a far target with a near stop wins much, and a careless test is
fooled by one or the other. Two questions of the same heads:

alone   each head makes 3,000 trades of its own and the ladder is looked at after each of them;
routed  roles are drawn each epoch, gates throttle, an operator resumes a day later, and only executed trades count,
        until the heads have executed 3,000 together.

The peer is who promotes at the first sight of a profit factor of 1.5, on the very same trades.
"""

from __future__ import annotations

import argparse
import heapq
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from policies.keyed_random import generator
from policies.track_record import TrackRecord
from policies.types import Judgement
from router.evidence import Evidence, EvidenceSettings
from router.ladder import climbed, is_green_lit
from router.posteriors import posterior_of
from router.thompson import Candidate, EpochRoles, draw_roles, role_of

BAR_MS = 60_000
SYMBOLS = 3
STRATEGIES = 2  # slots a symbol: trades of one symbol overlap
CORRELATION = 0.8
BAR_SD = 0.0015
BAR_LIMIT = 0.02  # bar returns are cut at both sides alike: the mean stays 0 and no margin is ever lost whole
LEVERAGE = 10.0
RISK_PER_TRADE = 0.002
BRACKETS = ((0.006, 0.012), (0.012, 0.006), (0.008, 0.008), (0.020, 0.004))  # target, stop; one head each
DIRECTION_BARS = 60  # a head keeps its mind that long, so its trades lose and win together
EPOCH_BARS = 15
RESUME_BARS = 1_440
PEER_PROFIT_FACTOR, PEER_MIN_TRADES = 1.5, 30

Gate = Callable[[TrackRecord], Judgement]


@dataclass(frozen=True)
class Case:
    """One truth. cost: fees of a trade over its notional; 0 is exactly break-even. horizon_bars: life of a trade."""

    name: str
    heavy_tails: bool
    horizon_bars: int
    cost: float


CASES = (
    Case("break-even, normal trades, 10 bars", False, 10, 0.0),
    Case("break-even, heavy-tailed trades, 30 bars", True, 30, 0.0),
    Case("zero edge before costs, heavy-tailed trades, 30 bars", True, 30, 0.0005),
)


@dataclass(frozen=True)
class Trade:
    """entry_bar, exit_bar: filled at the close of these bars. return_on_margin: net of costs."""

    entry_bar: int
    exit_bar: int
    return_on_margin: float


class Market:
    """Bar returns of all symbols, and what a bracket earns on them. Grows as it is asked, the same for a seed."""

    def __init__(self, case: Case, seed: int) -> None:
        self.case = case
        self._rng = generator(seed, "market", case.name)
        self._returns: NDArray[np.float64] = np.empty((0, SYMBOLS))
        self._mind: NDArray[np.int64] = np.empty((0, len(BRACKETS), SYMBOLS), dtype=np.int64)

    def trade(self, head: int, symbol: int, bar: int) -> Trade:
        """Enter at the close of `bar`; leave at the first close beyond target or stop, else at the horizon."""
        while bar + self.case.horizon_bars >= len(self._returns):
            self._grow()
        target, stop = BRACKETS[head]
        sign = self._mind[bar // DIRECTION_BARS, head, symbol]
        path = sign * self._returns[bar + 1:bar + 1 + self.case.horizon_bars, symbol].cumsum()
        hit = (path >= target) | (path <= -stop)
        last = int(hit.argmax()) if hit.any() else len(path) - 1
        return Trade(bar, bar + 1 + last, float(LEVERAGE * (path[last] - self.case.cost)))

    def _grow(self, bars: int = 100 * DIRECTION_BARS) -> None:
        def draw(*shape: int) -> NDArray[np.float64]:
            if self.case.heavy_tails:  # Student t with 3 degrees of freedom, variance 1
                return self._rng.standard_t(3, shape) / np.sqrt(3)
            return self._rng.standard_normal(shape)

        together, apart = draw(bars, 1), draw(bars, SYMBOLS)
        returns = BAR_SD * (np.sqrt(CORRELATION) * together + np.sqrt(1 - CORRELATION) * apart)
        self._returns = np.concatenate([self._returns, returns.clip(-BAR_LIMIT, BAR_LIMIT)])
        mind = 2 * self._rng.integers(0, 2, (bars // DIRECTION_BARS, len(BRACKETS), SYMBOLS)) - 1
        self._mind = np.concatenate([self._mind, mind])


class HeadLife:
    """One head's record, evidence and green light, looked at after every trade."""

    def __init__(self, head: int, case: Case) -> None:
        self.head, self.policy_id = head, f"head-{head}"
        self.record, self.evidence = TrackRecord(), Evidence(EvidenceSettings(horizon_ms=case.horizon_bars * BAR_MS))
        self.standing, self.resumes_at_bar = Judgement.APPROVE, 0
        self.green_lit = self.ever_green_lit = self.peer_ever_promoted = False
        self.trades = 0
        self._all_time = TrackRecord()
        self._size = RISK_PER_TRADE / (LEVERAGE * BRACKETS[head][1])

    def close(self, trade: Trade) -> None:
        """Fold a trade that ended."""
        self.trades += 1
        trade_id = f"{self.head}-{self.trades:05d}"
        self.evidence.advance(trade.exit_bar * BAR_MS)
        self.evidence.observe(trade_id, trade.entry_bar * BAR_MS, trade.exit_bar * BAR_MS, trade.return_on_margin)
        for record in (self.record, self._all_time):
            record.record(trade_id, self._size * trade.return_on_margin)
        seen_enough = self._all_time.trades >= PEER_MIN_TRADES
        self.peer_ever_promoted |= seen_enough and self._all_time.profit_factor >= PEER_PROFIT_FACTOR

    def look(self, another_green_lit: bool = False) -> None:
        self.green_lit = is_green_lit(self.record, self.evidence, self.green_lit, another_green_lit)
        self.ever_green_lit |= self.green_lit


def profit_factor_gate(record: TrackRecord) -> Judgement:
    """Throttle under PF 1.5 from the hundredth trade on."""
    throttled = record.trades >= 100 and not record.profit_factor >= 1.5
    return Judgement.THROTTLE if throttled else Judgement.APPROVE


def live_alone(case: Case, seed: int, trades: int) -> list[HeadLife]:
    """Every head makes `trades` trades in its own slots, in the order in which they end."""
    market = Market(case, seed)
    lives = [HeadLife(head, case) for head in range(len(BRACKETS))]
    for life in lives:
        first = [(market.trade(life.head, slot % SYMBOLS, 0), slot) for slot in range(SYMBOLS * STRATEGIES)]
        queue = [(trade.exit_bar, slot, trade) for trade, slot in first]
        heapq.heapify(queue)
        while life.trades < trades:
            bar, slot, trade = queue[0]
            life.close(trade)
            life.look()
            following = market.trade(life.head, slot % SYMBOLS, bar)
            heapq.heapreplace(queue, (following.exit_bar, slot, following))
    return lives


class RoutedBook:
    """One account, routed: decisions in free slots, roles by epoch, gates after each trade, resumes a day later."""

    def __init__(self, case: Case, seed: int, gate: Gate = profit_factor_gate) -> None:
        self.seed, self.gate = seed, gate
        self.market = Market(case, seed)
        self.lives = {f"head-{head}": HeadLife(head, case) for head in range(len(BRACKETS))}
        self.epoch = 0
        self.decisions = 0
        self.roles = self._draw()

    def run(self, trades: int) -> list[HeadLife]:
        """Until the heads have executed `trades` together. What the LLM does alone keeps its slot for one horizon."""
        queue = [(slot, slot, "", Trade(0, 0, 0.0)) for slot in range(SYMBOLS * STRATEGIES)]  # free at bar, slot, who
        next_epoch_bar = EPOCH_BARS
        while sum(life.trades for life in self.lives.values()) < trades:
            bar, slot, policy_id, trade = heapq.heappop(queue)
            due = bar >= next_epoch_bar
            due |= bool(policy_id) and self._judge(self.lives[policy_id], trade)
            due |= self._resume(bar)
            if due:
                self.epoch += 1
                next_epoch_bar = bar + EPOCH_BARS
                self.roles = self._draw()
            heapq.heappush(queue, self._decide(bar, slot))
        return list(self.lives.values())

    def _decide(self, bar: int, slot: int) -> tuple[int, int, str, Trade]:
        self.decisions += 1
        chosen = role_of(f"decision-{self.decisions}", self.seed, self.roles).policy_id
        life = self.lives.get(chosen)
        if life is None:
            return bar + self.market.case.horizon_bars, slot, "", Trade(bar, bar, 0.0)
        trade = self.market.trade(life.head, slot % SYMBOLS, bar)
        return trade.exit_bar, slot, chosen, trade

    def _judge(self, life: HeadLife, trade: Trade) -> bool:
        """Fold the trade, look at the ladder, apply the gate; whether the gate fired."""
        life.close(trade)
        others = [other for other in self.lives.values() if other is not life]
        life.look(any(other.green_lit and climbed(other.record, other.evidence).green_lit for other in others))
        if life.standing is not Judgement.APPROVE or self.gate(life.record) is Judgement.APPROVE:
            return False
        life.standing, life.green_lit = Judgement.THROTTLE, False
        life.resumes_at_bar = trade.exit_bar + RESUME_BARS
        life.record.reset()
        return True

    def _resume(self, bar: int) -> bool:
        back = [life for life in self.lives.values()
                if life.standing is Judgement.THROTTLE and bar >= life.resumes_at_bar]
        for life in back:
            life.standing = Judgement.APPROVE
            life.record.reset()
        return bool(back)

    def _draw(self) -> EpochRoles:
        candidates = [Candidate(life.policy_id, posterior_of(life.record), life.green_lit, incumbent=life.head == 0,
                                standing=life.standing, registered_position=life.head)
                      for life in self.lives.values()]
        return draw_roles(candidates, self.seed, self.epoch)


def clopper_pearson(hits: int, of: int, level: float = 0.95) -> tuple[float, float]:
    """Exact confidence interval of a share, as fractions (Clopper and Pearson 1934)."""
    tail = (1 - level) / 2
    low = float(beta.ppf(tail, hits, of - hits + 1)) if hits > 0 else 0.0
    high = float(beta.isf(tail, hits + 1, of - hits)) if hits < of else 1.0
    return low, high


def share_row(work: str, hits: int, peer_hits: int, of: int, aim: float = 0.05) -> dict[str, Any]:
    """A report's row on a share that should be small; ratios above 1 are better than the peer.

    ratio_to_peer is None with no hits at all: nothing to divide by. floor_figure is the promised bound.
    """
    low, high = clopper_pearson(hits, of)
    figure, peer = hits / of, peer_hits / of
    return {"work": work, "figure": figure, "unit": "share of heads", "peer": "promoted at the first PF >= 1.5",
            "peer_figure": peer, "floor_figure": aim, "ratio_to_peer": peer / figure if hits else None,
            "ratio_to_floor": figure / aim, "aim": f"<= {aim:.0%}", "met": figure <= aim,
            "heads": of, "interval_95": [low, high]}


def rows_of(case: Case, seeds: Iterable[int], trades: int) -> list[dict[str, Any]]:
    alone: list[HeadLife] = []
    routed: list[HeadLife] = []
    for seed in seeds:
        alone += live_alone(case, seed, trades)
        routed += RoutedBook(case, seed).run(trades)
    title = "worthless policies are not promoted"
    peers = sum(life.peer_ever_promoted for life in alone)
    return [
        share_row(f"{title}: {case.name}, routed", sum(life.ever_green_lit for life in routed),
                  sum(life.peer_ever_promoted for life in routed), len(routed)),
        share_row(f"{title}: {case.name}, alone", sum(life.ever_green_lit for life in alone), peers, len(alone)),
        share_row(f"{title}: {case.name}, alone, evidence without the other rungs",
                  sum(life.evidence.believed for life in alone), peers, len(alone)),
    ]


def main(arguments: list[str] | None = None) -> int:
    """Run all cases, print them, write the report; 0 if every aim is met."""
    parser = argparse.ArgumentParser(description="Share of worthless heads that are ever green-lit")
    parser.add_argument("--seeds", type=int, default=40, help="books, each with four heads")
    parser.add_argument("--trades", type=int, default=3_000, help="of a head alone, and of a routed book")
    parser.add_argument("--home", type=Path, default=Path("var"), help="the report goes to HOME/reports")
    options = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    for case in CASES:
        for row in rows_of(case, range(options.seeds), options.trades):
            low, high = row["interval_95"]
            print(f"{row['work']}\n    {row['figure']:.1%} of {row['heads']} heads (95 %: {low:.1%} to {high:.1%}), "
                  f"peer {row['peer_figure']:.1%}, aim {row['aim']}: {'met' if row['met'] else 'NOT met'}", flush=True)
            rows.append(row)
    report = {"rows": rows, "seeds": options.seeds, "trades": options.trades, "cases": [asdict(case) for case in CASES]}
    path = options.home / "reports" / "zero_edge.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    return 0 if all(row["met"] for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
