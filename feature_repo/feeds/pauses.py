"""How long to wait before the next try."""

from __future__ import annotations

import random


def pause_s(tries: int, first_s: float, longest_s: float, rng: random.Random) -> float:
    """Drawn between half and all of first_s * 2^tries, but of longest_s at most, so that clients do not come in step.

    tries: that failed before this one, >= 0.
    """
    return min(longest_s, first_s * 2.0 ** min(tries, 32)) * rng.uniform(0.5, 1.0)
