"""Outcomes on disk until the hub has acknowledged them: what makes `report` a promise."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SCHEMA = """
    PRAGMA journal_mode=DELETE;
    PRAGMA synchronous=EXTRA;
    CREATE TABLE IF NOT EXISTS waiting (id INTEGER PRIMARY KEY AUTOINCREMENT, body TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS refused (id INTEGER PRIMARY KEY AUTOINCREMENT, body TEXT NOT NULL, reason TEXT NOT NULL);
"""


class Outbox:
    """Outcomes on disk, oldest first, and those refused for good.

    A rollback journal with synchronous=EXTRA: when a write returns, it is on the disk, whatever happens next.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=5.0)
        self._db.executescript(_SCHEMA)

    def put(self, body: str) -> None:
        with self._transaction() as db:
            db.execute("INSERT INTO waiting (body) VALUES (?)", (body,))

    def oldest(self) -> tuple[int, str] | None:
        with self._lock:
            row = self._db.execute("SELECT id, body FROM waiting ORDER BY id LIMIT 1").fetchone()
        return None if row is None else (row[0], row[1])

    def drop(self, row_id: int) -> None:
        with self._transaction() as db:
            db.execute("DELETE FROM waiting WHERE id = ?", (row_id,))

    def park(self, row_id: int, reason: str) -> None:
        with self._transaction() as db:
            db.execute("INSERT INTO refused (body, reason) SELECT body, ? FROM waiting WHERE id = ?", (reason, row_id))
            db.execute("DELETE FROM waiting WHERE id = ?", (row_id,))

    def park_unsendable(self, text: str, reason: str) -> None:
        with self._transaction() as db:
            db.execute("INSERT INTO refused (body, reason) VALUES (?, ?)", (text, reason))

    def pending(self) -> int:
        with self._lock:
            return int(self._db.execute("SELECT count(*) FROM waiting").fetchone()[0])

    def refused(self) -> list[tuple[str, str]]:
        with self._lock:
            return self._db.execute("SELECT body, reason FROM refused ORDER BY id").fetchall()

    def close(self) -> None:
        with self._lock:
            self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
