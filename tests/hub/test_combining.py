"""How a proposal becomes the action that the shield looks at: learnt levels, limit entries, the say on a size."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_bundles import momentum_bundle, onnx_bundle
from plain_hub import START_MS, llm_view
from pure_state import fold, state_of

from feature_repo.features import DECISION_V1
from hub.combining import combined, levels_of, rl_say, wanted_size
from hub.decide import Answer
from hub.schemas import llm_view_of
from hub.state import HubState
from policies.bundle import Bundle
from policies.rows import LLM_ONLY, PARAM_START, RL_POLICY, NewRow
from policies.types import Action, Direction, Proposal
from router.param_start import FoundLevels, ParamStart

REPEATABLE = settings(derandomize=True, database=None, deadline=None)
VALUES = tuple(0.1 * place - 3.0 for place in range(len(DECISION_V1)))
PRODUCTION, RL = momentum_bundle(), onnx_bundle("actor_v1")
START = ParamStart({"momentum": {bucket: FoundLevels(0.012, 0.005, 0.0005, 800, 0.1, 1.0, 0.4, 0.02)
                                 for bucket in ("calm_down", "normal_down", "wild_down")}})


def observed(what: str, detail: dict[str, Any], policy_id: str | None = None) -> NewRow:
    return NewRow("observation", None, {"what": what, "policy_id": policy_id, "figure": None, "detail": detail})


def learning(**keys: Any) -> HubState:
    return state_of({"rollout": {"mode": "full"}, "learning": keys}, PRODUCTION, RL)


def started(state: HubState, start: ParamStart = START) -> HubState:
    fold(state, observed(PARAM_START, {"id": start.start_id, "start": start.to_dict(), "actor": "ops", "reason": "x"}))
    return state


def with_rl(weight: float = 0.25, bundle: Bundle | None = RL) -> HubState:
    state = learning(rl={"enabled": True, "blend_weight": weight})
    detail = {"alias": "actor_v1", "path": "models/policy_rl.pt", "reason": "taken in", "actor": "ops"}
    fold(state, observed(RL_POLICY, detail, None if bundle is None else bundle.policy_id))
    return state


def action(direction: Direction = Direction.LONG, **changes: Any) -> Action:
    return Action(**{"direction": direction, "size_fraction": 0.05, "leverage": 5.0, "tp_pct": 0.01, "sl_pct": 0.008,
                     **changes})


def said(direction: Direction, size: float) -> dict[str, Answer]:
    """What an actor that wants this size answers."""
    return {RL.policy_id: Answer(Proposal(action(direction), 0.5 + size / 2), 1.0)}


@cache
def experienced(mode: str) -> HubState:
    state = started(learning(param_mode=mode, bo={"enabled": True, "min_samples": 1}))
    state.optimiser.learn("momentum", "wild_down", {"tp_pct": 0.01, "sl_pct": 0.006}, 0.1, START_MS)
    return state


# -- levels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["bandit", "bo"])
@REPEATABLE
@given(size=st.floats(0.001, 1.0), leverage=st.floats(1.0, 25.0), sl=st.floats(0.001, 0.05), key=st.integers(0, 1_000))
def test_learnt_levels_and_a_limit_entry_never_raise_the_risk_that_the_head_chose(
        mode: str, size: float, leverage: float, sl: float, key: int) -> None:
    state = experienced(mode)
    head = action(size_fraction=size, leverage=leverage, sl_pct=sl)
    made = combined(state, f"d{key}", "momentum", VALUES, head, None)
    assert made.risk_fraction <= head.risk_fraction * (1 + 1e-12)
    assert made.direction is head.direction


def test_the_start_gives_a_limit_entry_where_it_has_one_and_none_elsewhere() -> None:
    state = started(learning())
    assert state.params.bucket(VALUES) == "wild_down"
    assert combined(state, "d1", "momentum", VALUES, action(), None).limit_offset_pct == 0.0005
    assert combined(state, "d1", "breakout", VALUES, action(), None).limit_offset_pct == 0.0
    static = started(learning(param_mode="static"))
    assert combined(static, "d1", "momentum", VALUES, action(), None) == action()


def test_without_a_start_decisions_are_what_they_were() -> None:
    plain, taken_back = learning(), started(started(learning()), ParamStart())
    for key in range(50):
        assert combined(taken_back, f"d{key}", "momentum", VALUES, action(), None) == combined(
            plain, f"d{key}", "momentum", VALUES, action(), None)


def test_in_mode_bo_levels_are_the_optimisers() -> None:
    state = learning(param_mode="bo", bo={"enabled": True, "min_samples": 1})
    state.optimiser.learn("momentum", state.params.bucket(VALUES), {"tp_pct": 0.01, "sl_pct": 0.006}, 0.1, START_MS)
    for key in range(20):
        assert levels_of(state, "momentum", VALUES, key) == state.optimiser.suggest("momentum", VALUES, key)
    bandit = learning(bo={"enabled": True, "min_samples": 1})
    assert levels_of(bandit, "momentum", VALUES, 1) == bandit.params.propose("momentum", VALUES, 1)


# -- the say on a size ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("direction", "size", "signed", "factor"), [
    (Direction.LONG, 1.0, 1.0, 1.0), (Direction.LONG, 0.4, 0.4, 0.85), (Direction.SHORT, 0.8, -0.8, 0.75),
    (Direction.FLAT, 0.05, 0.0, 0.75)])
def test_consent_keeps_the_size_and_dissent_lowers_it(direction: Direction, size: float, signed: float,
                                                      factor: float) -> None:
    say = rl_say(with_rl(), PRODUCTION.policy_id, action(), said(direction, size))
    assert say is not None
    assert (say.policy_id, say.unknown) == (RL.policy_id, "")
    assert (say.signed_size, say.factor) == (pytest.approx(signed), pytest.approx(factor))


def test_its_say_is_in_the_direction_of_the_trade() -> None:
    say = rl_say(with_rl(), PRODUCTION.policy_id, action(Direction.SHORT), said(Direction.SHORT, 0.6))
    assert say is not None
    assert (say.signed_size, say.factor) == (pytest.approx(0.6), pytest.approx(0.9))


@pytest.mark.parametrize(("answers", "reason"), [
    ({}, "actor_v1 was not asked"),
    ({RL.policy_id: Answer(None, None, "missed its deadline of 250 ms")}, "actor_v1 missed its deadline of 250 ms")])
def test_silence_counts_as_no_consent_and_says_why(answers: dict[str, Answer], reason: str) -> None:
    say = rl_say(with_rl(), PRODUCTION.policy_id, action(), answers)
    assert say is not None
    assert (say.signed_size, say.factor, say.unknown) == (None, 0.75, reason)


def test_a_policy_that_was_never_taken_in_counts_as_no_consent_too() -> None:
    say = rl_say(with_rl(bundle=None), PRODUCTION.policy_id, action(), {})
    assert say is not None
    assert (say.policy_id, say.factor, say.unknown) == (None, 0.75, "models/policy_rl.pt: taken in")


def test_it_has_no_say_where_nothing_is_sized_or_it_trades_itself() -> None:
    state, answers = with_rl(), said(Direction.SHORT, 1.0)
    assert rl_say(state, LLM_ONLY, action(), answers) is None
    assert rl_say(state, RL.policy_id, action(), answers) is None
    assert rl_say(state, PRODUCTION.policy_id, action().flat(), answers) is None
    assert rl_say(learning(), PRODUCTION.policy_id, action(), answers) is None


@REPEATABLE
@given(st.sampled_from(Direction), st.one_of(st.floats(0, 1), st.just(math.nan)))
def test_whatever_confidence_it_states_its_size_is_within_one(direction: Direction, confidence: float) -> None:
    assert -1.0 <= wanted_size(Proposal(action(direction), confidence)) <= 1.0


def test_the_llms_stricter_leverage_still_wins_in_hybrid() -> None:
    state = state_of({"rollout": {"mode": "hybrid"}}, PRODUCTION)
    made = combined(started(state), "d1", "momentum", VALUES, action(), llm_view_of(llm_view("long", leverage=2.0)))
    assert (made.leverage, made.limit_offset_pct) == (2.0, 0.0005)
