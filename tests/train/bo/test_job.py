"""The job from bars to a start: on a small generated market, with a search that needs no Ray."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_search
from bo_search import random_points
from small_search import GarbledMarket, repo_of

from policies.errors import InvalidInput
from reports.report import Plot
from router.param_start import ParamStart
from train.bo import result
from train.bo.job import Optimised, Optimising
from train.bo.judged import Judged, later_difference
from train.bo.search import TOO_FEW, Problem, best_of
from train.bo.settings import BoSettings
from train.pool import HerePool, Job
from train.sweep import FINISHED, Trial

SETTINGS = BoSettings(("BTC", "ETH"), lookback_bars=3_000, trials=5, strategies=("momentum", "scalping"),
                      least_trades=20, block_bars=60)


class Counting(HerePool):
    """Counts the jobs that were begun; ends after `most`, as if interrupted."""

    def __init__(self, most: int = 99) -> None:
        self.begun: list[str] = []
        self._most = most

    def each(self, jobs: Mapping[str, Job], waits: bool = False) -> Iterator[tuple[str, Any]]:
        for name, job in jobs.items():
            if len(self.begun) == self._most:
                raise KeyboardInterrupt
            self.begun.append(name)
            yield from super().each({name: job}, waits)


def job(home: Path, pool: HerePool | None = None, settings: BoSettings = SETTINGS, market: Any = None,
        search: Any = random_points) -> Optimising:
    market = market or small_search.market()
    return Optimising(market, repo_of(home, market.origin), home, settings, None, pool or HerePool(), search=search)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def optimised(home: Path) -> Optimised:
    return job(home).run()


def test_every_choice_is_within_the_grid_and_begins_from_its_middle(
        optimised: Optimised) -> None:
    assert len(optimised.rows) > 3
    assert sum(row.chosen is not None for row in optimised.rows) > 2
    for row in optimised.rows:
        tp, sl, offset = row.chosen or row.middle
        assert 0.006 <= tp <= 0.015
        assert 0.004 <= sl <= 0.010
        assert offset in (0.0, 0.0002, 0.0005, 0.0010)
        assert row.middle == (0.010, 0.006, 0.0)
        assert row.points == SETTINGS.trials * 36


def test_the_start_holds_what_was_found_and_is_a_start_for_the_hub(optimised: Optimised, home: Path) -> None:
    path = result.write_start(home, optimised)
    start = ParamStart.from_dict(json.loads(path.read_bytes()))
    assert start == optimised.start
    for row in optimised.rows:
        found = start.of(row.strategy, row.bucket)
        assert (found is None) == (row.chosen is None)
        if found is None:
            continue
        assert (found.tp_pct, found.sl_pct, found.limit_offset_pct) == row.chosen
        assert found.trades == row.searched["chosen"].trades >= SETTINGS.least_trades
        assert found.mean_reward == row.searched["chosen"].expectancy


def test_the_same_bars_and_settings_give_the_same_start_and_later_bars_have_no_part_in_it(
        optimised: Optimised, tmp_path: Path) -> None:
    later = GarbledMarket(small_search.market(), optimised.later_ms[0])
    other = job(tmp_path, market=later).run()
    assert other.start.levels == optimised.start.levels
    assert [row.later for row in other.rows] != [row.later for row in optimised.rows]


def test_an_interrupted_job_goes_on_where_it_was_and_ends_the_same(optimised: Optimised, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        job(tmp_path, Counting(1)).run()
    rest = Counting()
    again = job(tmp_path, rest).run()
    assert rest.begun == ["search.scalping"]
    assert again.start == optimised.start
    idle = Counting()
    job(tmp_path, idle).run()
    assert idle.begun == []


def test_a_search_that_fails_is_named_and_the_others_go_on(optimised: Optimised, tmp_path: Path) -> None:
    def failing(objective: Problem, *more: Any) -> list[Trial]:
        if objective.strategy == "momentum":
            raise RuntimeError("no disk")
        return random_points(objective, *more)

    found = job(tmp_path, search=failing).run()
    assert found.failed == {"search.momentum": "RuntimeError: no disk"}
    assert {row.strategy for row in found.rows} == {"scalping"}


def test_buckets_with_too_few_signals_are_left_out_and_none_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="something to search on"):
        job(tmp_path, settings=replace(SETTINGS, least_trades=100_000)).run()


@pytest.mark.parametrize("bad", [{"symbols": ()}, {"symbols": ("BTC", "BTC")}, {"trials": 0}, {"lookback_bars": 10},
                                 {"strategies": ("arbitrage",)}, {"strategies": ()}])
def test_settings_out_of_their_range_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        replace(SETTINGS, **bad)


def test_the_best_score_of_a_bucket_is_chosen_and_the_first_of_equals() -> None:
    def trial(number: int, score: float | None, state: str = FINISHED) -> dict[str, Any]:
        found = {} if score is None else {"score": score, "limit_offset_pct": 0.0}
        return {"number": number, "state": state, "settings": {"tp_pct": 0.01 + number / 1e4, "sl_pct": 0.005},
                "found": {"calm_up": found}}

    trials = [trial(0, 0.1), trial(1, 0.3), trial(2, 0.3), trial(3, None), trial(4, 9.0, "failed")]
    assert best_of(trials, "calm_up") == (pytest.approx(0.0101), 0.005, 0.0)
    assert best_of(trials, "wild_up") is None


def test_levels_that_hardly_trade_are_the_worst_there_are(optimised: Optimised, home: Path) -> None:
    strict = replace(SETTINGS, least_trades=100_000)
    folder = home / "bo" / optimised.key
    problem = Problem(folder, "signals", "momentum", {"wild_up": 9}, optimised.searched_ms, strict)
    loss, found = problem({"tp_pct": 0.01, "sl_pct": 0.005}, lambda step, value: None)
    assert loss == TOO_FEW
    assert "score" not in found["wild_up"]


def test_trading_less_alone_is_no_difference() -> None:
    """Both sides lose 0.1 a trade; the chosen one trades half as often."""
    rng = np.random.default_rng(0)
    counts = rng.integers(4, 9, 40).astype(float)
    blocks = {"middle": np.array([-0.1 * counts, counts]), "chosen": np.array([-0.05 * counts, counts / 2])}
    row = Judged("momentum", "calm_up", 9, (0.01, 0.006, 0.0), (0.01, 0.006, 0.0), {}, {}, 1.0, 0.0, 1.0, 1, blocks)
    difference, interval = later_difference([row])
    assert (difference, interval.low, interval.high) == pytest.approx((0.0, 0.0, 0.0))


def test_a_better_trade_is_a_difference_with_an_interval() -> None:
    rng = np.random.default_rng(1)
    counts = rng.integers(4, 9, 60).astype(float)
    noise = rng.normal(0, 0.5, (2, 60))
    blocks = {"middle": np.array([-0.1 * counts + noise[0], counts]),
              "chosen": np.array([0.2 * counts + noise[1], counts])}
    row = Judged("momentum", "calm_up", 9, (0.01, 0.006, 0.0), (0.01, 0.006, 0.0), {}, {}, 1.0, 0.0, 1.0, 1, blocks)
    difference, interval = later_difference([row, row])
    assert difference == pytest.approx(0.3, abs=0.05)
    assert 0 < interval.low < difference < interval.high


# -- what it leaves ---------------------------------------------------------------------------------------------------


def test_the_page_the_table_and_the_runs_tell_the_same(optimised: Optimised, home: Path) -> None:
    page = result.write_page(home, optimised, {"seconds": 1.0})
    told = json.loads(page.with_suffix(".json").read_bytes())
    assert told["start"]["id"] == optimised.start.start_id
    assert len(told["judged"]) == len(told["table"]) == len(optimised.rows) == result.table_of(optimised).row_count
    assert "arbitrage" in told["rules"]
    runs = result.log_to_mlflow(home, optimised, 1_760_000_000_000)
    assert len(runs) == len(optimised.rows) + 1
    assert result.log_to_mlflow(home, optimised, 1_760_000_000_001) == runs, "a job is written once"
    assert isinstance(result._plot(optimised), Plot)
    assert any(sentence.startswith("all: ") for sentence in result.sentences_of(optimised))
