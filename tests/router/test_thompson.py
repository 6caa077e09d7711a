import math
from collections import Counter

import pytest
from scipy.stats import binom

from policies.errors import InvalidInput
from policies.rows import LLM_ONLY
from policies.types import Judgement, Role
from router.posteriors import BetaPosterior, NormalPosterior, probability_best
from router.thompson import (
    Candidate,
    EpochRoles,
    RouterSettings,
    ThompsonSamplingRouter,
    draw_roles,
    no_roles,
    role_of,
)

GOOD, POOR = NormalPosterior(20.0, 0.1), NormalPosterior(-20.0, 0.1)
REDUCE, THROTTLE, HALT = Judgement.REDUCE, Judgement.THROTTLE, Judgement.HALT


def head(name: str, posterior=POOR, **traits) -> Candidate:
    return Candidate(name, posterior, **traits)


# situation: heads -> shares in percent, probation. "a" is production, "b" the next or the challenger, "c" one more.
TABLE = {
    "green-lit and challenger": ([head("a", green_lit=True), head("b")], {"a": 90, "b": 10}, False),
    "best green-lit of two": ([head("a", GOOD, green_lit=True), head("b", green_lit=True)], {"a": 90, "b": 10}, False),
    "green-lit goes before incumbent": ([head("a", green_lit=True), head("b", GOOD, incumbent=True)],
                                        {"a": 90, "b": 10}, False),
    "no challenger": ([head("a", green_lit=True)], {"a": 100}, False),
    "reduced, next green-lit, challenger": (
        [head("a", GOOD, green_lit=True, standing=REDUCE), head("b", green_lit=True), head("c")],
        {"a": 5, "b": 85, "c": 10}, False),
    "reduced, next green-lit, no challenger": (
        [head("a", GOOD, green_lit=True, standing=REDUCE), head("b", green_lit=True)], {"a": 5, "b": 95}, False),
    "reduced, none is next": ([head("a", green_lit=True, standing=REDUCE), head("b")],
                              {"a": 5, "b": 10, LLM_ONLY: 85}, False),
    "reduced, all alone": ([head("a", green_lit=True, standing=REDUCE)], {"a": 5, LLM_ONLY: 95}, False),
    "reduced incumbent on probation": ([head("a", incumbent=True, standing=REDUCE), head("b")],
                                       {"a": 5, "b": 10, LLM_ONLY: 85}, True),
    "incumbent on probation": ([head("a", incumbent=True), head("b", GOOD)], {"a": 90, "b": 10}, True),
    "incumbent on probation, no challenger": ([head("a", incumbent=True)], {"a": 100}, True),
    "throttled": ([head("a", incumbent=True, standing=THROTTLE), head("b")], {"b": 10, LLM_ONLY: 90}, False),
    "halted": ([head("a", incumbent=True, standing=HALT), head("b")], {"b": 10, LLM_ONLY: 90}, False),
    "paused": ([head("a", incumbent=True, paused=True), head("b")], {"b": 10, LLM_ONLY: 90}, False),
    "throttled, no challenger": ([head("a", incumbent=True, standing=THROTTLE)], {LLM_ONLY: 100}, False),
    "halted though green-lit": ([head("a", GOOD, green_lit=True, standing=HALT), head("b", green_lit=True)],
                                {"b": 100}, False),
    "evidence unknown": ([head("a", green_lit=True), head("b", NormalPosterior(math.nan, 1.0))],
                         {LLM_ONLY: 100}, False),
    "promoted": ([head("a", green_lit=True, promoted=True), head("b", GOOD, green_lit=True)],
                 {"a": 90, "b": 10}, False),
    "promoted without green light": ([head("a", promoted=True), head("b", GOOD, green_lit=True)],
                                     {"a": 90, "b": 10}, True),
    "promoted and throttled, another green-lit": (
        [head("a", promoted=True, standing=THROTTLE), head("b", green_lit=True)], {"b": 100}, False),
    "promoted and throttled, none green-lit": (
        [head("a", promoted=True, standing=THROTTLE), head("b", incumbent=True)], {"b": 10, LLM_ONLY: 90}, False),
    "reduced head is no challenger": ([head("a", GOOD, green_lit=True), head("b", standing=REDUCE)],
                                      {"a": 100}, False),
    "nobody": ([], {LLM_ONLY: 100}, False),
}


@pytest.mark.parametrize("situation", TABLE)
def test_shares_are_those_of_the_table(situation):
    candidates, percent, probation = TABLE[situation]
    for epoch in range(20):
        drawn = draw_roles(candidates, seed=1, epoch=epoch)
        assert {name: 100 * share for name, share in drawn.shares.items()} == pytest.approx(percent)
        assert sum(drawn.shares.values()) == pytest.approx(1.0, abs=1e-12)
        assert drawn.probation is probation
        assert set(drawn.roles) == {one.policy_id for one in candidates}


