"""Who decides: the roles of an epoch, drawn from what is known of each head, and the role of one decision.

`draw_roles` is the table of shares. Nothing here remembers: a role is a function of the candidates, the ledger's seed
and the epoch; a decision's role is a function of its id, the seed and the epoch's shares.

| situation                                      | production                  | challenger | llm_only          |
|------------------------------------------------|-----------------------------|------------|-------------------|
| a green-lit or promoted head, and a challenger | 90                          | 10         | -                 |
| no challenger                                  | 100                         | -          | -                 |
| production reduced for latency                 | next green-lit 85, it 5     | 10         | 85, if none is next |
| none green-lit, incumbent on probation         | 90, with a lower size limit | 10         | -                 |
| production stopped or paused, none green-lit   | -                           | 10         | 90                |
| sentry or evidence unknown (`no_roles`)        | -                           | 0          | 100               |

The challenger is drawn by Thompson sampling among the heads that are left, except that a new one has its turn first:
the last one registered, until it was drawn `first_decisions` times, whether or not it answered. What nobody has tried
cannot be compared, and what never answers must not keep the others waiting. A head that cannot be asked at all now is
given no share that it does not hold by an operator's word or as the incumbent.
Without a challenger its 10 go to whom the rest goes. A tripped book changes no share: the shield forbids new risk.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le, Lt

from policies.errors import InvalidInput
from policies.keyed_random import uniform
from policies.rows import LLM_ONLY
from policies.types import Judgement, Role
from router.posteriors import BetaPosterior, Posterior, PosteriorKind, probability_best


@dataclass(frozen=True)
class RouterSettings:
    """challenger_share, reduced_share: of the decisions.

    posterior: what heads are drawn by. horizon_s: the longest life of a trade.
    probation_size_scale: factor on the size limit while production is not green-lit.
    """

    challenger_share: Annotated[float, Ge(0), Lt(0.5)] = 0.10
    reduced_share: Annotated[float, Ge(0), Lt(0.5)] = 0.05
    first_decisions: Annotated[int, Ge(0)] = 100
    posterior: PosteriorKind = "profit_factor"
    horizon_s: Annotated[int, Ge(1)] = 900
    probation_size_scale: Annotated[float, Gt(0), Le(1)] = 0.5


@dataclass(frozen=True)
class Candidate:
    """A head at the start of an epoch. incumbent: the first registered, or appointed by an operator.

    promoted: an operator's promotion holds. standing: the sentry's judgement in force.
    registered_position: of its registration in the ledger; among several incumbents the earliest stands, and among
    several that are new (drawn fewer than `first_decisions` times) the latest is tried. askable: False if it is known
    already that no decision can ask it, as it is made for an embedding that is not in use.
    """

    policy_id: str
    posterior: Posterior
    green_lit: bool = False
    incumbent: bool = False
    promoted: bool = False
    standing: Judgement = Judgement.APPROVE
    paused: bool = False
    registered_position: int = 0
    new: bool = False
    askable: bool = True

    @property
    def may_execute(self) -> bool:
        return not self.paused and self.standing.severity < Judgement.THROTTLE.severity

    @property
    def resting_role(self) -> Role:
        """Its role while it has no share; the heaviest reason first."""
        if self.standing is Judgement.HALT:
            return Role.HALTED
        if self.paused:
            return Role.PAUSED
        return Role.THROTTLED if self.standing is Judgement.THROTTLE else Role.SHADOW


@dataclass(frozen=True)
class EpochRoles:
    """What is fixed within an epoch.

    roles: of every head. A reduced production head stays PRODUCTION, beside the next one.
    shares: of decisions, by policy_id or "llm_only"; positive, sum 1 (within 1e-12).
    role_probability: of just these roles, given the candidates. probation: production has no green light.
    """

    roles: dict[str, Role]
    shares: dict[str, float]
    role_probability: float
    probation: bool


@dataclass(frozen=True)
class Draw:
    """The role of one decision. policy_id: who executes, or "llm_only". propensity: its share, given the roles."""

    role: Role
    policy_id: str
    propensity: float


DEFAULTS = RouterSettings()
PROBABILITY_DIGITS = 9  # the integrals' last bits depend on the order of summation


def no_roles(candidates: Sequence[Candidate]) -> EpochRoles:
    """The LLM alone: when the sentry or the evidence is unknown, and before any head is registered."""
    return EpochRoles({one.policy_id: one.resting_role for one in candidates}, {LLM_ONLY: 1.0}, 1.0, False)


def draw_roles(candidates: Sequence[Candidate], seed: int, epoch: int,
               settings: RouterSettings = DEFAULTS) -> EpochRoles:
    """Roles and shares of an epoch by the table above.

    Each draw is an independent Thompson draw keyed by (seed, what for, epoch, policy_id), so role_probability is the
    plain product of the probabilities of the draws made. One posterior that is not known makes the evidence unknown.
    """
    if not all(one.posterior.known for one in candidates):
        return no_roles(candidates)
    ordered = sorted(candidates, key=lambda one: one.policy_id)
    front, front_probability = _front_runner(ordered, seed, epoch)
    slow = front if front is not None and front.standing is Judgement.REDUCE else None
    production, next_probability = front, 1.0
    if slow is not None:
        green_lit = [one for one in ordered if one.green_lit and _healthy(one)]
        production, next_probability = _thompson(green_lit, seed, "next", epoch)
    others = [one for one in ordered if _healthy(one) and one is not production]
    challenger, challenger_probability = _challenger(others, seed, epoch)

    roles = {one.policy_id: one.resting_role for one in ordered}
    shares: dict[str, float] = {}
    if challenger is not None and settings.challenger_share > 0:
        roles[challenger.policy_id], shares[challenger.policy_id] = Role.CHALLENGER, settings.challenger_share
    if slow is not None and settings.reduced_share > 0:
        roles[slow.policy_id], shares[slow.policy_id] = Role.PRODUCTION, settings.reduced_share
    rest = round(1.0 - sum(shares.values()), 12)
    if production is not None:
        roles[production.policy_id] = Role.PRODUCTION
    shares[production.policy_id if production is not None else LLM_ONLY] = rest
    probability = round(front_probability * next_probability * challenger_probability, PROBABILITY_DIGITS)
    return EpochRoles(roles, shares, probability,
                      probation=any(one is not None and not one.green_lit for one in (production, slow)))


def role_of(decision_id: str, seed: int, roles: EpochRoles) -> Draw:
    """The role of a decision: a keyed hash of its id onto the shares laid end to end in the order of policy_id."""
    point, reached = uniform(seed, "role", decision_id), 0.0
    for policy_id in sorted(roles.shares):  # the last one also takes what rounding leaves over
        reached += roles.shares[policy_id]
        if point < reached:
            break
    role = Role.LLM_ONLY if policy_id == LLM_ONLY else roles.roles[policy_id]
    return Draw(role, policy_id, roles.shares[policy_id])


def _healthy(one: Candidate) -> bool:
    """May be given a share that was not its own before: a reduced head may only keep what it is reduced to."""
    return one.may_execute and one.askable and one.standing is Judgement.APPROVE


def _front_runner(ordered: Sequence[Candidate], seed: int, epoch: int) -> tuple[Candidate | None, float]:
    """Who stands first, reduced or not, and how probable that was: promoted, else best green-lit, else incumbent."""
    appointed = [one for one in ordered if one.promoted] or [one for one in ordered if one.incumbent]
    first = min(appointed, key=lambda one: (one.registered_position, one.policy_id), default=None)
    usable = first if first is not None and first.may_execute else None
    if usable is not None and usable.promoted:
        return usable, 1.0
    green_lit = [one for one in ordered if one.green_lit and one.may_execute and one.askable]
    return _thompson(green_lit, seed, "production", epoch) if green_lit else (usable, 1.0)


def _challenger(others: Sequence[Candidate], seed: int, epoch: int) -> tuple[Candidate | None, float]:
    """The latest of the new ones, for sure; else by Thompson sampling."""
    new = [one for one in others if one.new and not one.green_lit]
    if new:
        return max(new, key=lambda one: (one.registered_position, one.policy_id)), 1.0
    return _thompson(others, seed, "challenger", epoch)


def _thompson(field: Sequence[Candidate], seed: int, purpose: str, epoch: int) -> tuple[Candidate | None, float]:
    """The candidate with the largest draw and the probability that it is drawn; (None, 1) of an empty field."""
    if not field:
        return None, 1.0
    draws = [one.posterior.sample(uniform(seed, purpose, epoch, one.policy_id)) for one in field]
    best = max(range(len(field)), key=draws.__getitem__)
    return field[best], probability_best([one.posterior for one in field])[best]


class ThompsonSamplingRouter:
    """The router by itself, for who has only names and successes: every available policy counts as green-lit.

    Its posterior is Beta(1 + successes, 1 + failures). Asking changes nothing: a draw is keyed by the number of
    updates seen, so the answer stands until something is learnt.
    """

    def __init__(self, seed: int = 0, settings: RouterSettings = DEFAULTS) -> None:
        self.seed, self.settings = seed, settings
        self.updates = 0
        self._successes: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()

    def select_policy(self, available: Sequence[str]) -> dict[str, dict[str, str | float | None]]:
        """{"production": {"policy", "traffic"}, "shadow": {"policy", "traffic"}}; this shadow is the challenger.

        traffic: share of the decisions, 0..1. policy is None, with traffic 0, where nobody is left.
        """
        candidates = [Candidate(name, BetaPosterior(1.0 + self._successes[name], 1.0 + self._failures[name]), True)
                      for name in sorted(set(available))]
        drawn = draw_roles(candidates, self.seed, self.updates, self.settings)
        holder = {role: policy_id for policy_id, role in drawn.roles.items()}
        answer: dict[str, dict[str, str | float | None]] = {}
        for name, role in (("production", Role.PRODUCTION), ("shadow", Role.CHALLENGER)):
            policy_id = holder.get(role)
            answer[name] = {"policy": policy_id, "traffic": drawn.shares[policy_id] if policy_id is not None else 0.0}
        return answer

    def update_policy_performance(self, policy_id: str, success: bool) -> None:
        """A trade of the policy made money after costs, or did not."""
        if success not in (True, False):  # bool(NaN) would be a success
            raise InvalidInput("success", "true or false", success)
        (self._successes if success else self._failures)[policy_id] += 1
        self.updates += 1
