"""The ledger: the append-only record on one SQLite file, the only truth of the hub.

`Ledger` is the one writer. It appends rows (see `policies.rows`) inside a transaction and keeps the episode tables, a
projection that is written in the same transaction as the rows it comes from. `LedgerReader` is what everybody else
holds: read-only, and cheap to ask when nothing is new.

The file is in WAL mode with synchronous=FULL: what COMMIT has returned survives a power cut. Rows cannot be changed,
removed or numbered with gaps by any connection; triggers in the file see to that.
"""

from __future__ import annotations

import fcntl
import math
import os
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import apsw
import orjson

from policies.errors import ContentConflict, HubError, InvalidInput, LedgerCorrupt, WriterUnavailable
from policies.rows import KINDS, NewRow, Row

OLDEST_SAFE_SQLITE = (3, 51, 3)  # older ones can corrupt a WAL file when two connections write or checkpoint at once
SCHEMA_VERSION = 1
LEDGER_APPLICATION_ID = 0x4C454447
BUSY_TIMEOUT_MS = 5_000
PAGE_ROWS = 1_000

SCHEMA = """
CREATE TABLE ledger(
  position INTEGER PRIMARY KEY, kind TEXT NOT NULL, key TEXT NOT NULL, at_ms INTEGER NOT NULL, body TEXT NOT NULL,
  UNIQUE(kind, key)) STRICT;
CREATE INDEX ledger_by_kind ON ledger(kind, position);
CREATE TRIGGER ledger_is_never_updated BEFORE UPDATE ON ledger
  BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER ledger_is_never_deleted BEFORE DELETE ON ledger
  BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
-- Also keeps INSERT OR REPLACE out, which removes rows without firing the trigger above.
CREATE TRIGGER ledger_only_grows BEFORE INSERT ON ledger
  WHEN NEW.position IS NOT (SELECT coalesce(max(position), 0) + 1 FROM ledger)
    OR EXISTS (SELECT 1 FROM ledger WHERE kind = NEW.kind AND key = NEW.key)
  BEGIN SELECT RAISE(ABORT, 'the ledger grows by one new row at a time'); END;
CREATE TABLE episodes(
  id TEXT PRIMARY KEY, timestamp INTEGER NOT NULL, strategy TEXT NOT NULL, symbol TEXT NOT NULL,
  features_json TEXT NOT NULL, decision_json TEXT NOT NULL, outcome_json TEXT NOT NULL,
  version TEXT NOT NULL, config_hash TEXT NOT NULL) STRICT;
CREATE INDEX episodes_by_timestamp ON episodes(timestamp, id);
CREATE INDEX episodes_by_strategy ON episodes(strategy, timestamp);
CREATE TABLE episode_embeddings(
  episode_id TEXT PRIMARY KEY REFERENCES episodes(id), vector BLOB NOT NULL, version TEXT NOT NULL) STRICT;
"""

_EPISODE = """SELECT e.id, e.timestamp, e.strategy, e.symbol, e.features_json, e.decision_json, e.outcome_json,
  coalesce(v.vector, x''), e.version, e.config_hash
  FROM episodes e LEFT JOIN episode_embeddings v ON v.episode_id = e.id """


@dataclass(frozen=True)
class EpisodeRecord:
    """Context, decision and outcome, remembered. vector: float32, little endian; empty if it was never embedded.

    version: of the embedding. config_hash: of the configuration under which the decision was made.
    """

    id: str
    timestamp_ms: int
    strategy: str
    symbol: str
    features: dict[str, Any]
    decision: dict[str, Any]
    outcome: dict[str, Any]
    vector: bytes
    version: str
    config_hash: str


