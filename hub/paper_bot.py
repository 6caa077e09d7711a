"""A bot that trades recorded bars on paper and asks the hub as a live bot would: the example to copy.

At the close of each bar, in this order:

1. step the open trades with the bar; report each that ended, with the account's value after it (`HubClient.report`);
2. ask for a decision in each slot (symbol, strategy) that is free, with what the LLM thinks (`HubClient.decide`);
3. open what was decided; it fills at the next bar's open.

Nothing of a bar is used before its close. A live bot has a websocket for `Bars`, an LLM for `LlmStub` and an exchange
for `BracketTrade`; its talk with the hub is the one here.

    python -m hub.paper_bot --url http://127.0.0.1:8000 --token-file var/tokens.json --market generated
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np

from feature_repo.market import KINDS, choose_market, symbols_in
from hub.client import Advice, Delivery, HubClient, OwnTrade
from hub.llm_stub import LlmStub, LlmStubSettings
from policies.bars import Bars
from policies.errors import HubError, InvalidInput
from policies.fills import Bar, BracketTrade, ClosedTrade, Costs, bar_at
from policies.types import Action, Direction, LlmView

LLM_HISTORY_BARS = 240  # closes shown to the LLM

Progress = Callable[[int, int], None]  # bars done, bars to do


class Slot(NamedTuple):
    symbol: str
    strategy: str


@dataclass(frozen=True)
class BotReport:
    """What a run came to. Money in USD, drawdown in percent of the account's peak value, latencies as the bot saw them.

    decisions: asked; acted: of them executed by a policy of the hub; by_policy, by_role: all, by alias and by role.
    trades: closed and filled; not_filled: limit entries that the market did not reach. open_trades: at the end, in
    `equity` but not in `net_pnl`. degraded: "part: reason" and how often. latency_ms: p50, p95, p99; None if not asked.
    undelivered, refused: outcomes that still wait in the outbox, and that the hub refused for good.
    """

    bars: int
    decisions: int
    acted: int
    trades: int
    not_filled: int
    open_trades: int
    net_pnl: float
    equity: float
    max_drawdown_percent: float
    by_policy: Mapping[str, int]
    by_role: Mapping[str, int]
    net_pnl_by_policy: Mapping[str, float]
    degraded: Mapping[str, int]
    latency_ms: Mapping[str, float | None]
    verdicts: Sequence[Mapping[str, Any]]
    undelivered: int
    refused: int
    wall_s: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class OpenTrade:
    """A trade under way. own: set if the hub knows no decision for it. notional: USD at entry."""

    trade: BracketTrade
    decision_id: str
    policy: str
    own: OwnTrade | None
    notional: float
    entry_price: float | None = None

    def step(self, bar: Bar) -> ClosedTrade | None:
        if self.entry_price is None:
            self.entry_price = bar.open
        return self.trade.step(bar)

    def unrealised_pnl(self, price: float) -> float:
        """USD at `price`, fees left out; 0 before the entry."""
        if self.entry_price is None:
            return 0.0
        return self.trade.action.direction.sign * (price / self.entry_price - 1.0) * self.notional


@dataclass
class Account:
    """cash: what closed trades left, USD. prices: last close by symbol. Value = cash + unrealised PnL."""

    cash: float
    open_trades: dict[Slot, OpenTrade] = field(default_factory=dict)
    prices: dict[str, float] = field(default_factory=dict)
    peak: float = 0.0
    max_drawdown_percent: float = 0.0

    @property
    def unrealised_pnl(self) -> float:
        return sum(trade.unrealised_pnl(self.prices[slot.symbol]) for slot, trade in self.open_trades.items())

    @property
    def value(self) -> float:
        return self.cash + self.unrealised_pnl

    @property
    def leverage(self) -> float:
        """Gross notional at entry over the account's value."""
        return sum(trade.notional for trade in self.open_trades.values()) / self.value

    def note_value(self) -> None:
        self.peak = max(self.peak, self.value)
        self.max_drawdown_percent = max(self.max_drawdown_percent, 100.0 * (1.0 - self.value / self.peak))


