"""Every learner is a fold of the ledger: the writer, the service and a replay hold the same state."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from mixed_run import mixed_run
from plain_bundles import momentum_bundle, onnx_bundle
from plain_hub import EQUITY, PlainHub, llm_view, rows_of
from whole_state import everything, learnt

import hub.state
from feature_repo.features import MINUTE_MS
from hub.state import HubState, folded
from hub.status import status
from policies.rows import KINDS, Row

OF_THE_PROCESS = ("degraded", "latency_ms", "conflicts")  # what a process has served, not what it knows


def told(hub: PlainHub) -> dict[str, Any]:
    """What /v1/status says of the fold."""
    hub.service.catch_up()
    found = status(hub.service, "a market", {})
    return {name: part for name, part in found.items() if name not in OF_THE_PROCESS}


def figures(state: HubState) -> dict[str, Any]:
    """What trades have taught: records, evidence, allocation, parameters and memory."""
    return {
        "heads": {policy_id: everything([head.record, head.lifetime]) for policy_id, head in state.heads.items()},
        "bets": {policy_id: everything([one._wealth, one._waiting]) for policy_id, one in state.evidence.items()},
        "memory": everything(state.memory),
        "allocation": {name: dict(vars(sums)) for name, sums in state.allocation._sums.items()},
        "arms": {place: (arm.trades, arm.total) for place, arm in state.params._arms.items() if arm.trades},
        "tails": everything(state.rewards), "open_slots": dict(state.open_slots),
    }


def assert_same_figures(one: HubState, other: HubState) -> None:
    """Exactly equal, but for sums from which a number was taken out again, and for the tail that rewards look at."""
    ours, theirs = figures(one), figures(other)
    del ours["tails"], theirs["tails"]
    for name in ("allocation", "arms"):
        mine, yours = ours.pop(name), theirs.pop(name)
        assert mine.keys() == yours.keys()
        for key in mine:
            assert mine[key] == pytest.approx(yours[key], abs=1e-12)
    assert ours == theirs


# -- one ledger, one state --------------------------------------------------------------------------------------------


async def test_the_writer_the_service_and_a_fold_from_the_start_agree_after_a_mixed_run(
        open_hub: Any, production: str, challenger: str) -> None:
    hub = open_hub()
    await hub.register(momentum_bundle())
    await hub.register(onnx_bundle())
    await mixed_run(hub, production, challenger)
    await hub.close()
    hub = open_hub({"learning": {"memory": {"max_episodes": 20}, "param_mode": "static"},
                    "sentry": {"throttle_min_trades": 10}})
    await mixed_run(hub, production, challenger, minutes=60)

    assert hub.reader.counts().keys() == set(KINDS)
    assert learnt(hub.state) == learnt(folded(hub.reader))
    assert learnt(hub.state, memory=False) == learnt(hub.writers_state, memory=False)
    assert len(hub.state.memory or ()) == 20


async def test_a_reopened_home_knows_what_it_knew(open_hub: Any, production: str, challenger: str) -> None:
    hub = open_hub()
    await hub.register(momentum_bundle())
    await hub.register(onnx_bundle())
    await mixed_run(hub, production, challenger, minutes=90)
    known, before = told(hub), learnt(hub.state)
    await hub.close()

    again = open_hub()
    assert told(again) == known
    assert learnt(again.state) == before
    assert learnt(again.writers_state, memory=False) == learnt(again.state, memory=False)


async def test_asking_changes_nothing(hub: PlainHub) -> None:
    trade = await hub.trade()
    await hub.report(trade, 0.001)
    before = learnt(hub.state)
    told(hub)
    hub.state.consequences(hub.time_ms)
    hub.state.expire_epoch(hub.time_ms)
    hub.state.slot_is_open("BTC", "momentum", hub.time_ms)
    assert learnt(hub.state) == before


async def test_rows_are_folded_in_their_order_and_once(hub: PlainHub) -> None:
    state = hub.state
    for position in (state.position, state.position + 2):
        with pytest.raises(ValueError, match="does not follow"):
            state.apply(Row(position, "observation", "x", 0, {}))


# -- what an outcome teaches ------------------------------------------------------------------------------------------


async def test_the_same_outcome_five_times_counts_once(hub: PlainHub, production: str) -> None:
    report = hub.outcome(await hub.trade(production), 0.001)
    answers = [await hub.service.learn(report) for _ in range(5)]
    assert [answer["accepted"] for answer in answers] == ["recorded"] + ["duplicate"] * 4
    assert len([row for row in rows_of(hub, "outcome") if row.body["outcome"]["decision_id"] == report["decision_id"]]
               ) == hub.state.heads[production].record.trades == 1
    assert hub.state.outcomes == len(rows_of(hub, "outcome"))
    assert hub.state.heads[production].record.gain == pytest.approx(0.001)


@pytest.mark.parametrize("first_return", [-0.002, 0.003])
async def test_a_revision_leaves_the_figures_of_a_ledger_that_had_only_the_revision(
        open_hub: Any, first_return: float) -> None:
    hubs = {}
    for name in ("revised", "only the last"):
        hub = hubs[name] = open_hub(name=name)
        await hub.register(momentum_bundle())
        await hub.report(await hub.trade(), 0.0015, drawdown_proxy=0.001)
        trade = await hub.trade()
        if name == "revised":
            await hub.report(trade, first_return, exit_reason="manual")
        await hub.report(trade, 0.001, revision=1, drawdown_proxy=0.0005)
        await hub.report(await hub.trade(), -0.0005)
    assert_same_figures(hubs["revised"].state, hubs["only the last"].state)
    assert hubs["revised"].state.outcomes == hubs["only the last"].state.outcomes + 1


async def test_a_revision_of_a_trade_that_was_forgotten_is_not_learnt_a_second_time(
        open_hub: Any, production: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub.state, "REVISABLE_TRADES", 1)
    opened = open_hub()
    await opened.register(momentum_bundle())
    old = await opened.trade(production)
    await opened.report(old, 0.001)
    await opened.report(await opened.trade(production), 0.001)
    before = figures(opened.state)
    await opened.report(old, 0.002, revision=1)
    assert figures(opened.state) == before


async def test_an_order_that_was_not_filled_teaches_nothing_and_frees_its_slot(hub: PlainHub) -> None:
    before = figures(hub.state)
    trade = await hub.trade()
    assert hub.state.slot_is_open("BTC", "momentum", hub.time_ms) == trade["decision_id"]
    await hub.report(trade, 0.0, exit_reason="not_filled")
    assert figures(hub.state) == before
    assert hub.state.slot_is_open("BTC", "momentum", hub.time_ms) is None


async def test_a_trade_that_turns_out_not_filled_has_earned_nothing(hub: PlainHub, production: str) -> None:
    trade = await hub.trade(production)
    await hub.report(trade, -0.03)
    await hub.report(trade, 0.0, revision=1, exit_reason="not_filled")
    record = hub.state.heads[production].record
    assert (record.gain, record.loss, record.max_drawdown_percent) == (0.0, 0.0, 0.0)
    assert hub.state.allocation._sums["momentum"].total == pytest.approx(0.0)


async def test_a_slot_is_held_until_its_trade_is_over(hub: PlainHub, production: str) -> None:
    trade = await hub.trade(production)
    rule = f"slot is held by {trade['decision_id']}"
    while_held = [await hub.decide() for _ in range(30)]
    assert {answer["action"]["direction"] for answer in while_held} == {"flat"}
    assert any(change["rule"] == rule for answer in while_held for change in answer["shielded"])
    elsewhere = [await hub.decide(symbol=symbol) for symbol in ("ETH", "SOL", "HYPE")]
    assert any(answer["action"]["direction"] != "flat" for answer in elsewhere)
    await hub.report(trade, 0.001)
    assert (await hub.trade())["decision_id"] != trade["decision_id"]


async def test_a_slot_whose_outcome_never_came_is_free_when_its_horizon_is_long_past(hub: PlainHub) -> None:
    trade = await hub.trade()
    horizon_ms = trade["horizon_s"] * 1_000
    held = [hub.state.slot_is_open("BTC", "momentum", trade["time_ms"] + after)
            for after in (horizon_ms, 2 * horizon_ms - 1, 2 * horizon_ms)]
    assert held == [trade["decision_id"], trade["decision_id"], None]
    await hub.decide_later(minutes=2 * horizon_ms // MINUTE_MS)
    assert (await hub.trade())["action"]["direction"] != "flat"


async def test_a_trade_in_parts_is_learnt_when_its_final_part_is_in(hub: PlainHub, production: str) -> None:
    trade = await hub.trade(production)
    before = figures(hub.state)
    await hub.report(trade, 0.002, part=0, final=False)
    assert figures(hub.state) == before
    await hub.report(trade, -0.0005, part=1, exit_reason="stop")
    record = hub.state.heads[production].record
    assert (record.trades, record.gain) == (1, pytest.approx(0.0015))
    assert hub.state.slot_is_open("BTC", "momentum", hub.time_ms) is None
    await hub.report(trade, 0.001, part=0, revision=1, final=False)
    assert hub.state.heads[production].record.returns == [pytest.approx(0.0005)]


async def test_the_bots_own_trades_move_nothing_but_the_books_breaker(hub: PlainHub) -> None:
    await hub.report(await hub.trade(), 0.001, equity=EQUITY)
    before = figures(hub.state)
    await hub.own_trade(-300.0, EQUITY - 300.0, "own-1")
    assert figures(hub.state) == before
    assert hub.state.book.drawdown_percent == pytest.approx(3.0)
    await hub.own_trade(-200.0, EQUITY - 500.0, "own-2")
    assert hub.state.book.tripped


async def test_a_trade_that_the_llm_made_teaches_strategies_but_judges_no_head(open_hub: Any) -> None:
    hub = open_hub({"rollout": {"mode": "shadow"}})
    await hub.register(momentum_bundle())
    answer = await hub.decide_later(llm=llm_view("short"))
    assert not answer["acts"]
    await hub.report(answer, 0.001, sign=-1)
    head = hub.state.heads[momentum_bundle().policy_id]
    assert (head.record.trades, head.lifetime.trades) == (0, 0)
    assert hub.state.allocation._sums["momentum"].count == 1
    assert len(hub.state.memory or ()) == 1


# -- what the figures are ---------------------------------------------------------------------------------------------


async def test_a_record_is_the_net_pnl_over_the_equity_that_the_decision_saw(hub: PlainHub, production: str) -> None:
    equity = 25_000.0
    trade = await hub.trade(production, portfolio={"equity": equity, "current_leverage": 0.0, "unrealised_pnl": 0.0})
    report = hub.outcome(trade, 0.004)
    await hub.service.learn({**report, "fees": 3.0, "funding": -1.0})
    assert hub.state.heads[production].record.returns == [pytest.approx((report["pnl"] - 3.0 + 1.0) / equity)]


async def test_a_throttle_a_halt_and_a_resume_begin_the_record_anew_but_not_the_lifetime(
        hub: PlainHub, production: str) -> None:
    for number, event in enumerate(("throttle", "resume", "halt", "resume"), start=1):
        if event == "resume":
            await hub.command("resume", production)
            await hub.report(await hub.trade(production), 0.001)
        else:
            await hub.judge(event, production)
            assert hub.state.heads[production].record.trades == 0
        assert hub.state.heads[production].resets == number
    assert hub.state.heads[production].lifetime.trades == 2
    assert hub.state.heads[production].record.trades == 1


async def test_a_decision_remembers_episodes_by_their_outcome_nearest_first(hub: PlainHub) -> None:
    for net_return in (0.001, -0.002, 0.0005):
        await hub.report(await hub.trade(), net_return)
    remembered = (await hub.decide_later())["learning_memory"]
    assert sorted(round(episode["net_return"], 6) for episode in remembered) == [-0.002, 0.0005, 0.001]
    similarities = [episode["similarity"] for episode in remembered]
    assert similarities == sorted(similarities, reverse=True)
    assert np.all(np.abs(similarities) <= 1)
