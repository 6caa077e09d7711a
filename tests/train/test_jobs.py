"""The pieces of a search: made again they are the same, their trades are those of the served head asked row by row,
nothing of a test reaches a fit, and every attempt is in the book."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray
from small_search import Searched, searched, without_ray

from feature_repo.features import MARKET_EMBEDDING
from feature_repo.features import WINDOW as WINDOW_GROUP
from policies.bundle import pack_bundle, read_bundle
from policies.head import Head
from policies.heads import load_head
from policies.types import Context, Proposal
from train import jobs
from train.backtest import backtest, report_of
from train.dataset import FeatureRows
from train.examples import Examples, every
from train.jobs import BUNDLE, Arrays, Task, TrySettings, ensemble_test, fit_and_test, joined_trades, trade_arrays
from train.learners import Heard, Setting
from train.material import Material, keep_material
from train.steps import Steps
from train.supervised import PLANS
from train.sweep import FAILED, FINISHED, PRUNED, SweepSettings, Trial
from train.trials import TrialBook

FIT = "fit.{}.0.0"


@pytest.fixture(autouse=True)
def _small() -> Iterator[None]:
    with without_ray():
        yield


@pytest.fixture(scope="module")
def found() -> Searched:
    return searched()


@pytest.fixture
def task(found: Searched, tmp_path: Path) -> Task:
    """That of the search, with a book of its own."""
    return replace(found.jobs[FIT.format("linear")][1][1], home=tmp_path / "home")


class WithArrays:
    """Asked with features alone, it finds the arrays of the symbol and time: the loop of `backtest` knows none."""

    def __init__(self, head: Head, examples: Examples, symbol: str) -> None:
        self._head, self.policy_id, self.features = head, head.policy_id, head.features
        own = np.flatnonzero(examples.symbol == symbol)
        first, last = len(examples.features), len(examples.features) + examples.embedding
        self._arrays = {int(examples.event_time_ms[place]): {
            MARKET_EMBEDDING: examples.values[place, first:last], WINDOW_GROUP: examples.windows[place]}
            for place in own}

    def predict(self, obs: ArrayLike) -> NDArray[np.float64]:
        return self._head.predict(obs)

    def propose(self, context: Context) -> Proposal:
        return self._head.propose(replace(context, arrays=self._arrays[context.time_ms]))


def asked_row_by_row(packed: bytes, task: Task, places: NDArray[np.int64]) -> Arrays:
    head, material = load_head(read_bundle(packed)), task.load()
    assert isinstance(head, Head)
    examples, trades = material.examples, []
    for symbol in material.bars:
        own = places[examples.symbol[places] == symbol]
        features = np.array(examples.values[own, :len(examples.features)], np.float64)
        rows = FeatureRows(np.array(examples.event_time_ms[own]), features)
        trades += backtest(WithArrays(head, examples, symbol), material.bars, {symbol: rows},
                           task.brackets.horizon_bars, task.costs).trades
    return trade_arrays(report_of(trades))


def assert_same_trades(one: Mapping[str, NDArray[Any]], other: Mapping[str, NDArray[Any]]) -> None:
    assert len(one["net_return"]) > 20
    for name in ("entry_time_ms", "exit_time_ms", "direction", "symbol"):
        assert np.array_equal(one[name], other[name]), name
    assert np.allclose(one["net_return"], other["net_return"], rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("name", ["linear", "catboost", "linear_mae", "catboost_mae"])
def test_trades_of_a_test_are_those_of_the_served_head_asked_row_by_row(found: Searched, name: str,
                                                                         task: Task) -> None:
    step = FIT.format(name)
    assert_same_trades(found.steps.arrays(step), asked_row_by_row(found.steps.file(step, BUNDLE), task,
                                                                  task.folds[0].test))


def test_trades_of_an_ensemble_are_those_of_the_served_one_asked_row_by_row(found: Searched, task: Task) -> None:
    packed = found.jobs["fit.ensemble.0.0"][1][2]
    made = ensemble_test(task, 0, packed)
    assert_same_trades(made.arrays, asked_row_by_row(packed, task, task.folds[0].test))
    assert_same_trades(made.arrays, found.steps.arrays("fit.ensemble.0.0"))


def test_every_trade_is_entered_within_the_test(found: Searched, task: Task) -> None:
    fold = task.folds[0]
    for name in ("linear", "catboost_mae"):
        entered = found.steps.arrays(FIT.format(name))["entry_time_ms"]
        assert ((entered >= fold.test_start_ms) & (entered < fold.test_stop_ms)).all()


@pytest.mark.parametrize("name", ["linear", "catboost_mae"])
def test_a_fit_made_again_is_the_same(found: Searched, name: str) -> None:
    step = FIT.format(name)
    made = fit_and_test(*found.jobs[step][1])
    assert made.files[BUNDLE] == found.steps.file(step, BUNDLE)
    kept = found.steps.result(step)
    for result in (made.result, kept):
        result.pop("seconds")
        result["served"].pop("served_ms")
    assert made.result == kept
    for key, values in found.steps.arrays(step).items():
        assert np.array_equal(values, made.arrays[key]), key


def test_a_final_fit_has_a_head_and_nothing_that_looks_like_a_test(found: Searched) -> None:
    assert found.steps.arrays("final.linear") == {}
    assert "calibration" not in found.steps.result("final.linear")
    assert read_bundle(found.steps.file("final.linear", BUNDLE)).manifest.kind == "onnx_classifier"


def test_what_a_validation_row_would_have_paid_is_what_the_served_head_would_have_taken(found: Searched,
                                                                                        task: Task) -> None:
    head = load_head(read_bundle(found.steps.file(FIT.format("catboost"), BUNDLE)))
    assert isinstance(head, Head)
    examples, places = task.load().examples, task.folds[0].validation
    layout = examples.layout(False, False)
    signs = [head.decide(row.astype(np.float64)).action.direction.sign for row in examples.seen(places, layout)]
    expected = [0.0 if sign == 0 else examples.returns[place, 0 if sign > 0 else 1]
                for sign, place in zip(signs, places, strict=True)]
    assert len(set(signs)) == 3
    assert found.steps.arrays(FIT.format("catboost"))["earned"].tolist() == expected


def with_other_rows(task: Task, garbled: NDArray[np.bool_], folder: Path) -> Task:
    """The task with rows that are something else where `garbled`."""
    material = task.load()
    examples, rng = material.examples, np.random.default_rng(1)
    values, returns, classes = (np.array(part) for part in (examples.values, examples.returns, examples.classes))
    values[garbled] = rng.normal(size=values[garbled].shape)
    returns[garbled] = rng.uniform(-0.5, 0.5, returns[garbled].shape)
    classes[garbled] = rng.integers(0, 3, garbled.sum())
    other = replace(examples, values=values, returns=returns, classes=classes)
    keep_material(Steps(folder), task.material, Material(other, material.bars))
    return replace(task, folder=folder)


@pytest.mark.parametrize("name", ["catboost", "linear_mae"])
def test_rows_that_were_not_known_before_the_test_change_nothing_of_a_fit(found: Searched, task: Task, name: str,
                                                                         tmp_path: Path) -> None:
    fold, examples = task.folds[0], task.load().examples
    unknown = np.array(examples.known_ms) > fold.test_start_ms
    unknown |= np.array((examples.known_ms > fold.validation_start_ms)
                        & (examples.event_time_ms < fold.validation_start_ms))
    other = with_other_rows(task, unknown, tmp_path / "other")
    _, (_, _, _, settings, seed) = found.jobs[FIT.format(name)]
    made, kept = fit_and_test(name, other, 0, settings, seed), found.steps.result(FIT.format(name))
    assert made.files[BUNDLE] == found.steps.file(FIT.format(name), BUNDLE)
    assert made.result["validation_log_loss"] == kept["validation_log_loss"]
    assert made.result["levels"] == kept["levels"]
    assert made.result["calibration"] != kept["calibration"]  # the test itself did change
    if not PLANS[name].embedding:
        tried = [TrySettings(name, replace(one, home=tmp_path / place), seed)(settings, unheard)
                 for place, one in (("here", task), ("there", other))]
        assert tried[0][0] == tried[1][0]  # what a search chooses by
        assert tried[0][1]["trades"] != tried[1][1]["trades"]


def test_rows_of_the_fit_do_change_it(found: Searched, task: Task, tmp_path: Path) -> None:
    garbled = np.zeros(len(task.load().examples), bool)
    garbled[task.folds[0].fit[::2]] = True
    _, (_, _, _, settings, seed) = found.jobs[FIT.format("linear")]
    made = fit_and_test("linear", with_other_rows(task, garbled, tmp_path / "other"), 0, settings, seed)
    assert made.files[BUNDLE] != found.steps.file(FIT.format("linear"), BUNDLE)


def unheard(step: int, loss: float) -> None:
    pass


def test_a_fit_on_fewer_rows_sees_every_symbol(found: Searched, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[NDArray[np.int64]] = []

    def watched(places: NDArray[np.int64], most: int) -> NDArray[np.int64]:
        seen.append(every(places, most))
        return seen[-1]

    monkeypatch.setattr(jobs, "every", watched)
    fewer = replace(task, fit_rows=-(-len(task.folds[0].fit) // 2))
    _, (_, _, _, settings, seed) = found.jobs[FIT.format("linear")]
    fit_and_test("linear", fewer, 0, settings, seed)
    symbols = task.load().examples.symbol
    for places in seen:
        counts = [int((symbols[places] == symbol).sum()) for symbol in ("BTC", "ETH")]
        assert min(counts) > 0.4 * sum(counts), counts


# The book of trials.


def test_a_sweep_counts_what_was_pruned_or_failed_as_well(task: Task, monkeypatch: pytest.MonkeyPatch,
                                                          tmp_path: Path) -> None:
    def search(objective: TrySettings, space: object, first: Mapping[str, Setting], settings: SweepSettings,
               folder: Path) -> list[Trial]:
        loss, tried = objective(first, unheard)
        return [Trial(0, first, FINISHED, 1, loss, tried), Trial(1, {"l2": 0.5}, PRUNED, 3, 1.2),
                Trial(2, {"l2": 0.25}, FAILED, 0, None, {"reason": "out of memory"})]

    monkeypatch.setattr(jobs, "search", search)
    for _ in range(2):  # a sweep that is made again adds nothing
        assert [one.state for one in jobs.sweep("linear", task, SweepSettings(3), tmp_path)] == [
            FINISHED, PRUNED, FAILED]
        with TrialBook(task.home) as book:
            assert book.count(task.target) == 3
            assert book.statuses(task.target) == {"finished": 1, "pruned": 1, "failed": 1, "begun": 0}


def test_an_attempt_whose_process_dies_is_counted(task: Task) -> None:
    def dies(step: int, loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        TrySettings("linear", task, 7)({"l2": 0.03}, dies)
    with TrialBook(task.home) as book:
        assert book.statuses(task.target)["begun"] == 1
    loss, told = TrySettings("linear", task, 7)({"l2": 0.03}, unheard)
    assert math.isfinite(loss)
    with TrialBook(task.home) as book:
        assert book.count(task.target) == 1
        assert book.statuses(task.target)["finished"] == 1
        assert book.performance(task.target, task.grid).returns.shape == (len(task.grid), 1)
    assert told["trades"] > 0


def test_what_makes_a_difference_to_a_trial_is_in_its_name(task: Task) -> None:
    settings = {"l2": 0.03}
    trials = [jobs.trial_of("linear", task, settings, 7), jobs.trial_of("linear_mae", task, settings, 7),
              jobs.trial_of("linear", task, {"l2": 0.04}, 7), jobs.trial_of("linear", task, settings, 8),
              jobs.trial_of("linear", task, settings, 7, "walk-forward x1"),
              jobs.trial_of("linear", replace(task, code="d" * 64), settings, 7),
              jobs.trial_of("linear", replace(task, fit_rows=99), settings, 7),
              jobs.trial_of("linear", replace(task, data="other"), settings, 7),
              jobs.trial_of("linear", replace(task, fold_count=2), settings, 7),
              jobs.trial_of("linear_mae", replace(task, embedding_version="other"), settings, 7)]
    assert len({trial.key(task.target) for trial in trials}) == len(trials)


# Trades side by side.


def trades(exits: list[int], symbol: str, net: float) -> Arrays:
    exits_ms = np.array(exits, np.int64)
    return {"entry_time_ms": exits_ms - 1, "exit_time_ms": exits_ms, "net_return": np.full(len(exits), net),
            "direction": np.ones(len(exits), np.int8), "symbol": np.array([symbol] * len(exits), np.str_)}


def test_trades_of_several_folds_follow_each_other_in_the_order_of_their_ends() -> None:
    joined = joined_trades([trades([5, 9], "ETH", 0.02), trades([5, 7], "BTC", 0.04), trades([], "BTC", 0.0)])
    assert joined["exit_time_ms"].tolist() == [5, 5, 7, 9]
    assert joined["symbol"].tolist() == ["BTC", "ETH", "BTC", "ETH"]
    assert joined["net_return"].tolist() == [0.04, 0.02, 0.04, 0.02]


def test_what_is_entered_while_its_slot_holds_a_trade_of_the_fold_before_is_left_out() -> None:
    before = {**trades([20, 20], "BTC", 0.01), "entry_time_ms": np.array([5, 8]), "symbol": np.array(["BTC", "ETH"])}
    after = {**trades([22, 30, 31], "BTC", 0.02), "entry_time_ms": np.array([15, 20, 25]),
             "symbol": np.array(["BTC", "BTC", "BTC"])}
    joined = joined_trades([before, after])
    assert list(zip(joined["entry_time_ms"].tolist(), joined["symbol"].tolist(), strict=True)) == [
        (5, "BTC"), (8, "ETH"), (20, "BTC")]


def test_a_head_that_never_traded_has_a_track_of_nothing(task: Task) -> None:
    track = jobs.track_of_trades(task.grid, joined_trades([trades([], "BTC", 0.0)]))
    assert track.trades == 0
    assert track.returns.tolist() == [0.0] * len(task.grid)


def test_an_ensembles_bundle_is_what_it_was_made_of(found: Searched) -> None:
    packed = found.jobs["fit.ensemble.0.0"][1][2]
    assert pack_bundle(read_bundle(packed)) == packed


def test_a_learner_is_told_of_each_step(task: Task) -> None:
    told: list[int] = []
    hears: Heard = lambda step, loss: told.append(step)  # noqa: E731 (a type on it)
    TrySettings("catboost", task, 7)({"depth": 2, "learning_rate": 0.1, "l2_leaf_reg": 3.0}, hears)
    assert told == sorted(set(told))
    assert told
