"""How a head's proposal becomes the action that the shield looks at: levels, the LLM's share, the say on its size.

None of it raises risk: levels and a limit entry keep the loss at the stop that the head chose, a blend stays within
it, and the reinforcement-learning policy can only lower the size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hub.state import HubState
from policies.rows import LLM_ONLY
from policies.sizing import rl_size_factor
from policies.types import Action, Direction, LlmView, Proposal, Rollout

if TYPE_CHECKING:
    from hub.decide import Answer


def levels_of(state: HubState, strategy: str, values: Sequence[float], key: object) -> dict[str, float]:
    """{leverage, tp_pct, sl_pct, min_conf} of the configured learner; the bandit's where none is configured."""
    learner = state.optimiser.suggest if state.config.learning.param_mode == "bo" else state.params.propose
    return learner(strategy, values, key)


def combined(state: HubState, decision_id: str, strategy: str, values: Sequence[float] | None, action: Action,
             llm: LlmView | None) -> Action:
    """The head's action with the learnt levels, and in rollout `hybrid` only where the LLM goes the same way."""
    if state.config.learning.param_mode != "static" and values is not None:
        levels = levels_of(state, strategy, values, decision_id)
        # The head chose how much to lose at the stop; other levels must not change that.
        size = min(1.0, action.risk_fraction / (levels["leverage"] * levels["sl_pct"]))
        offset = state.params.limit_offset_pct(strategy, state.params.bucket(values))
        action = replace(action, size_fraction=size, leverage=levels["leverage"], tp_pct=levels["tp_pct"],
                         sl_pct=levels["sl_pct"], min_conf=levels["min_conf"],
                         limit_offset_pct=action.limit_offset_pct if offset is None else offset)
    if state.config.rollout.mode is Rollout.HYBRID:
        if llm is None or llm.action.direction is not action.direction:
            return action.flat()
        action = _blended(action, llm.action, state.config.rollout.blend)
    return action


def _blended(action: Action, llm: Action, share: float) -> Action:
    """Sizes blended at the stricter leverage, as far as the head's own risk allows: the shield minds the LLM's."""
    leverage = min(action.leverage, llm.leverage)
    size = share * action.size_fraction + (1 - share) * llm.size_fraction
    size = min(size, action.risk_fraction / (leverage * action.sl_pct))
    return replace(action, leverage=leverage, size_fraction=size)


@dataclass(frozen=True)
class Say:
    """What the reinforcement-learning policy says of an executed size.

    policy_id: None if there is none. signed_size: that it wants, -1..1, positive in the executed direction; None if it
    is not known, and then `unknown` says why. factor: by which the size is multiplied, 0..1.
    """

    policy_id: str | None
    signed_size: float | None
    factor: float
    unknown: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {"policy_id": self.policy_id, "signed_size": self.signed_size, "factor": self.factor}


def rl_say(state: HubState, executed: str, action: Action, answers: Mapping[str, Answer]) -> Say | None:
    """None where it has no say: not enabled, nobody executes, no position, or it is the one that executes.

    answers: of the heads that were asked. A policy that is absent, was not asked, or failed counts as no consent:
    whatever breaks, no more risk is taken than it could have left by answering.
    """
    learning = state.config.learning
    if not learning.rl.enabled or executed in (LLM_ONLY, state.rl.policy_id) or action.direction is Direction.FLAT:
        return None
    policy_id, weight = state.rl.policy_id, learning.rl.blend_weight
    if policy_id is None:
        return Say(None, None, rl_size_factor(weight, None), f"{learning.rl.policy_path}: {state.rl.reason}")
    alias, answer = state.heads[policy_id].alias, answers.get(policy_id)
    if answer is None or answer.proposal is None:
        failed = "was not asked" if answer is None else answer.failed
        return Say(policy_id, None, rl_size_factor(weight, None), f"{alias} {failed}")
    signed_size = action.direction.sign * wanted_size(answer.proposal)
    return Say(policy_id, signed_size, rl_size_factor(weight, signed_size))


def wanted_size(proposal: Proposal) -> float:
    """The size that an actor's proposal stands for, -1..1: its confidence is 0.5 + |size| / 2 (`policies.actor_head`);
    0 where it stays flat."""
    return proposal.action.direction.sign * min(1.0, max(0.0, 2.0 * proposal.confidence - 1.0))
