"""The served actor: what it proposes is what its action asks for, for any row, and bundles that lie are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from small_models import actor_bundle, actor_tensors, linear_actor, linear_classifier

from policies.actor import ActorLimits, flat_position, observations, standardised, wanted
from policies.actor_head import ACTION_TOLERANCE, ActorHead
from policies.checks import check_agreement, check_policy
from policies.ensemble import make_ensemble
from policies.errors import BundleRefused
from policies.head import PredictionFailed
from policies.heads import load_head
from policies.loader import load_checked
from policies.types import Context, Direction, Portfolio

Floats = NDArray[np.float64]
ROWS = np.random.default_rng(1).normal(size=(200, 60))


def head_of(**changes: Any) -> ActorHead:
    head = load_head(actor_bundle(**changes))
    assert isinstance(head, ActorHead)
    return head


def by_hand(rows: Floats) -> NDArray[np.float32]:
    """The actions of the linear actor, by numpy."""
    weights = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
    tensors = actor_tensors()
    seen = observations(standardised(rows, tensors["mean"], tensors["scale"]), flat_position())
    return np.tanh(seen @ weights)


def test_it_answers_what_its_graph_says_of_a_flat_account() -> None:
    assert check_agreement(head_of().act, ROWS, by_hand(ROWS), ACTION_TOLERANCE) == []
    wrong = by_hand(ROWS)
    wrong[7, 2] += 1e-4
    said, = check_agreement(head_of().act, ROWS, wrong, ACTION_TOLERANCE)
    assert said.startswith("1 of 200 rows differ from its framework by more than 1e-05, the first is row 7 by 0.000")
    wrong[7, 2] = np.nan
    assert "row 7 by nan" in check_agreement(head_of().act, ROWS, wrong, ACTION_TOLERANCE)[0]


def test_it_proposes_the_exposure_the_stop_and_the_target_that_its_action_asks_for() -> None:
    head, seen = head_of(), set()
    for row, action in zip(ROWS, head.act(ROWS), strict=True):
        proposal = head.propose(Context("BTC", "momentum", 0, tuple(row), {}, Portfolio(10_000.0)))
        asked, taken = wanted(action, ActorLimits()), proposal.action
        assert taken.direction.sign == np.sign(asked.exposure)
        assert taken.size_fraction * taken.leverage == pytest.approx(abs(float(asked.exposure)))
        assert (taken.sl_pct, taken.tp_pct, taken.leverage) == (float(asked.stop), float(asked.target), 5.0)
        assert proposal.confidence == pytest.approx(0.5 + abs(action[0]) / 2)
        assert taken.risk_fraction <= 0.002 + 1e-12
        seen.add(taken.direction)
    assert seen == set(Direction)


def test_its_probabilities_say_how_large_and_on_which_side_it_would_be() -> None:
    size = head_of().act(ROWS)[:, 0]
    assert head_of().predict(ROWS) == pytest.approx(
        np.column_stack([np.maximum(-size, 0), 1 - np.abs(size), np.maximum(size, 0)]))


def test_it_is_sound_like_any_other_policy_and_passes_a_canary() -> None:
    assert check_policy(head_of()) == []
    assert load_checked(actor_bundle()).policy_id == actor_bundle().policy_id


def test_it_can_be_a_member_of_an_ensemble() -> None:
    bundle = make_ensemble("two", [actor_bundle(), actor_bundle(linear_actor(1), alias="actor_v2")], [1, 1])
    assert check_policy(load_head(bundle)) == []


def test_a_missing_optional_feature_counts_as_usual_and_a_required_one_is_refused() -> None:
    row = ROWS[0].copy()
    row[59] = np.nan
    usual = row.copy()
    usual[59] = actor_tensors()["mean"][59]
    assert head_of().act(row[None]) == pytest.approx(head_of().act(usual[None]))
    row[3] = np.nan
    with pytest.raises(PredictionFailed, match="feature_3 is nan"):
        head_of().act(row[None])


def test_levels_come_from_the_manifest() -> None:
    limits = {"risk_per_trade": 0.001, "leverage": 3.0, "least_stop_pct": 0.01, "most_stop_pct": 0.02}
    head = head_of(parameters=limits)
    assert head.limits == ActorLimits(**limits)
    action = head.propose(Context("BTC", "momentum", 0, tuple(ROWS[1]), {}, Portfolio(10_000.0))).action
    assert action.leverage == 3.0
    assert 0.01 <= action.sl_pct <= 0.02


@pytest.mark.parametrize(("changes", "says"), [
    ({"features": ("a", "b"), "optional_features": ()}, "reads 60 features"),
    ({"arrays": {"window": 5}, "required_groups": ("window",)}, "nothing else"),
    ({"inputs": {"momentum": "feature_1"}}, "1 inputs"),
    ({"parameters": {"max_p_flat": 0.5}}, "no parameter 'max_p_flat'"),
    ({"parameters": {"least_stop_pct": 0.4}}, "least_stop_pct"),
    ({"parameters": {"risk_per_trade": 0.02}}, "risk_per_trade must be between"),
    ({"tensors": {"mean": np.zeros(60, np.float32)}}, "`scale` is absent"),
    ({"tensors": {**actor_tensors(), "scale": np.zeros(60, np.float32)}}, "must be > 0"),
    ({"model": linear_classifier(100)}, "no float32 output `action`"),
    ({"model": linear_classifier(60)}, "float32 rows x 100")])
def test_a_bundle_that_is_no_actor_is_refused_by_what_is_wrong(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(BundleRefused, match=says):
        load_head(actor_bundle(**changes))


def test_an_action_outside_its_range_is_no_answer() -> None:
    with pytest.raises(PredictionFailed, match=r"not an action in \[-1, 1\]"):
        head_of(model=linear_actor(last="Identity")).act(ROWS)
