"""Group commit: many operations wait, one transaction makes them durable, and only then is any of them answered.

A durable commit costs one fsync, whether it carries one row or a hundred. So one thread takes whatever has been
submitted meanwhile, runs it in one transaction, and resolves the futures after COMMIT has returned.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from policies.errors import HubError, WriterUnavailable
from sentry.ledger import Ledger

T = TypeVar("T")
_Waiting = tuple[Callable[[], Any], "Future[Any]"]

log = logging.getLogger(__name__)


class GroupCommit:
    """Runs operations on its own thread, the only one that touches the ledger while this lives.

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
        self._closing = threading.Lock()
        self._waiting: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="ledger-writer", daemon=True)
        self._thread.start()

    def submit(self, operation: Callable[[], T]) -> Future[T]:
        """A future of what `operation` returns; resolved when it is durable. From asyncio: asyncio.wrap_future."""
        future: Future[T] = Future()
        with self._closing:  # so that nothing is put behind the end of the queue and waits for ever
            if self._closed:
                future.set_exception(WriterUnavailable("the ledger's writer is closed"))
            else:
                self._waiting.put((operation, future))
        return future

    def close(self) -> None:
        """Ends the thread after all that was submitted before."""
        with self._closing:
            if not self._closed:
                self._closed = True
                self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        while True:
            batch, ends = self._take()
            if batch:
                self._commit(batch)
            if ends:
                return

    def _take(self) -> tuple[list[_Waiting], bool]:
        """What is waiting, at least one; and whether it was the last. Cancelled operations are left out."""
        batch: list[_Waiting] = []
        taken = self._waiting.get()
        while taken is not None:
            if taken[1].set_running_or_notify_cancel():
                batch.append(taken)
            if len(batch) >= self._max_batch:
                return batch, False
            try:
                taken = self._waiting.get_nowait()
            except queue.Empty:
                return batch, False
        return batch, True

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
