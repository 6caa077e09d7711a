"""Where episodes begin: drawn many at a time, since a generator is slow to ask. One order for both environments."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

AHEAD = 64  # starts that an account draws at once


def drawn_ahead(rng: np.random.Generator, starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """(AHEAD,) starts, each as likely as any other."""
    return starts[rng.integers(len(starts), size=AHEAD)]
