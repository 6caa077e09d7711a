"""The book of trials: everything that was ever tried for a target, so that the best of it can be judged for what it is.

A trial is written down when it begins and again when it ends. One that was pruned, that failed, or whose process was
killed counts as much as one that finished: it could have been chosen. The book lies under HUB_HOME/trials, is
append-only, and takes several writers at once; what `begin` and `end` have returned from is on disk.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from policies.errors import ContentConflict, InvalidInput, UnknownEntity
from policies.fills import Costs
from sentry.ledger import encoded, open_for_writing
from train.dataset import Brackets
from train.intervals import BlockGrid

TRIALS_APPLICATION_ID = 0x5452494C
FINISHED, PRUNED, FAILED = "finished", "pruned", "failed"
ENDS = (FINISHED, PRUNED, FAILED)
RUNNING = "begun"  # or killed: nobody can tell
SAME = 1e-6  # a repeated training may differ by that much, relatively, and is the same trial

SCHEMA = """
CREATE TABLE IF NOT EXISTS trials(
  number INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, target TEXT NOT NULL, target_name TEXT NOT NULL,
  body TEXT NOT NULL, choices INTEGER NOT NULL CHECK (choices >= 1), begun_ms INTEGER NOT NULL) STRICT;
CREATE INDEX IF NOT EXISTS trials_by_target ON trials(target, number);
CREATE TABLE IF NOT EXISTS ends(
  number INTEGER PRIMARY KEY, key TEXT NOT NULL REFERENCES trials(key), status TEXT NOT NULL, ended_ms INTEGER NOT NULL,
  validation_loss REAL, detail TEXT NOT NULL, start_ms INTEGER, stop_ms INTEGER, block_ms INTEGER, returns BLOB) STRICT;
CREATE UNIQUE INDEX IF NOT EXISTS one_finish ON ends(key) WHERE status = 'finished';
""" + "".join(f"""
CREATE TRIGGER IF NOT EXISTS {table}_are_never_{verb.lower()}d BEFORE {verb} ON {table}
  BEGIN SELECT RAISE(ABORT, 'the book of trials is append-only'); END;
