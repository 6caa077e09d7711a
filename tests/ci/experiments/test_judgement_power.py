import json

import numpy as np
import pytest

from ci.experiments.judgement_power import (
    NULLS,
    PLANTED,
    RISK,
    SHAPES,
    Case,
    main,
    market,
    right_share,
    row_of,
    simulated,
    sweep,
    track,
)
from train.intervals import Track

SLOTS = 60_000


def long_track(case: Case, right: float) -> Track:
    rng = np.random.default_rng(1)
    drawn = market(case.shape, SLOTS, rng)
    return track(drawn, sweep(case, right, drawn, rng)[0], SLOTS // 3)


@pytest.mark.parametrize("shape", SHAPES)
def test_worthless_heads_earn_nothing_whatever_the_shape_of_their_trades(shape):
    returns = long_track(Case(shape, 1, 1), 0.5).returns
    assert abs(returns.mean()) <= 4 * returns.std() / np.sqrt(len(returns))


@pytest.mark.parametrize("shape", ["normal", "heavy", "near"])
@pytest.mark.parametrize("edge", [1.2, 2.0])
def test_planted_profit_factors_are_the_true_ones(shape, edge):
    assert long_track(Case(shape, 1, 1, edge), right_share(shape, edge)).profit_factor == pytest.approx(edge, rel=0.05)


def test_trades_of_one_time_win_and_lose_together():
    drawn = market("normal", 20_000, np.random.default_rng(1))
    assert np.corrcoef(drawn.earned(1), rowvar=False)[0, 1] == pytest.approx(0.8, abs=0.02)


def test_trials_of_a_sweep_are_alike_as_far_as_they_share_directions():
    rng = np.random.default_rng(1)
    drawn = market("normal", 30_000, rng)
    for shared, expected in ((0.0, 0.0), (0.8, 0.64 * 0.7)):
        made = sweep(Case("normal", 1, 3, shared=shared), 0.5, drawn, rng)
        earned = np.where(made > 0, 1, np.where(made < 0, -1, 0)) * drawn.latent.sum(axis=1)
        assert np.corrcoef(earned)[0, 1] == pytest.approx(expected, abs=0.03)


def test_only_those_trials_have_an_edge_that_are_said_to():
    case = Case("normal", 1, 4, 2.0, with_edge=1)
    drawn = market("normal", 20_000, np.random.default_rng(1))
    made = sweep(case, right_share("normal", 2.0), drawn, np.random.default_rng(2))
    earned = [np.mean(one * drawn.common) for one in made]
    assert earned[0] > 10 * max(map(abs, earned[1:]))


def test_a_sweep_is_the_same_for_a_seed():
    case = Case("heavy", 6, 20)
    assert simulated(case, 3, 0.5, 0.5) == simulated(case, 3, 0.5, 0.5)


def test_a_strong_edge_is_seen_and_none_is_not():
    assert row_of(Case("normal", 30, 5, 2.0), range(8)).figure == 1.0
    worthless = row_of(Case("normal", 30, 5), range(8))
    assert (worthless.figure, worthless.met) == (0.0, True)
    assert 0.0 in worthless.detail["interval_95"]


def test_only_worthless_cases_carry_an_aim():
    assert all(case.worthless for case in NULLS)
    assert not any(case.worthless for case in PLANTED)
    assert RISK > 0
    assert len({case.name for case in (*NULLS, *PLANTED)}) == len(NULLS) + len(PLANTED)


def test_report_has_a_row_for_each_case(tmp_path):
    main(["--seeds", "2", "--only", "normal, 6 days", "--home", str(tmp_path)])
    report = json.loads((tmp_path / "reports" / "judgement_power.json").read_text())
    assert len(report["rows"]) == sum("normal, 6 days" in case.name for case in (*NULLS, *PLANTED))
    assert all(row["work"].startswith("judgement: ") for row in report["rows"])
    assert (tmp_path / "reports" / "judgement_power.html").exists()
