"""Which bundles need no canary again: those that passed theirs, on this machine, with this code and these limits."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import platform
import sys
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

from annotated_types import Gt, Interval

LIBRARIES = ("numpy", "onnx", "onnxruntime", "catboost", "safetensors")


@dataclass(frozen=True)
class CanaryLimits:
    """timeout_s: from start to end, by the wall; cpu_s: of computing. memory_bytes: of address space, libraries
    included. growth_bytes: of memory that is held once the bundle is open and has answered. latency_ms: that 95 % of
    the answers must be given within; infinite: any time will do.

    What is held is eight times what the largest bundle has on disk; an honest one of that size holds half of it. A
    process of heads may grow by 8 GiB (`hub.deployments`), so sixteen of the most greedy fit into it.
    """

    timeout_s: Annotated[float, Gt(0)] = 60.0
    cpu_s: Annotated[int, Interval(ge=1, le=600)] = 30
    memory_bytes: Annotated[int, Interval(ge=2**29, le=2**36)] = 2 * 2**30
    growth_bytes: Annotated[int, Interval(ge=2**26, le=2**36)] = 2**29
    latency_ms: Annotated[float, Gt(0)] = 50.0


DEFAULT_LIMITS = CanaryLimits()
# For what was sound when it was taken in. How fast a busy machine lets it answer is no reason not to serve it again.
SERVED_LIMITS = CanaryLimits(timeout_s=300.0, cpu_s=60, latency_ms=math.inf)


class SoundMarks:
    """What has passed its canary on this machine with this code, as empty files in a folder.

    A mark is named by the policy's id, which covers every byte of a bundle and is computed again whenever one is read:
    it can't vouch for changed bytes. Who can write in the folder can vouch, so it is as private as the bundles.
    """

    def __init__(self, folder: Path, limits: CanaryLimits = DEFAULT_LIMITS) -> None:
        self._folder, self.limits = folder, limits

    def under(self, limits: CanaryLimits) -> SoundMarks:
        """The marks of those that passed with these limits, in the same folder."""
        return SoundMarks(self._folder, limits)

    def holds(self, policy_id: str) -> bool:
        return self._path(policy_id).is_file()

    def set(self, policy_id: str) -> None:
        """Note it. Where nothing can be written, the next process will ask a canary again."""
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._path(policy_id).touch(mode=0o600)

    def _path(self, policy_id: str) -> Path:
        circumstances = json.dumps([policy_id, asdict(self.limits), _code_and_machine()])
        return self._folder / f"{policy_id}-{hashlib.sha256(circumstances.encode()).hexdigest()[:16]}"


@cache
def _code_and_machine() -> str:
    """What a mark depends on beside the bundle: this package, the libraries that open weights, the machine."""
    total = hashlib.sha256()
    for path in sorted(Path(__file__).resolve().parent.rglob("*.py")):
        total.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    described = [platform.node(), platform.machine(), sys.version, *(f"{name} {_version(name)}" for name in LIBRARIES)]
    total.update("\n".join(described).encode())
    return total.hexdigest()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"
