"""Which heads may be asked with the features at hand, and why the others may not: ages, absence, embeddings.

A head names the groups that it cannot do without, and the embedding that it was made for. Everybody else goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from feature_repo.features import ARRAYS, DECISION_V1, MARKET_EMBEDDING, SECOND_MS
from hub.state import HubState
from policies.types import Role

if TYPE_CHECKING:
    from hub.decide import Features

# Roles whose heads decide on every request. A paused or halted head is not even asked.
ASKED = (Role.PRODUCTION, Role.CHALLENGER, Role.SHADOW, Role.THROTTLED)

ABSENT = "absent: never written"  # of a feature group
NO_VALUES = "without values"  # its row is there, but a book with one side says nothing of a spread


def arrays_wanted(state: HubState) -> tuple[str, ...]:
    """The array groups to read: those that a head which may be asked takes numbers of. Not one that was made for
    another embedding than the one in use: what it would be given is nobody's, and may be as old as it likes.
    """
    return tuple(sorted(most_numbers(state, [policy_id for policy_id in _asked(state)
                                             if state.heads[policy_id].made_for_embedding
                                             in (None, state.embedding.version)])))


def _asked(state: HubState) -> list[str]:
    return [policy_id for policy_id, role in state.epoch.roles.roles.items() if role in ASKED]


def unfit_groups(request: dict[str, Any], features: Features) -> dict[str, str]:
    """{group: why its values may not be used}, for the groups of the service that are absent, stale or not known yet.

    An optional group that is absent is nothing new: a market without it has never had it. One that was there and has
    become stale is a feed that has stopped.
    """
    unfit = {}
    for group, ttl_ms in DECISION_V1.ttl_ms.items():
        indicator = DECISION_V1.indicators.get(group)
        reason = _untimely(group, ttl_ms, request, features)
        if reason:
            unfit[group] = reason
        elif indicator is not None and features.values is not None and features.values[indicator] == 1:
            unfit[group] = NO_VALUES
    return unfit


def unfit_arrays(state: HubState, request: dict[str, Any], features: Features) -> dict[str, str]:
    """{array group: why it may not be used}, of those that a head which may be asked wants, read or not."""
    wanted = sorted(most_numbers(state, _asked(state)))
    reasons = {group: _untimely(group, ARRAYS[group].ttl_ms, request, features) for group in wanted}
    return {group: reason for group, reason in reasons.items() if reason}


def _untimely(group: str, ttl_ms: int, request: dict[str, Any], features: Features) -> str:
    """Why the event time of a group forbids its use; empty if it does not."""
    if group not in features.event_time_ms:
        return ABSENT
    age_ms = request["time_ms"] - features.event_time_ms[group]
    if age_ms < 0:
        return f"event time lies {-age_ms} ms in the future"
    return f"stale: older than {ttl_ms / SECOND_MS:g} s" if age_ms > ttl_ms else ""


def what_lacks(state: HubState, policy_id: str, unfit: Mapping[str, str], features: Features) -> str:
    """Why this head cannot be asked; empty if it can. An embedding is good for the heads that were made for it."""
    manifest = state.heads[policy_id].manifest
    arrays = manifest.get("arrays", {})
    made_for, in_use = manifest.get("embedding_version"), state.embedding.version
    if MARKET_EMBEDDING in arrays and made_for != in_use:
        return f"is made for embedding {made_for}; in use is {in_use}"
    needed = [group for group in dict.fromkeys((*manifest.get("required_groups", ()), *arrays)) if group in unfit]
    if needed:
        return f"needs features {', '.join(needed)}, which are {unfit[needed[0]]}"
    if MARKET_EMBEDDING in arrays and made_for != features.embedding_version:
        return f"is made for embedding {made_for}; the store holds {features.embedding_version or 'none'} so far"
    return ""


def most_numbers(state: HubState, policy_ids: Iterable[str]) -> dict[str, int]:
    """By array group, the most numbers that one of these heads takes."""
    most: dict[str, int] = {}
    for policy_id in policy_ids:
        for group, count in state.heads[policy_id].manifest.get("arrays", {}).items():
            most[group] = max(count, most.get(group, 0))
    return most
