"""The ledger's rows: what each kind holds. `sentry.ledger` stores them; every fold reads them and nothing else.

A body is a JSON object. Kinds, their unique key and their body:

genesis        key "genesis"      seed, schema, config (whole configuration as a dict), config_hash, code_hash
configuration  key hash@position  config, config_hash, code_hash: from here on folds use it
policy         key policy_id      policy_id, alias, manifest, actor: a registration
command        key command_id     command (pause | resume | promote | demote), policy_id or "book", actor, reason
epoch          key "epoch/N"      epoch, reason, started_ms, ends_ms, roles {policy_id: role},
                                  shares {policy_id or "llm_only": share}, role_probability, standings
decision       key decision_id    see `hub.decisions`: request, features, as_of, epoch, proposals, role, action, ...
outcome        key id/part/rev    the Outcome as a dict, and `origin` ("hub", or "bot" for the bot's own trades)
verdict        key position       policy_id or "book", judgement, rule, figure, limit, trades, caused_by
observation    key position       what, policy_id, figure, detail: what cannot be folded from outcomes

`decision_id` is "d" + 31 hex digits of a keyed hash of the client's `request_id`, so one request is one decision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from policies.keyed_random import digest

KINDS = ("genesis", "configuration", "policy", "command", "epoch", "decision", "outcome", "verdict", "observation")

# Rows that change who may act. A decision is committed only if none of these lies between its as_of and its own row.
BLOCKING_KINDS = frozenset({"configuration", "policy", "command", "epoch", "verdict"})

# Rows that are projected into the audit.
AUDIT_KINDS = frozenset({"genesis", "configuration", "policy", "command", "epoch", "verdict"})

BOOK = "book"  # the policy_id of verdicts and commands on the whole account
LLM_ONLY = "llm_only"  # stands where a policy_id would, when no head executes


@dataclass(frozen=True)
class NewRow:
    """A row that is not recorded yet. key None: the ledger uses the row's position."""

    kind: str
    key: str | None
    body: dict[str, Any]


@dataclass(frozen=True)
class Row:
    """A recorded row. position counts from 1 without gaps; at_ms is the hub's clock when it was written."""

    position: int
    kind: str
    key: str
    at_ms: int
    body: dict[str, Any]


def decision_id_of(seed: int, request_id: str) -> str:
    return "d" + digest(seed, "decision", request_id).hex()[:31]
