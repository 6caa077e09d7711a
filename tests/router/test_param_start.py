"""What the parameter learners start from: read strictly, named by its content, a bounded prior."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from policies.errors import InvalidInput
from router.param_start import BUCKETS, MOST_WEIGHT, FoundLevels, ParamStart
from router.params import ParamBandit, ParamGrid

CALM_UP = (0.0001, 1.0)
FOUND = FoundLevels(tp_pct=0.0124, sl_pct=0.0052, limit_offset_pct=0.0005, trades=500, mean_reward=-0.02, sd=0.9,
                    advantage=0.12, advantage_se=0.02)
START = ParamStart({"momentum": {"calm_up": FOUND}}, {"market": "a test"})


def started(found: FoundLevels = FOUND, seed: int = 1) -> ParamBandit:
    bandit = ParamBandit(seed=seed)
    bandit.begin_from(ParamStart({"momentum": {"calm_up": found}}))
    return bandit


def proposals(bandit: ParamBandit, name: str, times: int = 1_000) -> Counter[float]:
    return Counter(bandit.propose("momentum", CALM_UP, key=key)[name] for key in range(times))


def test_what_is_written_is_read_again_and_the_same_content_is_the_same_start() -> None:
    again = ParamStart.from_dict(json.loads(START.canonical_json()))
    assert again == START
    assert again.start_id == START.start_id
    other = ParamStart({"momentum": {"calm_up": replace(FOUND, tp_pct=0.0125)}}, START.made)
    assert other.start_id != START.start_id


def test_buckets_are_those_of_the_bandit() -> None:
    vectors = [(volatility, trend) for volatility in (1e-4, 7e-4, 2e-3) for trend in (-1.0, 0.0, 1.0)]
    assert sorted(map(ParamBandit().bucket, vectors)) == sorted(BUCKETS)


@pytest.mark.parametrize(("path", "value"), [
    (("kind",), "bundle"), (("version",), 2), (("version",), True), (("extra",), 1), (("levels",), []),
    (("levels", "momentums"), {}), (("levels", "momentum"), []), (("levels", "momentum", "calm"), {}),
    (("levels", "momentum", "calm_up"), 3), (("made",), {"x": math.nan}),
    *((("levels", "momentum", "calm_up", name), value) for name, value in (
        ("tp_pct", 0.0), ("tp_pct", math.nan), ("sl_pct", "0.01"), ("sl_pct", True), ("limit_offset_pct", -1e-9),
        ("limit_offset_pct", 0.06), ("trades", 1.5), ("trades", -1), ("mean_reward", math.inf), ("sd", -0.1),
        ("advantage", math.nan), ("advantage_se", -1.0), ("hidden", 1.0)))])
def test_anything_else_is_refused_by_name(path: tuple[str, ...], value: Any) -> None:
    values = json.loads(START.canonical_json())
    inner = values
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    with pytest.raises(InvalidInput):
        ParamStart.from_dict(values)


def test_a_start_counts_for_a_bounded_number_of_trades_and_never_for_a_loss() -> None:
    assert replace(FOUND, trades=10**6).weight == MOST_WEIGHT
    assert replace(FOUND, trades=30).weight == pytest.approx(3.0)
    assert replace(FOUND, advantage=-0.4).shrunk_advantage == 0.0
    assert 0 < replace(FOUND, advantage_se=0.3).shrunk_advantage < FOUND.shrunk_advantage < FOUND.advantage


def test_a_bandit_that_begins_from_it_proposes_the_nearest_value_most_often() -> None:
    bandit = started(replace(FOUND, advantage=0.5))
    for name, nearest in (("tp_pct", 0.012), ("sl_pct", 0.005)):
        assert proposals(bandit, name).most_common(1)[0][0] == nearest
        assert proposals(bandit, name)[nearest] > 1.5 * proposals(ParamBandit(seed=1), name)[nearest]


def test_other_buckets_strategies_and_parameters_are_as_without_it() -> None:
    bandit, plain = started(), ParamBandit(seed=1)
    for key in range(50):
        assert bandit.propose("momentum", (0.01, 1.0), key) == plain.propose("momentum", (0.01, 1.0), key)
        assert bandit.propose("breakout", CALM_UP, key) == plain.propose("breakout", CALM_UP, key)
    one, other = (b._build("momentum", "calm_up") for b in (bandit, plain))
    for place, (name, first, values) in enumerate(one.segments):
        part = slice(first, first + len(values))
        same = np.array_equal(one.mean[part], other.mean[part]) and np.array_equal(one.sd[part], other.sd[part])
        assert same == (name in ("leverage", "min_conf")), place


def test_trades_outweigh_it_in_the_end() -> None:
    bandit = started(replace(FOUND, advantage=0.5))
    for trade in range(400):
        values = bandit.propose("momentum", CALM_UP, key=trade)
        bandit.learn("momentum", "calm_up", values, 0.5 if values["tp_pct"] == 0.006 else -0.5)
    assert proposals(bandit, "tp_pct", 200).most_common(1)[0][0] == 0.006


def test_another_start_takes_its_place_and_an_empty_one_takes_it_back() -> None:
    bandit = started()
    for trade in range(20):
        bandit.learn("momentum", "calm_up", bandit.propose("momentum", CALM_UP, key=trade), 0.1)
    plain = ParamBandit(seed=1)
    plain._arms = dict(bandit._arms)
    bandit.begin_from(START)
    bandit.begin_from(ParamStart())
    assert [bandit.propose("momentum", CALM_UP, key) for key in range(50)] == [
        plain.propose("momentum", CALM_UP, key) for key in range(50)]


def test_only_the_start_knows_a_limit_offset() -> None:
    bandit = started()
    assert bandit.limit_offset_pct("momentum", "calm_up") == 0.0005
    assert bandit.limit_offset_pct("momentum", "calm_down") is None
    assert ParamBandit().limit_offset_pct("momentum", "calm_up") is None


def test_a_grid_without_the_value_that_was_found_takes_the_nearest_one() -> None:
    bandit = ParamBandit(grids={"default": ParamGrid(tp_grid_pct=(0.001, 0.1))})
    bandit.begin_from(START)
    pseudo = bandit._pseudo("momentum", "calm_up", "tp_pct", (0.001, 0.1))
    assert pseudo[1].total == 2 * pseudo[0].total > 0
