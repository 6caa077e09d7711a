"""The one way from a file of unknown origin to a served head.

Hash and schema are checked when a bundle is read (`policies.bundle`). Then a signature, if any is asked for; then a
canary: a process of its own, with limits on time and memory, loads the weights and checks the head (`policies.canary`).
Only when that has ended well does this process open the weights. Everything else is BundleRefused with the reason.
What was taken in before is asked less when it is served again: see `require_still_sound`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Collection
from dataclasses import asdict
from pathlib import Path
from typing import IO

from policies.bundle import Bundle, pack_bundle
from policies.checks import require_sound
from policies.errors import BundleRefused
from policies.head import Policy
from policies.heads import load_head
from policies.manifest import WINDOW_ENCODER
from policies.signing import verify
from policies.sound_marks import DEFAULT_LIMITS, SERVED_LIMITS, CanaryLimits, SoundMarks

CANARY = ("-m", "policies.canary")
MOST_AT_ONCE = 2
MOST_ANSWER_BYTES = 2**16
MOST_SAID = 200  # characters of a crashed canary's last line

Canary = Callable[[Bundle], None]  # raises BundleRefused

_canaries = threading.BoundedSemaphore(MOST_AT_ONCE)


def load_checked(bundle: Bundle, trusted_keys: Collection[str] = (), marks: SoundMarks | None = None,
                 canary: Canary | None = None) -> Policy:
    """The head of a bundle that has been found sound. Raises BundleRefused with the reason.

    trusted_keys: public keys in hex, one of which must have signed; none: signatures are optional.
    marks: where to look whether the canary is needed, and to note that it has passed. canary: instead of `run_canary`.
    """
    if bundle.manifest.kind == WINDOW_ENCODER:
        return load_head(bundle)  # which refuses it
    require_checked(bundle, trusted_keys, marks, canary)
    return load_head(bundle)


def require_checked(bundle: Bundle, trusted_keys: Collection[str] = (), marks: SoundMarks | None = None,
                    canary: Canary | None = None) -> None:
    """As `load_checked`, for whoever loads it otherwise, such as an embedder. The limits are those of the marks."""
    verify(bundle, trusted_keys)
    if marks is not None and marks.holds(bundle.policy_id):
        return
    limits = DEFAULT_LIMITS if marks is None else marks.limits
    if not bundle.files:  # no weights, nothing to open
        require_sound(load_head(bundle), None, limits.latency_ms)
    elif canary is not None:
        canary(bundle)
    else:
        run_canary(bundle, limits)
    if marks is not None:
        marks.set(bundle.policy_id)


def require_still_sound(bundle: Bundle, marks: SoundMarks, canary: Canary | None = None) -> None:
    """BundleRefused unless a bundle that was taken in before can be served again.

    With a mark, nothing is asked. Without, as after any change of this code, it must pass its canary again, but not by
    the clock: the answer does not depend on what else the machine does. Nobody need have signed it, which is a
    condition of being taken in only.
    """
    if not marks.holds(bundle.policy_id):
        require_checked(bundle, (), marks.under(SERVED_LIMITS), canary)


def run_canary(bundle: Bundle, limits: CanaryLimits = DEFAULT_LIMITS) -> None:
    """BundleRefused unless a process of its own loads the bundle and finds it sound. Waits while others are running."""
    with _canaries, tempfile.TemporaryDirectory(prefix="canary-") as empty, tempfile.TemporaryFile() as packed, \
            tempfile.TemporaryFile() as answer, tempfile.TemporaryFile() as said:
        packed.write(pack_bundle(bundle, compressed=False))
        packed.seek(0)
        returned = _run_child(limits, Path(empty), packed, answer, said)
        refused = _judged(returned, _tail(answer), _tail(said), limits)
    if refused:
        raise BundleRefused(refused)


def _run_child(limits: CanaryLimits, empty: Path, packed: IO[bytes], answer: IO[bytes],
               said: IO[bytes]) -> int | None:
    """What the canary's process returned, a negative signal if one ended it; None if it had to be stopped.

    It is given the limits and nothing else: no variable of this process, no file, an empty folder to be in.
    """
    child = subprocess.Popen(
        [sys.executable, "-B", "-P", "-s", *CANARY, json.dumps(asdict(limits))], stdin=packed, stdout=answer,
        stderr=said, cwd=empty, close_fds=True, start_new_session=True,
        env={"PYTHONPATH": str(Path(__file__).resolve().parent.parent), "OMP_NUM_THREADS": "1",
             "OPENBLAS_NUM_THREADS": "1", "HOME": str(empty), "LC_ALL": "C.UTF-8"})
    try:
        return child.wait(limits.timeout_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if child.poll() is None:  # also when whoever waits is interrupted
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def _judged(returned: int | None, answer: bytes, said: bytes, limits: CanaryLimits) -> str:
    """Why the bundle is refused, "" if the canary found it sound."""
    if returned is None:
        return f"the canary that loaded it did not end within {limits.timeout_s:g} s"
    if returned == -signal.SIGXCPU or (returned == -signal.SIGKILL and not answer):
        return f"the canary that loaded it needed more than {limits.cpu_s} s of computing, or was killed"
    if returned < 0:
        return f"the canary that loaded it crashed ({signal.Signals(-returned).name})"
    try:
        refused = json.loads(answer)["refused"] if returned == 0 else None
    except (ValueError, KeyError, TypeError):
        refused = None
    if isinstance(refused, str):
        return refused
    last = said.decode("utf-8", "replace").strip().rsplit("\n", 1)[-1][:MOST_SAID]
    return f"the canary that loaded it ended with {returned}: {last or 'without a word'}"


def _tail(file: IO[bytes]) -> bytes:
    """The last of what was written, not more than an answer may have."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - MOST_ANSWER_BYTES))
    return file.read()
