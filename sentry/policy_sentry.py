"""PolicySentry: what it has not judged is not recorded, and what is not recorded is not acknowledged.

The plain class over ledger, audit and fold. Every operation appends its row, applies it to the fold, and then appends
what the fold says must follow (verdicts, the next epoch), in one transaction. Restarting is replaying.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from policies.errors import ContentConflict, InvalidInput, LedgerCorrupt, UnknownEntity
from policies.rows import BOOK, LLM_ONLY, NewRow, Row, decision_id_of, is_audited
from policies.types import Judgement, Outcome
from sentry.audit import AuditTrail
from sentry.gates import Finding, GateSettings, judge_figures
from sentry.ledger import EpisodeRecord, Ledger
from sentry.outcome_checks import (
    OWN_TRADE,
    checked_outcome,
    differing_fields,
    own_trade_of,
    require_pnl,
    require_text,
    require_times,
    require_whole,
)

T = TypeVar("T")

COMMANDS = ("pause", "resume", "promote", "demote")
BOOK_COMMANDS = ("pause", "resume")
OPERATOR = "operator"  # the rule of a verdict that a person gave
METRICS = ("profit_factor", "max_drawdown", "latency_p95")

# A fold that calls for this many rounds of rows in a row contradicts itself.
MOST_ROUNDS = 32

log = logging.getLogger(__name__)


class Fold(Protocol):
    """What the writer asks of the composition of all folds. Asking changes nothing; `apply` is the only way in."""

    position: int
    last_blocking_position: int
    seed: int

    def apply(self, row: Row) -> None: ...

    def consequences(self, at_ms: int) -> list[NewRow]:
        """Verdicts and epochs that the ledger must hold now; [] when none."""
        ...

    def admits(self, decision: dict[str, Any]) -> bool:
        """Whether a decision's body agrees with who may act now, and with the slots that hold a trade."""
        ...

    def epoch_expired(self, now_ms: int) -> bool: ...

    def expire_epoch(self, now_ms: int) -> list[NewRow]: ...

    def trade_of(self, decision: Row) -> dict[str, Any]:
        """What an outcome's row repeats of its decision; at least decided_ms, direction (as executed) and acts."""
        ...

    def episode(self, row: Row) -> EpisodeRecord | None:
        """What an outcome's row makes rememberable."""
        ...

    def policies(self) -> list[str]:
        """Registered ids, in the order of registration."""
        ...


@dataclass(frozen=True)
class CommitAnswer:
    """row: the decision's; None on a conflict. position: the row's, or the one to read up to before deciding anew."""

    status: Literal["committed", "recorded", "conflict"]
    row: Row | None
    position: int


@dataclass(frozen=True)
class OutcomeAnswer:
    """accepted: `superseded_by_later` is a repeated report that a recorded revision has replaced meanwhile.

    verdicts: bodies of the verdicts that this outcome led to, also when it is reported again.
    """

    accepted: Literal["recorded", "duplicate", "superseded_by_later"]
    position: int
    verdicts: list[dict[str, Any]]


@dataclass(frozen=True)
class CommandAnswer:
    """Of everything else that is recorded. position: of the row."""

    accepted: Literal["recorded", "duplicate"]
    position: int


