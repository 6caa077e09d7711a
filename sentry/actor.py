"""The sentry as a named Ray actor: a thin shell whose methods translate, submit and wait.

`SentryShell` is a plain class that several threads may call, so it can be tested without Ray; a deployment makes the
actor with `ray.remote(SentryShell)` and as many threads as it has callers. Constructing it replays the ledger, so a
restarted actor knows what the last one knew.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from policies.errors import HubError, InvalidInput
from policies.rows import NewRow
from sentry.audit import AuditReader, AuditTrail
from sentry.gates import GateSettings
from sentry.group_commit import GroupCommit
from sentry.ledger import Ledger, LedgerReader
from sentry.policy_sentry import CommandAnswer, CommitAnswer, Fold, OutcomeAnswer, PolicySentry

T = TypeVar("T")

LEDGER_FILE = "hub.sqlite"
AUDIT_FILE = "policy_audit.sqlite"


@dataclass(frozen=True)
class SentryParts:
    """What the sentry is given from above: the rooms that it may not import."""

    fold_factory: Callable[[], Fold]
    genesis: NewRow
    gate_settings: GateSettings


class SentryShell:
    """home: the folder of both files. now_ms: the hub's clock, for what the start itself records.

    parts: SentryParts of a configuration, as a function or as `package.module:function`; called with `config`.

    Of a batch, each item has an answer of its own, a dict or the HubError that refused it, as a value. A single
    operation raises its HubError.
    """

    def __init__(self, home: str, config: Any, parts: str | Callable[[Any], SentryParts], now_ms: int) -> None:
        given = (_imported(parts) if isinstance(parts, str) else parts)(config)
        self._home = Path(home)
        self._ledger = Ledger(self._home / LEDGER_FILE)
        self._audit = AuditTrail(self._home / AUDIT_FILE)
        self._sentry = PolicySentry(self._ledger, self._audit, given.fold_factory, given.genesis, now_ms,
                                    given.gate_settings)
        self._commits = GroupCommit(self._ledger, self._sentry.rebuild, self._sentry.after_commit)

    def commit_decisions(self, bodies: list[dict[str, Any]], now_ms: int) -> list[dict[str, Any] | HubError]:
        """By body: status committed, recorded or conflict; position; decision_id unless it is a conflict."""
        answers = self._all(partial(self._sentry.commit_decision, body, now_ms) for body in bodies)
        return [_decision_told(answer) if isinstance(answer, CommitAnswer) else answer for answer in answers]

    def record_outcomes(self, reports: list[dict[str, Any]], now_ms: int) -> list[dict[str, Any] | HubError]:
        """reports: outcomes with their `origin` (default hub). By report: accepted, its key, position, verdicts."""
        answers = self._all(partial(self._record_outcome, report, now_ms) for report in reports)
        return [_outcome_told(answer, report) if isinstance(answer, OutcomeAnswer) else answer
                for answer, report in zip(answers, reports, strict=True)]

    def command(self, command_id: str, command: str, policy_id: str, actor: str, reason: str,
                      now_ms: int) -> dict[str, Any]:
        return asdict(self._one(partial(
            self._sentry.command, command_id, command, policy_id, actor, reason, now_ms)))

    def register(self, policy_id: str, alias: str, manifest: dict[str, Any], actor: str,
                       now_ms: int) -> dict[str, Any]:
        return asdict(self._one(partial(self._sentry.register, policy_id, alias, manifest, actor, now_ms)))

    def expire_epoch(self, now_ms: int) -> dict[str, Any]:
        """expired: whether a new epoch began; position: of the ledger's head."""
        def expire() -> tuple[CommandAnswer | None, int]:
            return self._sentry.expire_epoch(now_ms), self._ledger.head()

        answer, position = self._one(expire)
        return {"expired": answer is not None, "position": position}

    def observe(self, what: str, policy_id: str | None, figure: float | None, detail: Any, now_ms: int,
                key: str | None = None) -> dict[str, Any]:
        return asdict(self._one(partial(self._sentry.observe, what, policy_id, figure, detail, now_ms, key)))

    def ping(self) -> dict[str, Any]:
        """Answered after a transaction, like a commit: it shows that one would be answered."""
        def state() -> dict[str, Any]:
            fold = self._sentry.fold
            return {"position": fold.position, "last_blocking_position": fold.last_blocking_position,
                    "policies": len(fold.policies())}

        return self._one(state)

    def audit(self, limit: int) -> dict[str, Any]:
        """rows: the latest, newest first; verified: whether the whole audit agrees with the ledger; findings if not."""
        return self._read_audit(limit, self._one(lambda: self._audit.position))

    def close(self) -> None:
        """Ends after what was submitted before. A killed actor loses nothing either."""
        self._commits.close()
        self._audit.close()
        self._ledger.close()

    def _record_outcome(self, report: dict[str, Any], now_ms: int) -> OutcomeAnswer:
        outcome = {name: value for name, value in report.items() if name != "origin"}
        return self._sentry.record_outcome(outcome, report.get("origin", "hub"), now_ms)

    def _read_audit(self, limit: int, settled: int) -> dict[str, Any]:
        """With connections of its own, beside the writer; rows after `settled` may be on their way."""
        audit, ledger = AuditReader(self._home / AUDIT_FILE), LedgerReader(self._home / LEDGER_FILE)
        try:
            findings = audit.verify(ledger, settled)
            rows = [asdict(row) for row in audit.tail(limit)]
        finally:
            audit.close()
            ledger.close()
        return {"rows": rows, "verified": not findings, "findings": [asdict(finding) for finding in findings[:100]]}

    def _one(self, operation: Callable[[], T]) -> T:
        return self._commits.submit(operation).result()

    def _all(self, operations: Iterable[Callable[[], T]]) -> list[T | HubError]:
        """Each operation's answer, or the HubError that refused it."""
        answers: list[T | HubError] = []
        for future in self._commits.submit_all(list(operations)):
            try:
                answers.append(future.result())
            except HubError as refusal:
                answers.append(refusal)
        return answers


def _decision_told(answer: CommitAnswer) -> dict[str, Any]:
    decision_id = None if answer.row is None else answer.row.key
    return {"status": answer.status, "position": answer.position, "decision_id": decision_id}


def _outcome_told(answer: OutcomeAnswer, report: dict[str, Any]) -> dict[str, Any]:
    return {**{name: report[name] for name in ("decision_id", "part", "revision")}, **asdict(answer)}


def _imported(path: str) -> Callable[[Any], SentryParts]:
    module, _, name = path.partition(":")
    if not name:
        raise InvalidInput("parts", "package.module:function", path)
    return getattr(importlib.import_module(module), name)
