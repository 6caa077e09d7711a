"""The checker: passes every head of the project, and finds each fault planted in one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from policies.bundle import Bundle, pack_bundle
from policies.checks import check_agreement, check_encoder, check_policy, main, refuse_unless_sound, require_sound
from policies.errors import BundleRefused
from policies.heads import Policy, load_head
from policies.probe_rows import head_rows, window_rows
from policies.types import Action, Context, Direction, Proposal

ROWS = np.random.default_rng(2).normal(size=(20, 4))


def test_every_kind_of_head_is_sound(onnx_bundle: Callable[..., Bundle],
                                     momentum_bundle: Callable[..., Bundle]) -> None:
    arrays = onnx_bundle(arrays={"window": 5, "market_embedding": 2},
                         required_groups=("bars", "window", "market_embedding"))
    assert check_policy(load_head(arrays)) == []
    for bundle in (onnx_bundle(), momentum_bundle()):
        assert check_policy(load_head(bundle)) == []
        require_sound(load_head(bundle), ROWS)


def test_a_head_that_cannot_do_without_its_optional_feature_is_not_sound(onnx_bundle: Callable[..., Bundle]) -> None:
    findings = check_policy(load_head(onnx_bundle(optional_features=("funding_rate",))))
    assert any("when funding_rate is missing, which is optional" in finding for finding in findings)


class Faulty:
    """A head that would be sound, with one fault."""

    policy_id = "f" * 64
    features = needed_features = ("a", "b", "c", "d")
    arrays: ClassVar[dict[str, int]] = {}
    optional_features = ()
    width = 4

    def __init__(self, predict: Any = None, propose: Any = None) -> None:
        self._predict, self._propose, self.calls = predict, propose, 0

    def predict(self, obs: ArrayLike) -> NDArray[np.float64]:
        self.calls += 1
        rows = np.asarray(obs)
        sound = np.broadcast_to([0.2, 0.3, 0.5], (*rows.shape[:-1], 3)).copy()
        if self._predict:
            sound = self._predict(self, rows, sound)
        return sound

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
    (Faulty(propose=lambda head, context, sound: Proposal(Action(Direction.LONG, 0.05, 5.0, 0.01, 0.008), 0.7)
            if np.isfinite(context.features[:3]).all() else sound), "d is NaN"),
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


class Ticking:
    """A timer on which every second reading comes `step_s` later."""

    def __init__(self, step_s: float) -> None:
        self._now_s, self._step_s = 0.0, step_s

    def __call__(self) -> float:
        self._now_s += self._step_s
        return self._now_s


def test_a_head_that_is_too_slow_is_found_by_its_figure() -> None:
    assert check_policy(Faulty(), ROWS, 50.0, Ticking(0.049)) == []
    assert check_policy(Faulty(), ROWS, 50.0, Ticking(0.051)) == [
        "answers too slowly: 50 % of 5 rows must be answered within 50 ms, and 3 of the first 3 were not, the last in "
        "51.0 ms"]


def test_a_head_that_is_far_too_slow_is_not_asked_a_thousand_times() -> None:
    for takes_s, calls in ((0.051, 6), (0.2, 4), (0.251, 2), (60.0, 2)):
        head = Faulty()
        assert "too slowly" in check_policy(head, ROWS, 50.0, Ticking(takes_s))[0]
        assert head.calls == calls


def test_one_long_wait_while_the_machine_does_something_else_is_forgiven() -> None:
    waits = iter(np.cumsum([[0, 30.0, 0, 0.001], *([[0, 0.001, 0, 0.001]] * (4 + len(ROWS)))]))
    assert check_policy(Faulty(), ROWS, 50.0, lambda: float(next(waits))) == []


def test_one_slow_row_in_twenty_is_forgiven_and_the_better_of_two_counts() -> None:
    slow_once = iter(np.cumsum([[0, 0.5, 0, 0.001]] * (5 + len(ROWS))))
    assert check_policy(Faulty(), ROWS, 50.0, lambda: float(next(slow_once))) == []
    for slow_rows, findings in ((1, 0), (2, 1)):
        steps = [[0, 0.001] * 2] * (5 + len(ROWS) - slow_rows) + [[0, 0.06] * 2] * slow_rows
        readings = iter(np.cumsum(steps))
        assert len(check_policy(Faulty(), ROWS, 50.0, lambda readings=readings: float(next(readings)))) == findings


def test_answers_equal_to_the_frameworks_agree_and_others_are_counted(onnx_bundle: Callable[..., Bundle]) -> None:
    head = load_head(onnx_bundle())
    expected = head.predict(ROWS)
    assert check_agreement(head.predict, ROWS, expected + 5e-5) == []
    expected[3, 1] += 2e-4
    expected[7, 0] = np.nan
    assert check_agreement(head.predict, ROWS, expected) == [
        "2 of 20 rows differ from its framework by more than 0.0001, the first is row 3 by 0.0002"]
    assert "shape" in check_agreement(head.predict, ROWS, expected[:5])[0]
    assert "failed" in check_agreement(head.predict, np.full((2, 4), np.nan), expected[:2])[0]


def test_a_refusal_names_the_first_findings_and_counts_the_rest() -> None:
    with pytest.raises(BundleRefused, match=r"one; two; three; four; five; six; and 4 more$"):
        refuse_unless_sound("f" * 64, ["one", "two", "three", "four", "five", "six", *"abcd"])


class Encoding:
    """An encoder that would be sound, with one fault."""

    window, size = 5, 2

    def __init__(self, fault: Any = None) -> None:
        self._fault, self.calls = fault, 0

    def embed(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        self.calls += 1
        sound = windows[:, :2] * 2
        return self._fault(self, windows, sound) if self._fault else sound


def test_each_fault_of_an_encoder_is_found() -> None:
    faults = {"finite": lambda own, windows, sound: sound + np.inf, "shape": lambda own, windows, sound: sound[:, :1],
              "same windows": lambda own, windows, sound: sound + own.calls,
              "in a batch": lambda own, windows, sound: sound + len(windows)}
    assert check_encoder(Encoding()) == []
    for finding, fault in faults.items():
        assert finding in " ".join(check_encoder(Encoding(fault)))
    assert "too slowly" in check_encoder(Encoding(), 1.0, Ticking(1.0))[0]


def test_a_head_that_fails_on_extreme_features_is_not_sound() -> None:
    def brittle(head: Any, rows: NDArray[np.float64], sound: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where((np.abs(rows) > 19).any(axis=-1, keepdims=True), np.nan, sound)

    assert any("probabilities" in finding for finding in check_policy(Faulty(predict=brittle)))


def test_heads_and_encoders_are_asked_windows_as_markets_make_them() -> None:
    rows = head_rows(4, {"market_embedding": 3, "window": 12})
    assert rows.shape == (65 + 6 + 6, 19)
    assert np.abs(rows[65:71, :4]).min() == 20.0
    assert np.abs(rows[71:, :4]).max() < 10.0
    bars = window_rows(100)[65:].reshape(6, 20, 5)
    assert not bars[0].any()
    opened, high, low, closed, traded = np.moveaxis(bars, 2, 0)
    assert np.all((low <= np.minimum(opened, closed)) & (high >= np.maximum(opened, closed)) & (traded >= 0))
    assert (np.abs(closed).max() > 0.02, traded.max() > 15) == (True, True)
    assert np.array_equal(rows[65:71, 7:], rows[71:, 7:]), "beside extreme features, and beside usual ones"


def test_an_encoder_that_fails_on_a_real_window_is_not_sound() -> None:
    fault = {"of a volume": lambda own, windows, sound: np.where(windows[:, 4:] > 12, np.nan, sound),
             "of a still market": lambda own, windows, sound: sound / np.where(windows[:, 3:4] == 0, 0, 1)}
    with np.errstate(all="ignore"):
        for bad in fault.values():
            assert "finite" in check_encoder(Encoding(bad))[0]


def test_without_a_limit_the_clock_is_not_asked() -> None:
    assert check_policy(Faulty(), ROWS, float("inf"), lambda: pytest.fail("it was")) == []
    assert check_encoder(Encoding(), float("inf"), lambda: pytest.fail("it was")) == []


def test_the_command_says_what_is_wrong_and_ends_with_one(
        tmp_path: Path, momentum_bundle: Callable[..., Bundle], capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "good.pt").write_bytes(pack_bundle(momentum_bundle()))
    (tmp_path / "bad.pt").write_bytes(b"\x80\x04.")
    assert main([str(tmp_path / "good.pt")]) == 0
    assert "is sound" in capsys.readouterr().out
    assert main([str(tmp_path / "bad.pt")]) == 1
    assert "a pickle" in capsys.readouterr().out
    assert main([]) == 2
