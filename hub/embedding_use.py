"""Which version of the market's embedding is in use: a fold of what operators said, and the feeder's way to follow it.

A row is an observation with `what` EMBEDDING. Its detail: command (use_embedding | revert_embedding), version (of an
embedder, or none), actor, reason. Like a command it decides who may act: no decision is recorded across it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hub.home import Home
from policies.errors import HubError
from policies.rows import Row
from policies.types import NO_EMBEDDING
from sentry.ledger import LedgerReader

if TYPE_CHECKING:
    from policies.embedder import Embedder, EmbedderFolder

EMBEDDING = "embedding"
USE, REVERT = "use_embedding", "revert_embedding"
PATIENCE_S = 1.0  # for which a feeder waits for an embedder; with its mark it takes some hundredths
FIRST_PAUSE_S, MOST_PAUSE_S = 1.0, 300.0  # between two tries of one that cannot be loaded
MOST_EARLIER = 100  # versions that a revert can go back through


class EmbeddingUse:
    """The versions that were in use and have not been reverted, the present one last."""

    def __init__(self) -> None:
        self._versions = [NO_EMBEDDING]

    @property
    def version(self) -> str:
        """Of the embedding in use; NO_EMBEDDING for none."""
        return self._versions[-1]

    @property
    def earlier(self) -> str | None:
        """The last one before it, to which a revert leads; None if there was none."""
        return self._versions[-2] if len(self._versions) > 1 else None

    def apply(self, row: Row) -> None:
        detail: dict[str, Any] = row.body["detail"]
        version = detail["version"]
        if detail["command"] == REVERT:
            while len(self._versions) > 1 and self.version != version:
                self._versions.pop()
        elif version != self.version:
            self._versions = [*self._versions[-MOST_EARLIER:], version]


def is_embedding(row: Row) -> bool:
    return row.kind == "observation" and row.body["what"] == EMBEDDING


def embedders_of(home: Home) -> EmbedderFolder:
    """Where the embedders of a home lie."""
    from policies.embedder import EmbedderFolder  # the ledger's writer folds, too, and can do without its engine

    return EmbedderFolder(home.root / "embedders")


class EmbeddingFollower:
    """Has a feeder use the embedder that the ledger says. One that cannot be loaded is tried again, more and more
    rarely."""

    def __init__(self, home: Home, use: Callable[[Embedder | None], None],
                 timer: Callable[[], float] = time.monotonic) -> None:
        """use: takes the embedder, or None for none. timer: seconds on any clock that doesn't go back."""
        self._ledger, self._embedders = LedgerEmbedding(home.ledger), embedders_of(home)
        self._use, self._timer = use, timer
        self._version = self._wanted = NO_EMBEDDING  # in use here; as the ledger says
        self._loading: Future[Embedder] | None = None
        self._pause_s, self._retry_at_s = FIRST_PAUSE_S, 0.0
        self.problem = ""  # why the version in use is not served, for people

    def follow(self) -> None:
        """Take in what the ledger says now. Until its embedder is loaded there is none.

        Loading may take a canary's time, so it is waited for a moment only, and taken when it is there. Nothing is
        raised: the features go on whatever becomes of an embedding.
        """
        try:
            self._follow()
        except Exception as error:
            self._failed(error)

    def _follow(self) -> None:
        version = self._ledger.catch_up()
        if version != self._wanted:
            self._wanted, self._loading, self.problem = version, None, ""
            self._pause_s, self._retry_at_s = FIRST_PAUSE_S, self._timer()
            self._version = NO_EMBEDDING
            self._use(None)
        if self._wanted == self._version:
            self.problem = ""
            return
        if self._loading is None:
            if self._timer() < self._retry_at_s:
                return
            self._loading = self._started(self._wanted)
            wait([self._loading], PATIENCE_S)
        if self._loading.done():
            loading, self._loading = self._loading, None
            self._use(loading.result())
            self._version, self.problem = self._wanted, ""

    def _started(self, version: str) -> Future[Embedder]:
        future: Future[Embedder] = Future()

        def load() -> None:
            try:
                future.set_result(self._embedders.load(version))
            except BaseException as error:  # whoever waits has to hear of it
                future.set_exception(error)

        threading.Thread(target=load, name="embedder", daemon=True).start()
        return future

    def _failed(self, error: Exception) -> None:
        self.problem = str(error) if isinstance(error, HubError) else f"{type(error).__name__}: {error}"
        self._retry_at_s = self._timer() + self._pause_s
        self._pause_s = min(2 * self._pause_s, MOST_PAUSE_S)


class LedgerEmbedding:
    """The version in use as the ledger says, read on and on."""

    def __init__(self, ledger: Path) -> None:
        self._path = ledger
        self._reader: LedgerReader | None = None
        self._position = 0
        self._use = EmbeddingUse()

    def catch_up(self) -> str:
        """Take in what was recorded since; the version in use now."""
        if self._reader is None:
            try:
                self._reader = LedgerReader(self._path)
            except HubError:  # the ledger's writer has not made it yet
                return self._use.version
        for row in self._reader.rows(self._position, kinds={"observation"}):
            self._position = row.position
            if is_embedding(row):
                self._use.apply(row)
        return self._use.version