""" for table in ("trials", "ends") for verb in ("UPDATE", "DELETE"))

_LAST_ENDS = """SELECT t.key, e.status, e.validation_loss, e.start_ms, e.stop_ms, e.block_ms, e.returns
FROM trials t JOIN ends e ON e.key = t.key WHERE t.target = ? AND e.status = 'finished' AND e.returns IS NOT NULL
ORDER BY t.number"""


@dataclass(frozen=True)
class Target:
    """What heads are trained and compared for. Trials of one target compete with each other, whatever the model.

    market: whose bars (`feature_repo.market.Market.origin`).
    """

    symbols: tuple[str, ...]
    interval_ms: int
    brackets: Brackets = field(default_factory=Brackets)
    costs: Costs = field(default_factory=Costs)
    market: str = "market"

    @property
    def name(self) -> str:
        """Canonical: the same for the same symbols in any order."""
        parts = [f"{name}={value:g}" for part in (self.brackets, self.costs)
                 for name, value in sorted(asdict(part).items())]
        return " ".join([self.market, "+".join(sorted(set(self.symbols))), f"interval_ms={self.interval_ms}", *parts])

    @property
    def key(self) -> str:
        return hashlib.sha256(self.name.encode()).hexdigest()


@dataclass(frozen=True)
class Trial:
    """One attempt. learner: name and version. settings: JSON. folds: the scheme and its times, JSON. code: version of
    the sources that it was made with. choices: how many heads were compared within it, such as pairs of levels.
    """

    learner: str
    settings: Mapping[str, Any]
    seed: int
    folds: Mapping[str, Any]
    code: str = ""
    choices: int = 1

    def __post_init__(self) -> None:
        if not self.choices >= 1:
            raise InvalidInput("choices", ">= 1", self.choices)

    def key(self, target: Target) -> str:
        """SHA-256 over the target and all of the trial."""
        return hashlib.sha256(encoded({**asdict(self), "target": target.name}, "trial").encode()).hexdigest()


@dataclass(frozen=True)
class End:
    """How a trial ended. validation_loss: the lower the better, None if there was none. returns: (T,) net return over
    equity of each block of `grid`, for finished trials. detail: JSON, such as a failure's reason.
    """

    status: str
    validation_loss: float | None = None
    grid: BlockGrid | None = None
    returns: NDArray[np.float64] | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.status not in ENDS:
            raise InvalidInput("status", f"one of {', '.join(ENDS)}", self.status)
        if self.validation_loss is not None and not np.isfinite(self.validation_loss):
            raise InvalidInput("validation_loss", "finite or None", self.validation_loss)
        if (self.grid is None) != (self.returns is None):
            raise InvalidInput("returns", "given together with their grid", self.grid)
        if self.grid is not None and self.returns is not None and not (
                self.returns.shape == (len(self.grid),) and np.isfinite(self.returns).all()):
            raise InvalidInput("returns", f"{len(self.grid)} finite numbers", self.returns)


@dataclass(frozen=True)
class Performance:
    """Finished trials on one grid. keys: (N,), in the order in which they began. returns: (T, N)."""

    grid: BlockGrid
    keys: tuple[str, ...]
    returns: NDArray[np.float64]


class TrialBook:
    """One connection to the book; not for several threads at once. Open one in each process."""

    def __init__(self, home: Path) -> None:
        folder = home / "trials"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _alone(folder / "trials.lock"):  # two that create one file at once would be in each other's way
            self._connection = open_for_writing(folder / "trials.sqlite", SCHEMA, TRIALS_APPLICATION_ID)
            self._connection.execute("PRAGMA synchronous = FULL").fetchall()

    def begin(self, target: Target, trial: Trial, now_ms: int) -> str:
        """The trial's key; from now on it counts. Idempotent: a trial that is tried again is the same trial."""
        key = trial.key(target)
        body = encoded(asdict(trial), "trial")
        self._connection.execute(
            "INSERT INTO trials(key, target, target_name, body, choices, begun_ms) VALUES (?, ?, ?, ?, ?, ?) "
            "ON CONFLICT(key) DO NOTHING", (key, target.key, target.name, body, trial.choices, now_ms))
        return key

    def end(self, key: str, end: End, now_ms: int) -> bool:
        """Whether it was written: False if that end is recorded already.

        A pruned or failed trial may be tried again and finish; a finished one stays as it is, whatever comes after.
        ContentConflict if it finishes again with other figures: something outside its key made a difference.
        """
        with self._transaction():
            if not self._rows("SELECT 1 FROM trials WHERE key = ?", key):
                raise UnknownEntity("trial", key)
            recorded = self._finish_of(key)
            if recorded is None:
                last = self._rows("SELECT status FROM ends WHERE key = ? ORDER BY number DESC LIMIT 1", key)
                if last != [(end.status,)]:
                    self._append(key, end, now_ms)
                return last != [(end.status,)]
            differing = _differing(recorded, end) if end.status == FINISHED else []
            if differing:
                raise ContentConflict("trial", key, differing)
            return False

    def record(self, target: Target, trial: Trial, end: End, now_ms: int) -> None:
        """Begin it, unless it has begun, and end it. Where the same trial has finished with other figures, something
        that its key does not name made a difference, such as another version of a library: it is one trial more.
        """
        try:
            self.end(self.begin(target, trial, now_ms), end, now_ms)
        except ContentConflict:
            again = replace(trial, learner=f"{trial.learner} at {now_ms}")
            self.end(self.begin(target, again, now_ms), end, now_ms)

    def count(self, target: Target) -> int:
        """All that could have been chosen: every trial that was begun, times the choices within it."""
        return int(self._rows("SELECT coalesce(sum(choices), 0) FROM trials WHERE target = ?", target.key)[0][0])

    def statuses(self, target: Target) -> dict[str, int]:
        """Trials by how they stand; `begun` are those that run or were killed."""
        found = dict.fromkeys((*ENDS, RUNNING), 0)
        rows = self._rows("SELECT (SELECT status FROM ends e WHERE e.key = t.key ORDER BY e.status = 'finished' DESC, "
                          "e.number DESC LIMIT 1) FROM trials t WHERE t.target = ?", target.key)
        for (status,) in rows:
            found[status or RUNNING] += 1
        return found

    def performance(self, target: Target, grid: BlockGrid) -> Performance:
        """Of the finished trials on exactly this grid; (T, 0) returns if there is none."""
        rows = [row for row in self._rows(_LAST_ENDS, target.key) if BlockGrid(*row[3:6]) == grid]
        columns = [_returns(row[-1]) for row in rows]
        returns = np.column_stack(columns) if columns else np.empty((len(grid), 0))
        return Performance(grid, tuple(row[0] for row in rows), returns)

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> TrialBook:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")  # waits for other writers before anything is read
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def _append(self, key: str, end: End, now_ms: int) -> None:
        grid = (None, None, None) if end.grid is None else (end.grid.start_ms, end.grid.stop_ms, end.grid.block_ms)
        returns = None if end.returns is None else np.asarray(end.returns, dtype="<f8").tobytes()
        self._connection.execute(
            "INSERT INTO ends(key, status, ended_ms, validation_loss, detail, start_ms, stop_ms, block_ms, returns) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (key, end.status, now_ms, end.validation_loss, encoded(dict(end.detail), "detail"), *grid, returns))

    def _finish_of(self, key: str) -> End | None:
        rows = self._rows("SELECT validation_loss, start_ms, stop_ms, block_ms, returns, detail FROM ends "
                          "WHERE key = ? AND status = 'finished'", key)
        if not rows:
            return None
        loss, start_ms, stop_ms, block_ms, returns, detail = rows[0]
        if returns is None:
            return End(FINISHED, loss, detail=orjson.loads(detail))
        return End(FINISHED, loss, BlockGrid(start_ms, stop_ms, block_ms), _returns(returns), orjson.loads(detail))

    def _rows(self, query: str, *bindings: Any) -> list[Any]:
        return self._connection.execute(query, bindings).fetchall()


def _differing(recorded: End, again: End) -> list[str]:
    """Fields with other figures; details are not compared."""
    fields = []
    before, after = (np.nan if end.validation_loss is None else end.validation_loss for end in (recorded, again))
    if not np.isclose(before, after, rtol=SAME, atol=SAME, equal_nan=True):
        fields.append("validation_loss")
    if recorded.grid != again.grid:
        return [*fields, "grid"]
    if recorded.returns is not None and again.returns is not None:
        scale = float(np.abs(recorded.returns).max())
        if not np.allclose(recorded.returns, again.returns, rtol=0, atol=SAME * scale):
            fields.append("returns")
    return fields


def _returns(blob: bytes) -> NDArray[np.float64]:
    return np.frombuffer(blob, dtype="<f8").astype(np.float64)


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One process at a time."""
    with open(lock, "a", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
