"""Remembered transitions: what is drawn was added, the oldest go first, and a file gives them back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policies.errors import InvalidInput
from train.rl.experience import Experience


def transitions(first: int, count: int) -> tuple[Any, ...]:
    """Number n of them has n in every column."""
    number = np.arange(first, first + count, dtype=np.float32)
    seen = np.zeros((count, 100), np.float32)
    seen[:, :68] = number[:, None]
    return seen, np.repeat(number[:, None], 3, axis=1), number, seen, number % 2 == 1


def test_what_is_drawn_is_whole_and_was_added() -> None:
    memory = Experience(50)
    memory.add(*transitions(0, 20))
    drawn = memory.drawn(500, np.random.default_rng(0))
    assert drawn["observation"].shape == drawn["following"].shape == (500, 100)
    assert set(drawn["reward"].tolist()) == set(range(20))
    for name in ("observation", "following", "action"):
        assert (drawn[name][:, 0] == drawn["reward"]).all()
    assert (drawn["terminated"] == drawn["reward"] % 2).all()
    assert not drawn["observation"][:, 68:].any()


def test_the_oldest_are_forgotten_however_many_come_at_once() -> None:
    memory = Experience(7)
    for first in range(0, 20, 5):
        memory.add(*transitions(first, 5))
    assert len(memory) == 7
    assert set(memory.drawn(300, np.random.default_rng(0))["reward"].tolist()) == set(range(13, 20))
    memory.add(*transitions(100, 30))
    assert set(memory.drawn(300, np.random.default_rng(0))["reward"].tolist()) == set(range(123, 130))


@pytest.mark.parametrize("count", [3, 7, 12])
def test_a_file_gives_back_the_same_in_the_same_order(tmp_path: Path, count: int) -> None:
    memory, again = Experience(7), Experience(7)
    memory.add(*transitions(0, count))
    memory.add(*transitions(50, 2))
    memory.save(tmp_path / "memory.npz")
    again.load(tmp_path / "memory.npz")
    memory.add(*transitions(90, 3))
    again.add(*transitions(90, 3))
    assert len(memory) == len(again)
    assert set(memory.drawn(300, np.random.default_rng(1))["reward"].tolist()) == \
        set(again.drawn(300, np.random.default_rng(1))["reward"].tolist())


def test_what_is_not_finite_is_refused_and_nothing_can_be_drawn_from_nothing() -> None:
    memory = Experience(5)
    with pytest.raises(InvalidInput, match="at least one"):
        memory.drawn(1, np.random.default_rng(0))
    bad = transitions(0, 2)
    bad[2][1] = np.nan
    with pytest.raises(InvalidInput, match="finite"):
        memory.add(*bad)
    assert len(memory) == 0
