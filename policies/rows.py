"""The ledger's rows: what each kind holds. `sentry.ledger` stores them; every fold reads them and nothing else.

A body is a JSON object. Kinds, their unique key and their body:

genesis        key "genesis"      seed, schema, config (whole configuration as a dict), config_hash, code_hash
configuration  key hash@position  config, config_hash, code_hash: from here on folds use it
policy         key policy_id      policy_id, alias, manifest, actor: a registration
command        key command_id     command (pause | resume | promote | demote), policy_id or "book", actor, reason
epoch          key "epoch/N"      epoch, reason, started_ms, ends_ms, roles {policy_id: role},
                                  shares {policy_id or "llm_only": share}, role_probability, probation, green_lit,
                                  changed (whether roles or shares are others than before)
decision       key decision_id    see `hub.decide`: request, features, as_of, epoch, proposals, role, action, ...
outcome        key id/part/rev    outcome (the Outcome as a dict), origin ("hub", or "bot" for the bot's own trades),
                                  trade, supersedes (the highest revision of the part recorded before, or null)
verdict        key position       policy_id or "book", judgement, rule, figure, limit, trades, caused_by
observation    key position, or the sender's own
                                  what, policy_id, figure, detail: what cannot be folded from outcomes; of "sentiment"
                                  key sentiment/source/symbol/time_ms, figure score, detail the rest of it; of
                                  "registration_refused" detail actor, alias, sha256, source, reason; of "embedder"
                                  key embedder/id, detail actor, alias, version, id, sha256, source; of "webhook"
                                  key webhook/id, detail what was sent and what came of it; of "param_start" key
                                  param_start/position of the one before/id, detail id, start, actor, reason; of
                                  "rl_policy" key rl_policy/position of the one before, policy_id of an actor or null,
                                  detail alias, path, reason, actor

`trade` is what an outcome's row repeats of its decision, so that it can be folded alone: symbol, strategy, policy_id,
acts, decided_ms, direction and leverage (of the hub's action if it acts, else of the LLM's), executed (the levels, by
parameter), bucket (of the parameter bandit), equity (USD, before the trade), features (values in the order of the
feature service, null for a missing one). In the bot's own trade policy_id is "llm_only", acts is false, and leverage
and features are null.

`decision_id` is "d" + 31 hex digits of a keyed hash of the client's `request_id`, so one request is one decision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from policies.keyed_random import digest

KINDS = ("genesis", "configuration", "policy", "command", "epoch", "decision", "outcome", "verdict", "observation")

# Rows that change who may act. A decision is committed only if none of these lies between its as_of and its own row.
BLOCKING_KINDS = frozenset({"configuration", "policy", "command", "epoch", "verdict"})

# Rows of other kinds are never audited; of these, `is_audited` says which.
AUDIT_KINDS = frozenset({"genesis", "configuration", "policy", "command", "epoch", "verdict", "observation"})

REGISTRATION_REFUSED = "registration_refused"  # the observation of a candidate that did not become a policy
EMBEDDER_STORED = "embedder"  # the observation of an embedder that can be chosen from now on
PARAM_START = "param_start"  # the observation of what the parameter learners start from
RL_POLICY = "rl_policy"  # the observation of who has the reinforcement-learning policy's say
AUDITED_OBSERVATIONS = frozenset({REGISTRATION_REFUSED, EMBEDDER_STORED, "embedding", PARAM_START, RL_POLICY})

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


def is_audited(row: Row) -> bool:
    """Whether the row is projected into the audit: what changed who may trade, with which embedding, from which
    parameters or with whose say, or was refused.

    Not an epoch that left the traffic as it was.
    """
    match row.kind:
        case "epoch":
            return row.body.get("changed") is not False
        case "observation":
            return row.body.get("what") in AUDITED_OBSERVATIONS
        case _:
            return row.kind in AUDIT_KINDS


def decision_id_of(seed: int, request_id: str) -> str:
    return "d" + digest(seed, "decision", request_id).hex()[:31]
