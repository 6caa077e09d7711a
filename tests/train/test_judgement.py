"""Each demand fails by itself, unknown figures fail too, and a head is judged as the best of everything tried."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from policies.errors import InvalidInput
from train.intervals import BlockGrid, BootstrapSettings, Interval, Track, track_of
from train.judgement import Judgement, JudgementSettings, Taken, judge, passes, taken_from
from train.overfitting import deflated_sharpe, moments, sharpe_ratios
from train.trials import FAILED, FINISHED, PRUNED, End, Target, Trial, TrialBook

GRID = BlockGrid(0, 120 * 100, 100)
SETTINGS = JudgementSettings(bootstrap=BootstrapSettings(resamples=400))


def a_track(edge: float, seed: int = 1, grid: BlockGrid = GRID) -> Track:
    rng = np.random.default_rng(seed)
    times = np.arange(grid.start_ms, grid.stop_ms, 50)
    return track_of(grid, times, 0.002 * (rng.standard_normal(len(times)) + edge))


def alone(track: Track) -> Taken:
    returns = track.returns[:, None]
    return Taken(1, sharpe_ratios(returns), returns)


def judged(edge: float = 0.5, baseline: Track | None = None, taken: Taken | None = None) -> Judgement:
    track = a_track(edge)
    return judge(track, baseline, taken or alone(track), (7, 8), 2, np.random.default_rng(1), SETTINGS)


def test_a_head_with_an_edge_passes_and_one_without_does_not() -> None:
    assert passes(judged(0.5, a_track(0.0, 2)), SETTINGS) == (True, ())
    passed, missed = passes(judged(0.0, a_track(0.0, 2)), SETTINGS)
    assert not passed
    assert len(missed) == 3  # Sharpe, profit factor, baseline


def test_figures_are_those_of_the_track() -> None:
    track, baseline = a_track(0.5), a_track(0.2, 3)
    found = judged(0.5, baseline)
    assert (found.head.trades, found.head.profit_factor) == (240, track.profit_factor)
    assert found.head.max_drawdown_percent == track.max_drawdown_percent
    assert found.baseline.expectancy == baseline.expectancy
    assert found.difference == pytest.approx((track.returns - baseline.returns).mean())
    assert found.difference_interval.low < found.difference < found.difference_interval.high
    assert found.head.profit_factor_interval.low < track.profit_factor < found.head.profit_factor_interval.high
    assert (found.blocks, found.block_ms, found.seeds, found.folds) == (120, 100, (7, 8), 2)


def test_the_more_was_tried_the_less_is_believed() -> None:
    track = a_track(0.25)
    believed = []
    for count in (1, 20, 400, 10_000):
        taken = Taken(count, *dataclasses.astuple(alone(track))[1:])
        found = judge(track, None, taken, (7,), 2, np.random.default_rng(1), SETTINGS)
        assert found.deflated_sharpe == deflated_sharpe(moments(track.returns), count, taken.sharpes)
        believed.append(found.deflated_sharpe)
    assert believed == sorted(believed, reverse=True)
    assert believed[0] > 0.95 > believed[-1]


def test_a_paired_difference_sees_what_two_intervals_cannot() -> None:
    """Nearly the same trades, each a little better: far inside both intervals, and certain."""
    track = a_track(0.2)
    noise = 0.00005 * np.random.default_rng(9).standard_normal(track.trades)
    worse = Track(track.grid, track.block, track.net_return - 0.0001 + noise)
    found = judge(track, worse, alone(track), (7,), 2, np.random.default_rng(1), SETTINGS)
    assert found.difference_interval.low > 0
    assert found.head.expectancy_interval.low < found.baseline.expectancy


def test_a_baseline_is_not_beaten_by_having_many_trials_of_its_own_worth() -> None:
    passed = undeflated = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        earned = 0.002 * (rng.standard_normal((120, 31)) + 0.4)
        baseline, performance = earned[:, 0], earned[:, 1:]
        sharpes = sharpe_ratios(performance)
        times = np.arange(0, GRID.stop_ms, 100)
        found = judge(track_of(GRID, times, performance[:, sharpes.argmax()]), track_of(GRID, times, baseline),
                      Taken(30, sharpes, performance), (7,), 2, rng, SETTINGS)
        passed += passes(found, SETTINGS)[0]
        undeflated += found.difference_interval.low > 0
    assert passed <= 8  # 5 % of 60 and its noise
    assert undeflated > 20


def test_the_same_generator_gives_the_same_judgement() -> None:
    assert judged() == judged()


@pytest.mark.parametrize(("change", "word"), [
    ({"blocks": 20}, "blocks of time"),
    ({"deflated_sharpe": 0.94}, "deflated Sharpe"), ({"deflated_sharpe": math.nan}, "deflated Sharpe"),
    ({"overfitting": 0.5, "loss_probability": 0.4}, "PBO"),
    ({"overfitting": math.nan, "loss_probability": math.nan}, "PBO"),
    ({"trials_with_figures": 2}, "PBO unknown"),
    ({"difference_interval": Interval(-0.1, 0.1, 0.9)}, "baseline"),
    ({"difference_interval": Interval(math.nan, math.nan, 0.9)}, "baseline"),
    ({"difference_interval": None}, "baseline"),
    ({"difference_deflated_sharpe": 0.94}, "baseline"), ({"difference_deflated_sharpe": math.nan}, "baseline")])
def test_each_demand_is_missed_by_itself(change, word) -> None:
    good = judged(0.5, a_track(0.0, 2))
    assert passes(good, SETTINGS)[0]
    passed, missed = passes(dataclasses.replace(good, **change), SETTINGS)
    assert not passed
    assert len(missed) == 1
    assert word in missed[0]


@pytest.mark.parametrize(("change", "word"), [
    ({"trades": 99}, "99 trades"), ({"profit_factor_interval": Interval(1.0, 2.0, 0.9)}, "profit factor"),
    ({"profit_factor_interval": Interval(math.nan, math.nan, 0.9)}, "profit factor")])
def test_each_demand_on_the_head_is_missed_by_itself(change, word) -> None:
    good = judged()
    passed, missed = passes(dataclasses.replace(good, head=dataclasses.replace(good.head, **change)), SETTINGS)
    assert (passed, len(missed)) == (False, 1)
    assert word in missed[0]


@pytest.mark.parametrize("change", [{"overfitting": 0.6, "loss_probability": 0.1}, {"overfitting": 0.1,
                                                                                    "loss_probability": 0.3}])
def test_a_choice_holds_by_its_rank_or_by_not_losing(change) -> None:
    assert passes(dataclasses.replace(judged(), **change), SETTINGS)[0]


def test_overfitting_is_taken_over_all_trials_of_the_grid() -> None:
    track = a_track(0.5)
    others = np.random.default_rng(4).normal(0, 0.003, (120, 9))
    performance = np.column_stack([track.returns, others])
    found = judge(track, None, Taken(30, sharpe_ratios(performance), performance), (7,), 2, np.random.default_rng(1),
                  SETTINGS)
    assert found.overfitting < 0.1
    assert (found.trials, found.trials_with_figures) == (30, 10)
    assert 20 < found.effective_trials <= 30


def test_what_was_taken_comes_from_the_book_pruned_trials_included(tmp_path) -> None:
    track, target = a_track(0.5), Target(("BTC",), 60_000)
    with TrialBook(tmp_path) as book:
        for seed, end in enumerate([End(FINISHED, 1.0, GRID, track.returns), End(PRUNED), End(FAILED)]):
            book.end(book.begin(target, Trial("linear", {}, seed, {}, choices=18), 1), end, 2)
        found = judge(track, None, taken_from(book, target, GRID), (0,), 2, np.random.default_rng(1), SETTINGS)
        assert taken_from(book, Target(("ETH",), 60_000), GRID).count == 1
    assert (found.trials, found.trials_with_figures, found.overfitting) == (54, 1, None)
    assert found.deflated_sharpe < found.probabilistic_sharpe


def test_trials_that_earned_the_same_all_count_and_tell_of_chance_once(tmp_path) -> None:
    target, one, other = Target(("BTC",), 60_000), *np.random.default_rng(2).normal(size=(2, len(GRID)))
    with TrialBook(tmp_path) as book:
        for seed, returns in enumerate((one, other, one)):
            book.record(target, Trial("linear 1", {}, seed, {}), End(FINISHED, 1.0, GRID, returns), 1)
        taken = taken_from(book, target, GRID)
    assert taken.count == 3
    assert taken.performance.T.tolist() == [one.tolist(), other.tolist()]
    assert len(taken.sharpes) == 2


def test_a_head_that_never_trades_is_judged_and_does_not_pass() -> None:
    none = track_of(GRID, np.array([], dtype=np.int64), np.array([]))
    found = judge(none, a_track(0.0), alone(none), (7,), 2, np.random.default_rng(1), SETTINGS)
    passed, missed = passes(found, SETTINGS)
    assert not passed
    assert len(missed) >= 3


@pytest.mark.parametrize("refused", [
    lambda: judged(baseline=a_track(0.0, grid=BlockGrid(0, 6_000, 100))),
    lambda: judged(taken=Taken(0, np.array([]), np.empty((120, 0)))),
    lambda: judged(taken=Taken(1, np.array([0.1, 0.2]), np.empty((120, 0)))),
    lambda: judged(taken=Taken(2, np.array([0.1, 0.2]), np.ones((60, 2))))])
def test_bad_input_is_refused(refused) -> None:
    with pytest.raises(InvalidInput):
        refused()
