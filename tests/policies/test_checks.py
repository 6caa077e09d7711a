"""The checker: passes every head of the project, and finds each fault planted in one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from policies.bundle import Bundle
from policies.checks import check_policy, require_sound
from policies.errors import BundleRefused
from policies.heads import Policy, load_head
from policies.types import Action, Context, Direction, Proposal

ROWS = np.random.default_rng(2).normal(size=(20, 4))


def test_every_kind_of_head_is_sound(onnx_bundle: Callable[..., Bundle],
                                     momentum_bundle: Callable[..., Bundle]) -> None:
    for bundle in (onnx_bundle(), onnx_bundle(optional_features=("funding_rate",)), momentum_bundle()):
        assert check_policy(load_head(bundle)) == []
        require_sound(load_head(bundle), ROWS)


class Faulty:
    """A head that would be sound, with one fault."""

    policy_id = "f" * 64
    features = ("a", "b", "c", "d")

    def __init__(self, predict: Any = None, propose: Any = None) -> None:
        self._predict, self._propose, self.calls = predict, propose, 0

    def predict(self, obs: ArrayLike) -> NDArray[np.float64]:
        self.calls += 1
        rows = np.asarray(obs)
        sound = np.broadcast_to([0.2, 0.3, 0.5], (*rows.shape[:-1], 3)).copy()
        return self._predict(self, rows, sound) if self._predict else sound

    def propose(self, context: Context) -> Proposal:
        self.calls += 1
        usable = len(context.features) == 4 and bool(np.isfinite(context.features).all())
        action = Action(Direction.LONG if usable else Direction.FLAT, 0.05 * usable, 5.0, 0.01, 0.008)
        sound = Proposal(action, 0.7)
        return self._propose(self, context, sound) if self._propose else sound


def changed(**changes: Any) -> Any:
    return lambda head, context, sound: Proposal(dataclasses.replace(sound.action, **changes), sound.confidence)


FAULTS: list[tuple[Policy, str]] = [
    (Faulty(predict=lambda head, rows, sound: sound[..., :2]), "shape"),
    (Faulty(predict=lambda head, rows, sound: sound * np.nan), "probabilities"),
    (Faulty(predict=lambda head, rows, sound: sound * 2), "probabilities"),
    (Faulty(predict=lambda head, rows, sound: np.roll(sound, head.calls, axis=-1)), "same rows"),
    (Faulty(predict=lambda head, rows, sound: np.roll(sound, rows.ndim, axis=-1)), "in a batch"),
    (Faulty(predict=lambda head, rows, sound: np.array([np.roll(s, i) for i, s in enumerate(sound)])
            if rows.ndim == 2 else sound), "order of the rows"),
    (Faulty(predict=lambda head, rows, sound: (rows.fill(0), sound)[1]), "changes the rows"),
    (Faulty(propose=lambda head, context, sound: Proposal(sound.action, 1 / head.calls)), "same contexts"),
    (Faulty(propose=lambda head, context, sound: Proposal(sound.action, float("nan"))), "confidence"),
    (Faulty(propose=lambda head, context, sound: Proposal(dataclasses.replace(
        sound.action, direction=Direction.LONG, size_fraction=0.1), 0.7)), "all NaN"),
    (Faulty(propose=changed(leverage=0.5)), "leverage"),
    (Faulty(propose=changed(size_fraction=1.5)), "size_fraction"),
    (Faulty(propose=changed(sl_pct=0.0)), "sl_pct"),
    (Faulty(propose=changed(tp_pct=float("inf"))), "tp_pct"),
    (Faulty(propose=changed(direction=Direction.FLAT)), "flat action"),
]


def test_a_head_without_a_fault_is_sound() -> None:
    assert check_policy(Faulty(), ROWS) == []


@pytest.mark.parametrize(("head", "finding"), FAULTS)
def test_each_fault_is_found_and_refused(head: Policy, finding: str) -> None:
    assert any(finding in found for found in check_policy(head, ROWS))
    with pytest.raises(BundleRefused, match="not sound"):
        require_sound(head, ROWS)


def test_too_few_rows_to_check_with_are_a_finding(momentum_bundle: Callable[..., Bundle]) -> None:
    assert "N >= 2" in check_policy(load_head(momentum_bundle()), ROWS[:1])[0]
