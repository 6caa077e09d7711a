"""The audit: who changed what may trade, as a hash-chained projection of the ledger in a file of its own.

Each audited row of the ledger (`policies.rows.is_audited`) has one row here, at the same position. `row_hash` is the
SHA-256 of the whole ledger row; `chain_hash` is the SHA-256 of the previous chain hash and of all columns before it, so
the first row, the genesis with its seed, seeds the chain. The chain shows careless changes by itself. Someone who
recomputes it after a change is found because the chain has to end where the ledger says it ends: `verify` compares the
two.

Two SQLite files in WAL mode cannot commit as one, so rows are added after the ledger's commit, and what a crash left
out is made up for at start.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import orjson

from policies.errors import LedgerCorrupt
from policies.rows import AUDIT_KINDS, EMBEDDER_STORED, PARAM_START, RL_POLICY, Row, is_audited
from sentry.ledger import LedgerReader, encoded, open_for_reading, open_for_writing

AUDIT_APPLICATION_ID = 0x41554454

SCHEMA = """
CREATE TABLE audit(
  position INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, kind TEXT NOT NULL, policy_id TEXT, actor TEXT NOT NULL,
  rule TEXT, figure REAL, summary TEXT NOT NULL, row_hash TEXT NOT NULL, chain_hash TEXT NOT NULL) STRICT;
"""


@dataclass(frozen=True)
class AuditRow:
    """figure: what the rule looked at (percent, ratio or ms by the rule); None if there is none or it is infinite."""

    position: int
    at_ms: int
    kind: str
    policy_id: str | None
    actor: str
    rule: str | None
    figure: float | None
    summary: str
    row_hash: str
    chain_hash: str = ""

    @property
    def columns(self) -> tuple[Any, ...]:
        """All that the chain hash covers."""
        return astuple(self)[:-1]


@dataclass(frozen=True)
class AuditFinding:
    """what: edited, deleted, inserted, reordered, truncated or rehashed."""

    position: int
    what: str
    detail: str


class AuditReader:
    """Read-only access for one thread."""

    def __init__(self, path: Path | str) -> None:
        self._connection = open_for_reading(path, AUDIT_APPLICATION_ID)

    def tail(self, limit: int) -> list[AuditRow]:
        """The latest rows, newest first."""
        return self._rows("DESC", limit)

    def verify(self, ledger: LedgerReader, up_to: int | None = None) -> list[AuditFinding]:
        """Every place where this file is not the projection of the ledger, by position; empty if there is none.

        up_to: the last position to compare, for a check beside a writer that may be adding rows to both files.
        """
        end = ledger.head() if up_to is None else up_to
        rows = takewhile(lambda row: row.position <= end, ledger.rows(kinds=AUDIT_KINDS))
        expected = {row.position: row for row in _chain(filter(is_audited, rows))}
        stored = [row for row in self._rows() if up_to is None or row.position <= up_to]
        held = {row.position for row in stored}
        last = max(held, default=0)
        findings = [AuditFinding(position, "truncated" if position > last else "deleted", "the ledger has this row")
                    for position in expected if position not in held]
        position_of = {row.columns[1:]: position for position, row in expected.items()}
        previous = ""
        for row in stored:
            fits = chained(previous, row).chain_hash == row.chain_hash
            previous = row.chain_hash
            if row.position not in expected:
                findings.append(AuditFinding(row.position, "inserted", "the ledger has no such row"))
            elif row.columns != expected[row.position].columns:
                findings.append(_difference(row, position_of.get(row.columns[1:]), fits))
            elif not fits and not findings:  # after a finding the chain is broken anyway
                findings.append(AuditFinding(row.position, "edited", "the chain hash does not follow"))
        return sorted(findings, key=lambda finding: finding.position)

    def close(self) -> None:
        self._connection.close()

    def _rows(self, order: str = "ASC", limit: int = -1) -> list[AuditRow]:
        """By position; limit -1: all."""
        query = f"SELECT * FROM audit ORDER BY position {order} LIMIT ?"
        found: list[Any] = self._connection.execute(query, (limit,)).fetchall()
        return [AuditRow(*columns) for columns in found]


class AuditTrail(AuditReader):
    """The one that adds rows, beside the ledger's writer and in its thread. position: of the last row, 0 for none."""

    def __init__(self, path: Path | str) -> None:
        self._connection = open_for_writing(path, SCHEMA, AUDIT_APPLICATION_ID)
        # A power cut may take the last rows of this file; the ledger, which is synced first, gives them back.
        self._connection.execute("PRAGMA synchronous = NORMAL")
        self.position, self._chain_hash = 0, ""
        for last in self.tail(1):
            self.position, self._chain_hash = last.position, last.chain_hash

    def complete(self, ledger: LedgerReader) -> int:
        """Add the rows that the ledger has beyond this file's end; how many there were.

        LedgerCorrupt if this file's last row is not what the ledger holds there: it belongs to another ledger, or one
        of the two was changed.
        """
        for last in self.tail(1):
            recorded = list(ledger.rows(after=last.position - 1, limit=1))
            if not recorded or projected(recorded[0]).columns != last.columns:
                raise LedgerCorrupt(f"the audit's last row, {last.position}, is not the ledger's")
        return self.extend(ledger.rows(after=self.position, kinds=AUDIT_KINDS))

    def extend(self, rows: Iterable[Row]) -> int:
        """Add the audited ones among these committed rows, given in order; how many were new."""
        position, chain_hash, added = self.position, self._chain_hash, 0
        with self._connection:
            for row in rows:
                if not is_audited(row) or row.position <= position:
                    continue
                audited = chained(chain_hash, projected(row))
                self._connection.execute("INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", astuple(audited))
                position, chain_hash, added = audited.position, audited.chain_hash, added + 1
        self.position, self._chain_hash = position, chain_hash
        return added


