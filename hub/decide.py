"""One decision as two pure functions of (state, request, observations), so that it can be made again at any time.

`plan` says which heads to ask and who was drawn; `conclude` makes the decision's row from what they answered. What only
the moment knows (feature values, a head's failure, latencies) comes in as arguments and is recorded; everything else is
computed here from the state at `as_of`. The service and `hub replay` call the same two functions.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feature_repo.features import DECISION_V1
from hub.combining import combined, rl_say
from hub.episodes import episode_vector
from hub.fitness import ABSENT, ASKED, NO_VALUES, most_numbers, unfit_arrays, unfit_groups, what_lacks
from hub.schemas import llm_view_of
from hub.state import HubState
from policies.rows import BOOK, LLM_ONLY, decision_id_of
from policies.types import Action, Context, Direction, LlmView, Portfolio, Proposal, Role, Rollout
from router.allocation import blend
from router.memory import learning_memory
from router.thompson import Draw, role_of
from sentry.shield import shield

# What the answer holds when neither a head nor the LLM said anything.
NOTHING = Action(Direction.FLAT, 0.0, 1.0, 0.01, 0.01, 0.0, 0.5)


@dataclass(frozen=True)
class Features:
    """The vector as it was read. values None: it could not be read, and `failed` says why.

    event_time_ms: by group, of what the store holds; a group that is stale there is missing in `values`. episode: what
    is stored of `episode_v1`, by feature; None where it was not read, as in ledgers from before there was one.
    arrays: by array group, those that were read and are fresh, float32. embedding_version: of the stored embedding of
    the market; empty if it was not read or there is none.
    """

    values: tuple[float, ...] | None
    event_time_ms: dict[str, int]
    failed: str = ""
    episode: dict[str, float] | None = None
    arrays: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    embedding_version: str = ""

    def only(self, counts: Mapping[str, int]) -> Features:
        """The same with the last numbers of these array groups and no other: what the heads that are asked see."""
        return replace(self, arrays={group: self.arrays[group][-count:] for group, count in counts.items()
                                     if group in self.arrays})

    def to_dict(self) -> dict[str, Any] | None:
        if self.values is None:
            return None
        body: dict[str, Any] = {"service": DECISION_V1.name, "values": [_or_none(value) for value in self.values],
                                "event_time_ms": self.event_time_ms}
        if self.episode is not None:
            body["episode"] = {name: _or_none(value) for name, value in self.episode.items()}
        if self.arrays:
            body["arrays"] = {group: _as_text(self.arrays[group]) for group in sorted(self.arrays)}
        if self.embedding_version:
            body["embedding_version"] = self.embedding_version
        return body

    @classmethod
    def from_dict(cls, body: dict[str, Any] | None, failed: str = "") -> Features:
        if body is None:
            return cls(None, {}, failed)
        episode = {name: _or_nan(value) for name, value in body["episode"].items()} if "episode" in body else None
        arrays = {group: _from_text(text) for group, text in body.get("arrays", {}).items()}
        return cls(tuple(map(_or_nan, body["values"])), body["event_time_ms"], episode=episode, arrays=arrays,
                   embedding_version=body.get("embedding_version", ""))


@dataclass(frozen=True)
class Answer:
    """What one head said, or why it did not. latency_ms None: it missed its deadline."""

    proposal: Proposal | None
    latency_ms: float | None
    failed: str = ""


@dataclass(frozen=True)
class Plan:
    """as_of: the position of the state that drew. ask: heads to ask with their roles, by policy id.

    arrays: by array group, the most numbers that one of them takes.
    """

    decision_id: str
    as_of: int
    draw: Draw
    ask: dict[str, Role]
    degraded: tuple[dict[str, str], ...]
    arrays: Mapping[str, int] = field(default_factory=dict)


def plan(state: HubState, request: dict[str, Any], features: Features) -> Plan:
    decision_id = decision_id_of(state.seed, request["request_id"])
    draw = role_of(decision_id, state.seed, state.epoch.roles)
    degraded = _degraded(state, request, features)
    if degraded:
        return Plan(decision_id, state.position, draw, {}, tuple(degraded))
    unfit, without = unfit_groups(request, features), unfit_arrays(state, request, features)
    ask, lacking = {}, []
    for policy_id, role in state.epoch.roles.roles.items():
        if role in ASKED:
            reason = what_lacks(state, policy_id, unfit | without, features)
            if reason:
                lacking.append({"part": f"head {state.heads[policy_id].alias}", "reason": reason})
            else:
                ask[policy_id] = role
    stale = [{"part": f"features {group}", "reason": f"{reason}; taken as missing"}
             for group, reason in unfit.items() if reason not in (ABSENT, NO_VALUES)]
    stale += [{"part": f"features {group}", "reason": reason} for group, reason in without.items() if reason != ABSENT]
    return Plan(decision_id, state.position, draw, ask, (*stale, *lacking), most_numbers(state, ask))


def context_of(request: dict[str, Any], features: Features) -> Context:
    assert features.values is not None
    return Context(request["symbol"], request["strategy"], request["time_ms"], features.values,
                   features.event_time_ms, Portfolio(**request["portfolio"]), llm_view_of(request["llm"]),
                   features.arrays)


def conclude(state: HubState, chosen: Plan, request: dict[str, Any], request_hash: str, features: Features,
             answers: dict[str, Answer], remembered: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """The decision's row body. Raises nothing for bad answers: what cannot be used is named in `degraded`.

    remembered: what `remembered_in` answers at this very position, if it was asked already.
    """
    answers = {policy_id: _usable(answer) for policy_id, answer in answers.items()}
    features = features.only(chosen.arrays)
    degraded = list(chosen.degraded)
    degraded += [{"part": f"head {state.heads[p].alias}", "reason": a.failed} for p, a in answers.items() if a.failed]
    llm = llm_view_of(request["llm"])
    drawn = answers.get(chosen.draw.policy_id)
    executed = chosen.draw.policy_id if drawn is not None and drawn.proposal is not None else LLM_ONLY
    role = chosen.draw.role if executed != LLM_ONLY else Role.LLM_ONLY
    bucket = "" if features.values is None else state.params.bucket(features.values)
    proposal = drawn.proposal if drawn is not None and drawn.proposal is not None else _llm_proposal(llm)
    action = proposal.action
    if executed != LLM_ONLY:
        action = combined(state, chosen.decision_id, request["strategy"], features.values, action, llm)
    say = rl_say(state, executed, action, answers)
    if say is not None:
        action = replace(action, size_fraction=action.size_fraction * say.factor)
        if say.unknown:
            degraded.append({"part": "rl", "reason": f"{say.unknown}: sizes times {say.factor:g}"})
    no_new_risk = state.book.forbids(request["portfolio"]["equity"])
    if no_new_risk:
        degraded.append({"part": BOOK, "reason": "drawdown breaker tripped: closing and reducing only"})
    probation = role is Role.PRODUCTION and state.epoch.roles.probation
    shielded = shield(action, request["strategy"], proposal.confidence, llm, no_new_risk,
                      state.config.router.probation_size_scale if probation else 1.0, state.config.shield)
    action, changes = shielded.action, [change.to_dict() for change in shielded.changes]
    held_by = _slot_holder(state, request)
    if held_by and action.direction is not Direction.FLAT:
        changes.append({"field": "direction", "before": action.direction.value, "after": "flat",
                        "rule": f"slot is held by {held_by}"})
        action = action.flat()
    on = state.config.learning.enabled and state.config.rollout.mode is not Rollout.SHADOW
    acts = on and (executed != LLM_ONLY or no_new_risk)
    horizon_s = state.config.router.horizon_s
    body = {
        "request": request, "request_id": request["request_id"], "request_hash": request_hash,
        "as_of": chosen.as_of, "epoch": state.epoch.number,
        "features": features.to_dict(), "features_failed": features.failed,
        "drawn": {"policy_id": chosen.draw.policy_id, "role": chosen.draw.role.value},
        "policy_id": executed, "policy": state.heads[executed].alias if executed != LLM_ONLY else LLM_ONLY,
        "role": role.value, "propensity": chosen.draw.propensity,
        "role_probability": state.epoch.roles.role_probability,
        "proposals": {p: _proposal_body(state.heads[p].alias, chosen.ask[p], a) for p, a in answers.items()},
        "action": action.to_dict(), "confidence": proposal.confidence if executed != LLM_ONLY or llm else None,
        "acts": acts, "opens": acts and executed != LLM_ONLY and action.direction is not Direction.FLAT,
        "horizon_s": horizon_s, "expires_ms": request["time_ms"] + 2_000 * horizon_s, "bucket": bucket,
        "weights": weights(state, llm),
        "learning_memory": remembered_in(state, request, features) if remembered is None else remembered,
        "shielded": changes, "degraded": degraded,
        "config_hash": state.config_hash, "code_hash": state.code_hash,
    }
    if state.config.learning.rl.enabled:  # left out otherwise, so that rows from before there was one replay equal
        body["rl"] = None if say is None else say.to_dict()
    return body


def weights(state: HubState, llm: LlmView | None) -> dict[str, float]:
    """Capital by strategy under the configured allocation mode. The draw is fixed within an epoch and a position."""
    learning = state.config.learning
    bandit = state.strategy_weights()
    share = {"llm_only": 0.0, "hybrid": learning.allocation_hybrid_blend, "bandit_only": 1.0}[learning.allocation_mode]
    return blend(bandit, llm.strategy_weights if llm else {}, share)


def remembered_in(state: HubState, request: dict[str, Any], features: Features) -> list[dict[str, Any]]:
    """What the memory holds that is like this request's market, as configured."""
    memory = state.config.learning.memory
    return neighbours(state, features, request["time_ms"], memory.knn_k) if memory.enabled else []


