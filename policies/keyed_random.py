"""Randomness keyed by what it is for, so that every draw can be made again from the ledger.

BLAKE2b is used as a keyed pseudo-random function; numpy's Philox is seeded from it where many draws are needed.
"""

from __future__ import annotations

import hashlib

import numpy as np


def digest(seed: int, *parts: object) -> bytes:
    """32 bytes that depend on the seed and on every part (parts are separated, so ("ab","c") != ("a","bc"))."""
    text = "\x1f".join(str(part) for part in parts).encode()
    return hashlib.blake2b(text, digest_size=32, key=str(seed).encode()).digest()


def uniform(seed: int, *parts: object) -> float:
    """A number in [0, 1) with 53 random bits."""
    return (int.from_bytes(digest(seed, *parts)[:8], "big") >> 11) * 2.0**-53


def generator(seed: int, *parts: object) -> np.random.Generator:
    """A numpy generator of its own for this key."""
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest(seed, *parts)[:16], "big")))
