"""The gates: thresholds that take traffic away from a policy, or stop all new risk of the book.

`judge` is pure. `Gates` is the fold that remembers, by policy, how fast it answered and which judgement stands;
`BookBreaker` is the fold over the equity that the bot reports. Neither acts: `due` says which verdict the ledger should
hold, and the verdict's row, once recorded, comes back through `apply` or `trip`.

Every comparison is written so that NaN fails it: what cannot be judged is not approved.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le

from policies.track_record import TrackRecord
from policies.types import Judgement

# Names of the rules, as verdicts and the audit show them.
DRAWDOWN = "drawdown_percent"
PROFIT_FACTOR = "profit_factor"
LATENCY = "latency_p95_ms"
BOOK_DRAWDOWN = "book_drawdown_percent"
WITHIN_LIMITS = "within_limits"


@dataclass(frozen=True)
class GateSettings:
    """Drawdowns in percent of equity, latencies in milliseconds, windows in asks."""

    halt_drawdown_percent: Annotated[float, Gt(0), Le(100)] = 4.0
    throttle_profit_factor: Annotated[float, Gt(0), Le(100)] = 1.5
    throttle_min_trades: Annotated[int, Ge(1)] = 100
    reduce_latency_p95_ms: Annotated[float, Gt(0), Le(60_000)] = 250.0
    latency_window: Annotated[int, Ge(1), Le(100_000)] = 100
    latency_min_asks: Annotated[int, Ge(1), Le(100_000)] = 50
    book_drawdown_percent: Annotated[float, Gt(0), Le(100)] = 5.0


@dataclass(frozen=True)
class Finding:
    """figure: what the rule looked at, in the rule's unit; None if it is infinite or unknown, which JSON cannot say."""

    judgement: Judgement
    rule: str
    figure: float | None
    limit: float | None


def judge(record: TrackRecord, latency_p95_ms: float | None, settings: GateSettings) -> Finding:
    """The most severe gate that a track record and a latency call for.

    latency_p95_ms None: too few asks to tell. A head without trades is approved, as far as its latency is.
    """
    if record.trades == 0:
        return judge_figures(0.0, math.inf, 0, latency_p95_ms, settings)
    return judge_figures(record.max_drawdown_percent, record.profit_factor, record.trades, latency_p95_ms, settings)


def judge_figures(drawdown_percent: float, profit_factor: float, trades: float, latency_p95_ms: float | None,
                  settings: GateSettings) -> Finding:
    """`judge` on bare figures. NaN where a figure is unknown: its gate then closes."""
    if not drawdown_percent <= settings.halt_drawdown_percent:
        return _finding(Judgement.HALT, DRAWDOWN, drawdown_percent, settings.halt_drawdown_percent)
    if not (trades < settings.throttle_min_trades or profit_factor >= settings.throttle_profit_factor):
        return _finding(Judgement.THROTTLE, PROFIT_FACTOR, profit_factor, settings.throttle_profit_factor)
    if not (latency_p95_ms is None or latency_p95_ms <= settings.reduce_latency_p95_ms):
        return _finding(Judgement.REDUCE, LATENCY, latency_p95_ms, settings.reduce_latency_p95_ms)
    return Finding(Judgement.APPROVE, WITHIN_LIMITS, None, None)


class LatencyWindow:
    """The latencies of the last `size` asks, kept sorted beside their order, so that the percentile is exact."""

    def __init__(self, size: int, min_asks: int) -> None:
        self._size, self._min_asks = size, min_asks
        self._in_order: deque[float] = deque()
        self._sorted: list[float] = []

    def add(self, latency_ms: float | None) -> None:
        """None, NaN and negative values count as infinite: the answer did not come in time."""
        latency = latency_ms if latency_ms is not None and latency_ms >= 0 else math.inf
        self._in_order.append(latency)
        insort(self._sorted, latency)
        if len(self._in_order) > self._size:
            del self._sorted[bisect_left(self._sorted, self._in_order.popleft())]

    def p95(self) -> float | None:
        """The nearest-rank percentile: the smallest latency that 95 % of the asks do not exceed. None: too few asks."""
        asks = len(self._sorted)
        return self._sorted[math.ceil(0.95 * asks) - 1] if asks >= min(self._min_asks, self._size) else None

    @property
    def full(self) -> bool:
        return len(self._in_order) == self._size


