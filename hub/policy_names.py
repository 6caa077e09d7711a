"""Which policy an operator means by a name."""

from __future__ import annotations

from collections.abc import Mapping

from policies.errors import InvalidInput, UnknownEntity
from policies.manifest import SHORTEST_ID


def policy_named(name: str, alias_by_id: Mapping[str, str]) -> str:
    """The id: given whole, or by as many digits as no other begins with, 8 or more, or by alias (the newest of that).

    In this order, so that nobody's alias stands for another's id. alias_by_id: of every policy, the oldest first.
    InvalidInput where several ids begin like that, UnknownEntity where nothing is called that.
    """
    if name in alias_by_id:
        return name
    begin_so = [policy_id for policy_id in alias_by_id if len(name) >= SHORTEST_ID and policy_id.startswith(name)]
    if len(begin_so) > 1:
        raise InvalidInput("policy", f"longer: {len(begin_so)} ids begin like that, such as {begin_so[0]} and "
                                     f"{begin_so[1]}", name)
    found = begin_so or [policy_id for policy_id, alias in alias_by_id.items() if alias == name]
    if not found:
        raise UnknownEntity("policy", name, list(alias_by_id.values()))
    return found[-1]
