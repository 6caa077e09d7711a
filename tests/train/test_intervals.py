"""Tracks by block, and intervals that hold what they promise where trades move together."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import binom

from policies.errors import InvalidInput
from policies.track_record import TrackRecord
from train.intervals import (
    BlockGrid,
    BootstrapSettings,
    Track,
    drawdown_interval,
    drawn_blocks,
    expectancy_interval,
    mean_interval,
    profit_factor_interval,
    ratio_and_error,
    ratio_interval,
    times_drawn,
    track_of,
)

GRID = BlockGrid(1_000, 1_000 + 60 * 100, 100)
FEW = BootstrapSettings(resamples=400)


def a_track(seed: int = 1, grid: BlockGrid = GRID, edge: float = 0.0) -> Track:
    """Three trades at each of two times a block; those of one time win and lose together, with heavy tails."""
    rng = np.random.default_rng(seed)
    times = np.repeat(np.arange(grid.start_ms + 10, grid.stop_ms, 50), 3)
    together = np.repeat(rng.standard_t(3, len(times) // 3), 3)
    return track_of(grid, times, 0.002 * (0.9 * together + 0.44 * rng.standard_t(3, len(times)) + edge))


def test_a_track_adds_up_to_its_track_record() -> None:
    track, record = a_track(), TrackRecord()
    for number, net_return in enumerate(track.net_return.tolist()):
        record.record(str(number), net_return)
    assert track.trades == record.trades == track.counts.sum()
    assert track.profit_factor == pytest.approx(record.profit_factor)
    assert track.max_drawdown_percent == pytest.approx(record.max_drawdown_percent)
    assert track.expectancy == pytest.approx(np.mean(record.returns))
    for block in range(len(GRID)):
        assert track.returns[block] == pytest.approx(track.net_return[track.block == block].sum())


def test_blocks_without_trades_are_there_and_a_rest_joins_the_last_one() -> None:
    grid = BlockGrid(0, 350, 100)
    track = track_of(grid, np.array([10, 330, 20]), np.array([0.1, -0.2, 0.3]))
    assert len(grid) == 3
    assert track.returns == pytest.approx([0.4, 0.0, -0.2])
    assert track.net_return.tolist() == [0.1, 0.3, -0.2]


def test_profit_factor_without_losses_or_trades() -> None:
    grid = BlockGrid(0, 200, 100)
    none = track_of(grid, np.array([], dtype=np.int64), np.array([]))
    won = track_of(grid, np.array([1, 150]), np.array([0.1, 0.2]))
    assert math.isnan(none.profit_factor)
    assert math.isnan(none.expectancy)
    assert won.profit_factor == math.inf
    drawn = times_drawn(drawn_blocks(2, FEW, np.random.default_rng(1)))
    assert not profit_factor_interval(none, drawn, 0.9).low > 1
    assert not profit_factor_interval(won, drawn, 0.9).low > 1  # nothing is known of its losses
    assert not expectancy_interval(none, drawn, 0.9).low > 0


def test_few_losses_leave_the_profit_factor_open() -> None:
    grid = BlockGrid(0, 2_000, 100)
    track = track_of(grid, np.arange(5, 2_000, 100), np.r_[-0.01, np.full(19, 0.01)])
    drawn = times_drawn(drawn_blocks(20, FEW, np.random.default_rng(1)))
    found = profit_factor_interval(track, drawn, 0.9)
    assert (found.low, found.high) == (0.0, math.inf)


@pytest.mark.parametrize("mean_blocks", [1.0, 4.0])
def test_runs_of_blocks_have_the_mean_length_and_every_block_the_same_chance(mean_blocks) -> None:
    places = drawn_blocks(50, BootstrapSettings(resamples=4_000, mean_blocks=mean_blocks), np.random.default_rng(1))
    goes_on = (np.diff(places, axis=1) % 50 == 1).mean()
    assert goes_on == pytest.approx(1 - 1 / mean_blocks + 1 / mean_blocks / 50, abs=0.005)
    assert np.bincount(places.ravel()) / places.size == pytest.approx(1 / 50, rel=0.06)
    drawn = times_drawn(places)
    assert drawn.sum(axis=1).tolist() == [50.0] * 4_000
    assert drawn[7].tolist() == np.bincount(places[7], minlength=50).tolist()


def test_all_trades_of_a_block_are_drawn_together() -> None:
    """Sums over resampled blocks are those of the trades themselves."""
    track = a_track()
    places = drawn_blocks(len(GRID), FEW, np.random.default_rng(3))
    drawn = times_drawn(places)
    by_hand = np.concatenate([track.net_return[track.block == block] for block in places[0]])
    assert drawn[0] @ track.returns == pytest.approx(by_hand.sum())
    assert drawn[0] @ track.counts == len(by_hand)


def test_drawdowns_are_those_of_the_paths_that_the_drawn_blocks_make() -> None:
    track = a_track(2)
    places = drawn_blocks(len(GRID), BootstrapSettings(resamples=100), np.random.default_rng(3))
    by_hand = []
    for row in places:
        path = np.cumsum(np.concatenate([[0.0], *(track.net_return[track.block == block] for block in row)]))
        by_hand.append(100 * max(peak - sum_ for peak, sum_ in zip(itertools.accumulate(path, max), path, strict=True)))
    found = drawdown_interval(track, places, 0.9)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(by_hand, [0.05, 0.95])))


def test_the_error_of_a_ratio_is_that_of_the_jackknife() -> None:
    rng = np.random.default_rng(1)
    below = rng.gamma(2, 1, 400)
    above = below + rng.gamma(2, 1, 400)
    sums = np.column_stack([above, below, above**2, above * below, below**2]).sum(axis=0, keepdims=True)
    drawn = times_drawn(drawn_blocks(400, BootstrapSettings(resamples=4_000), rng))
    for log in (False, True):
        without = (above.sum() - above) / (below.sum() - below)
        without = np.log(without) if log else without
        error = math.sqrt(399 / 400 * ((without - without.mean()) ** 2).sum())
        assert ratio_and_error(sums, log)[1] == pytest.approx(error, rel=0.01)
        found = ratio_interval(above, below, drawn, 0.9, log)
        width = math.log(found.high / found.low) if log else found.high - found.low
        assert width / (2 * 1.645 * error) == pytest.approx(1.0, abs=0.06)


def coverage(interval_of, truth: float, runs: int = 600) -> int:
    """How many of `runs` intervals of 90 % hold the truth."""
    hits = 0
    for seed in range(runs):
        drawn = times_drawn(drawn_blocks(len(GRID), FEW, np.random.default_rng(10_000 + seed)))
        found = interval_of(seed, drawn)
        hits += found.low <= truth <= found.high
    return hits


def inside(hits: int, runs: int = 600, slack: float = 0.02) -> bool:
    """Within the binomial noise (99.9 %) around 90 %, give or take what 60 blocks with heavy tails cost."""
    return binom.ppf(0.0005, runs, 0.9 - slack) <= hits <= binom.ppf(0.9995, runs, 0.9 + slack)


def test_intervals_of_the_profit_factor_hold_the_truth_at_their_level() -> None:
    assert inside(coverage(lambda seed, drawn: profit_factor_interval(a_track(seed), drawn, 0.9), 1.0))


def test_intervals_of_the_expectancy_hold_the_truth_at_their_level() -> None:
    truth = 0.002 * 0.3
    assert inside(coverage(lambda seed, drawn: expectancy_interval(a_track(seed, edge=0.3), drawn, 0.9), truth))


def test_taking_trades_for_independent_would_break_the_level() -> None:
    """Why blocks: the same trades, each drawn by itself."""
    def by_trade(seed: int, _: np.ndarray):
        values = a_track(seed).net_return
        drawn = times_drawn(drawn_blocks(len(values), FEW, np.random.default_rng(seed)))
        return mean_interval(values, drawn, 0.9)

    assert not inside(coverage(by_trade, 0.0, runs=300), runs=300)


@pytest.mark.parametrize("refused", [
    lambda: BlockGrid(0, 199, 100), lambda: BlockGrid(0, 100, 0), lambda: GRID.block_of(np.array([999])),
    lambda: GRID.block_of(np.array([GRID.stop_ms])), lambda: track_of(GRID, np.array([1_100]), np.array([math.nan])),
    lambda: track_of(GRID, np.array([1_100]), np.array([0.1, 0.2]))])
def test_bad_input_is_refused(refused) -> None:
    with pytest.raises(InvalidInput):
        refused()
