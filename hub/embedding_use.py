"""Which version of the market's embedding is in use: a fold of what operators said, and the feeder's way to follow it.

A row is an observation with `what` EMBEDDING. Its detail: command (use_embedding | revert_embedding), version (of an
embedder, or none), actor, reason. Like a command it decides who may act: no decision is recorded across it.
"""

from __future__ import annotations

from collections.abc import Callable
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
    """Has a feeder use the embedder that the ledger says. use: takes the embedder, or None for none."""

    def __init__(self, home: Home, use: Callable[[Embedder | None], None]) -> None:
        self._ledger, self._embedders, self._use = LedgerEmbedding(home.ledger), embedders_of(home), use
        self._version = NO_EMBEDDING
        self.problem = ""  # why the version in use is not served, for people

    def follow(self) -> None:
        """Take in what the ledger says now. An embedder that cannot be loaded is tried again; until then there is none.
        """
        version = self._ledger.catch_up()
        if version == self._version:
            return
        self._use(None)
        self._version = NO_EMBEDDING
        try:
            if version != NO_EMBEDDING:
                self._use(self._embedders.load(version))
        except HubError as error:
            self.problem = str(error)
            return
        self._version, self.problem = version, ""


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