class LedgerReader:
    """Read-only access for one thread. Each call sees everything that was committed before it."""

    def __init__(self, path: Path | str) -> None:
        self._connection = open_for_reading(path, LEDGER_APPLICATION_ID)

    def rows(self, after: int = 0, limit: int | None = None, kinds: Collection[str] | None = None) -> Iterator[Row]:
        """Rows with position > after, in order; of all kinds, or of these.

        Read page by page, so a caller that stops halfway keeps no old view of the file open.
        """
        chosen = () if kinds is None else tuple(sorted(kinds))
        # Without the hint SQLite walks the whole table in the order of positions, past every large body.
        among = "" if kinds is None else f"INDEXED BY ledger_by_kind WHERE kind IN ({', '.join('?' * len(chosen))}) AND"
        query = (f"SELECT position, kind, key, at_ms, body FROM ledger {among or 'WHERE'} position > ? "
                 "ORDER BY position LIMIT ?")
        left = math.inf if limit is None else limit
        while left > 0:
            page = int(min(left, PAGE_ROWS))
            found = _all(self._connection, query, (*chosen, after, page))
            for position, kind, key, at_ms, body in found:
                yield Row(position, kind, key, at_ms, orjson.loads(body))
            if len(found) < page:
                return
            after, left = found[-1][0], left - page

    def get(self, kind: str, key: str) -> Row | None:
        query = "SELECT position, at_ms, body FROM ledger WHERE kind = ? AND key = ?"
        for position, at_ms, body in _all(self._connection, query, (kind, key)):
            return Row(position, kind, key, at_ms, orjson.loads(body))
        return None

    def keys(self, kind: str, prefix: str) -> list[str]:
        """The recorded keys of a kind that begin with `prefix`, in code-point order. prefix: not empty."""
        beyond = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        query = "SELECT key FROM ledger WHERE kind = ? AND key >= ? AND key < ? ORDER BY key"
        return [key for (key,) in _all(self._connection, query, (kind, prefix, beyond))]

    def head(self) -> int:
        """The last position; 0 for an empty ledger."""
        return _one(self._connection, "SELECT coalesce(max(position), 0) FROM ledger")

    def counts(self) -> dict[str, int]:
        """How many rows there are of each kind; kinds without rows are absent."""
        return dict(_all(self._connection, "SELECT kind, count(*) FROM ledger GROUP BY kind ORDER BY kind"))

    def query_episodes(self, limit: int) -> list[EpisodeRecord]:
        """The latest episodes, newest first, ties by id."""
        return self._episodes("ORDER BY e.timestamp DESC, e.id DESC LIMIT ?", (limit,))

    def episodes(self, limit: int, after: tuple[int, str] = (-1, "")) -> list[EpisodeRecord]:
        """Episodes oldest first, from just after (timestamp_ms, id): the way to read all of them in pages."""
        return self._episodes("WHERE (e.timestamp, e.id) > (?, ?) ORDER BY e.timestamp, e.id LIMIT ?", (*after, limit))

    def embeddings(self) -> list[tuple[str, bytes, str]]:
        """(episode_id, float32 vector, version) of every embedded episode, by id."""
        return _all(self._connection, "SELECT episode_id, vector, version FROM episode_embeddings ORDER BY episode_id")

    def close(self) -> None:
        self._connection.close()

    def _episodes(self, which: str, bindings: tuple[Any, ...]) -> list[EpisodeRecord]:
        return [EpisodeRecord(*columns[:4], *map(orjson.loads, columns[4:7]), *columns[7:])
                for columns in _all(self._connection, _EPISODE + which, bindings)]


