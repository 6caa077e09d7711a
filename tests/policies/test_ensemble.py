"""Ensembles: members' Actions combined by one rule that never risks more than any member that agrees."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.bundle import Bundle, Manifest, make_bundle, pack_bundle, read_bundle
from policies.checks import check_policy
from policies.ensemble import EnsembleHead, combine, make_ensemble
from policies.errors import BundleRefused, InvalidInput
from policies.heads import PredictionFailed, load_head
from policies.types import Action, Context, Direction, Portfolio, Proposal

Build = Callable[..., Bundle]
LONG, SHORT, FLAT = Direction.LONG, Direction.SHORT, Direction.FLAT


def context(*features: float, arrays: Mapping[str, Any] | None = None) -> Context:
    return Context("BTC", "momentum", 0, features, {"bars": 0}, Portfolio(10_000.0), arrays=arrays or {})


def says(direction: Direction, confidence: float = 0.7, **levels: float) -> Proposal:
    action = Action(direction, 0.05, 5.0, 0.01, 0.008, min_conf=0.5)
    action = dataclasses.replace(action, **levels)
    return Proposal(action.flat() if direction is FLAT else action, confidence)


def combined(*proposals: Proposal, weights: list[float] | None = None, quorum: float = 0.5) -> Proposal:
    shares = np.array(weights or [1.0] * len(proposals))
    return combine({f"m{i}": proposal for i, proposal in enumerate(proposals)}, shares / shares.sum(), quorum)


def test_members_that_agree_give_their_direction_and_mean_confidence() -> None:
    found = combined(says(LONG, 0.6), says(LONG, 0.9), weights=[1, 3])
    assert found.action.direction is LONG
    assert found.confidence == pytest.approx((0.6 + 3 * 0.9) / 4)


def test_a_member_that_contradicts_lowers_the_confidence_and_one_that_stays_flat_does_not() -> None:
    assert combined(says(LONG, 0.8), says(LONG, 0.8), says(FLAT)).confidence == pytest.approx(0.8)
    contradicted = combined(says(LONG, 0.8), says(LONG, 0.8), says(LONG, 0.8), says(SHORT, 0.8))
    assert (contradicted.action.direction, contradicted.confidence) == (LONG, pytest.approx(0.6))


def test_members_that_balance_stay_flat() -> None:
    found = combined(says(LONG), says(SHORT))
    assert (found.action.direction, found.action.size_fraction) == (FLAT, 0.0)


def test_less_weight_than_the_quorum_stays_flat() -> None:
    one_of_three = (says(LONG), says(FLAT), says(FLAT))
    assert combined(*one_of_three).action.direction is FLAT
    assert combined(*one_of_three, quorum=0.3).action.direction is LONG
    assert combined(says(LONG), says(FLAT)).action.direction is LONG


def test_under_the_strictest_floor_of_confidence_it_stays_flat() -> None:
    assert combined(says(LONG, 0.6), says(LONG, 0.6, min_conf=0.65)).action.direction is FLAT
    assert combined(says(LONG, 0.7), says(LONG, 0.7, min_conf=0.65)).action.min_conf == 0.65


def test_a_member_without_weight_has_no_say_but_its_signal_is_shown() -> None:
    found = combined(says(LONG), says(SHORT, 1.0, sl_pct=0.001), weights=[1, 0])
    assert (found.action.direction, found.action.sl_pct) == (LONG, 0.008)
    assert found.members == {"m0": {"direction": "long", "confidence": 0.7, "weight": 1.0},
                             "m1": {"direction": "short", "confidence": 1.0, "weight": 0.0}}


def test_target_and_limit_are_weighted_means_of_those_who_agree() -> None:
    action = combined(says(LONG, tp_pct=0.01, limit_offset_pct=0.0), says(LONG, tp_pct=0.02, limit_offset_pct=0.001),
                      says(SHORT, 0.1, tp_pct=0.9), weights=[3, 1, 0.1]).action
    assert (action.tp_pct, action.limit_offset_pct) == (pytest.approx(0.0125), pytest.approx(0.00025))


# Mostly members that agree, confident and with low floors: else hardly any ensemble would trade.
actions = st.builds(Action, st.sampled_from([LONG, LONG, LONG, SHORT]), st.floats(0.001, 1), st.floats(1, 50),
                    st.floats(1e-4, 0.5), st.floats(1e-4, 0.5), st.floats(0, 0.01), st.floats(0, 0.6))
proposals = st.builds(Proposal, st.one_of(actions, actions, actions.map(Action.flat)), st.floats(0, 1))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(proposals, st.floats(0.01, 10)), min_size=2, max_size=8), st.floats(0, 0.6))
def test_no_ensemble_risks_more_than_any_member_that_agrees(given_: list[tuple[Proposal, float]],
                                                            quorum: float) -> None:
    found = combined(*(proposal for proposal, _ in given_), weights=[weight for _, weight in given_], quorum=quorum)
    assert 0 <= found.confidence <= 1
    if found.action.direction is FLAT:
        assert found.action.size_fraction == 0
        return
    agreeing = [p.action for p, _ in given_ if p.action.direction is found.action.direction]
    assert agreeing
    for own in agreeing:
        assert found.action.risk_fraction <= own.risk_fraction
        assert found.action.sl_pct <= own.sl_pct
        assert found.action.leverage <= own.leverage
        assert found.action.size_fraction * found.action.leverage <= own.size_fraction * own.leverage
        assert found.confidence >= own.min_conf
    assert min(a.tp_pct for a in agreeing) - 1e-12 <= found.action.tp_pct <= max(a.tp_pct for a in agreeing) + 1e-12


@pytest.fixture
def members(onnx_bundle: Build, momentum_bundle: Build, softmax_bundle: Build, trees_bundle: Build) -> list[Bundle]:
    return [onnx_bundle(), momentum_bundle(), softmax_bundle(), trees_bundle()]


def test_an_ensemble_of_every_kind_is_sound_and_asks_each_member(members: list[Bundle]) -> None:
    bundle = read_bundle(pack_bundle(make_ensemble("four_v1", members, [1, 1, 2, 4])))
    head = load_head(bundle)
    assert check_policy(head) == []
    asked = context(0.5, 1.5, -0.5, 0.1)
    proposal = head.propose(asked)
    alone = {member.manifest.alias: load_head(member).propose(asked) for member in members}
    assert {alias: (s["direction"], s["confidence"]) for alias, s in proposal.members.items()} == \
        {alias: (p.action.direction.value, p.confidence) for alias, p in alone.items()}
    assert [s["weight"] for s in proposal.members.values()] == [0.125, 0.125, 0.25, 0.5]


def test_predictions_are_the_members_votes(members: list[Bundle]) -> None:
    head = load_head(make_ensemble("four_v1", members, [1, 1, 1, 1]))
    proposal = head.propose(context(0.5, 1.5, -0.5, 0.1))
    votes = {"long": 0.0, "short": 0.0, "flat": 0.0}
    for signal in proposal.members.values():
        votes[signal["direction"]] += signal["weight"] * signal["confidence"]
    p_short, p_flat, p_long = head.predict([0.5, 1.5, -0.5, 0.1])
    assert (p_short, p_long) == (pytest.approx(votes["short"]), pytest.approx(votes["long"]))
    assert p_short + p_flat + p_long == pytest.approx(1.0)


def test_a_proposal_with_members_comes_back_equal_and_one_without_is_written_as_ever(members: list[Bundle]) -> None:
    proposal = load_head(make_ensemble("four_v1", members, [1] * 4)).propose(context(0.5, 1.5, -0.5, 0.1))
    assert Proposal.from_dict(proposal.to_dict()) == proposal
    assert says(LONG).to_dict().keys() == {"action", "confidence"}


def test_a_member_that_cannot_answer_leaves_no_answer(onnx_bundle: Build, softmax_bundle: Build) -> None:
    head = load_head(make_ensemble("two_v1", [onnx_bundle(), softmax_bundle()], [1, 1]))
    head.propose(context(0.0, 0.0, 0.0, 0.0))
    with pytest.raises(PredictionFailed, match=r"linear_v1.*funding_rate"):
        head.propose(context(0.0, 0.0, 0.0, math.nan))


def test_a_feature_is_optional_if_it_is_for_every_member(onnx_bundle: Build, softmax_bundle: Build,
                                                         trees_bundle: Build) -> None:
    for other, optional in ((trees_bundle(), ("funding_rate",)), (onnx_bundle(), ())):
        assert make_ensemble("a", [softmax_bundle(), other], [1, 1]).manifest.optional_features == optional


def test_each_member_gets_the_last_numbers_of_the_arrays_that_it_takes(onnx_bundle: Build) -> None:
    groups = ("bars", "window", "market_embedding")
    taken: list[dict[str, int]] = [{"window": 10}, {"window": 5, "market_embedding": 2}, {}]
    members = [onnx_bundle(alias=f"m{i}", arrays=arrays, required_groups=groups) for i, arrays in enumerate(taken)]
    bundle = make_ensemble("three_v1", members, [1, 1, 1])
    head = load_head(bundle)
    assert bundle.manifest.arrays == {"window": 10, "market_embedding": 2}
    arrays = {"window": np.linspace(-1, 1, 12), "market_embedding": np.array([0.3, -0.4])}
    asked = context(0.5, 1.5, -0.5, 0.1, arrays=arrays)
    alone = {m.manifest.alias: load_head(m).propose(asked).confidence for m in members}
    assert {alias: s["confidence"] for alias, s in head.propose(asked).members.items()} == alone
    assert check_policy(head) == []


def ensemble_with(bundle: Bundle, files: dict[str, bytes] | None = None, **changes: Any) -> Bundle:
    return make_bundle(dataclasses.replace(bundle.manifest, **changes), files or bundle.files)


def test_members_that_do_not_fit_are_refused(onnx_bundle: Build, momentum_bundle: Build) -> None:
    first = onnx_bundle()
    wider = {"arrays": {"market_embedding": 2}, "required_groups": ("bars", "market_embedding")}
    others = {"aliases": onnx_bundle(alias="linear_v1", parameters={"leverage": 2.0}),
              "features": momentum_bundle(features=("ret_15", "ret_1")),
              "embedding version": onnx_bundle(alias="b", embedding_version="mae-2", **wider)}
    for reason, other in others.items():
        own = onnx_bundle(embedding_version="mae-1", **wider) if reason == "embedding version" else first
        with pytest.raises(BundleRefused, match=reason):
            make_ensemble("two_v1", [own, other], [1, 1])


def test_a_manifest_that_promises_what_its_members_do_not_keep_is_refused(onnx_bundle: Build,
                                                                          softmax_bundle: Build) -> None:
    bundle = make_ensemble("two_v1", [onnx_bundle(), softmax_bundle()], [1, 1])
    window = {"arrays": {"window": 5}, "required_groups": ("bars", "window")}
    changes: dict[str, dict[str, Any]] = {
        "optional features": {"optional_features": ("funding_rate",)}, "required groups": {"required_groups": ()},
        "arrays": window, "weight > 0": {"parameters": {"weight_0": 0.0}},
        "no parameter": {"parameters": {"weight_2": 1}},
        "between 0": {"parameters": {"weight_0": -1.0}}, "quorum": {"parameters": {"weight_0": 1, "quorum": 2}},
        "inputs": {"inputs": {"momentum": "ret_1"}}}
    for reason, change in changes.items():
        with pytest.raises(BundleRefused, match=reason):
            load_head(ensemble_with(bundle, **change))


def test_an_ensemble_in_an_ensemble_or_an_encoder_as_a_member_is_refused(onnx_bundle: Build) -> None:
    inner = make_ensemble("inner", [onnx_bundle()], [1])
    encoder = make_bundle(Manifest("window_encoder", "mae", (), arrays={"window": 5}, parameters={"size": 2}),
                          {"model.onnx": b""})
    outer = make_ensemble("outer", [onnx_bundle()], [1])
    for member in (inner, encoder):
        with pytest.raises(BundleRefused, match="members are plain heads"):
            load_head(ensemble_with(outer, {"member_0.pt": pack_bundle(member)}))
    with pytest.raises(BundleRefused, match=r"member_0\.pt: a pickle"):
        load_head(ensemble_with(outer, {"member_0.pt": b"\x80\x04."}))


def test_too_many_members_or_weights_are_refused(onnx_bundle: Build) -> None:
    for members, weights in (([], []), ([onnx_bundle()] * 9, [1] * 9), ([onnx_bundle()], [1, 2])):
        with pytest.raises(InvalidInput, match="members"):
            make_ensemble("any", members, weights)


def test_an_ensemble_shows_its_members_to_the_checker(onnx_bundle: Build) -> None:
    head = load_head(make_ensemble("one_v1", [onnx_bundle()], [1]))
    assert isinstance(head, EnsembleHead)
    assert [member.policy_id for member in head.members] == [onnx_bundle().policy_id]
