from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import apsw
import pytest

from policies.errors import LedgerCorrupt
from policies.rows import NewRow
from sentry.audit import AuditReader, AuditRow, AuditTrail, chained
from sentry.ledger import Ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger(tmp_path / "hub.sqlite")
    with ledger.transaction():
        ledger.append(NewRow("genesis", "genesis", {"seed": 1, "config_hash": "c", "code_hash": "e"}), 0)
        for number in range(6):
            ledger.append(NewRow("observation", None, {"what": "not audited"}), number)
            ledger.append(NewRow("verdict", None, {"policy_id": f"p{number}", "judgement": "halt",
                                                   "rule": "drawdown_percent", "figure": 4.5 + number, "limit": 4.0}),
                          number)
            ledger.append(NewRow("command", f"c{number}", {"command": "pause", "policy_id": f"p{number}",
                                                           "actor": "ops", "reason": "a look"}), number)
    return ledger


@pytest.fixture
def audit(ledger: Ledger, tmp_path: Path) -> AuditTrail:
    audit = AuditTrail(tmp_path / "audit.sqlite")
    audit.complete(ledger)
    return audit


def tamper(tmp_path: Path, *statements: str) -> None:
    connection = apsw.Connection(str(tmp_path / "audit.sqlite"))
    for statement in statements:
        connection.execute(statement)


def rehash(tmp_path: Path) -> None:
    """Make the whole chain follow from the columns as they are, as someone who knows the format could."""
    connection = apsw.Connection(str(tmp_path / "audit.sqlite"))
    previous = ""
    for columns in list(connection.execute("SELECT * FROM audit ORDER BY position")):
        previous = chained(previous, AuditRow(*columns)).chain_hash
        connection.execute("UPDATE audit SET chain_hash = ? WHERE position = ?", (previous, columns[0]))


def test_audit_holds_the_audited_rows_of_the_ledger_and_verifies(ledger: Ledger, audit: AuditTrail) -> None:
    assert [row.position for row in audit.tail(100)] == [19, 18, 16, 15, 13, 12, 10, 9, 7, 6, 4, 3, 1]
    command, verdict = audit.tail(2)
    assert (command.actor, command.rule, command.policy_id, command.summary) == ("ops", "pause", "p5", "pause: a look")
    assert (verdict.actor, verdict.rule, verdict.figure) == ("sentry", "drawdown_percent", 9.5)
    assert verdict.summary == "halt: drawdown_percent 9.5 against 4"
    assert audit.verify(ledger) == []


TAMPERINGS = {
    "edited": ["UPDATE audit SET summary = 'approve' WHERE position = 7"],
    "deleted": ["DELETE FROM audit WHERE position = 7"],
    "inserted": ["INSERT INTO audit SELECT 8, at_ms, kind, policy_id, actor, rule, figure, summary, row_hash, "
                 "chain_hash FROM audit WHERE position = 7"],
    "reordered": ["UPDATE audit SET position = -1 WHERE position = 7",
                  "UPDATE audit SET position = 7 WHERE position = 9",
                  "UPDATE audit SET position = 9 WHERE position = -1"],
    "truncated": ["DELETE FROM audit WHERE position > 15"],
}


@pytest.mark.parametrize("what", TAMPERINGS)
@pytest.mark.parametrize("rehashed", [False, True])
def test_tampering_is_found(ledger: Ledger, audit: AuditTrail, tmp_path: Path, what: str, rehashed: bool) -> None:
    tamper(tmp_path, *TAMPERINGS[what])
    if rehashed:
        rehash(tmp_path)
    findings = AuditReader(tmp_path / "audit.sqlite").verify(ledger)
    assert {finding.what for finding in findings} == {"rehashed" if rehashed and what == "edited" else what}
    assert findings[0].position == {"inserted": 8, "truncated": 16}.get(what, 7)


