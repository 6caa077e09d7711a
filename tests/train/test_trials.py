"""The book counts everything that was tried, from any number of writers, and forgets nothing."""

from __future__ import annotations

import dataclasses
import fcntl
import multiprocessing
import os
import signal
import stat
import threading
from pathlib import Path

import apsw
import numpy as np
import pytest

from policies.errors import ContentConflict, InvalidInput, UnknownEntity
from policies.fills import Costs
from train.dataset import Brackets
from train.intervals import BlockGrid
from train.trials import FAILED, FINISHED, PRUNED, End, Target, Trial, TrialBook

TARGET = Target(("BTC", "ETH"), 60_000)
GRID = BlockGrid(0, 600, 100)
TRIAL = Trial("tabnet 1", {"rate": 0.02, "steps": 3}, 7, {"count": 2, "start_ms": 5}, "abc")


def another(seed: int, **changes: object) -> Trial:
    return dataclasses.replace(TRIAL, seed=seed, **changes)


def finished(seed: int = 0, grid: BlockGrid = GRID) -> End:
    return End(FINISHED, 0.9 + seed, grid, np.random.default_rng(seed).normal(size=len(grid)))


@pytest.fixture
def book(tmp_path: Path):
    with TrialBook(tmp_path) as opened:
        yield opened


def test_pruned_failed_and_killed_trials_count_as_much_as_finished_ones(book) -> None:
    for seed, end in enumerate((finished(), End(PRUNED, 1.3), End(FAILED, detail={"reason": "out of memory"}))):
        book.end(book.begin(TARGET, another(seed), 1), end, 2)
    book.begin(TARGET, another(3), 3)
    assert book.count(TARGET) == 4
    assert book.statuses(TARGET) == {"finished": 1, "pruned": 1, "failed": 1, "begun": 1}


def test_choices_within_a_trial_count(book) -> None:
    book.begin(TARGET, another(0, choices=18), 1)
    book.begin(TARGET, another(1), 1)
    assert book.count(TARGET) == 19


def test_a_trial_that_is_told_twice_is_one(book, tmp_path) -> None:
    key = book.begin(TARGET, TRIAL, 1)
    assert book.end(key, finished(), 2)
    with TrialBook(tmp_path) as other:
        assert other.begin(TARGET, TRIAL, 9) == key
        assert not other.end(key, finished(), 10)
        assert not other.end(key, dataclasses.replace(finished(), validation_loss=0.9 * (1 + 1e-9)), 10)
        assert not other.end(key, End(FAILED), 11)
    assert book.count(TARGET) == 1
    assert book.statuses(TARGET)["finished"] == 1


def test_the_same_trial_with_other_figures_is_a_conflict_and_the_first_stands(book) -> None:
    key = book.begin(TARGET, TRIAL, 1)
    book.end(key, finished(), 2)
    for again, fields in ((dataclasses.replace(finished(), validation_loss=0.91), ["validation_loss"]),
                          (dataclasses.replace(finished(), returns=finished(5).returns), ["returns"]),
                          (End(FINISHED, 0.9), ["grid"]), (End(FINISHED, None), ["validation_loss", "grid"])):
        with pytest.raises(ContentConflict) as refused:
            book.end(key, again, 3)
        assert refused.value.fields == fields
    assert book.performance(TARGET, GRID).returns[:, 0].tolist() == finished().returns.tolist()


def test_a_trial_that_failed_may_be_tried_again_and_is_still_one(book) -> None:
    key = book.begin(TARGET, TRIAL, 1)
    assert book.end(key, End(FAILED), 2)
    assert not book.end(key, End(FAILED), 2)
    assert book.end(key, finished(), 3)
    assert book.count(TARGET) == 1
    assert book.statuses(TARGET) == {"finished": 1, "pruned": 0, "failed": 0, "begun": 0}


@pytest.mark.parametrize("change", [
    {"learner": "tabnet 2"}, {"settings": {"rate": 0.02, "steps": 4}}, {"seed": 8}, {"folds": {"count": 3}},
    {"code": "abd"}, {"choices": 2}])
def test_whatever_differs_makes_another_trial(book, change) -> None:
    first = book.begin(TARGET, TRIAL, 1)
    assert book.begin(TARGET, dataclasses.replace(TRIAL, **change), 1) != first
    assert book.begin(TARGET, dataclasses.replace(TRIAL, settings={"steps": 3, "rate": 0.02}), 1) == first


def test_targets_do_not_mix(book) -> None:
    others = [Target(("BTC",), 60_000), Target(("BTC", "ETH"), 300_000),
              dataclasses.replace(TARGET, brackets=Brackets(horizon_bars=30)),
              dataclasses.replace(TARGET, costs=Costs(taker_fee_fraction=0.001))]
    for number, target in enumerate([TARGET, *others]):
        for seed in range(number + 1):
            book.end(book.begin(target, another(seed), 1), finished(seed), 2)
    assert [book.count(target) for target in [TARGET, *others]] == [1, 2, 3, 4, 5]
    assert book.performance(others[0], GRID).returns.shape == (len(GRID), 2)
    assert Target(("ETH", "BTC"), 60_000).key == TARGET.key


