from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import Future
from pathlib import Path

import pytest

from policies.errors import InvalidInput, WriterUnavailable
from policies.rows import NewRow
from sentry.group_commit import GroupCommit
from sentry.ledger import Ledger, LedgerReader


class Rig:
    """A ledger with its group commit, whose thread can be held so that a batch gathers."""

    def __init__(self, path: Path) -> None:
        self.ledger = Ledger(path)
        self.reader = LedgerReader(path)
        self.rollbacks = 0
        self.commits = GroupCommit(self.ledger, self.on_rollback)

    def on_rollback(self) -> None:
        self.rollbacks += 1

    def append(self, key: str) -> int:
        return self.ledger.append(NewRow("observation", key, {}), 0).position

    def batch(self, *operations: object) -> list[Future[object]]:
        """Futures of operations that share one transaction: the writer is held until all of them wait."""
        held, begun = threading.Event(), threading.Event()
        leader = threading.Thread(target=self.commits.submit, args=(lambda: (begun.set(), held.wait(10)),))
        leader.start()
        begun.wait(10)
        futures = [self.commits.submit(operation) for operation in operations]  # type: ignore[arg-type]
        held.set()
        leader.join(10)
        return futures

    def recorded(self) -> list[str]:
        return [row.key for row in self.reader.rows()]


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path / "l")


def test_answers_come_in_order_and_only_after_the_commit(rig: Rig) -> None:
    seen: list[bool] = []
    futures = rig.batch(*[lambda n=n: rig.append(f"k{n}") for n in range(20)])
    for position, future in enumerate(futures, start=1):
        future.add_done_callback(lambda _: seen.append(len(rig.ledger.counts()) > 0 and not rig.ledger.in_transaction))
        assert future.result(10) == position
        assert rig.reader.get("observation", f"k{position - 1}") is not None
    assert seen == [True] * 20


def test_waiting_operations_share_one_transaction(rig: Rig) -> None:
    inside: list[int] = []
    futures = rig.batch(lambda: rig.append("a"), lambda: inside.append(rig.reader.head()), lambda: rig.append("b"))
    assert [future.result(10) for future in futures][::2] == [1, 2]
    assert inside == [0]  # the first was not committed when the second ran


def test_refused_operation_fails_alone(rig: Rig) -> None:
    def refuse() -> None:
        raise InvalidInput("x", "> 0", -1)

    first, refused, last = rig.batch(lambda: rig.append("a"), refuse, lambda: rig.append("b"))
    assert (first.result(10), last.result(10)) == (1, 2)
    with pytest.raises(InvalidInput):
        refused.result(10)
    assert (rig.recorded(), rig.rollbacks) == (["a", "b"], 0)


def test_operation_refused_halfway_takes_its_batch_back(rig: Rig) -> None:
    def halfway() -> None:
        rig.append("half")
        raise InvalidInput("x", "> 0", -1)

    for future in rig.batch(lambda: rig.append("a"), halfway, lambda: rig.append("b")):
        with pytest.raises(WriterUnavailable):
            future.result(10)
    assert (rig.recorded(), rig.rollbacks) == ([], 1)
    assert rig.commits.submit(lambda: rig.append("a")).result(10) == 1