class PolicySentry:
    """One owner, one thread. `fold` is the state at the ledger's head and is replaced when a transaction fails.

    An operation joins the transaction that is under way; its owner then calls `after_commit`, or `rebuild` after a
    failure. Without one, it makes its own and does both.
    """

    def __init__(self, ledger: Ledger, audit: AuditTrail, fold_factory: Callable[[], Fold], genesis: NewRow,
                 now_ms: int, gate_settings: GateSettings | None = None) -> None:
        self._ledger, self._audit, self._fold_factory = ledger, audit, fold_factory
        self._gate_settings = gate_settings or GateSettings()
        self._unsettled: list[Row] = []  # appended by the transaction under way
        self.rebuild()
        self._configure(genesis, now_ms)
        audit.complete(ledger)

    # -- the state --------------------------------------------------------------------------------------------------

    def rebuild(self) -> None:
        """The fold by replay of the whole ledger."""
        fold = self._fold_factory()
        for row in self._ledger.rows():
            fold.apply(row)
        self.fold = fold
        self._unsettled = []

    def after_commit(self) -> None:
        """Audit what was committed. If that fails the commit stands, and the next call makes up for it."""
        rows = [row for row in self._unsettled if is_audited(row)]
        self._unsettled = []
        if not rows:
            return
        try:
            self._audit.complete(self._ledger)
        except Exception:
            log.exception("the audit lags behind the ledger from position %d", rows[0].position)

    def _configure(self, genesis: NewRow, now_ms: int) -> None:
        """Begin an empty ledger, or record that configuration or code are others than the last ones."""
        recorded = list(self._ledger.rows(kinds={"genesis", "configuration"}))
        body = {name: genesis.body[name] for name in ("config", "config_hash", "code_hash")}
        if not recorded:
            self._operate(lambda: self._record(genesis, now_ms))
        elif any(recorded[-1].body[name] != body[name] for name in ("config_hash", "code_hash")):
            key = f"{body['config_hash']}@{self._ledger.head() + 1}"
            self._operate(lambda: self._record(NewRow("configuration", key, body), now_ms))

    def _operate(self, operation: Callable[[], T]) -> T:
        if self._ledger.in_transaction:
            return operation()
        try:
            with self._ledger.transaction():
                answer = operation()
        except BaseException:
            if self._unsettled:
                self.rebuild()
            raise
        self.after_commit()
        return answer

    def _record(self, new: NewRow, at_ms: int) -> list[Row]:
        """Append and apply a row and all that follows from it. The first of the answer is the row itself."""
        rows = [self._append(new, at_ms)]
        if rows[0].kind == "outcome":
            episode = self.fold.episode(rows[0])
            if episode is not None:
                self._ledger.put_episode(episode)
        for _ in range(MOST_ROUNDS):
            following = self.fold.consequences(at_ms)
            if not following:
                return rows
            rows += [self._append(consequence, at_ms) for consequence in following]
        raise LedgerCorrupt(f"what follows from row {rows[0].position} does not end")

    def _append(self, new: NewRow, at_ms: int) -> Row:
        row = self._ledger.append(new, at_ms)
        self._unsettled.append(row)  # before the fold sees it: should that fail, the fold has to be rebuilt
        self.fold.apply(row)
        return row

    # -- decisions and outcomes -------------------------------------------------------------------------------------

    def commit_decision(self, body: dict[str, Any], now_ms: int) -> CommitAnswer:
        """Record a decision unless something that decides who may act, or takes its slot, lies between its `as_of` and
        its own row.

        body: `request_id`, `request_hash`, `policy_id`, `as_of` and whatever else the decision's row holds. The same
        request again gets the recorded row; ContentConflict if its hash is another one.
        """
        decision_id = decision_id_of(self.fold.seed, require_text(body, "request_id"))
        recorded = self._ledger.get("decision", decision_id)
        if recorded is not None:
            if recorded.body["request_hash"] != require_text(body, "request_hash"):
                raise ContentConflict("decision", decision_id, ["request_hash"])
            return CommitAnswer("recorded", recorded, recorded.position)
        for name in ("request_hash", "policy_id"):
            require_text(body, name)
        as_of = require_whole(body, "as_of", 0, self.fold.position)
        if as_of < self.fold.last_blocking_position or not self.fold.admits(body):
            return CommitAnswer("conflict", None, self.fold.position)
        row = self._operate(lambda: self._record(NewRow("decision", decision_id, body), now_ms))[0]
        return CommitAnswer("committed", row, row.position)

    def record_outcome(self, outcome: Mapping[str, Any], origin: str, now_ms: int) -> OutcomeAnswer:
        """Record what came of a decision, or (origin `bot`) of a trade that the bot made on its own.

        outcome: the fields of an Outcome; of an own trade also symbol, strategy and direction, and `equity` is needed.
        UnknownEntity for a decision that is not recorded; ContentConflict for another content under a recorded key or
        for a revision below a recorded one; InvalidInput for what cannot be true.
        """
        if origin not in ("hub", "bot"):
            raise InvalidInput("origin", "hub or bot", origin)
        fields = {name: value for name, value in outcome.items() if name not in OWN_TRADE}
        own = {name: outcome.get(name) for name in OWN_TRADE}
        one = checked_outcome(fields)
        trade = self._trade(one, own, origin)
        body: dict[str, Any] = {"outcome": one.to_dict(), "origin": origin, "trade": trade}
        revisions = self._revisions(one)
        later = [revision for revision in revisions if revision > one.revision]
        recorded = self._ledger.get("outcome", one.key)
        if recorded is not None:
            differing = differing_fields(recorded.body, body)
            if differing:
                raise ContentConflict("outcome", one.key, differing)
            return OutcomeAnswer("superseded_by_later" if later else "duplicate", recorded.position,
                                 self._verdicts_after(recorded))
        if later:
            raise ContentConflict("outcome", one.key, [f"revision: {max(later)} is recorded already"])
        require_times(one, trade, now_ms)
        require_pnl(one, trade)
        body["supersedes"] = max(revisions, default=None)
        rows = self._operate(lambda: self._record(NewRow("outcome", one.key, body), now_ms))
        return OutcomeAnswer("recorded", rows[0].position, [row.body for row in rows if row.kind == "verdict"])

    def _trade(self, one: Outcome, own: dict[str, Any], origin: str) -> dict[str, Any]:
        """What the outcome's row repeats of its decision, so that rows stand alone."""
        decision = self._ledger.get("decision", one.decision_id)
        if origin == "bot":
            if decision is not None:
                raise InvalidInput("decision_id", "the bot's own, not that of a recorded decision", one.decision_id)
            return own_trade_of(one, own)
        if decision is None:
            raise UnknownEntity("decision", one.decision_id)
        for name, value in own.items():
            if value is not None:
                raise InvalidInput(name, "absent: the decision says it", value)
        return self.fold.trade_of(decision)

    def _revisions(self, one: Outcome) -> list[int]:
        """The recorded revisions of the outcome's part."""
        prefix = f"{one.decision_id}/{one.part}/"
        ends = (key.removeprefix(prefix) for key in self._ledger.keys("outcome", prefix))
        return [int(end) for end in ends if end.isdigit()]

    def _verdicts_after(self, outcome: Row) -> list[dict[str, Any]]:
        """The verdicts that were recorded with an outcome: they and its epoch follow its row directly."""
        verdicts = []
        for row in self._ledger.rows(after=outcome.position, limit=MOST_ROUNDS):
            if row.kind not in ("verdict", "epoch") or row.body.get("rule") == OPERATOR:
                break
            if row.kind == "verdict":
                verdicts.append(row.body)
        return verdicts

    # -- who may act ------------------------------------------------------------------------------------------------

    def register(self, policy_id: str, alias: str, manifest: dict[str, Any], actor: str, now_ms: int) -> CommandAnswer:
        """Make a policy known. Again with the same alias and manifest: duplicate."""
        if policy_id in ("", BOOK, LLM_ONLY):
            raise InvalidInput("policy_id", f"the id of a bundle, not {BOOK} or {LLM_ONLY}", policy_id)
        body = {"policy_id": policy_id, "alias": alias, "manifest": manifest, "actor": actor}
        return self._once(NewRow("policy", policy_id, body), ("alias", "manifest"), now_ms)

    def command(self, command_id: str, command: str, policy_id: str, actor: str, reason: str,
                now_ms: int) -> CommandAnswer:
        """An operator's pause, resume, promote or demote of a policy; pause or resume of the book."""
        if command not in COMMANDS:
            raise InvalidInput("command", f"one of {', '.join(COMMANDS)}", command)
        if policy_id == BOOK and command not in BOOK_COMMANDS:
            raise InvalidInput("command", f"one of {', '.join(BOOK_COMMANDS)} for the book", command)
        self._require_policy(policy_id)
        body = {"command": command, "policy_id": policy_id, "actor": actor, "reason": reason}
        return self._once(NewRow("command", command_id, body), tuple(body), now_ms)

    def expire_epoch(self, now_ms: int) -> CommandAnswer | None:
        """Begin the next epoch if the present one has ended; None if it has not."""
        rows = self.fold.expire_epoch(now_ms) if self.fold.epoch_expired(now_ms) else []
        if not rows:
            return None
        written = self._operate(lambda: [row for new in rows for row in self._record(new, now_ms)])
        return CommandAnswer("recorded", written[-1].position)

    def observe(self, what: str, policy_id: str | None, figure: float | None, detail: Any,
                now_ms: int, key: str | None = None) -> CommandAnswer:
        """Record what cannot be folded from outcomes. figure: finite, in the unit that `what` names.

        key: under which it is recorded once; the same again is a duplicate, another content a ContentConflict.
        """
        body = {"what": what, "policy_id": policy_id, "figure": figure, "detail": detail}
        if key is not None:
            return self._once(NewRow("observation", key, body), tuple(body), now_ms)
        row = self._operate(lambda: self._record(NewRow("observation", None, body), now_ms))[0]
        return CommandAnswer("recorded", row.position)

    def _once(self, new: NewRow, content: tuple[str, ...], now_ms: int) -> CommandAnswer:
        """Record a row under its key, once. content: the fields that must be equal when it comes again."""
        recorded = self._ledger.get(new.kind, new.key or "")
        if recorded is not None:
            differing = [name for name in content if recorded.body[name] != new.body[name]]
            if differing:
                raise ContentConflict(new.kind, recorded.key, differing)
            return CommandAnswer("duplicate", recorded.position)
        return CommandAnswer("recorded", self._operate(lambda: self._record(new, now_ms))[0].position)

    # -- judgements, by the users' names ----------------------------------------------------------------------------

    def validate_policy(self, policy_id: str, metrics: Mapping[str, float]) -> Finding:
        """What the gates say of these figures; records nothing. A figure that is missing or NaN closes its gate.

        metrics: profit_factor (of enough trades to judge), max_drawdown (percent), latency_p95 (ms).
        """
        for name in metrics:
            if name not in METRICS:
                raise InvalidInput(f"metrics.{name}", f"one of {', '.join(METRICS)}", name, f"of policy {policy_id}")
        profit_factor, drawdown_percent, latency_p95_ms = (metrics.get(name, math.nan) for name in METRICS)
        return judge_figures(drawdown_percent, profit_factor, math.inf, latency_p95_ms, self._gate_settings)

    def approve_policy(self, policy_id: str, now_ms: int, actor: str = OPERATOR, reason: str = "") -> CommandAnswer:
        return self._judge(Judgement.APPROVE, policy_id, now_ms, actor, reason)

    def reduce_traffic(self, policy_id: str, now_ms: int, actor: str = OPERATOR, reason: str = "") -> CommandAnswer:
        return self._judge(Judgement.REDUCE, policy_id, now_ms, actor, reason)

    def throttle_policy(self, policy_id: str, now_ms: int, actor: str = OPERATOR, reason: str = "") -> CommandAnswer:
        return self._judge(Judgement.THROTTLE, policy_id, now_ms, actor, reason)

    def emergency_halt(self, policy_id: str, now_ms: int, actor: str = OPERATOR, reason: str = "") -> CommandAnswer:
        """Halt a policy, or, for `book`, all new risk."""
        return self._judge(Judgement.HALT, policy_id, now_ms, actor, reason)

    def _judge(self, judgement: Judgement, policy_id: str, now_ms: int, actor: str, reason: str) -> CommandAnswer:
        if policy_id == BOOK and judgement is not Judgement.HALT:
            raise InvalidInput("policy_id", "a policy: the book can only be halted, and resumed by command", policy_id)
        self._require_policy(policy_id)
        body = {"policy_id": policy_id, "judgement": judgement.value, "rule": OPERATOR, "figure": None, "limit": None,
                "trades": None, "caused_by": None, "actor": actor, "reason": reason}
        row = self._operate(lambda: self._record(NewRow("verdict", None, body), now_ms))[0]
        return CommandAnswer("recorded", row.position)

    def _require_policy(self, policy_id: str) -> None:
        if policy_id != BOOK and policy_id not in self.fold.policies():
            raise UnknownEntity("policy", policy_id, self.fold.policies())