def neighbours(state: HubState, features: Features, now_ms: int, k: int) -> list[dict[str, Any]]:
    """The k most similar episodes, nearest first."""
    if state.memory is None or features.values is None:
        return []
    found = [(summary, similarity) for episode_id, similarity in state.memory.knn(episode_vector(features.values), k)
             if (summary := state.memory.summary(episode_id)) is not None]
    return learning_memory(found, now_ms)


def _degraded(state: HubState, request: dict[str, Any], features: Features) -> list[dict[str, str]]:
    """Reasons for which no head may be asked."""
    if not state.config.learning.enabled:
        return [{"part": "learning", "reason": "switched off by configuration"}]
    if features.values is None:
        return [{"part": "features", "reason": features.failed}]
    unfit = unfit_groups(request, features)
    return [{"part": f"features {group}", "reason": unfit[group]}
            for group in DECISION_V1.required_groups if group in unfit]


def _as_text(values: NDArray[np.float32]) -> str:
    """Base64 of little-endian float32: to the last bit."""
    return base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode()


def _from_text(text: str) -> NDArray[np.float32]:
    return np.frombuffer(base64.b64decode(text), "<f4")


def _or_none(value: float) -> float | None:
    return None if value != value else value


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _usable(answer: Answer) -> Answer:
    """A proposal that holds a number which is none, and so cannot be recorded, is no answer."""
    if answer.proposal is None:
        return answer
    direction, *numbers = astuple(answer.proposal.action)
    if all(map(math.isfinite, (*numbers, answer.proposal.confidence))):
        return answer
    return Answer(None, answer.latency_ms, f"answered {direction.value} with a number that is not finite")


def _llm_proposal(llm: LlmView | None) -> Proposal:
    return Proposal(llm.action, llm.confidence) if llm else Proposal(NOTHING, 0.0)


def _slot_holder(state: HubState, request: dict[str, Any]) -> str | None:
    """The decision whose trade holds the slot, unless this request adds to it or reduces it."""
    holder = state.slot_is_open(request["symbol"], request["strategy"], request["time_ms"])
    return None if holder == request["parent_decision_id"] else holder


def _proposal_body(alias: str, role: Role, answer: Answer) -> dict[str, Any]:
    body: dict[str, Any] = {"alias": alias, "role": role.value, "latency_ms": answer.latency_ms}
    return {**body, "failed": answer.failed} if answer.proposal is None else {**body, **answer.proposal.to_dict()}
