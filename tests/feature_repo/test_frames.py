from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_repo.features import BARS, DECISION_V1, FEAR_GREED, FUNDING, GROUPS, REDDIT
from feature_repo.frames import GroupFrame, assemble
from policies.errors import InvalidInput


def frame(group: str, times: list[int], seed: int = 0) -> GroupFrame:
    values = np.random.default_rng(seed).normal(size=(len(times), len(GROUPS[group].names)))
    return GroupFrame(group, np.array(times, np.int64), values)


times_of = st.lists(st.integers(0, 300_000_000), max_size=12, unique=True).map(sorted)


@given(times_of, times_of, times_of, st.lists(st.integers(0, 400_000_000), min_size=1, max_size=10))
def test_vectors_are_those_of_a_search_by_hand(bars: list[int], funding: list[int], mood: list[int],
                                               asked: list[int]) -> None:
    frames = {BARS: frame(BARS, bars), FUNDING: frame(FUNDING, funding, 1), FEAR_GREED: frame(FEAR_GREED, mood, 2)}
    vectors = assemble(DECISION_V1, frames, np.array(asked, np.int64))
    for row, now in enumerate(asked):
        for place, spec in enumerate(DECISION_V1.specs):
            if spec.name.endswith("_missing"):
                expected = float(by_hand(frames, spec.name.removesuffix("_missing"), now) is None)
            else:
                held = by_hand(frames, spec.group, now)
                expected = np.nan if held is None else held[GROUPS[spec.group].names.index(spec.name)]
            assert np.array_equal(vectors[row, place], expected, equal_nan=True)


def by_hand(frames: dict[str, GroupFrame], group: str, now: int) -> np.ndarray | None:
    if group not in frames:
        return None
    known = [row for row, time in enumerate(frames[group].event_time_ms)
             if time <= now and now - time <= DECISION_V1.ttl_ms[group]]
    return frames[group].values[known[-1]] if known else None


def test_a_row_may_be_as_old_as_its_ttl_and_no_older() -> None:
    ttl = GROUPS[REDDIT].ttl_ms
    vectors = assemble(DECISION_V1, {REDDIT: frame(REDDIT, [1_000])}, np.array([999, 1_000, 1_000 + ttl, 1_001 + ttl]))
    assert vectors[:, DECISION_V1.names.index("reddit_missing")].tolist() == [1, 0, 0, 1]


def test_a_frame_of_another_shape_or_order_is_refused() -> None:
    with pytest.raises(InvalidInput, match="values"):
        GroupFrame(REDDIT, np.array([1]), np.zeros((1, 3)))
    with pytest.raises(InvalidInput, match="rising"):
        GroupFrame(REDDIT, np.array([2, 2]), np.zeros((2, 2)))