class Gates:
    """By policy: its window of latencies and its standing judgement.

    A standing only worsens by itself, with one exception: a reduction for latency ends when the p95 over a whole
    window of asks since then is back within the limit. Throttle and halt stay until `lift`.
    """

    def __init__(self, settings: GateSettings) -> None:
        self._settings = settings
        self._windows: dict[str, LatencyWindow] = {}
        self._standing: dict[str, tuple[Judgement, str]] = {}

    def reconfigure(self, settings: GateSettings) -> None:
        """Judge by these settings from here on. Standings stay; windows begin anew if their size changes."""
        if ((settings.latency_window, settings.latency_min_asks)
                != (self._settings.latency_window, self._settings.latency_min_asks)):
            self._windows.clear()
        self._settings = settings

    def observe_latency(self, policy_id: str, latency_ms: float | None) -> None:
        """One ask of a policy. None: it missed its deadline."""
        window = self._windows.get(policy_id)
        if window is None:
            settings = self._settings
            window = self._windows[policy_id] = LatencyWindow(settings.latency_window, settings.latency_min_asks)
        window.add(latency_ms)

    def latency_p95_ms(self, policy_id: str) -> float | None:
        window = self._windows.get(policy_id)
        return None if window is None else window.p95()

    def standing(self, policy_id: str) -> Judgement:
        return self._standing.get(policy_id, (Judgement.APPROVE, ""))[0]

    def due(self, policy_id: str, record: TrackRecord) -> Finding | None:
        """The verdict that the ledger should hold now, if the standing must change."""
        standing, rule = self._standing.get(policy_id, (Judgement.APPROVE, ""))
        p95 = self.latency_p95_ms(policy_id)
        finding = judge(record, p95, self._settings)
        if finding.judgement.severity > standing.severity:
            return finding
        if ((standing, rule) == (Judgement.REDUCE, LATENCY) and finding.judgement is Judgement.APPROVE
                and self._windows[policy_id].full):
            return _finding(Judgement.APPROVE, LATENCY, p95, self._settings.reduce_latency_p95_ms)
        return None

    def apply(self, policy_id: str, judgement: Judgement, rule: str = LATENCY) -> None:
        """A verdict was recorded. A reduction by another rule than the latency's is not taken back by latencies."""
        self._standing[policy_id] = (judgement, rule)
        if judgement is Judgement.REDUCE:
            # What follows is judged by asks from here on, and the policy is measured in full before it may return.
            settings = self._settings
            self._windows[policy_id] = LatencyWindow(settings.latency_window, settings.latency_min_asks)

    def lift(self, policy_id: str) -> None:
        """An operator lets the policy begin anew: approved, nothing measured yet."""
        self._standing.pop(policy_id, None)
        self._windows.pop(policy_id, None)


class BookBreaker:
    """The whole account's breaker: trips when its equity has fallen from its peak by the limit, until it is lifted.

    An equity of NaN, of 0 or below trips it. peak_equity and equity are in USD, 0 before the first report.
    """

    def __init__(self, settings: GateSettings) -> None:
        self._settings = settings
        self.peak_equity = 0.0
        self.equity = 0.0
        self.tripped = False
        self._recorded = False

    def reconfigure(self, settings: GateSettings) -> None:
        self._settings = settings

    @property
    def drawdown_percent(self) -> float:
        """The present fall from the peak, in percent of the peak; 0 before the first report."""
        if self.peak_equity == 0.0 == self.equity:
            return 0.0
        return 100.0 * (self.peak_equity - self.equity) / self.peak_equity if self.peak_equity > 0 else math.nan

    def observe(self, equity: float) -> None:
        """Account value as reported with a decision or an outcome, in the order of the ledger."""
        self.tripped = self.forbids(equity)
        self.equity = equity
        if equity > self.peak_equity:
            self.peak_equity = equity

    def forbids(self, equity: float) -> bool:
        """Whether new risk is forbidden to an account of this value: the breaker has tripped, or this would trip it."""
        peak = max(self.peak_equity, equity)
        fall_percent = 100.0 * (peak - equity) / peak if peak > 0 else math.nan
        return self.tripped or not (equity > 0 and fall_percent < self._settings.book_drawdown_percent)

    @property
    def due(self) -> bool:
        """Whether it has tripped and no verdict says so yet."""
        return self.tripped and not self._recorded

    def finding(self) -> Finding:
        return _finding(Judgement.HALT, BOOK_DRAWDOWN, self.drawdown_percent, self._settings.book_drawdown_percent)

    def trip(self) -> None:
        """A verdict on the book was recorded, by this rule or by an operator."""
        self.tripped = self._recorded = True

    def lift(self) -> None:
        """An operator's resume: the peak begins anew at the present equity."""
        self.tripped = self._recorded = False
        self.peak_equity = self.equity if self.equity > 0 else 0.0


def _finding(judgement: Judgement, rule: str, figure: float | None, limit: float) -> Finding:
    return Finding(judgement, rule, figure if figure is not None and math.isfinite(figure) else None, limit)
