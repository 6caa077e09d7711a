"""How a reinforcement-learning policy has a say in another policy's size: one formula, for the hub and for experiments.

It can only lower a size. What is not known, a policy that did not answer or a number that is none, counts as no
consent: a part that fails must never leave more risk on than the same part could have left by answering.
"""

from __future__ import annotations

from policies.errors import InvalidInput


def rl_size_factor(weight: float, signed_size: float | None) -> float:
    """What to multiply a size with, between 1 - weight and 1: 1 - weight * (1 - clip(signed_size, 0, 1)).

    weight: `learning.rl.blend_weight`, 0..1; InvalidInput otherwise. signed_size: the size that the reinforcement-
    learning policy wants, -1..1, positive in the direction of the trade that is scaled; None or NaN if it is not known.
    """
    if not 0.0 <= weight <= 1.0:
        raise InvalidInput("weight", "between 0 and 1", weight)
    if signed_size is None or not signed_size > 0.0:  # NaN too
        return 1.0 - weight
    return 1.0 - weight * (1.0 - min(signed_size, 1.0))