def test_heads_without_a_share_say_why():
    drawn = draw_roles([head("a", green_lit=True), head("h", standing=HALT, paused=True), head("p", paused=True),
                        head("s", standing=REDUCE), head("t", standing=THROTTLE), head("z", GOOD)], 1, 1)
    assert drawn.roles == {"a": Role.PRODUCTION, "h": Role.HALTED, "p": Role.PAUSED, "s": Role.SHADOW,
                           "t": Role.THROTTLED, "z": Role.CHALLENGER}


def test_halted_throttled_and_paused_policies_are_never_chosen():
    barred = [head("h", GOOD, green_lit=True, standing=HALT), head("t", GOOD, green_lit=True, standing=THROTTLE),
              head("p", GOOD, green_lit=True, promoted=True, paused=True)]
    for epoch in range(200):
        drawn = draw_roles([*barred, head("x"), head("y", incumbent=True)], 3, epoch)
        assert not {"h", "t", "p"} & set(drawn.shares)


def test_roles_do_not_depend_on_the_order_of_candidates():
    candidates = [head(name, NormalPosterior(0.1 * place, 0.5), green_lit=place < 3) for place, name in
                  enumerate("dacfb")]
    for epoch in range(50):
        assert draw_roles(candidates, 5, epoch) == draw_roles(candidates[::-1], 5, epoch)


def test_earliest_incumbent_stands():
    drawn = draw_roles([head("a", incumbent=True, registered_position=9),
                        head("b", incumbent=True, registered_position=2)], 1, 1)
    assert drawn.roles["b"] is Role.PRODUCTION


def test_role_probability_is_how_often_these_roles_are_drawn():
    candidates = [head("a", NormalPosterior(0.5, 0.4), green_lit=True), head("b", NormalPosterior(0.3, 0.6),
                  green_lit=True), head("c", NormalPosterior(0.2, 0.9)), head("d", NormalPosterior(0.0, 0.3))]
    epochs = 3_000
    seen: Counter[tuple] = Counter()
    stated = {}
    for epoch in range(epochs):
        drawn = draw_roles(candidates, 11, epoch)
        roles = tuple(sorted(drawn.shares.items()))
        seen[roles] += 1
        stated[roles] = drawn.role_probability
    assert len(seen) == 6
    assert sum(stated.values()) == pytest.approx(1.0, abs=1e-6)
    for roles, count in seen.items():
        assert binom.ppf(0.0005, epochs, stated[roles]) <= count <= binom.ppf(0.9995, epochs, stated[roles])


def test_role_probability_counts_the_next_one_too():
    slow = head("a", GOOD, green_lit=True, standing=REDUCE)
    rivals = [head("b", NormalPosterior(0.0, 1.0), green_lit=True), head("c", NormalPosterior(0.5, 1.0),
              green_lit=True)]
    drawn = draw_roles([slow, *rivals], 1, 0)
    following = next(place for place, one in enumerate(rivals) if drawn.roles[one.policy_id] is Role.PRODUCTION)
    assert drawn.role_probability == pytest.approx(probability_best([one.posterior for one in rivals])[following])


def test_unknown_sentry_leaves_the_llm_alone():
    roles = no_roles([head("a", GOOD, green_lit=True)])
    assert role_of("d1", 1, roles).policy_id == LLM_ONLY
    assert role_of("d1", 1, roles).role is Role.LLM_ONLY
    assert roles.roles == {"a": Role.SHADOW}


def test_challenger_gets_a_tenth_of_two_thousand_decisions():
    roles = draw_roles([head("a", green_lit=True), head("b")], 7, 1)
    draws = [role_of(f"d{number}", 7, roles) for number in range(2_000)]
    challenged = sum(draw.role is Role.CHALLENGER for draw in draws)
    assert binom.ppf(0.005, 2_000, 0.1) <= challenged <= binom.ppf(0.995, 2_000, 0.1)
    assert all(draw.propensity == roles.shares[draw.policy_id] for draw in draws)


def test_role_of_a_decision_is_fixed_by_its_id_and_the_seed():
    roles = EpochRoles({"a": Role.PRODUCTION, "b": Role.CHALLENGER}, {"a": 0.5, "b": 0.5}, 1.0, False)
    reordered = EpochRoles(roles.roles, {"b": 0.5, "a": 0.5}, 1.0, False)
    ids = [f"d{number}" for number in range(100)]
    first = [role_of(name, 1, roles) for name in ids]
    assert first == [role_of(name, 1, reordered) for name in ids]
    assert first != [role_of(name, 2, roles) for name in ids]