def test_unexpected_exception_takes_its_batch_back(rig: Rig) -> None:
    for future in rig.batch(lambda: rig.append("a"), lambda: 1 // 0):
        with pytest.raises(WriterUnavailable, match="ZeroDivisionError"):
            future.result(10)
    assert (rig.recorded(), rig.rollbacks) == ([], 1)


def test_full_disk_acknowledges_nothing_and_the_writer_goes_on_when_there_is_room(rig: Rig) -> None:
    assert rig.commits.submit(lambda: rig.append("a")).result(10) == 1
    connection = rig.ledger._connection
    pages = connection.execute("PRAGMA page_count").fetchall()[0][0]
    connection.execute(f"PRAGMA max_page_count = {pages}").fetchall()
    big = NewRow("observation", "big", {"text": "x" * 100_000})
    for future in rig.batch(lambda: rig.append("b"), lambda: rig.ledger.append(big, 0)):
        with pytest.raises(WriterUnavailable, match="full"):
            future.result(10)
    assert (rig.recorded(), rig.rollbacks) == (["a"], 1)
    connection.execute(f"PRAGMA max_page_count = {pages + 1_000}").fetchall()
    assert rig.commits.submit(lambda: rig.append("b")).result(10) == 2


def test_failing_commit_acknowledges_nothing(rig: Rig) -> None:
    def fail() -> None:
        rig.ledger._connection.set_commit_hook(lambda: True)  # COMMIT becomes ROLLBACK

    for future in rig.batch(lambda: rig.append("a"), fail, lambda: rig.append("b")):
        with pytest.raises(WriterUnavailable):
            future.result(10)
    rig.ledger._connection.set_commit_hook(None)
    assert (rig.recorded(), rig.rollbacks) == ([], 1)
    assert rig.commits.submit(lambda: rig.append("a")).result(10) == 1


def test_nothing_runs_until_the_state_is_rebuilt(tmp_path: Path) -> None:
    ledger, attempts = Ledger(tmp_path / "l"), []

    def rebuild() -> None:
        attempts.append(1)
        if len(attempts) < 3:
            raise OSError("cannot read")

    commits = GroupCommit(ledger, rebuild)
    ran: list[int] = []
    with pytest.raises(WriterUnavailable):
        commits.submit(lambda: 1 // 0).result(10)
    with pytest.raises(WriterUnavailable, match="cannot read"):
        commits.submit(lambda: ran.append(1)).result(10)
    assert (len(attempts), ran) == (3, [])
    commits.submit(lambda: ran.append(2)).result(10)
    assert ran == [2]


def test_failure_after_the_commit_takes_nothing_back(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l")

    def fail() -> None:
        raise OSError("audit disk is full")

    commits = GroupCommit(ledger, after_commit=fail)
    row = commits.submit(lambda: ledger.append(NewRow("observation", "a", {}), 0)).result(10)
    assert LedgerReader(tmp_path / "l").get("observation", "a") == row


def test_operations_submitted_together_are_one_transaction(rig: Rig) -> None:
    futures = rig.commits.submit_all([lambda n=n: (rig.append(f"k{n}"), rig.reader.head()) for n in range(5)])
    assert [future.result(0) for future in futures] == [(n, 0) for n in range(1, 6)]
    assert rig.reader.head() == 5


def test_who_comes_while_another_leads_is_answered_by_the_leader(rig: Rig) -> None:
    threads: list[int] = []
    futures = rig.batch(*[lambda: threads.append(threading.get_ident())] * 3)
    assert all(future.done() for future in futures)
    assert threading.get_ident() not in threads


def test_close_answers_what_was_submitted_and_refuses_what_comes_after(rig: Rig) -> None:
    futures = [rig.commits.submit(lambda n=n: rig.append(f"k{n}")) for n in range(50)]
    rig.commits.close()
    assert [future.result(0) for future in futures] == list(range(1, 51))
    with pytest.raises(WriterUnavailable):
        rig.commits.submit(lambda: None).result(0)


WRITER = """
import sys, threading
from policies.rows import NewRow
from sentry.group_commit import GroupCommit
from sentry.ledger import Ledger

ledger = Ledger(sys.argv[1])
commits = GroupCommit(ledger)
said = threading.Lock()

def load(worker):
    number = 0
    while True:
        key = f"{worker}-{number}"
        commits.submit(lambda: ledger.append(NewRow("observation", key, {"key": key}), number)).result()
        with said:
            print(key, flush=True)
        number += 1

for worker in range(4):
    threading.Thread(target=load, args=(worker,)).start()
"""


def test_every_acknowledged_row_is_there_after_kill_9(tmp_path: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "l")], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    acknowledged = [writer.stdout.readline().strip() for _ in range(300)]
    writer.kill()
    rest = writer.stdout.read().split("\n")[:-1]  # what was said before it died; the last line may be cut off
    assert writer.wait(10) == -9
    ledger = Ledger(tmp_path / "l")
    recorded = [row.key for row in ledger.rows()]
    assert len(acknowledged) == 300
    assert set(acknowledged + rest) <= set(recorded)
    assert ledger.head() == len(recorded) == len(set(recorded))
    with ledger.transaction():
        assert ledger.append(NewRow("observation", "next", {}), 0).position == len(recorded) + 1
