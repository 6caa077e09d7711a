"""What a job may be told: the user's own figures, ranges, and steps as people write them."""

from __future__ import annotations

from typing import Any

import pytest

from policies.errors import InvalidInput
from train.rl.settings import PPO_PROFILES, RlSettings, steps_from


def test_the_full_profile_has_the_users_own_figures() -> None:
    full = RlSettings(("BTC",), size="full").ppo
    assert full is PPO_PROFILES["full"]
    assert (full.learning_rate, full.rollout, full.batch_rows, full.epochs) == (3e-4, 2048, 64, 10)
    assert (full.gamma, full.gae, full.clip) == (0.99, 0.95, 0.2)


@pytest.mark.parametrize(("word", "changes"), [
    ("ALGO", {"algo": "dqn"}), ("SIZE", {"size": "huge"}), ("STEPS", {"steps": 10}),
    ("LOOKBACK", {"lookback_bars": 10}), ("SEEDS", {"seeds": 0}), ("STEPS_PER_UPDATE", {"steps_per_update": 0}),
    ("PATIENCE", {"patience": 0}), ("COINS", {"symbols": ()}), ("COINS", {"symbols": ("BTC", "BTC")}),
    ("test_share", {"test_share": 0.8}), ("STEPS: must be more than 4096", {"algo": "sac", "steps": 4_096}),
    ("STEPS: must be more than 10000", {"algo": "sac", "size": "full", "steps": 10_000})])
def test_what_is_out_of_range_is_refused_by_its_word(word: str, changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=word):
        RlSettings(**{"symbols": ("BTC",), **changes})


def test_steps_are_read_as_people_write_them() -> None:
    assert [steps_from(text) for text in ("1e6", "200000", "200_000", "2.5e4")] == [1_000_000, 200_000, 200_000, 25_000]
    for wrong in ("many", "1.5", "nan", "-5", "inf", "0"):
        with pytest.raises(InvalidInput, match="STEPS"):
            steps_from(wrong)
