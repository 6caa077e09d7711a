"""Who decides: shares, gates, an operator's word, and decisions that are overtaken by any of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from array_heads import array_bundle
from encoder_bundles import encoder_bundle
from plain_bundles import momentum_bundle, onnx_bundle
from plain_hub import PlainHub, opens, rows_of
from scipy.stats import binom

from hub.decide import Answer
from hub.embedding_commands import EmbeddingInUse
from hub.embedding_use import embedders_of
from hub.replay import replay_ledger
from policies.bundle import pack_bundle
from policies.embedder import load_embedder
from policies.rows import LLM_ONLY, decision_id_of
from policies.types import NO_EMBEDDING, Role
from router.thompson import role_of

TAKEN_AWAY = {"pause": Role.PAUSED, "halt": Role.HALTED, "throttle": Role.THROTTLED}


async def take_away(hub: PlainHub, how: str, policy_id: str) -> None:
    await (hub.command(how, policy_id) if how == "pause" else hub.judge(how, policy_id))


def drawn_to(hub: PlainHub, policy_id: str) -> str:
    """A request_id whose decision falls to that policy in the present epoch."""
    state = hub.state
    return next(name for name in map("drawn-{}".format, range(10_000))
                if role_of(decision_id_of(state.seed, name), state.seed, state.epoch.roles).policy_id == policy_id)


def shares(hub: PlainHub) -> dict[str, float]:
    return dict(hub.state.epoch.roles.shares)


async def lose(hub: PlainHub, policy_id: str, *returns: float) -> dict[str, Any]:
    """Trades of a policy with these returns; the answer to the last report."""
    for net_return in returns:
        answer = await hub.report(await hub.trade(policy_id), net_return)
    return answer


# -- shares -----------------------------------------------------------------------------------------------------------


async def test_the_challenger_gets_a_tenth_of_two_thousand_decisions(
        hub: PlainHub, production: str, challenger: str) -> None:
    count = 2_000
    answers = [await hub.decide() for _ in range(count)]
    drawn = [answer["policy_id"] for answer in answers]
    low, high = binom.ppf([0.005, 0.995], count, 0.1)
    assert low <= drawn.count(challenger) <= high
    assert drawn.count(challenger) + drawn.count(production) == count
    assert {(answer["policy_id"], answer["role"], answer["propensity"]) for answer in answers} == {
        (production, "production", 0.9), (challenger, "challenger", 0.1)}


async def test_without_a_head_everything_is_the_llms(open_hub: Any) -> None:
    answer = await open_hub().decide_later()
    assert (answer["policy_id"], answer["role"], answer["acts"]) == (LLM_ONLY, "llm_only", False)


async def test_a_single_head_decides_everything_under_half_the_size_while_it_is_not_proven(open_hub: Any) -> None:
    hub = open_hub()
    only = await hub.register(momentum_bundle())
    trade = await hub.trade()
    assert shares(hub) == {only: 1.0}
    limit = hub.config.router.probation_size_scale * hub.config.shield.risk_per_trade
    action = trade["action"]
    assert action["size_fraction"] * action["leverage"] * action["sl_pct"] <= limit * (1 + 1e-12)


async def test_every_head_that_may_answer_is_asked_on_every_decision(
        hub: PlainHub, production: str, challenger: str) -> None:
    shadow = await hub.register(onnx_bundle("linear_v2", seed=5))
    await hub.decide_later()
    assert hub.heads.asked[-1] == sorted([production, challenger, shadow])
    assert sorted(role.value for role in hub.state.epoch.roles.roles.values()) == ["challenger", "production", "shadow"]


async def test_a_new_head_that_never_answers_gives_the_challengers_share_back(
        open_hub: Any, production: str, challenger: str) -> None:
    hub = open_hub({"router": {"first_decisions": 5}})
    for bundle in (momentum_bundle(), onnx_bundle()):
        await hub.register(bundle)
    dumb = await hub.register(onnx_bundle("linear_v2", seed=5))
    hub.heads.instead = {dumb: Answer(None, 2.0, "has no answer")}
    assert shares(hub) == {production: 0.9, dumb: 0.1}
    drawn = [(await hub.decide())["policy_id"] for _ in range(100)]
    assert dumb not in drawn
    head = hub.state.heads[dumb]
    assert (head.decisions, head.drawn >= 5) == (0, True)
    epochs = [shares(hub) for _ in range(20) if await hub.decide_later(minutes=2)]
    assert any(challenger in found for found in epochs), "drawn against the other by what is known of both"


async def test_a_new_head_of_an_embedding_that_is_not_in_use_waits_for_it_without_a_share(
        hub: PlainHub, production: str, challenger: str) -> None:
    version = embedders_of(hub.home).add(pack_bundle(encoder_bundle()), load_embedder)
    waiting = await hub.register(array_bundle("embedded_v1", {"market_embedding": 4}, version))
    assert shares(hub) == {production: 0.9, challenger: 0.1}
    assert hub.state.epoch.roles.roles[waiting] is Role.SHADOW
    await hub.service.embeddings.use(version, "")
    hub.features.embedding_version = version
    await hub.decide_later(minutes=2)
    assert shares(hub) == {production: 0.9, waiting: 0.1}
    assert replay_ledger(hub.home.ledger, hub.home.policies).equal


async def test_an_embedding_that_a_head_with_a_share_needs_is_changed_by_force_or_a_revert_alone(
        hub: PlainHub, production: str) -> None:
    first, second = (embedders_of(hub.home).add(pack_bundle(encoder_bundle(seed)), load_embedder) for seed in (0, 1))
    await hub.service.embeddings.use(first, "", "c1")
    for alias in ("embedded_v1", "embedded_v2"):
        await hub.register(array_bundle(alias, {"market_embedding": 4}, first, seed=len(alias)))
    await hub.command("promote", "embedded_v1")
    named = {hub.state.heads[policy_id].alias for policy_id in shares(hub) if policy_id != production}
    head = hub.reader.head()
    for version in (second, NO_EMBEDDING):
        with pytest.raises(EmbeddingInUse, match="say force") as refused:
            await hub.service.embeddings.use(version, "")
        assert set(refused.value.heads) == named
    assert hub.reader.head() == head
    await hub.service.embeddings.use(first, "", "c2")  # the one in use is no change
    assert (await hub.service.embeddings.use(second, "", force=True))["version"] == second
    assert (await hub.service.embeddings.use(first, "", "c1"))["accepted"] == "duplicate"
    await hub.service.embeddings.use(first, "back: whoever needed it is off line already")
    assert (await hub.service.embeddings.revert("it drifts"))["version"] == second, "an emergency needs no force"


# -- what takes traffic away ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", TAKEN_AWAY)
@pytest.mark.parametrize("whose", ["production", "challenger"])
async def test_a_halted_paused_or_throttled_policy_is_never_chosen(
        hub: PlainHub, production: str, challenger: str, how: str, whose: str) -> None:
    gone = {"production": production, "challenger": challenger}[whose]
    await hub.decide_later()
    await take_away(hub, how, gone)
    hub.heads.asked.clear()
    answers = [await hub.decide() for _ in range(60)] + [await hub.decide_later() for _ in range(60)]

    assert hub.state.epoch.roles.roles[gone] is TAKEN_AWAY[how]
    assert gone not in {answer["policy_id"] for answer in answers}
    asked = {policy_id for call in hub.heads.asked for policy_id in call}
    assert (gone in asked) == (how == "throttle")  # a throttled head goes on as shadow


async def test_when_production_is_taken_away_the_llm_has_nine_tenths(
        hub: PlainHub, production: str, challenger: str) -> None:
    await hub.judge("throttle", production)
    assert shares(hub) == {challenger: 0.1, LLM_ONLY: 0.9}


async def test_a_drawdown_over_the_limit_halts_at_once_and_names_the_figure(hub: PlainHub, production: str) -> None:
    answer = await lose(hub, production, -0.02, -0.019)
    assert answer["verdicts"] == []
    answer = await lose(hub, production, -0.002)
    assert [(verdict["policy_id"], verdict["judgement"], verdict["rule"]) for verdict in answer["verdicts"]] == [
        (production, "halt", "drawdown_percent")]
    assert answer["verdicts"][0]["figure"] == pytest.approx(4.1)
    assert hub.state.epoch.roles.roles[production] is Role.HALTED
    assert production not in shares(hub)


async def test_a_low_profit_factor_throttles_only_after_enough_trades(open_hub: Any, production: str) -> None:
    hub = open_hub({"sentry": {"throttle_min_trades": 5}})
    await hub.register(momentum_bundle())
    assert (await lose(hub, production, 0.001, -0.001, 0.001, -0.001))["verdicts"] == []
    answer = await lose(hub, production, 0.0005)
    assert [verdict["judgement"] for verdict in answer["verdicts"]] == ["throttle"]
    assert shares(hub) == {LLM_ONLY: 1.0}


async def test_missed_deadlines_reduce_a_head_to_five_percent(hub: PlainHub, production: str, challenger: str) -> None:
    hub.heads.instead = {production: Answer(None, None, "missed its deadline of 100 ms")}
    for _ in range(hub.config.sentry.latency_min_asks):
        await hub.decide_later()
    assert rows_of(hub, "verdict")[-1].body["judgement"] == "reduce"
    assert shares(hub) == {production: 0.05, challenger: 0.1, LLM_ONLY: 0.85}


async def test_a_reduction_for_latency_ends_when_a_whole_window_was_fast(hub: PlainHub, production: str) -> None:
    hub.heads.latency_ms = 400.0
    for _ in range(hub.config.sentry.latency_min_asks):
        await hub.decide_later()
    assert shares(hub)[production] == 0.05
    hub.heads.latency_ms = 20.0
    for _ in range(hub.config.sentry.latency_window):
        await hub.decide_later()
    assert rows_of(hub, "verdict")[-1].body["judgement"] == "approve"
    assert shares(hub)[production] == 0.9


async def test_a_gate_asks_no_second_time_for_the_verdict_it_was_given(hub: PlainHub, production: str) -> None:
    trade = await hub.trade(production)
    late = hub.outcome(await hub.trade(production, symbol="ETH"), -0.001)
    await hub.report(trade, -0.05)
    await hub.service.learn(late)
    assert [row.body["judgement"] for row in rows_of(hub, "verdict")] == ["halt"]


# -- an operator's word -----------------------------------------------------------------------------------------------


async def test_a_pause_holds_through_reopening_and_until_it_is_lifted(open_hub: Any, production: str) -> None:
    hub = open_hub()
    await hub.register(momentum_bundle())
    await hub.command("pause", "momentum_v1")
    await hub.close()
    hub = open_hub()
    assert {(await hub.decide_later())["policy_id"] for _ in range(10)} == {LLM_ONLY}
    await hub.command("resume", production[:12])
    assert {(await hub.decide_later())["policy_id"] for _ in range(10)} == {production}


async def test_a_promotion_holds_until_a_gate_fires(hub: PlainHub, production: str, challenger: str) -> None:
    await hub.command("promote", challenger)
    for _ in range(5):
        await hub.decide_later(minutes=2)
        assert shares(hub) == {challenger: 0.9, production: 0.1}
    await lose(hub, challenger, -0.05)
    assert hub.state.promoted is None
    assert shares(hub) == {production: 1.0}
    await hub.command("resume", challenger)
    assert shares(hub) == {production: 0.9, challenger: 0.1}


async def test_a_promotion_can_be_lifted(hub: PlainHub, production: str, challenger: str) -> None:
    await hub.command("promote", challenger)
    await hub.command("demote", challenger)
    assert shares(hub) == {production: 0.9, challenger: 0.1}


async def test_a_command_that_comes_twice_is_one_row(hub: PlainHub, challenger: str) -> None:
    answers = [await hub.command("pause", challenger, "once") for _ in range(3)]
    assert [answer["accepted"] for answer in answers] == ["recorded", "duplicate", "duplicate"]
    assert len(rows_of(hub, "command")) == 1


# -- overtaken decisions ----------------------------------------------------------------------------------------------

Change = Callable[[PlainHub, str], Awaitable[Any]]
CHANGES: dict[str, Change] = {
    "halt": lambda hub, policy_id: hub.judge("halt", policy_id),
    "throttle": lambda hub, policy_id: hub.judge("throttle", policy_id),
    "pause": lambda hub, policy_id: hub.command("pause", policy_id),
    "registration": lambda hub, policy_id: hub.register(onnx_bundle("linear_v2", seed=5)),
    "epoch": lambda hub, policy_id: hub.writer.expire_epoch(hub.state.epoch.ends_ms),
}


@pytest.mark.parametrize("when", ["while heads are asked", "just before the commit"])
@pytest.mark.parametrize("what", CHANGES)
async def test_a_decision_under_way_when_who_may_act_changes_is_made_again_and_obeys(
        hub: PlainHub, production: str, what: str, when: str) -> None:
    await hub.decide_later()

    async def change() -> None:
        await CHANGES[what](hub, production)

    if when == "while heads are asked":
        hub.heads.during = change
    else:
        hub.writer.before_commit = change
    hub.heads.asked.clear()
    answer = await hub.decide(request_id=drawn_to(hub, production))

    assert hub.service.seen.conflicts == 1
    assert len(hub.heads.asked) == 2
    assert answer["versions"]["as_of"] >= hub.state.last_blocking_position
    assert answer["versions"]["position"] > answer["versions"]["as_of"]
    assert hub.state.epoch.roles.shares[answer["policy_id"]] > 0
    assert answer["versions"]["epoch"] == hub.state.epoch.number
    assert (production in hub.heads.asked[1]) == (what not in ("halt", "pause"))
    if what == "registration":
        assert onnx_bundle("linear_v2", seed=5).policy_id in answer["proposals"]


async def test_an_outcome_in_between_does_not_make_a_decision_again(hub: PlainHub, production: str) -> None:
    trade = await hub.trade(production)
    hub.heads.during = lambda: hub.report(trade, 0.001)
    hub.heads.asked.clear()
    answer = await hub.decide(symbol="ETH")
    assert hub.service.seen.conflicts == 0
    assert len(hub.heads.asked) == 1
    assert rows_of(hub, "outcome")[0].position <= answer["versions"]["as_of"]


async def test_a_decision_that_is_overtaken_every_time_is_the_llms_and_not_recorded(
        hub: PlainHub, challenger: str) -> None:
    await hub.decide_later()
    before = len(rows_of(hub, "decision"))

    async def toggled() -> None:
        await hub.command("resume" if hub.state.heads[challenger].paused else "pause", challenger)
        hub.heads.during = toggled

    hub.heads.during = toggled
    answer = await hub.decide()
    assert (answer["decision_id"], answer["policy_id"], answer["acts"]) == (None, LLM_ONLY, False)
    assert answer["degraded"][-1] == {"part": "sentry", "reason": "the ledger changed under 3 attempts"}
    assert len(rows_of(hub, "decision")) == before


# -- the book ---------------------------------------------------------------------------------------------------------


async def test_after_a_fall_of_five_percent_nothing_opens_until_the_book_is_resumed(hub: PlainHub) -> None:
    await hub.decide_later()
    lower = {"equity": 9_499.0, "current_leverage": 0.0, "unrealised_pnl": 0.0}
    await hub.decide_later(portfolio=lower)
    assert rows_of(hub, "verdict")[-1].body["policy_id"] == "book"
    answers = [await hub.decide_later(portfolio=lower) for _ in range(30)]
    assert {answer["action"]["direction"] for answer in answers} == {"flat"}
    assert all(answer["acts"] and {"part": "book", "reason": "drawdown breaker tripped: closing and reducing only"}
               in answer["degraded"] for answer in answers)
    await hub.command("resume", "book")
    assert opens(await hub.trade(portfolio=lower))


async def test_an_outcome_that_reports_the_fall_trips_the_book_before_the_next_decision(hub: PlainHub) -> None:
    trade = await hub.trade()
    answer = await hub.report(trade, -0.002, equity=9_400.0)
    assert {verdict["policy_id"] for verdict in answer["verdicts"]} == {"book"}
    assert (await hub.decide(portfolio={"equity": 9_400.0, "current_leverage": 0.0,
                                        "unrealised_pnl": 0.0}))["action"]["direction"] == "flat"


async def test_the_books_breaker_holds_through_reopening(open_hub: Any) -> None:
    hub = open_hub()
    await hub.register(momentum_bundle())
    await hub.decide_later()
    await hub.own_trade(-600.0, 9_400.0)
    await hub.close()
    hub = open_hub()
    assert hub.state.book.tripped
    assert (await hub.decide_later())["action"]["direction"] == "flat"