def test_edited_chain_hash_is_found(ledger: Ledger, audit: AuditTrail, tmp_path: Path) -> None:
    tamper(tmp_path, "UPDATE audit SET chain_hash = 'f' WHERE position = 9")
    assert [(finding.position, finding.what) for finding in audit.verify(ledger)] == [(9, "edited")]


def test_changed_ledger_is_found(ledger: Ledger, audit: AuditTrail, tmp_path: Path) -> None:
    apsw.Connection(str(tmp_path / "hub.sqlite")).execute(
        "DROP TRIGGER ledger_is_never_updated; UPDATE ledger SET body = replace(body, '4.5', '3.5') WHERE position = 3")
    assert [finding.position for finding in audit.verify(ledger)] == [3]


def test_start_completes_what_a_crash_left_out(ledger: Ledger, audit: AuditTrail, tmp_path: Path) -> None:
    whole = audit.tail(100)
    tamper(tmp_path, "DELETE FROM audit WHERE position > 10")
    audit.close()
    again = AuditTrail(tmp_path / "audit.sqlite")
    assert again.complete(ledger) == 6
    assert again.tail(100) == whole
    assert again.complete(ledger) == 0


def test_rows_added_one_by_one_make_the_same_chain(ledger: Ledger, audit: AuditTrail, tmp_path: Path) -> None:
    other = AuditTrail(tmp_path / "other.sqlite")
    for row in ledger.rows():
        other.extend([row])
        other.extend([row])  # again: no effect
    assert other.tail(100) == audit.tail(100)


def test_audit_of_another_ledger_is_refused(audit: AuditTrail, tmp_path: Path) -> None:
    other = Ledger(tmp_path / "other.sqlite")
    with other.transaction():
        other.append(NewRow("genesis", "genesis", {"seed": 2, "config_hash": "c", "code_hash": "e"}), 0)
    with pytest.raises(LedgerCorrupt):
        audit.complete(other)


def test_rows_that_are_on_their_way_are_no_finding(ledger: Ledger, audit: AuditTrail) -> None:
    settled = audit.position
    with ledger.transaction():
        row = ledger.append(NewRow("command", "late", {"command": "pause", "policy_id": "p", "reason": ""}), 9)
    assert audit.verify(ledger, settled) == []
    assert [finding.what for finding in audit.verify(ledger)] == ["truncated"]
    audit.extend([row])
    assert audit.verify(ledger, settled) == audit.verify(ledger) == []


def test_chain_hash_covers_every_column() -> None:
    row = AuditRow(1, 2, "verdict", "p", "a", "r", 1.0, "s", "h")
    changed = [replace(row, **{name: value}) for name, value in {
        "position": 9, "at_ms": 9, "kind": "x", "policy_id": None, "actor": "x", "rule": None, "figure": None,
        "summary": "x", "row_hash": "x"}.items()]
    hashes = {chained("", one).chain_hash for one in [row, *changed]} | {chained("p", row).chain_hash}
    assert len(hashes) == 11


def test_epoch_without_a_change_is_left_out_and_found_when_it_was_put_in(ledger: Ledger, audit: AuditTrail,
                                                                         tmp_path: Path) -> None:
    epoch = {"reason": "cadence", "shares": {"llm_only": 1.0}}
    with ledger.transaction():
        same = ledger.append(NewRow("epoch", "epoch/1", {**epoch, "epoch": 1, "changed": False}), 9)
        ledger.append(NewRow("epoch", "epoch/2", {**epoch, "epoch": 2, "changed": True}), 9)
    assert audit.complete(ledger) == 1
    assert audit.verify(ledger) == []
    tamper(tmp_path, f"INSERT INTO audit SELECT {same.position}, at_ms, kind, policy_id, actor, rule, figure, summary, "
                     "row_hash, chain_hash FROM audit WHERE kind = 'epoch'")
    assert (same.position, "inserted") in [(finding.position, finding.what) for finding in audit.verify(ledger)]
