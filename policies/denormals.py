"""Arithmetic in which numbers too small to be normal are zero.

A processor takes tens of times as long for a multiplication of denormal numbers, so a graph that makes them of some
rows only answers those too late. ONNX Runtime has an option for this, but it holds for one thread of a process, the one
that makes the first session, and for all else that this thread computes.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

_Environment = ctypes.c_uint32 * 8  # fenv_t of x86-64
CONTROL, FLUSHING = 7, 0x8040  # the word MXCSR in it, and its bits "denormals are zero" and "flush to zero"
ADJUSTABLE = platform.machine() == "x86_64" and platform.system() == "Linux"

_maths = ctypes.CDLL("libm.so.6") if ADJUSTABLE else None


@contextmanager
def denormals_as_zero() -> Iterator[None]:
    """For this thread, until the block ends. On other processors than x86-64, nothing changes."""
    if _maths is None:
        yield
        return
    before = _Environment()
    _maths.fegetenv(before)
    within = _Environment(*before)
    within[CONTROL] |= FLUSHING
    _maths.fesetenv(within)
    try:
        yield
    finally:
        _maths.fesetenv(before)