def test_performance_holds_the_finished_trials_of_exactly_that_grid(book) -> None:
    later = BlockGrid(300, 900, 100)
    ends = [finished(0), finished(1, later), End(PRUNED, 2.0), End(FINISHED, 1.0), finished(4)]
    keys = [book.begin(TARGET, another(seed), 1) for seed in range(len(ends))]
    for key, end in reversed(list(zip(keys, ends, strict=True))):
        book.end(key, end, 2)
    found = book.performance(TARGET, GRID)
    assert found.keys == (keys[0], keys[4])
    assert found.returns == pytest.approx(np.column_stack([ends[0].returns, ends[4].returns]))
    assert book.performance(TARGET, BlockGrid(0, 500, 100)).returns.shape == (5, 0)


def test_a_trial_that_finishes_with_other_figures_is_recorded_as_one_trial_more(book) -> None:
    for seed, now_ms in ((0, 2), (0, 3), (1, 4)):
        book.record(TARGET, TRIAL, finished(seed), now_ms)
    assert book.count(TARGET) == 2
    assert book.performance(TARGET, GRID).returns == pytest.approx(
        np.column_stack([finished(0).returns, finished(1).returns]))


def test_nothing_in_the_book_can_be_changed_or_removed(book, tmp_path) -> None:
    book.end(book.begin(TARGET, TRIAL, 1), finished(), 2)
    connection = apsw.Connection(str(tmp_path / "trials" / "trials.sqlite"))
    for statement in ("UPDATE trials SET choices = 1", "DELETE FROM trials", "UPDATE ends SET validation_loss = 0",
                      "DELETE FROM ends"):
        with pytest.raises(apsw.ConstraintError, match="append-only"):
            connection.execute(statement)
    connection.close()


def test_the_book_is_for_its_owner_only(book, tmp_path) -> None:
    assert stat.S_IMODE((tmp_path / "trials").stat().st_mode) == 0o700
    for path in (tmp_path / "trials").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def write_many(home: Path, writer: int, trials: int, gate) -> None:
    gate.wait()
    with TrialBook(home) as book:
        for seed in range(trials):
            shared = book.begin(TARGET, another(seed), 1)
            book.end(shared, finished(seed), 2)
            own = book.begin(TARGET, another(1_000 * (writer + 1) + seed), 1)
            book.end(own, End(PRUNED, 1.0), 2)


def test_writers_of_several_processes_lose_nothing_and_double_nothing(tmp_path) -> None:
    """They create the book at the same moment, and race for the same trials."""
    context = multiprocessing.get_context("fork")
    gate = context.Barrier(4)
    writers = [context.Process(target=write_many, args=(tmp_path, number, 15, gate)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0] * 4
    with TrialBook(tmp_path) as book:
        assert book.count(TARGET) == 15 + 4 * 15
        assert book.statuses(TARGET) == {"finished": 15, "pruned": 60, "failed": 0, "begun": 0}
        assert book.performance(TARGET, GRID).returns.shape == (len(GRID), 15)


def test_a_book_is_created_by_one_at_a_time(tmp_path) -> None:
    """Without that, one in a hundred of simultaneous starts finds the database locked."""
    (tmp_path / "trials").mkdir()
    opened = threading.Thread(target=lambda: TrialBook(tmp_path).close())
    with open(tmp_path / "trials" / "trials.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        opened.start()
        opened.join(0.3)
        assert opened.is_alive()
    opened.join(30)
    assert not opened.is_alive()


def test_a_writer_between_the_look_and_the_write_has_to_wait(book, tmp_path) -> None:
    """Else the end would fail, or be written beside another one."""
    key = book.begin(TARGET, TRIAL, 1)
    with TrialBook(tmp_path) as other:
        rival = threading.Thread(target=other.end, args=(key, End(PRUNED), 2))
        look = book._finish_of

        def look_while_another_writes(key: str) -> End | None:
            found = look(key)
            rival.start()
            rival.join(0.3)
            return found

        book._finish_of = look_while_another_writes
        assert book.end(key, finished(), 3)
        rival.join(30)
        assert not rival.is_alive()
        assert book.statuses(TARGET) == {"finished": 1, "pruned": 0, "failed": 0, "begun": 0}


def begin_and_wait(home: Path, told) -> None:
    book = TrialBook(home)
    told.send(book.begin(TARGET, TRIAL, 1))
    signal.pause()


def test_a_writer_that_is_killed_leaves_its_trial_counted_and_the_book_open_to_others(tmp_path) -> None:
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    writer = context.Process(target=begin_and_wait, args=(tmp_path, there))
    writer.start()
    assert here.poll(30)
    key = here.recv()
    os.kill(writer.pid, signal.SIGKILL)
    writer.join(30)
    with TrialBook(tmp_path) as book:
        assert book.statuses(TARGET)["begun"] == book.count(TARGET) == 1
        assert book.end(key, finished(), 2)


@pytest.mark.parametrize("refused", [
    lambda: End("done"), lambda: End(FINISHED, float("nan")), lambda: End(FINISHED, 1.0, GRID),
    lambda: End(FINISHED, 1.0, GRID, np.zeros(5)), lambda: End(FINISHED, 1.0, GRID, np.full(6, np.nan)),
    lambda: another(1, choices=0), lambda: another(1, settings={"rate": float("inf")}).key(TARGET)])
def test_bad_input_is_refused(refused) -> None:
    with pytest.raises(InvalidInput):
        refused()


def test_an_unknown_trial_cannot_end(book) -> None:
    with pytest.raises(UnknownEntity):
        book.end("0" * 64, finished(), 1)
    assert book.begin(TARGET, TRIAL, 1)  # the book is not left inside a transaction
