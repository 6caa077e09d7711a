"""Nothing that was unknown at a boundary is learnt from before it, and every later row is tested exactly once."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from policies.errors import InvalidInput
from train.walk_forward import Fold, Split, final_fit, folds

Places = NDArray[np.int64]


@st.composite
def rows(draw: st.DrawFn) -> tuple[Places, Places]:
    """In any order; several symbols at the same times; labels that overlap by anything."""
    seed, symbols = draw(st.integers(0, 10_000)), draw(st.integers(1, 4))
    rng = np.random.default_rng(seed)
    times = np.concatenate([np.sort(rng.integers(0, 3_000, draw(st.integers(40, 120)))) for _ in range(symbols)])
    rng.shuffle(times)
    return times, times + rng.integers(0, draw(st.integers(1, 400)), len(times))


def folded(event: Places, known: Places, count: int, initial: float, validation: float, embargo: int) -> list[Fold]:
    try:
        return folds(event, known, count, initial, validation, embargo)
    except InvalidInput as refused:
        assume("at least one row" not in refused.legal)
        raise


def brute_force(event: Places, known: Places, from_ms: int, until_ms: int, embargo_ms: int) -> list[int]:
    return [place for place, (time, over) in enumerate(zip(event.tolist(), known.tolist(), strict=True))
            if from_ms <= time < until_ms and not until_ms - embargo_ms <= time < until_ms and not over > until_ms]


@settings(max_examples=150, deadline=None)
@given(rows(), st.integers(1, 5), st.floats(0.3, 0.7), st.floats(0.1, 0.5), st.integers(0, 200))
def test_every_part_of_every_fold_is_what_brute_force_finds(both, count, initial, validation, embargo) -> None:
    event, known = both
    for fold in folded(event, known, count, initial, validation, embargo):
        first, boundary = int(event.min()), fold.validation_start_ms
        assert fold.fit.tolist() == brute_force(event, known, first, boundary, embargo)
        assert fold.validation.tolist() == brute_force(event, known, boundary, fold.test_start_ms, embargo)
        assert fold.test.tolist() == brute_force(event, event, fold.test_start_ms, fold.test_stop_ms, 0)


@settings(max_examples=100, deadline=None)
@given(rows(), st.integers(1, 5), st.floats(0.3, 0.7), st.integers(0, 200))
def test_tests_lie_end_to_end_and_hold_every_later_row_once(both, count, initial, embargo) -> None:
    event, known = both
    found = folded(event, known, count, initial, 0.2, embargo)
    assert len(found) == count
    assert [fold.test_stop_ms for fold in found[:-1]] == [fold.test_start_ms for fold in found[1:]]
    later = np.flatnonzero(event >= found[0].test_start_ms)
    assert sorted(np.concatenate([fold.test for fold in found]).tolist()) == later.tolist()


@settings(max_examples=100, deadline=None)
@given(rows(), st.integers(2, 4))
def test_training_only_grows_and_never_meets_its_test(both, count) -> None:
    event, known = both
    found = folded(event, known, count, 0.5, 0.2, 50)
    for fold in found:
        learnt = np.concatenate([fold.fit, fold.validation])
        assert known[fold.fit].max() <= fold.validation_start_ms <= event[fold.validation].min()
        assert known[learnt].max() <= fold.test_start_ms <= event[fold.test].min()
        assert event[fold.fit].max() + 50 < fold.validation_start_ms
        assert event[learnt].max() + 50 < fold.test_start_ms
    for earlier, later in itertools.pairwise(found):
        assert set(earlier.fit) <= set(later.fit)


@settings(max_examples=60, deadline=None)
@given(rows(), st.integers(0, 200))
def test_final_fit_takes_everything_up_to_the_end_but_purges_between_its_parts(both, embargo) -> None:
    event, known = both
    try:
        split = final_fit(event, known, 0.25, embargo)
    except InvalidInput:
        assume(False)
    assert type(split) is Split
    assert split.fit.tolist() == brute_force(event, known, 0, split.validation_start_ms, embargo)
    assert split.validation.tolist() == np.flatnonzero(event >= split.validation_start_ms).tolist()


def test_shares_are_shares_of_time() -> None:
    event = np.arange(1_000, dtype=np.int64)
    first, second = folds(event, event, 2, initial_share=0.6, validation_share=0.25)
    assert (first.test_start_ms, first.test_stop_ms, second.test_stop_ms) == (600, 800, 1_000)
    assert (first.validation_start_ms, second.validation_start_ms) == (450, 600)


@pytest.mark.parametrize(("changed", "field"), [
    ({"count": 0}, "count"), ({"initial_share": float("nan")}, "initial_share"),
    ({"initial_share": 1.0}, "initial_share"),
    ({"validation_share": float("nan")}, "validation_share"), ({"embargo_ms": -1}, "embargo_ms"),
    ({"embargo_ms": 900}, "fit until"), ({"known_ms": np.arange(1_000) - 1}, "known_ms"),
    ({"known_ms": np.arange(5)}, "event_time_ms, known_ms")])
def test_what_cannot_be_folded_is_refused_by_name(changed, field) -> None:
    arguments = {"event_time_ms": np.arange(1_000), "known_ms": np.arange(1_000), "count": 2, **changed}
    with pytest.raises(InvalidInput) as refused:
        folds(**arguments)
    assert refused.value.field.startswith(field)