def projected(row: Row) -> AuditRow:
    """The audit's view of a ledger row, not chained yet."""
    body = row.body
    names = {"verdict": "rule", "command": "command", "epoch": "reason", "observation": "what"}
    rule = body.get(names.get(row.kind, ""))
    figure = body.get("figure")
    content = orjson.dumps([row.position, row.kind, row.key, row.at_ms]) + encoded(body).encode()
    return AuditRow(row.position, row.at_ms, row.kind, body.get("policy_id"), _actor(row), rule,
                    None if figure is None else float(figure), _summary(row), hashlib.sha256(content).hexdigest())


def chained(previous: str, row: AuditRow) -> AuditRow:
    """The row with the chain hash that follows `previous`, the chain hash of the row before ("" for the first)."""
    chain_hash = hashlib.sha256(previous.encode() + orjson.dumps(row.columns)).hexdigest()
    return replace(row, chain_hash=chain_hash)


def _chain(rows: Iterable[Row]) -> Iterator[AuditRow]:
    previous = ""
    for row in rows:
        audited = chained(previous, projected(row))
        previous = audited.chain_hash
        yield audited


def _difference(row: AuditRow, belongs_at: int | None, fits: bool) -> AuditFinding:
    if belongs_at is not None:
        return AuditFinding(row.position, "reordered", f"this row belongs at {belongs_at}")
    if fits:
        return AuditFinding(row.position, "rehashed", "the chain follows, but not from the ledger")
    return AuditFinding(row.position, "edited", "differs from the ledger, and the chain does not follow")


def _actor(row: Row) -> str:
    said = row.body["detail"] if row.kind == "observation" else row.body
    return said.get("actor") or "sentry"


def _summary(row: Row) -> str:
    """What happened in one line for the operator's page."""
    body = row.body
    match row.kind:
        case "genesis" | "configuration":
            return f"configuration {body['config_hash'][:12]}, code {body['code_hash'][:12]}"
        case "policy":
            return f"registered as {body['alias']}"
        case "command":
            return f"{body['command']}: {body['reason']}" if body["reason"] else body["command"]
        case "observation" if body["what"] == "embedding":
            return f"{body['detail']['command']}: {body['detail']['version']}: {body['detail']['reason']}"
        case "observation" if body["what"] == EMBEDDER_STORED:
            detail = body["detail"]
            return f"stored embedder {detail['version']} ({detail['alias']}, SHA-256 {detail['sha256'][:12]})"
        case "observation" if body["what"] == PARAM_START:
            buckets = sum(map(len, body["detail"]["start"]["levels"].values()))
            return f"parameters start from {body['detail']['id'][:12]} ({buckets} buckets): {body['detail']['reason']}"
        case "observation" if body["what"] == RL_POLICY:
            return f"the say on sizes: {body['detail']['alias'] or 'nobody'}: {body['detail']['reason']}"
        case "observation":
            detail = body["detail"]
            named = f"{detail['alias'] or 'without an alias'}, SHA-256 {detail['sha256'][:12] or 'unknown'}"
            return f"not registered ({named}): {detail['reason']}"
        case "epoch":
            shares = ", ".join(f"{policy_id[:12]} {share:.0%}" for policy_id, share in sorted(body["shares"].items()))
            return f"epoch {body['epoch']}: {shares}"
        case _:
            figure = "" if body.get("figure") is None else f" {body['figure']:g}"
            limit = "" if body.get("limit") is None else f" against {body['limit']:g}"
            return f"{body['judgement']}: {body['rule']}{figure}{limit}"