class Ledger(LedgerReader):
    """The one writer, for one thread at a time. A second one on the same file is refused, in any process.

    lock_wait_s: how long to wait for a writer that is just ending; then WriterUnavailable.
    """

    def __init__(self, path: Path | str, lock_wait_s: float = 5.0) -> None:
        self._lock = _writer_lock(path, lock_wait_s)
        try:
            self._connection = open_for_writing(path, SCHEMA, LEDGER_APPLICATION_ID)
            self._connection.execute("PRAGMA synchronous = FULL")
            self._head = super().head()
        except BaseException:
            self._lock.close()
            raise

    @property
    def in_transaction(self) -> bool:
        return self._connection.in_transaction

    def head(self) -> int:
        """The last position, counting rows of the transaction under way."""
        return self._head

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything appended inside becomes durable together on leaving, or, with any exception, not at all."""
        if self.in_transaction:
            raise RuntimeError("the ledger's transactions do not nest")
        head = self._head
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            self._head = head
            if self.in_transaction:  # SQLite has ended it by itself after some failures, such as a full disk
                self._connection.execute("ROLLBACK")
            raise

    def append(self, new: NewRow, at_ms: int) -> Row:
        """The row as every later reader will see it. Only inside a transaction.

        InvalidInput for a kind that is not known or a body that is not finite JSON; ContentConflict for a key that is
        recorded already.
        """
        if not self.in_transaction:
            raise RuntimeError("append needs a transaction")
        if new.kind not in KINDS:
            raise InvalidInput("kind", f"one of {', '.join(KINDS)}", new.kind)
        position = self._head + 1
        key = str(position) if new.key is None else new.key
        body = encoded(new.body)
        try:
            self._connection.execute("INSERT INTO ledger VALUES (?, ?, ?, ?, ?)",
                                     (position, new.kind, key, at_ms, body))
        except apsw.ConstraintError:
            if self.get(new.kind, key) is not None:
                raise ContentConflict(new.kind, key, []) from None
            raise
        self._head = position
        return Row(position, new.kind, key, at_ms, orjson.loads(body))

    def put_episode(self, episode: EpisodeRecord) -> None:
        """Remember an episode, or replace the one of that id. Only inside a transaction."""
        self.record_episode(episode)
        self.record_embedding(episode.id, episode.vector, episode.version)

    def record_episode(self, episode: EpisodeRecord) -> None:
        self._connection.execute(
            "INSERT INTO episodes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT(id) DO UPDATE SET "
            "timestamp = excluded.timestamp, strategy = excluded.strategy, symbol = excluded.symbol, "
            "features_json = excluded.features_json, decision_json = excluded.decision_json, "
            "outcome_json = excluded.outcome_json, version = excluded.version, config_hash = excluded.config_hash",
            (episode.id, episode.timestamp_ms, episode.strategy, episode.symbol, encoded(episode.features, "features"),
             encoded(episode.decision, "decision"), encoded(episode.outcome, "outcome"), episode.version,
             episode.config_hash))

    def record_embedding(self, episode_id: str, vector: bytes, version: str) -> None:
        """vector: float32, little endian, of an episode that is recorded."""
        if len(vector) % 4:
            raise InvalidInput("vector", "a whole number of float32 values", f"{len(vector)} bytes")
        self._connection.execute(
            "INSERT INTO episode_embeddings VALUES (?, ?, ?) "
            "ON CONFLICT(episode_id) DO UPDATE SET vector = excluded.vector, version = excluded.version",
            (episode_id, vector, version))

    def close(self) -> None:
        super().close()
        self._lock.close()


def open_for_writing(path: Path | str, schema: str, application_id: int) -> apsw.Connection:
    """A connection to a file of ours in WAL mode, created with mode 0600 if it is not there.

    LedgerCorrupt for a file that is something else, or of a schema that this code does not know.
    """
    require_safe_sqlite()
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))
    os.chmod(path, 0o600)  # the -wal and -shm files take this mode over
    connection = apsw.Connection(str(path))
    try:
        connection.set_busy_timeout(BUSY_TIMEOUT_MS)
        finished = _require_schema(connection, path, application_id)
        for pragma in ("journal_mode = WAL", "foreign_keys = ON"):  # one by one: apsw runs no further than a row
            _all(connection, f"PRAGMA {pragma}")
        if not finished:
            connection.execute(f"BEGIN IMMEDIATE; {schema} PRAGMA application_id = {application_id}; "
                               f"PRAGMA user_version = {SCHEMA_VERSION}; COMMIT")
    except BaseException:
        connection.close()
        raise
    return connection


def open_for_reading(path: Path | str, application_id: int) -> apsw.Connection:
    """A connection that neither writes nor checkpoints. WriterUnavailable if there is no such file yet."""
    require_safe_sqlite()
    try:
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    except apsw.CantOpenError:
        raise WriterUnavailable(f"nothing has been written at {path} yet") from None
    try:
        connection.set_busy_timeout(BUSY_TIMEOUT_MS)
        if not _require_schema(connection, path, application_id):
            raise WriterUnavailable(f"nothing has been written at {path} yet")
    except BaseException:
        connection.close()
        raise
    return connection


def require_safe_sqlite(version: str | None = None) -> None:
    """HubError unless SQLite (`version`: the one in use) is new enough to share a WAL file between connections."""
    version = version or apsw.sqlite_lib_version()
    if tuple(int(part) for part in version.split(".")[:3]) < OLDEST_SAFE_SQLITE:
        needed = ".".join(map(str, OLDEST_SAFE_SQLITE))
        raise HubError(f"SQLite {version} can corrupt a ledger that is being read; {needed} or newer is needed")


def encoded(value: dict[str, Any], name: str = "body") -> str:
    """Canonical JSON: sorted keys, the shortest form of each number. InvalidInput names the first value without one.

    orjson writes null for NaN and infinities without a word, so they are looked for first.
    """
    flaw = _flaw(value)
    if flaw is not None:
        raise InvalidInput(name + flaw[0], "finite JSON", flaw[1])
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
    except TypeError as error:  # such as an integer beyond 64 bits
        raise InvalidInput(name, "JSON", value, str(error)) from None


def _flaw(value: Any) -> tuple[str, Any] | None:
    """The path and value of the first leaf that is not finite JSON."""
    kind = type(value)
    if kind is float:
        return None if math.isfinite(value) else ("", value)
    if kind is dict or kind is list or kind is tuple:
        for name, part in value.items() if kind is dict else enumerate(value):
            flaw = _flaw(part)
            if flaw is not None:
                return f".{name}{flaw[0]}", flaw[1]
        return None
    return None if value is None or isinstance(value, str | int) else ("", value)


def _require_schema(connection: apsw.Connection, path: Path | str, application_id: int) -> bool:
    """Whether the tables are there; a file without any is one whose creation is not finished."""
    try:
        tables = _one(connection, "SELECT count(*) FROM sqlite_schema")
        found = (_one(connection, "PRAGMA application_id"), _one(connection, "PRAGMA user_version"))
    except (apsw.NotADBError, apsw.CorruptError) as error:
        raise LedgerCorrupt(f"{path}: {error}") from None
    if tables and found != (application_id, SCHEMA_VERSION):
        raise LedgerCorrupt(f"{path} has application id {found[0]:#x} and schema version {found[1]}; this code knows "
                            f"{application_id:#x} and version {SCHEMA_VERSION}")
    return bool(tables)


def _all(connection: apsw.Connection, query: str, bindings: tuple[Any, ...] = ()) -> list[Any]:
    return connection.execute(query, bindings).fetchall()


def _one(connection: apsw.Connection, query: str) -> int:
    return int(_all(connection, query)[0][0])


def _writer_lock(path: Path | str, wait_s: float) -> IO[str]:
    """The file that holds the writer's lock until it is closed, at the latest when its process ends.

    A file of its own: closing any descriptor of the database itself would drop SQLite's locks in this process.
    """
    lock = open(f"{path}.writer", "a", opener=partial(os.open, mode=0o600))  # noqa: SIM115 - kept as long as the ledger
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            if time.monotonic() >= deadline:
                lock.close()
                raise WriterUnavailable(f"{path} has a writer already") from None
            time.sleep(0.05)
