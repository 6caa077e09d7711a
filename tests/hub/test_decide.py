"""What is answered when something is missing, late, broken or out of bounds: the safe thing, and why."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_bundles import momentum_bundle, onnx_bundle
from plain_hub import SYMBOLS, PlainHub, llm_view, portfolio, rows_of
from pure_state import fold, state_of

from feature_repo.features import BARS, DECISION_V1, DEPTH, EPISODE_V1, FUNDING, GROUPS, MINUTE_MS, QUOTE
from hub import decide
from hub.decide import Answer, Features
from hub.schemas import llm_view_of
from hub.state import HubState
from policies.rows import BOOK, LLM_ONLY, NewRow
from policies.types import STRATEGIES, Action, Direction, LlmView, Proposal, Role

REPEATABLE = settings(derandomize=True, database=None, deadline=None)
STALE_MS = DECISION_V1.ttl_ms[BARS] + MINUTE_MS


def risk(action: dict[str, Any]) -> float:
    """Loss at the stop over equity."""
    if action["direction"] == "flat":
        return 0.0
    return float(action["size_fraction"] * action["leverage"] * action["sl_pct"])


def assert_safe(answer: dict[str, Any], part: str, reason: str = "") -> None:
    """The LLM alone, at no more than its own risk, and the answer says which part was missing and why."""
    assert (answer["policy_id"], answer["role"], answer["acts"]) == (LLM_ONLY, "llm_only", False)
    found = [entry for entry in answer["degraded"] if entry["part"] == part]
    assert found, answer["degraded"]
    assert reason in found[0]["reason"]
    assert risk(answer["action"]) <= risk(llm_view()) * (1 + 1e-12)


# -- safe answers -----------------------------------------------------------------------------------------------------


async def test_features_that_cannot_be_read_leave_the_decision_to_the_llm_and_no_head_is_asked(hub: PlainHub) -> None:
    hub.features.failed = "no answer within 50 ms"
    answer = await hub.decide_later(llm=llm_view())
    assert_safe(answer, "features", "no answer within 50 ms")
    assert answer["decision_id"] is not None
    assert hub.heads.asked == []
    row = rows_of(hub, "decision")[-1]
    assert (row.body["features"], row.body["features_failed"]) == (None, "no answer within 50 ms")


async def test_a_required_group_that_is_stale_leaves_the_decision_to_the_llm_until_it_is_fresh(hub: PlainHub) -> None:
    await hub.decide_later()
    hub.features.age_ms = STALE_MS
    hub.heads.asked.clear()
    assert_safe(await hub.decide_later(llm=llm_view()), "features bars", "stale")
    assert hub.heads.asked == []
    hub.features.age_ms = DECISION_V1.ttl_ms[BARS]
    assert (await hub.decide_later(llm=llm_view()))["policy_id"] != LLM_ONLY


async def test_an_event_time_in_the_future_is_not_decided_on(hub: PlainHub) -> None:
    hub.features.age_ms = -MINUTE_MS
    assert_safe(await hub.decide_later(llm=llm_view()), "features bars", "in the future")


async def test_a_missing_optional_group_is_a_null_in_the_vector_and_no_reason_to_stop(
        hub: PlainHub, production: str) -> None:
    for name in DECISION_V1.groups[FUNDING]:
        hub.features.fixed[name] = math.nan
    trade = await hub.trade(production)
    assert trade["degraded"] == []
    recorded = rows_of(hub, "decision")[-1].body["features"]["values"]
    assert recorded[DECISION_V1.names.index("funding_rate")] is None


async def test_an_optional_feed_that_has_stopped_is_named_and_its_heads_go_on_without_it(
        hub: PlainHub, production: str) -> None:
    hub.features.event_time_ms = {QUOTE: 0}
    trade = await hub.trade(production)
    assert trade["degraded"] == [{"part": "features quote", "reason": "stale: older than 15 s; taken as missing"}]
    assert hub.state.degraded == {"features quote of BTC": "stale: older than 15 s; taken as missing"}
    await hub.decide(symbol="ETH")
    assert set(hub.state.degraded) == {"features quote of BTC", "features quote of ETH"}
    hub.features.event_time_ms = {}
    await hub.decide_later()
    assert set(hub.state.degraded) == {"features quote of ETH"}, "what recovers for one symbol says nothing of another"


async def test_a_head_that_requires_a_group_is_not_asked_while_that_is_stale(open_hub: Any) -> None:
    hub = open_hub()
    needy = momentum_bundle("needy", required_groups=("bars", "depth"))
    await hub.register(needy)
    hub.features.event_time_ms = {DEPTH: 0}
    answer = await hub.decide_later(llm=llm_view())
    assert_safe(answer, "head needy", "needs features depth, which are stale")
    assert answer["proposals"] == {}
    hub.features.event_time_ms = {}
    assert (await hub.decide_later())["policy"] == "needy"


async def test_what_an_episode_remembers_is_stored_values_account_and_weights(hub: PlainHub, production: str) -> None:
    account = {"equity": 50_000.0, "current_leverage": 2.0, "unrealised_pnl": -500.0}
    trade = await hub.trade(production, portfolio=account)
    await hub.report(trade, 0.001)
    context = hub.reader.query_episodes(1)[0].decision["context"]
    assert (context["median_price"], context["mid_price"]) == (100.0, None)
    assert (context["current_leverage"], context["unrealised_pnl_pct"]) == (2.0, -0.01)
    weights = {f"weight_{strategy}": weight for strategy, weight in trade["weights"].items()}
    assert weights.items() <= context.items()
    assert set(context) <= set(EPISODE_V1.names)


async def test_a_trade_decided_before_there_were_episode_features_is_learnt_and_replayed(
        hub: PlainHub, production: str) -> None:
    hub.features.episode = None  # as such a row was written
    trade = await hub.trade(production)
    row = hub.reader.get("decision", trade["decision_id"])
    assert row is not None
    assert "episode" not in row.body["features"]
    assert Features.from_dict(row.body["features"]).to_dict() == row.body["features"]
    assert (await hub.report(trade, 0.001))["accepted"] == "recorded"
    context = hub.reader.query_episodes(1)[0].decision["context"]
    assert set(context) == {*GROUPS["portfolio"].names, *GROUPS["weights"].names}


async def test_a_group_whose_row_holds_no_value_is_missing_for_heads_that_require_it(open_hub: Any) -> None:
    hub = open_hub()
    await hub.register(momentum_bundle("needy", required_groups=("bars", "quote")))
    hub.features.fixed = {"quote_missing": 1.0}
    answer = await hub.decide_later(llm=llm_view())
    assert_safe(answer, "head needy", "without values")
    assert [entry["part"] for entry in answer["degraded"]] == ["head needy"], "one side is no dead feed"


@pytest.mark.parametrize(("instead", "reason"), [
    (Answer(None, 3.0, "ValueError: no such weights"), "ValueError"),
    (Answer(None, None, "missed its deadline of 100 ms"), "deadline"),
    (Answer(None, None, "unreachable (RayActorError)"), "unreachable"),
])
async def test_when_the_head_that_was_drawn_has_no_answer_the_llm_decides_and_nobody_steps_in(
        open_hub: Any, production: str, instead: Answer, reason: str) -> None:
    hub = open_hub({"router": {"challenger_share": 0.0}})
    await hub.register(momentum_bundle())
    await hub.register(onnx_bundle())
    hub.heads.instead = {production: instead}
    answer = await hub.decide_later(llm=llm_view())
    assert_safe(answer, "head momentum_v1", reason)
    body = rows_of(hub, "decision")[-1].body
    assert body["drawn"] == {"policy_id": production, "role": "production"}
    assert body["proposals"][production] == {
        "alias": "momentum_v1", "role": "production", "latency_ms": instead.latency_ms, "failed": instead.failed}


async def test_a_head_beside_the_drawn_one_that_fails_changes_nothing_but_is_named(
        open_hub: Any, production: str, challenger: str) -> None:
    hub = open_hub({"router": {"challenger_share": 0.0}})
    await hub.register(momentum_bundle())
    await hub.register(onnx_bundle())
    hub.heads.instead = {challenger: Answer(None, None, "missed its deadline of 100 ms")}
    answer = await hub.decide_later()
    assert answer["policy_id"] == production
    assert answer["degraded"] == [{"part": "head linear_v1", "reason": "missed its deadline of 100 ms"}]


async def test_a_head_that_answers_nan_has_no_answer(open_hub: Any) -> None:
    hub = open_hub()
    await hub.register(onnx_bundle("brittle", most_ret_1=25.0))
    hub.features.fixed["ret_1"] = 30.0
    assert_safe(await hub.decide_later(llm=llm_view()), "head brittle", "nan")


async def test_nan_in_a_required_feature_is_never_traded_on(hub: PlainHub) -> None:
    hub.features.fixed = dict.fromkeys(DECISION_V1.names, math.nan)
    answers = [await hub.decide_later() for _ in range(40)]
    assert {answer["action"]["direction"] for answer in answers} == {"flat"}
    assert {answer["policy"] for answer in answers} == {"momentum_v1", LLM_ONLY}


async def test_a_proposal_that_is_not_a_number_is_no_answer(hub: PlainHub, production: str, challenger: str) -> None:
    broken = Proposal(Action(Direction.LONG, math.nan, 5.0, 0.01, 0.01), 0.9)
    hub.heads.instead = dict.fromkeys((production, challenger), Answer(broken, 1.0))
    answer = await hub.decide_later(llm=llm_view())
    assert answer["action"]["direction"] in ("flat", "long")
    assert_safe(answer, f"head {answer['proposals'][production]['alias']}")


async def test_while_the_writer_is_away_the_answer_is_the_llms_and_nothing_is_recorded(hub: PlainHub) -> None:
    await hub.decide_later()
    before = hub.reader.head()
    hub.writer.away = True
    for answer in (await hub.decide(llm=llm_view()), await hub.decide_later(minutes=5, llm=llm_view())):
        assert_safe(answer, "sentry", "did not answer within 1 s")
        assert answer["decision_id"] is None
        assert answer["versions"]["position"] is None
    assert hub.reader.head() == before
    hub.writer.away = False
    assert (await hub.decide())["decision_id"] is not None


async def test_learning_that_is_switched_off_leaves_the_bot_as_it_is_without_a_hub(open_hub: Any) -> None:
    hub = open_hub({"learning": {"enabled": False}})
    await hub.register(momentum_bundle())
    assert_safe(await hub.decide_later(llm=llm_view()), "learning", "switched off")
    await hub.decide_later(portfolio=portfolio(5_000.0))
    assert hub.state.book.tripped
    assert not (await hub.decide_later(llm=llm_view(), portfolio=portfolio(5_000.0)))["acts"]
    assert hub.heads.asked == []


async def test_in_rollout_shadow_heads_decide_and_are_recorded_but_nothing_acts(open_hub: Any, production: str) -> None:
    hub = open_hub({"rollout": {"mode": "shadow"}})
    await hub.register(momentum_bundle())
    answers = [await hub.decide_later(llm=llm_view()) for _ in range(20)]
    answers += [await hub.decide_later(llm=llm_view(), portfolio=portfolio(5_000.0)) for _ in range(3)]
    assert {answer["policy_id"] for answer in answers} == {production}
    assert not any(answer["acts"] for answer in answers)
    assert hub.state.open_slots == {}


async def test_in_rollout_hybrid_a_head_acts_only_where_the_llm_goes_the_same_way(open_hub: Any) -> None:
    hub = open_hub({"rollout": {"mode": "hybrid"}})
    await hub.register(momentum_bundle())
    seen = set()
    for minute in range(60):
        view = (llm_view("long"), llm_view("short"), None)[minute % 3]
        answer = await hub.decide_later(llm=view, symbol=SYMBOLS[minute % 4], strategy=STRATEGIES[minute % 6])
        (proposal,) = answer["proposals"].values()
        agree = view is not None and view["direction"] == proposal["action"]["direction"]
        seen.add((view is None, agree))
        if not agree:
            assert answer["action"]["direction"] == "flat"
    assert seen == {(True, False), (False, False), (False, True)}


def test_when_neither_a_head_nor_the_llm_says_anything_there_is_no_position() -> None:
    body = concluded(ROLLOUTS["full"], Features(None, {}, "away"), {}, request_of(None))
    assert body["action"]["direction"] == "flat"
    assert body["confidence"] is None


# -- risk -------------------------------------------------------------------------------------------------------------

ROLLOUTS = {name: state_of({"rollout": {"mode": mode}, "learning": {"param_mode": param_mode},
                              "router": {"challenger_share": 0.3}}, momentum_bundle(), onnx_bundle())
              for name, mode, param_mode in (("full", "full", "bandit"), ("full, static", "full", "static"),
                                             ("hybrid", "hybrid", "bandit"), ("hybrid, static", "hybrid", "static"))}
FRESH = Features((0.1,) * len(DECISION_V1), {BARS: 10**6, FUNDING: 10**6})


def request_of(llm: dict[str, Any] | None, strategy: str = "momentum", number: int = 0) -> dict[str, Any]:
    return {"request_id": f"r{number}", "symbol": "BTC", "strategy": strategy, "time_ms": 10**6,
            "portfolio": portfolio(), "llm": llm, "parent_decision_id": None}


def concluded(state: HubState, features: Features, answers: dict[str, Answer],
              request: dict[str, Any]) -> dict[str, Any]:
    return decide.conclude(state, decide.plan(state, request, features), request, "", features, answers)


directions = st.sampled_from(["long", "short", "flat"])


def moderate_or_any(low: float, high: float, least: float, most: float) -> st.SearchStrategy[float]:
    """Mostly what occurs (low..high), else whatever can be said at all (least..most)."""
    return st.one_of(st.floats(low, high), st.floats(low, high), st.floats(low, high), st.floats(least, most))


levels = {"size_fraction": moderate_or_any(0.001, 0.05, 0, 1), "leverage": moderate_or_any(1, 10, 1, 50),
          "tp_pct": moderate_or_any(0.001, 0.03, 1e-6, 0.5), "sl_pct": moderate_or_any(0.001, 0.03, 1e-6, 0.5),
          "min_conf": moderate_or_any(0, 0.6, 0, 1), "limit_offset_pct": st.floats(0, 1)}
confidences = moderate_or_any(0.7, 1, 0, 1)
views = st.none() | st.builds(llm_view, directions, confidence=confidences, **levels)
proposals = st.builds(Proposal, st.builds(Action, st.sampled_from(Direction), **levels), confidences)


@settings(REPEATABLE, max_examples=250)
@given(rollout=st.sampled_from(sorted(ROLLOUTS)), first=proposals, second=proposals, view=views,
       agrees=st.booleans(), strategy=st.sampled_from(STRATEGIES), number=st.integers(0, 10_000))
def test_no_answer_risks_more_than_its_head_the_llm_or_the_limits(
        rollout: str, first: Proposal, second: Proposal, view: dict[str, Any] | None, agrees: bool, strategy: str,
        number: int) -> None:
    state = ROLLOUTS[rollout]
    if agrees and view is not None:
        view = {**view, "direction": first.action.direction.value}
    answers = {bundle.policy_id: Answer(proposal, 1.0)
               for bundle, proposal in ((momentum_bundle(), first), (onnx_bundle(), second))}
    body = concluded(state, FRESH, answers, request_of(view, strategy, number))
    action, limits = body["action"], state.config.shield
    head = answers[body["policy_id"]].proposal
    assert head is not None
    slack = 1 + 1e-12
    assert risk(action) <= risk(head.action.to_dict()) * slack
    assert risk(action) <= limits.risk_per_trade * slack
    assert action["leverage"] <= limits.max_leverage
    assert action["size_fraction"] <= limits.max_position_pct
    assert action["min_conf"] >= limits.min_conf
    assert action["direction"] == "flat" or strategy not in limits.directional_strategies \
        or action["sl_pct"] >= limits.min_sl_pct
    assert action["direction"] in ("flat", head.action.direction.value)
    assert action["direction"] == "flat" or body["confidence"] >= action["min_conf"]
    if view is not None:
        assert risk(action) <= risk(view) * slack
        if action["direction"] != "flat":
            assert action["leverage"] <= view["leverage"]


@settings(REPEATABLE, max_examples=150)
@given(view=views, strategy=st.sampled_from(STRATEGIES))
def test_an_answer_that_is_the_llms_risks_no_more_than_the_llm_would(
        view: dict[str, Any] | None, strategy: str) -> None:
    body = concluded(ROLLOUTS["full"], Features(None, {}, "away"), {}, request_of(view, strategy))
    assert not body["acts"]
    assert risk(body["action"]) <= (0.0 if view is None else risk(view) * (1 + 1e-12))


@settings(REPEATABLE, max_examples=100)
@given(first=proposals, view=views)
def test_while_the_book_is_tripped_every_answer_is_flat_whoever_decides(
        first: Proposal, view: dict[str, Any] | None) -> None:
    for answers in ({TRIPPED_HEAD: Answer(first, 1.0)}, {}):
        body = concluded(TRIPPED, FRESH if answers else Features(None, {}, "away"), answers, request_of(view))
        assert (body["acts"], body["action"]["direction"], risk(body["action"])) == (True, "flat", 0.0)


def _tripped() -> HubState:
    state = state_of({"rollout": {"mode": "full"}}, momentum_bundle())
    fold(state, NewRow("command", "stop", {"command": "pause", "policy_id": BOOK, "actor": "ops", "reason": "-"}))
    return state


TRIPPED, TRIPPED_HEAD = _tripped(), momentum_bundle().policy_id


@pytest.mark.parametrize(("head", "llm", "leverage", "size"), [
    ((0.010, 5.0), (0.002, 5.0), 5.0, 0.002),  # the shield takes the LLM's smaller margin
    ((0.002, 5.0), (0.010, 5.0), 5.0, 0.002),  # never more than the head's own risk
    ((0.004, 10.0), (0.008, 2.0), 2.0, 0.006),  # at the LLM's lower leverage, half of both margins is within both risks
])
def test_in_rollout_hybrid_sizes_are_blended_within_both_risks(
        head: tuple[float, float], llm: tuple[float, float], leverage: float, size: float) -> None:
    state = ROLLOUTS["hybrid, static"]
    proposal = Proposal(Action(Direction.LONG, head[0], head[1], 0.01, 0.01), 0.9)
    view = llm_view("long", size_fraction=llm[0], leverage=llm[1])
    answers = dict.fromkeys(state.heads, Answer(proposal, 1.0))
    action = concluded(state, FRESH, answers, request_of(view))["action"]
    assert (action["direction"], action["leverage"]) == ("long", leverage)
    assert action["size_fraction"] == pytest.approx(size)


# -- plan and weights -------------------------------------------------------------------------------------------------


def test_planning_and_concluding_change_nothing_and_give_the_same_again() -> None:
    state = ROLLOUTS["full"]
    request = request_of(llm_view())
    answers = {policy_id: Answer(Proposal(Action(Direction.LONG, 0.05, 5.0, 0.01, 0.01), 0.7), 1.0)
               for policy_id in state.heads}
    first = concluded(state, FRESH, answers, request)
    assert concluded(state, FRESH, answers, request) == first
    assert first["as_of"] == state.position


def test_only_roles_that_may_answer_are_asked() -> None:
    state = state_of({"rollout": {"mode": "full"}}, *(onnx_bundle(f"linear_v{number}", number) for number in range(6)))
    ids = list(state.heads)
    fold(state, NewRow("command", "c1", {"command": "pause", "policy_id": ids[1], "actor": "ops", "reason": "-"}))
    for policy_id, judgement in ((ids[2], "throttle"), (ids[3], "halt")):
        fold(state, NewRow("verdict", None, {"policy_id": policy_id, "judgement": judgement, "rule": "operator",
                                             "figure": None, "limit": None, "trades": None, "caused_by": None,
                                             "actor": "ops"}))
    asked = decide.plan(state, request_of(None), FRESH).ask
    assert asked.keys() == {ids[0], ids[2], ids[4], ids[5]}
    assert asked[ids[0]] is Role.PRODUCTION
    assert asked[ids[2]] is Role.THROTTLED


@pytest.mark.parametrize(("mode", "share"), [("llm_only", 0.0), ("hybrid", 0.5), ("bandit_only", 1.0)])
def test_weights_are_the_configured_blend_of_the_bandit_and_the_llm(mode: str, share: float) -> None:
    state = state_of({"learning": {"allocation_mode": mode}})
    view = LlmView(Action(Direction.FLAT, 0.0, 1.0, 0.01, 0.01), 0.5, {"momentum": 3.0, "scalping": 1.0})
    bandit = state.allocation.propose_weights(key="epoch/0")
    found = decide.weights(state, view)
    wanted = {"momentum": 0.75, "scalping": 0.25}
    assert found == pytest.approx({name: share * bandit[name] + (1 - share) * wanted.get(name, 0.0) for name in bandit})


def test_the_llms_view_is_read_from_the_request_field_by_field() -> None:
    view = llm_view("short", limit_offset_pct=0.001, strategy_weights={"momentum": 1.0})
    found = llm_view_of(view)
    assert found is not None
    assert {**found.action.to_dict(), "confidence": found.confidence,
            "strategy_weights": found.strategy_weights} == view
    assert llm_view_of(None) is None
