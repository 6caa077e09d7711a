"""The say of a reinforcement-learning policy in another policy's size."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.errors import InvalidInput
from policies.sizing import rl_size_factor

ANY = st.one_of(st.none(), st.floats())


@pytest.mark.parametrize(("weight", "signed_size", "factor"), [
    (0.25, 1.0, 1.0), (0.25, 0.0, 0.75), (0.25, -1.0, 0.75), (0.25, 0.5, 0.875), (1.0, 0.3, 0.3), (1.0, -0.3, 0.0),
    (0.0, -1.0, 1.0)])
def test_full_consent_leaves_the_size_and_none_takes_the_weight(weight: float, signed_size: float,
                                                               factor: float) -> None:
    assert rl_size_factor(weight, signed_size) == pytest.approx(factor)


@settings(derandomize=True, database=None, deadline=None)
@given(st.floats(0, 1), ANY)
def test_no_answer_of_any_kind_raises_a_size_and_silence_is_never_better_than_an_answer(
        weight: float, signed_size: float | None) -> None:
    factor = rl_size_factor(weight, signed_size)
    assert rl_size_factor(weight, None) <= factor <= 1.0
    assert factor >= 0.0


@settings(derandomize=True, database=None, deadline=None)
@given(st.floats(0, 1), st.floats(-1, 1), st.floats(-1, 1))
def test_more_consent_is_never_less_size(weight: float, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert rl_size_factor(weight, low) <= rl_size_factor(weight, high)


@pytest.mark.parametrize("weight", [-0.1, 1.1, math.nan])
def test_a_weight_outside_its_range_is_refused(weight: float) -> None:
    with pytest.raises(InvalidInput, match="weight"):
        rl_size_factor(weight, 0.5)