@dataclass
class Tally:
    """Counts of a run under way."""

    by_policy: Counter[str] = field(default_factory=Counter)
    by_role: Counter[str] = field(default_factory=Counter)
    degraded: Counter[str] = field(default_factory=Counter)
    net_pnl_by_policy: dict[str, float] = field(default_factory=dict)
    latencies_ms: list[float] = field(default_factory=list)
    verdicts: list[Mapping[str, Any]] = field(default_factory=list)
    bars: int = 0
    acted: int = 0
    trades: int = 0
    not_filled: int = 0
    refused: int = 0
    undelivered: int = 0
    wall_s: float = 0.0

    def count_advice(self, advice: Advice) -> None:
        self.by_policy[advice.policy] += 1
        self.by_role[advice.role] += 1
        self.degraded.update(f"{d.part}: {d.reason}" for d in advice.degraded)
        self.latencies_ms.append(advice.latency_ms)
        self.acted += advice.acts

    def count_closed(self, policy: str, closed: ClosedTrade) -> None:
        if closed.exit_reason == "not_filled":
            self.not_filled += 1
            return
        self.trades += 1
        self.net_pnl_by_policy[policy] = self.net_pnl_by_policy.get(policy, 0.0) + closed.net_pnl

    def count_delivery(self, delivery: Delivery) -> None:
        self.verdicts += delivery.verdicts
        self.refused += delivery.refused
        self.undelivered = delivery.pending


