"""Group commit: many operations wait, one transaction makes them durable, and only then is any of them answered.

A durable commit costs one fsync, whether it carries one row or a hundred. So whoever comes while nothing is under way
leads: it runs what is waiting in one transaction, in its own thread, and goes on until nothing waits. Whoever comes
meanwhile only leaves its operation to the leader. A single caller thus pays for no hand-over between threads.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from policies.errors import HubError, WriterUnavailable
from sentry.ledger import Ledger

T = TypeVar("T")
_Waiting = tuple[Callable[[], Any], "Future[Any]"]

log = logging.getLogger(__name__)


class GroupCommit:
    """Runs operations one batch at a time; nothing else touches the ledger while this lives.

    An operation that raises a HubError before it appended a row fails alone. Any other failure, COMMIT's included,
    rolls the whole batch back, and each of its operations fails with WriterUnavailable: nothing was acknowledged, and
    all can be sent again.

    on_rollback: brings the state that the operations keep back to the ledger; runs before a failure is told. If it
    fails itself, no operation is run until it has succeeded.
    after_commit: runs after COMMIT, before the answers; its failure is logged and takes nothing back.
    """

    def __init__(self, ledger: Ledger, on_rollback: Callable[[], None] = lambda: None,
                 after_commit: Callable[[], None] = lambda: None, max_batch: int = 512) -> None:
        self._ledger = ledger
        self._on_rollback = on_rollback
        self._after_commit = after_commit
        self._max_batch = max_batch
        self._behind = False
        self._closed = False
        self._leading = False
        self._changed = threading.Condition()
        self._waiting: deque[_Waiting] = deque()

    def submit(self, operation: Callable[[], T]) -> Future[T]:
        """A future of what `operation` returns, resolved when that is durable: often already on return."""
        return self.submit_all([operation])[0]

    def submit_all(self, operations: Sequence[Callable[[], T]]) -> list[Future[T]]:
        """The same for several, which share a transaction unless they are more than a batch."""
        futures: list[Future[T]] = [Future() for _ in operations]
        with self._changed:
            if self._closed:
                for future in futures:
                    future.set_exception(WriterUnavailable("the ledger's writer is closed"))
                return futures
            self._waiting.extend(zip(operations, futures, strict=True))
        while batch := self._lead():
            try:
                self._commit(batch)
            finally:
                with self._changed:
                    self._leading = False
                    self._changed.notify_all()
        return futures

    def close(self) -> None:
        """Returns when all that was submitted before is answered; what comes after is refused."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: not self._leading and not self._waiting)

    def _lead(self) -> list[_Waiting]:
        """The next batch for this thread to run; empty if another one leads, or if nothing waits."""
        with self._changed:
            if self._leading:
                return []
            batch: list[_Waiting] = []
            while self._waiting and len(batch) < self._max_batch:
                taken = self._waiting.popleft()
                if taken[1].set_running_or_notify_cancel():  # cancelled ones are left out
                    batch.append(taken)
            self._leading = bool(batch)
            self._changed.notify_all()
            return batch

    def _commit(self, batch: list[_Waiting]) -> None:
        try:
            if self._behind:
                self._catch_up()
            with self._ledger.transaction():
                answers = [self._attempt(operation) for operation, _ in batch]
        except Exception as error:
            log.exception("a batch of %d operations was rolled back", len(batch))
            self._roll_back(batch, error)
            return
        try:
            self._after_commit()
        except Exception:
            log.exception("what follows a commit failed; the commit stands")
        for (_, future), (answer, refusal) in zip(batch, answers, strict=True):
            if refusal is None:
                future.set_result(answer)
            else:
                future.set_exception(refusal)

    def _attempt(self, operation: Callable[[], Any]) -> tuple[Any, HubError | None]:
        head = self._ledger.head()
        try:
            return operation(), None
        except HubError as refusal:
            if self._ledger.head() != head:
                raise  # half an operation: it cannot stay, and the ledger only takes back whole transactions
            return None, refusal

    def _roll_back(self, batch: list[_Waiting], error: Exception) -> None:
        self._behind = True
        try:
            self._catch_up()
        except Exception:
            log.exception("the state could not be rebuilt; tried again before the next batch")
        for _, future in batch:
            refusal = WriterUnavailable(f"nothing was recorded: {type(error).__name__}: {error}")
            future.set_exception(refusal)

    def _catch_up(self) -> None:
        self._on_rollback()
        self._behind = False
