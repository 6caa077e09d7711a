"""The paper bot against a hub made of one function."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from hub.client import Advice, Degraded, Delivery, OwnTrade
from hub.llm_stub import LlmStub, LlmStubSettings
from hub.paper_bot import PaperBot, common_closes, main
from policies.bars import Bars
from policies.errors import InvalidInput
from policies.fills import BracketTrade, ClosedTrade, bar_at
from policies.types import Action, Direction, LlmView, Outcome

MINUTE = 60_000
LONG = Action(Direction.LONG, 0.1, 5.0, 0.004, 0.004)
FLAT = LONG.flat()


def random_bars(symbol: str = "BTC", count: int = 200, seed: int = 1, start_ms: int = 0) -> Bars:
    rng = np.random.default_rng(seed)
    closes = 100.0 * np.exp(np.cumsum(rng.normal(0.0, 0.002, count)))
    opens = np.concatenate([[100.0], closes[:-1]])
    wick = 1.0 + np.abs(rng.normal(0.0, 0.001, count))
    return Bars(symbol, MINUTE, start_ms + MINUTE * np.arange(count), opens, np.maximum(opens, closes) * wick,
                np.minimum(opens, closes) / wick, closes, np.ones(count)).check()


class FakeClient:
    """Answers with a function of the request and remembers, in order, everything it was told and asked."""

    def __init__(self, advise: Callable[[dict[str, Any]], Advice]) -> None:
        self.advise = advise
        self.log: list[tuple[str, Any]] = []
        self.own: list[OwnTrade | None] = []

    def decide(self, symbol: str, strategy: str, equity: float, llm_view: LlmView | None = None,
               **rest: Any) -> Advice:
        request = {"symbol": symbol, "strategy": strategy, "equity": equity, "llm": llm_view, **rest}
        self.log.append(("decide", request))
        return self.advise(request)

    def report(self, outcome: Outcome, own_trade: OwnTrade | None = None) -> Delivery:
        self.log.append(("report", outcome))
        self.own.append(own_trade)
        return Delivery(delivered=1, verdicts=({"judgement": "approve"},))

    def flush(self, within_s: float = 0.0) -> Delivery:
        return Delivery(pending=2)

    @property
    def requests(self) -> list[dict[str, Any]]:
        return [what for kind, what in self.log if kind == "decide"]

    @property
    def outcomes(self) -> list[Outcome]:
        return [what for kind, what in self.log if kind == "report"]


def hub_says(action: Action, **changes: Any) -> Callable[[dict[str, Any]], Advice]:
    def advise(request: dict[str, Any]) -> Advice:
        values = {"decision_id": f"d-{request['request_id']}", "policy_id": "p1", "policy": "tabnet_v1",
                  "role": "production", "acts": True, "horizon_s": 600, "latency_ms": 3.0}
        return Advice(request["request_id"], action, **values | changes)

    return advise


def hub_is_away(request: dict[str, Any]) -> Advice:
    return Advice(request["request_id"], request["llm"].action, degraded=(Degraded("hub", "ConnectError"),))


def bot_on(client: FakeClient, bars: dict[str, Bars], llm: LlmStub | None = None, **changes: Any) -> PaperBot:
    settings = {"strategies": ["momentum"], "concurrency": 1} | changes
    return PaperBot(client, bars, llm=llm or LlmStub(), **settings)  # type: ignore[arg-type]


def always_long_llm(trades: bool) -> LlmStub:
    """Follows a rising market without noise."""
    return LlmStub(0, LlmStubSettings(lookback_bars=1, flat_below=0.0, noise=0.0, trades=trades))


def trades_by_hand(bars: Bars, equity: float) -> list[ClosedTrade]:
    """One slot, always long, one trade after the other: what the bot must have done, without a bot."""
    closed, index = [], 0
    while index < len(bars):
        trade = BracketTrade(LONG, int(bars.close_time_ms[index]), float(bars.close[index]), equity, 10, MINUTE)
        while trade.result is None and index + 1 < len(bars):
            index += 1
            trade.step(bar_at(bars, index))
        if trade.result is None:
            break
        closed.append(trade.result)
        equity += trade.result.net_pnl
    return closed


def test_trades_are_those_of_the_market_engine_one_after_the_other() -> None:
    bars, client = random_bars(), FakeClient(hub_says(LONG))
    report = bot_on(client, {"BTC": bars}).run(0, 10**12)
    expected = trades_by_hand(bars, 10_000.0)
    assert len(expected) > 10
    assert [(o.entry_time_ms, o.exit_time_ms, o.entry_price, o.exit_price, o.exit_reason) for o in client.outcomes] == [
        (t.entry_time_ms, t.exit_time_ms, t.entry_price, t.exit_price, t.exit_reason) for t in expected]
    assert report.net_pnl == pytest.approx(sum(t.net_pnl for t in expected))
    assert report.trades == len(expected)
    equity = 10_000.0
    for outcome in client.outcomes:
        equity += outcome.net_pnl
        assert outcome.equity == pytest.approx(equity)


def test_no_trade_fills_before_the_decision_and_outcomes_come_before_the_next_question() -> None:
    client = FakeClient(hub_says(LONG))
    bot_on(client, {"BTC": random_bars()}).run(0, 10**12)
    asked_at = {f"d-{request['request_id']}": request["time_ms"] for request in client.requests}
    for outcome in client.outcomes:
        assert outcome.entry_time_ms >= asked_at[outcome.decision_id]
    order = [what["time_ms"] if kind == "decide" else what.exit_time_ms for kind, what in client.log]
    assert order == sorted(order)
    for (kind, what), (next_kind, next_what) in zip(client.log, client.log[1:], strict=False):
        if kind == "decide" and next_kind == "report":
            assert next_what.exit_time_ms > what["time_ms"]


def test_the_llm_sees_no_later_bar() -> None:
    bars = random_bars(count=80)
    altered = random_bars(count=80)
    altered.close[60:] *= 1.5
    altered.high[60:] *= 1.5
    views = []
    for series in (bars, altered):
        client = FakeClient(hub_says(FLAT))
        bot_on(client, {"BTC": series}).run(0, 60 * MINUTE + 1)
        views.append([request["llm"] for request in client.requests])
    assert len(views[0]) == 60
    assert views[0] == views[1]


def test_a_slot_holds_one_trade_and_the_others_go_on_being_asked() -> None:
    patient = Action(Direction.LONG, 0.01, 1.0, 0.9, 0.9)
    client = FakeClient(hub_says(patient, horizon_s=10**6))
    bars = {"BTC": random_bars(count=30), "ETH": random_bars("ETH", 30, seed=2)}
    report = bot_on(client, bars, strategies=["momentum", "breakout"]).run(0, 10**12)
    assert report.decisions == report.open_trades == 4
    assert report.trades == 0


def test_flat_decisions_open_nothing_and_every_free_slot_is_asked_at_each_close() -> None:
    client = FakeClient(hub_says(FLAT))
    report = bot_on(client, {"BTC": random_bars(count=30)}, run_id="night").run(5 * MINUTE, 15 * MINUTE)
    assert [request["time_ms"] for request in client.requests] == [MINUTE * n for n in range(5, 15)]
    assert client.requests[0]["request_id"] == f"night-BTC-momentum-{5 * MINUTE}"
    assert client.outcomes == []
    assert (report.bars, report.equity) == (10, 10_000.0)


def test_horizon_of_the_advice_ends_the_trade() -> None:
    client = FakeClient(hub_says(Action(Direction.SHORT, 0.01, 1.0, 0.9, 0.9), horizon_s=180))
    bot_on(client, {"BTC": random_bars(count=10)}).run(0, 10**12)
    assert {(o.exit_reason, o.exit_time_ms - o.entry_time_ms) for o in client.outcomes} == {("horizon", 180_000)}


def test_order_that_was_not_filled_is_reported_with_its_size_and_frees_the_slot() -> None:
    far_away = Action(Direction.LONG, 0.1, 5.0, 0.01, 0.01, limit_offset_pct=0.4)
    client = FakeClient(hub_says(far_away))
    report = bot_on(client, {"BTC": random_bars(count=10)}).run(0, 10**12)
    assert (report.trades, report.not_filled, report.decisions) == (0, 9, 10)
    first = client.outcomes[0]
    assert (first.exit_reason, first.pnl, first.fees, first.equity) == ("not_filled", 0.0, 0.0, 10_000.0)
    assert first.size * first.entry_price == pytest.approx(5_000.0)


def test_without_acts_the_bot_does_what_its_llm_does_alone() -> None:
    llm_only = {"acts": False, "policy_id": "llm_only", "policy": "llm_only", "role": "llm_only"}

    def advise(request: dict[str, Any]) -> Advice:
        return hub_says(request["llm"].action, **llm_only)(request)

    quiet, busy = FakeClient(advise), FakeClient(advise)
    bot_on(quiet, {"BTC": random_bars()}, always_long_llm(trades=False)).run(0, 10**12)
    report = bot_on(busy, {"BTC": random_bars()}, always_long_llm(trades=True)).run(0, 10**12)
    assert quiet.outcomes == []
    assert report.trades == len(busy.outcomes) > 0
    assert all(o.decision_id.startswith("d-paper-BTC") for o in busy.outcomes)
    assert set(busy.own) == {None}
    assert report.acted == 0
    assert set(report.net_pnl_by_policy) == {"llm_only"}


def test_trades_made_while_the_hub_is_away_are_reported_as_the_bots_own() -> None:
    client = FakeClient(hub_is_away)
    report = bot_on(client, {"BTC": random_bars()}, always_long_llm(trades=True)).run(0, 10**12)
    assert len(client.outcomes) > 0
    assert all(o.decision_id.startswith("own-paper-BTC") for o in client.outcomes)
    assert {(own.symbol, own.strategy) for own in client.own if own} == {("BTC", "momentum")}
    assert None not in client.own
    assert report.degraded == {"hub: ConnectError": report.decisions}


def test_portfolio_in_a_question_is_the_account_as_it_stands() -> None:
    patient = Action(Direction.LONG, 0.1, 4.0, 0.9, 0.2)

    def advise(request: dict[str, Any]) -> Advice:
        return hub_says(patient if request["symbol"] == "BTC" else FLAT, horizon_s=10**6)(request)

    client, bars = FakeClient(advise), {"BTC": random_bars(count=20), "ETH": random_bars("ETH", 20, seed=2)}
    bot_on(client, bars).run(0, 10**12)
    last = client.requests[-1]
    entry, close = bars["BTC"].open[1], bars["BTC"].close[-1]
    unrealised = (close / entry - 1.0) * 4_000.0
    assert last["unrealised_pnl"] == pytest.approx(unrealised)
    assert last["equity"] == pytest.approx(10_000.0 + unrealised)
    assert last["current_leverage"] == pytest.approx(4_000.0 / (10_000.0 + unrealised))


def test_concurrency_changes_no_trade() -> None:
    bars = {"BTC": random_bars(count=60), "ETH": random_bars("ETH", 60, seed=2)}
    runs = []
    for concurrency in (1, 4):
        client = FakeClient(hub_says(LONG))
        bot_on(client, bars, strategies=["momentum", "breakout"], concurrency=concurrency).run(0, 10**12)
        runs.append(client.outcomes)
    assert runs[0] == runs[1]


def test_gap_in_one_symbol_leaves_its_slot_alone_until_its_next_bar() -> None:
    btc = random_bars(count=20)
    keep = np.r_[0:5, 10:20]
    gappy = Bars("BTC", MINUTE, *(getattr(btc, name)[keep] for name in (
        "open_time_ms", "open", "high", "low", "close", "volume")))
    client = FakeClient(hub_says(FLAT))
    bot_on(client, {"BTC": gappy, "ETH": random_bars("ETH", 20, seed=2)}).run(0, 10**12)
    asked = [r["time_ms"] // MINUTE for r in client.requests if r["symbol"] == "BTC"]
    assert asked == [1, 2, 3, 4, 5, *range(11, 21)]


def test_report_counts_what_happened() -> None:
    def advise(request: dict[str, Any]) -> Advice:
        role = "challenger" if request["time_ms"] % (2 * MINUTE) else "production"
        return hub_says(FLAT, role=role, policy=role[:4], latency_ms=float(request["time_ms"] // MINUTE))(request)

    seen: list[tuple[int, int]] = []
    report = bot_on(FakeClient(advise), {"BTC": random_bars(count=100)}).run(0, 10**12, lambda *at: seen.append(at))
    assert report.by_role == {"challenger": 50, "production": 50}
    assert report.by_policy == {"chal": 50, "prod": 50}
    assert report.latency_ms == {f"p{q}": pytest.approx(np.percentile(range(1, 101), q)) for q in (50, 95, 99)}
    assert seen[-1] == (100, 100)
    assert report.undelivered == 2
    json.dumps(report.to_dict())


def test_bars_of_different_intervals_are_refused() -> None:
    hourly = Bars("ETH", 60 * MINUTE, *(np.ones(1) for _ in range(6)))
    with pytest.raises(InvalidInput, match="one interval"):
        bot_on(FakeClient(hub_is_away), {"BTC": random_bars(), "ETH": hourly})


def test_common_closes_are_those_of_every_symbol() -> None:
    late = random_bars("ETH", 20, start_ms=10 * MINUTE)
    assert common_closes({"BTC": random_bars(count=20), "ETH": late}) == [MINUTE * n for n in range(11, 21)]
    with pytest.raises(InvalidInput, match="symbols"):
        common_closes({"BTC": random_bars(count=5), "ETH": late})


def test_llm_stub_follows_the_trend_except_in_its_share_of_noise() -> None:
    rising = np.linspace(100.0, 110.0, 40)
    stub = LlmStub(3, LlmStubSettings(noise=0.3))
    views = [stub.view("BTC", "momentum", rising, n * MINUTE) for n in range(2_000)]
    share = np.mean([view.action.direction is Direction.SHORT for view in views])
    assert abs(share - 0.3) < 0.041  # four standard errors of 2,000 draws
    assert views == [stub.view("BTC", "momentum", rising, n * MINUTE) for n in range(2_000)]
    assert all(view.action.risk_fraction <= 0.002 + 1e-12 for view in views)
    quiet = stub.view("BTC", "momentum", np.full(40, 100.0), 0)
    assert (quiet.action.direction, quiet.action.size_fraction, quiet.confidence) == (Direction.FLAT, 0.0, 0.5)


def test_command_line_runs_on_a_generated_market_while_the_hub_is_away(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.json"
    tokens.write_text(json.dumps({"bot": "b", "ops": "o"}))
    result = CliRunner().invoke(main, [
        "--url", "http://127.0.0.1:9", "--token-file", str(tokens), "--market", "generated", "--symbols", "BTC,ETH",
        "--bars", "5", "--outbox", str(tmp_path / "outbox.sqlite")])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout[result.stdout.index("{"):])
    assert (report["bars"], report["decisions"], report["acted"]) == (5, 10, 0)