class PaperBot:
    """One account over the bars of several symbols of the same interval, one open trade per slot."""

    def __init__(self, client: HubClient, bars: Mapping[str, Bars], strategies: Sequence[str], llm: LlmStub,
                 equity: float = 10_000.0, costs: Costs | None = None, concurrency: int = 4,
                 run_id: str = "paper") -> None:
        """equity: USD at the start. concurrency: decisions asked at once. run_id: opens the request ids, so that the
        same run asked again gets the recorded answers and another run gets new ones.
        """
        intervals = {b.interval_ms for b in bars.values()}
        if len(intervals) != 1:
            raise InvalidInput("bars", "of at least one symbol, all of one interval", sorted(intervals))
        self.client, self.bars, self.llm, self.costs = client, dict(bars), llm, costs or Costs()
        self.slots = [Slot(symbol, strategy) for symbol in bars for strategy in strategies]
        self.interval_ms = intervals.pop()
        self.concurrency, self.run_id = concurrency, run_id
        self.account = Account(cash=equity)
        self._tally = Tally()

    def run(self, start_ms: int, stop_ms: int, progress: Progress | None = None) -> BotReport:
        """Trade the bars that close in [start_ms, stop_ms). Trades still open at the end stay open, in the account.

        Called again with later bars it goes on with the same account; the report is of all that it has done.
        """
        started = time.perf_counter()
        tally = self._tally
        closes = self._closes_between(start_ms, stop_ms)
        with ThreadPoolExecutor(self.concurrency, "paper-bot") as pool:
            for close_ms in closes:
                now = self._bars_closing_at(close_ms)
                self._step_trades(now, tally)
                self._open_trades(close_ms, self._ask(now, close_ms, tally, pool))
                self.account.note_value()
                tally.bars += 1
                if progress is not None:
                    progress(tally.bars, len(closes))
        tally.count_delivery(self.client.flush(within_s=5.0))
        tally.wall_s += time.perf_counter() - started
        return self._report(tally)

    def _closes_between(self, start_ms: int, stop_ms: int) -> list[int]:
        closes = np.unique(np.concatenate([b.close_time_ms for b in self.bars.values()]))
        return [int(t) for t in closes[(closes >= start_ms) & (closes < stop_ms)]]

    def _bars_closing_at(self, close_ms: int) -> dict[str, int]:
        """By symbol, the index of its bar that closes now; symbols with a gap here are missing."""
        now = {}
        for symbol, bars in self.bars.items():
            index = int(np.searchsorted(bars.open_time_ms, close_ms - self.interval_ms))
            if index < len(bars) and bars.open_time_ms[index] == close_ms - self.interval_ms:
                now[symbol] = index
                self.account.prices[symbol] = float(bars.close[index])
        return now

    def _step_trades(self, now: Mapping[str, int], tally: Tally) -> None:
        for slot in [s for s in self.slots if s in self.account.open_trades and s.symbol in now]:
            trade = self.account.open_trades[slot]
            closed = trade.step(bar_at(self.bars[slot.symbol], now[slot.symbol]))
            if closed is None:
                continue
            del self.account.open_trades[slot]
            self.account.cash += closed.net_pnl
            tally.count_closed(trade.policy, closed)
            outcome = closed.outcome(trade.decision_id, equity=max(0.0, self.account.value))
            if closed.exit_reason == "not_filled":  # reported with the size of the order: it frees the slot at the hub
                outcome = replace(outcome, size=trade.notional / closed.entry_price)
            tally.count_delivery(self.client.report(outcome, trade.own))

    def _ask(self, now: Mapping[str, int], close_ms: int, tally: Tally, pool: Executor) -> dict[Slot, Advice]:
        """The hub's advice for every free slot, all asked with the account as it stands now; none once it is ruined."""
        account = self.account
        free = [s for s in self.slots if s.symbol in now and s not in account.open_trades and account.value > 0]

        def ask(slot: Slot) -> Advice:
            return self.client.decide(
                slot.symbol, slot.strategy, account.value, self._llm_view(slot, now[slot.symbol], close_ms),
                time_ms=close_ms, request_id=f"{self.run_id}-{slot.symbol}-{slot.strategy}-{close_ms}",
                current_leverage=account.leverage, unrealised_pnl=account.unrealised_pnl)

        advices = dict(zip(free, pool.map(ask, free), strict=True))
        for advice in advices.values():
            tally.count_advice(advice)
        return advices

    def _llm_view(self, slot: Slot, index: int, close_ms: int) -> LlmView:
        closes = self.bars[slot.symbol].close[max(0, index + 1 - LLM_HISTORY_BARS):index + 1]
        return self.llm.view(slot.symbol, slot.strategy, closes, close_ms)

    def _open_trades(self, close_ms: int, advices: Mapping[Slot, Advice]) -> None:
        value = self.account.value
        for slot, advice in advices.items():
            action, horizon_s = self._chosen(advice)
            notional = action.size_fraction * action.leverage * value
            if action.direction is Direction.FLAT or notional == 0.0:
                continue
            own = None if advice.decision_id else OwnTrade(slot.symbol, slot.strategy, action.direction)
            trade = BracketTrade(action, close_ms, self.account.prices[slot.symbol], value,
                                 max(1, horizon_s * 1000 // self.interval_ms), self.interval_ms, self.costs)
            self.account.open_trades[slot] = OpenTrade(
                trade, advice.decision_id or f"own-{advice.request_id}", advice.policy, own, notional)

    def _chosen(self, advice: Advice) -> tuple[Action, int]:
        """The action to take and its horizon in seconds: the hub's if it acts, else what the LLM does by itself."""
        assert advice.action is not None  # this bot always passes the view of its LLM
        if advice.acts:
            return advice.action, advice.horizon_s or self.llm.settings.horizon_s
        return self.llm.decides_alone(advice.action), self.llm.settings.horizon_s

    def _report(self, tally: Tally) -> BotReport:
        latencies = tally.latencies_ms
        return BotReport(
            bars=tally.bars, decisions=len(latencies), acted=tally.acted, trades=tally.trades,
            not_filled=tally.not_filled, open_trades=len(self.account.open_trades),
            net_pnl=sum(tally.net_pnl_by_policy.values()), equity=self.account.value,
            max_drawdown_percent=self.account.max_drawdown_percent,
            by_policy=dict(sorted(tally.by_policy.items())), by_role=dict(sorted(tally.by_role.items())),
            net_pnl_by_policy=dict(sorted(tally.net_pnl_by_policy.items())),
            degraded=dict(tally.degraded.most_common()),
            latency_ms={f"p{q}": float(np.percentile(latencies, q)) if latencies else None for q in (50, 95, 99)},
            verdicts=tuple(tally.verdicts), undelivered=tally.undelivered, refused=tally.refused, wall_s=tally.wall_s)


@click.command()
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="Where the hub answers.")
@click.option("--token-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True,
              help="tokens.json of the hub; its `bot` token is used.")
@click.option("--market", type=click.Choice(["auto", *KINDS]), default="auto", show_default=True)
@click.option("--data-dir", envvar="HUB_DATA_DIR", help="Recorded bars, for the market `files`.")
@click.option("--market-seed", default=7, show_default=True, help="Of the generated market: the hub's own.")
@click.option("--symbols", default="BTC,ETH,SOL", show_default=True)
@click.option("--strategies", default="momentum", show_default=True)
@click.option("--bars", "bar_count", default=1_440, show_default=True, help="How many of the newest bars to trade.")
@click.option("--stop-ms", type=int, help="Trade the bars that close before this time instead of the newest.")
@click.option("--equity", default=10_000.0, show_default=True, help="USD.")
@click.option("--seed", default=0, show_default=True, help="Of the LLM's stand-in.")
@click.option("--llm-trades", is_flag=True, help="The LLM's stand-in trades when the hub leaves the decision to it.")
@click.option("--concurrency", type=click.IntRange(1, 64), default=4, show_default=True)
@click.option("--timeout-ms", type=click.IntRange(1), default=1_000, show_default=True, help="Of one decision.")
@click.option("--run-id", default="paper", show_default=True, help="Opens the request ids.")
@click.option("--outbox", type=click.Path(dir_okay=False, path_type=Path), default=Path("var/paper_bot_outbox.sqlite"),
              show_default=True)
def main(url: str, token_file: Path, market: str, data_dir: str | None, market_seed: int, symbols: str, strategies: str,
         bar_count: int, stop_ms: int | None, equity: float, seed: int, llm_trades: bool, concurrency: int,
         timeout_ms: int, run_id: str, outbox: Path) -> None:
    """Trade recorded bars on paper with the hub's advice and print what came of it as JSON."""
    names = symbols_in(symbols)
    try:
        chosen = choose_market(data_dir, None if market == "auto" else market, symbols=names, seed=market_seed)
        bars = {symbol: chosen.bars(symbol, None, stop_ms) for symbol in names}
        token = json.loads(token_file.read_text())["bot"]
        with HubClient(url, token, outbox, timeout_ms / 1000.0) as client:
            bot = PaperBot(client, bars, strategies.split(","), LlmStub(seed, LlmStubSettings(trades=llm_trades)),
                           equity, concurrency=concurrency, run_id=run_id)
            closes = common_closes(bars)[-bar_count:]
            click.echo(chosen.describe(), err=True)
            with click.progressbar(length=len(closes), label="bars", file=sys.stderr) as line:
                report = bot.run(closes[0], closes[-1] + 1, lambda done, total: line.update(1))
    except HubError as error:
        raise click.ClickException(str(error)) from None
    click.echo(json.dumps(report.to_dict(), indent=2))


def common_closes(bars: Mapping[str, Bars]) -> list[int]:
    """The times at which a bar of every symbol closes, oldest first; InvalidInput if there are none."""
    closes = set.intersection(*(set(b.close_time_ms.tolist()) for b in bars.values()))
    if not closes:
        raise InvalidInput("symbols", "ones with bars at the same times", ", ".join(bars))
    return sorted(closes)


if __name__ == "__main__":
    main()
