"""The hub's own episodes as experience: read from a real ledger, in the order of the vector, never written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rl_rows import small_rows

from feature_repo.features import DECISION_V1
from policies.actor import ActorLimits, wanted
from policies.errors import WriterUnavailable
from policies.types import Outcome
from sentry.ledger import EpisodeRecord, Ledger
from train.rl.env_settings import EnvSettings
from train.rl.experience import Experience
from train.rl.market_rows import ALL_TIME, TimeRange
from train.rl.offline import LEDGER, add_episodes

STANDARD = small_rows(1_500).standard
SYMBOLS = ("BTC", "ETH")


def episode(number: int, **changes: Any) -> EpisodeRecord:
    """A short of 0.1 % risk that lost 5 USD net of 9,995."""
    outcome = Outcome(f"d{number}", 0, 0, 0, 60_000, 100.0, 100.1, 12.5, -1.25, 3.0, 0.75, "stop", equity=9_995.0)
    values = {name: float(place) / 10 for place, name in enumerate(DECISION_V1.names)} | {"funding_rate": None}
    decision = {"policy_id": "p", "acts": True, "direction": "short", "leverage": 5.0, "bucket": "calm",
                "executed": {"leverage": 5.0, "tp_pct": 0.012, "sl_pct": 0.008, "min_conf": 0.5}}
    return EpisodeRecord(f"d{number}", number, "momentum", "BTC", values, {**decision, **changes.pop("decision", {})},
                         {**outcome.to_dict(), **changes.pop("outcome", {})}, b"", "none", "c")


def remembered(home: Path, *records: EpisodeRecord,
               training: TimeRange = ALL_TIME) -> tuple[int, dict[str, np.ndarray]]:
    ledger = Ledger(home / LEDGER)
    with ledger.transaction():
        for record in records:
            ledger.record_episode(record)
    ledger.close()
    memory = Experience(100)
    count = add_episodes(memory, home, EnvSettings(), STANDARD, training, SYMBOLS)
    return count, memory.drawn(50, np.random.default_rng(0)) if len(memory) else {}


def test_a_trade_becomes_the_action_that_asks_for_it_with_its_return_in_trade_risks(tmp_path: Path) -> None:
    count, drawn = remembered(tmp_path, episode(1))
    assert count == 1
    asked = wanted(drawn["action"][0], ActorLimits())
    assert float(asked.exposure) == pytest.approx(-1_250 / 10_000, rel=1e-5)
    assert (float(asked.stop), float(asked.target)) == pytest.approx((0.008, 0.012), rel=1e-5)
    assert drawn["reward"][0] == pytest.approx(-5 / 10_000 / 0.002)
    assert drawn["terminated"].all()


def test_features_stand_in_the_order_of_the_vector_not_of_their_names(tmp_path: Path) -> None:
    _, drawn = remembered(tmp_path, episode(1))
    raw = np.array([np.nan if name == "funding_rate" else place / 10 for place, name in enumerate(DECISION_V1.names)])
    expected = np.nan_to_num(np.clip((raw - STANDARD.mean) / STANDARD.scale, -5, 5))
    assert drawn["observation"][0, :60] == pytest.approx(expected, abs=1e-5)
    assert drawn["observation"][0, 60:68].tolist() == [0, 0, 0, 0, 0, 0, 0, 1]


def test_what_was_no_trade_of_known_size_is_left_out(tmp_path: Path) -> None:
    required = dict.fromkeys(DECISION_V1.names, 0.0) | {"ret_1": None}
    unknown = replace(episode(9), features=required)
    count, _ = remembered(
        tmp_path, episode(1, decision={"direction": "flat"}), episode(2, outcome={"exit_reason": "not_filled"}),
        episode(3, outcome={"equity": None}), episode(4, outcome={"equity": 1.0, "pnl": 500.0}), unknown, episode(5))
    assert count == 1


def test_a_great_loss_is_cut_like_any_reward_and_no_ledger_is_said(tmp_path: Path) -> None:
    _, drawn = remembered(tmp_path, episode(1, outcome={"pnl": -900.0}))
    assert (drawn["reward"] == -2.0).all()
    with pytest.raises(WriterUnavailable):
        add_episodes(Experience(5), tmp_path / "nothing", EnvSettings(), STANDARD, ALL_TIME, SYMBOLS)


def test_of_a_trade_larger_than_an_actor_can_ask_for_it_is_credited_with_its_share(tmp_path: Path) -> None:
    """Five times the most that is allowed at this stop: 125 % of equity instead of 25 %."""
    _, drawn = remembered(tmp_path, episode(1, outcome={"size": 125.0}))
    asked = wanted(drawn["action"][0], ActorLimits())
    assert float(asked.exposure) == pytest.approx(-0.25, rel=1e-5)
    assert drawn["reward"][0] == pytest.approx(-5 / 10_000 / 0.002 / 5)


def test_the_size_of_a_trade_with_a_stop_beyond_the_actors_is_that_of_its_exposure(tmp_path: Path) -> None:
    executed = {"leverage": 5.0, "tp_pct": 0.012, "sl_pct": 0.1, "min_conf": 0.5}
    _, drawn = remembered(tmp_path, episode(1, decision={"executed": executed}, outcome={"size": 2.0}))
    assert float(wanted(drawn["action"][0], ActorLimits()).exposure) == pytest.approx(-0.02, rel=1e-5)
    assert drawn["reward"][0] == pytest.approx(-5 / 10_000 / 0.002)


def test_only_trades_that_lie_within_the_training_range_as_a_whole_and_are_of_its_symbols_are_remembered(
        tmp_path: Path) -> None:
    def held(entry_ms: int, exit_ms: int) -> EpisodeRecord:
        return replace(episode(entry_ms, outcome={"entry_time_ms": entry_ms, "exit_time_ms": exit_ms}),
                       timestamp_ms=1_600)

    count, _ = remembered(
        tmp_path, held(999, 1_500), held(1_000, 1_500), held(1_400, 2_000), held(1_900, 2_001), held(3_000, 3_100),
        replace(held(1_200, 1_300), symbol="DOGE"), training=TimeRange(1_000, 2_000))
    assert count == 2