def test_shares_follow_the_settings():
    settings = RouterSettings(challenger_share=0.2, reduced_share=0.02)
    drawn = draw_roles([head("a", GOOD, green_lit=True, standing=REDUCE), head("b", green_lit=True), head("c")], 1, 1,
                       settings)
    assert drawn.shares == pytest.approx({"a": 0.02, "b": 0.78, "c": 0.2})


def test_front_splits_ninety_to_ten_and_learns_who_is_better():
    router = ThompsonSamplingRouter(seed=3)
    for _ in range(200):
        router.update_policy_performance("good", True)
        router.update_policy_performance("poor", False)
    assert router.select_policy(["poor", "good"]) == {"production": {"policy": "good", "traffic": 0.9},
                                                      "shadow": {"policy": "poor", "traffic": 0.1}}


def test_front_names_none_where_nobody_is_left():
    router = ThompsonSamplingRouter()
    assert router.select_policy(["a"]) == {"production": {"policy": "a", "traffic": 1.0},
                                           "shadow": {"policy": None, "traffic": 0.0}}
    assert router.select_policy([])["production"] == {"policy": None, "traffic": 0.0}


def test_asking_the_front_changes_nothing_and_learning_draws_anew():
    router = ThompsonSamplingRouter(seed=1)
    answers = []
    for _ in range(40):
        assert router.select_policy(["a", "b"]) == router.select_policy(["b", "a"])
        answers.append(router.select_policy(["a", "b"])["production"]["policy"])
        router.update_policy_performance("somebody else", True)
    assert set(answers) == {"a", "b"}


@pytest.mark.parametrize("success", [math.nan, 0.5, None, "yes"])
def test_front_refuses_a_success_that_is_neither_true_nor_false(success):
    with pytest.raises(InvalidInput):
        ThompsonSamplingRouter().update_policy_performance("a", success)


def test_beta_posteriors_route_too():
    drawn = draw_roles([head("a", BetaPosterior(90, 10), green_lit=True), head("b", BetaPosterior(10, 90),
                        green_lit=True)], 1, 1)
    assert drawn.roles == {"a": Role.PRODUCTION, "b": Role.CHALLENGER}


def test_a_new_head_is_the_challenger_for_sure_and_the_latest_of_several_is_first():
    heads = [head("a", incumbent=True), head("b", GOOD), head("c", new=True, registered_position=7),
             head("d", new=True, registered_position=9)]
    for epoch in range(50):
        drawn = draw_roles(heads, seed=3, epoch=epoch)
        assert drawn.shares == {"a": 0.9, "d": 0.1}
        assert drawn.role_probability == 1.0


@pytest.mark.parametrize("traits", [{"standing": REDUCE}, {"standing": THROTTLE}, {"standing": HALT}, {"paused": True}])
def test_a_new_head_that_may_not_act_keeps_nobody_from_the_challengers_share(traits):
    heads = [head("a", incumbent=True), head("b"), head("c", new=True, registered_position=7, **traits)]
    assert draw_roles(heads, seed=3, epoch=1).shares == {"a": 0.9, "b": 0.1}


def test_a_head_that_cannot_be_asked_is_given_no_share_but_keeps_an_operators_word():
    heads = [head("a", incumbent=True), head("b"), head("c", GOOD, new=True, registered_position=7, askable=False)]
    assert draw_roles(heads, seed=3, epoch=1).shares == {"a": 0.9, "b": 0.1}
    assert draw_roles(heads, seed=3, epoch=1).roles["c"] is Role.SHADOW
    green = [head("a", green_lit=True), head("b"), head("c", GOOD, green_lit=True, askable=False)]
    assert draw_roles(green, seed=3, epoch=1).shares == {"a": 0.9, "b": 0.1}
    slow = [head("a", GOOD, green_lit=True, standing=REDUCE), head("c", green_lit=True, askable=False)]
    assert draw_roles(slow, seed=3, epoch=1).shares == {"a": 0.05, LLM_ONLY: 0.95}
    for traits in ({"promoted": True}, {"incumbent": True}):
        stays = [head("a", askable=False, **traits), head("b")]
        assert draw_roles(stays, seed=3, epoch=1).shares == {"a": 0.9, "b": 0.1}


def test_a_new_head_with_a_green_light_is_drawn_like_any_other():
    heads = [head("a", GOOD, green_lit=True), head("b", GOOD), head("c", POOR, green_lit=True, new=True)]
    assert draw_roles(heads, seed=3, epoch=1).shares == {"a": 0.9, "b": 0.1}
