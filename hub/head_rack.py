"""The heads that one serving process holds: bundles loaded by hash, asked for proposals, failures told apart."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable

from feature_repo.features import ARRAYS, DECISION_V1, MARKET_EMBEDDING
from policies.bundle import Manifest
from policies.errors import BundleRefused, HubError, InvalidInput
from policies.head import Policy
from policies.heads import load_head
from policies.loader import Canary, require_still_sound
from policies.registry import PolicyFolder
from policies.types import NO_EMBEDDING, Context, Proposal

NOT_LOADED = "is not loaded here yet"


class HeadsUnavailable(HubError):
    """A process of heads is away, or failed at something that says nothing of the candidate, which can come again."""

    code = "heads_unavailable"


def judged(error: Exception) -> HubError:
    """What it means for a candidate that a process of heads could not load it: refused, or not judged."""
    if isinstance(error, BundleRefused | InvalidInput):
        return error
    if isinstance(error, MemoryError):
        return BundleRefused("a process of heads has no room for it beside those that it serves")
    return HeadsUnavailable(f"a process of heads did not load it ({type(error).__name__})")


class HeadRack:
    """Loads bundles when it is told to, and answers with those that it has. A head that fails is reported, never
    silently replaced.

    To load can take a canary's second, so nobody who asks waits for it: what is not loaded says why, at once. Of a
    stored bundle nobody's signature is asked again: that was a condition of its registration.
    """

    def __init__(self, folder: PolicyFolder, canary: Canary | None = None) -> None:
        """canary: instead of a process of its own."""
        self._folder, self._canary = folder, canary
        self._heads: dict[str, Policy] = {}
        self._refused: dict[str, str] = {}

    @property
    def refused(self) -> dict[str, str]:
        """{policy_id: why} of what could not be loaded the last time."""
        return dict(self._refused)

    def load(self, policy_id: str) -> Policy:
        """Raises BundleRefused if it cannot be served: made for other features, or not sound. Any thread may call."""
        head = self._heads.get(policy_id)
        if head is not None:
            return head
        try:
            head = self._opened(policy_id)
        except Exception as error:
            self._refused[policy_id] = _reason(error)
            raise
        self._heads[policy_id] = head
        self._refused.pop(policy_id, None)
        return head

    def forget(self, policy_id: str) -> None:
        """Let go of a candidate that was refused elsewhere, and of its memory. One that is not held is no error."""
        self._heads.pop(policy_id, None)
        self._refused.pop(policy_id, None)

    def load_new(self, policy_ids: Iterable[str]) -> None:
        """Load what has not been tried yet. What cannot be loaded is in `refused`."""
        for policy_id in policy_ids:
            if policy_id not in self._heads and policy_id not in self._refused:
                with contextlib.suppress(Exception):
                    self.load(policy_id)

    def retry(self, policy_ids: Iterable[str]) -> None:
        """Load again what could not be loaded. What cannot be stays refused, with its newest reason."""
        for policy_id in policy_ids:
            if policy_id in self._refused:
                with contextlib.suppress(Exception):
                    self.load(policy_id)

    def propose(self, policy_ids: Iterable[str], context: Context) -> dict[str, tuple[Proposal | None, float, str]]:
        """By policy: (proposal, milliseconds it took, "") or (None, milliseconds, why it failed)."""
        return {policy_id: self._ask(policy_id, context) for policy_id in policy_ids}

    def _ask(self, policy_id: str, context: Context) -> tuple[Proposal | None, float, str]:
        started = time.perf_counter()
        proposal, failed = None, ""
        head = self._heads.get(policy_id)
        if head is None:
            return None, 0.0, self._refused.get(policy_id, NOT_LOADED)
        try:
            proposal = head.propose(context)
        except Exception as error:  # a head is foreign code's output: whatever it raises must not reach its neighbours
            failed = _reason(error)
        return proposal, (time.perf_counter() - started) * 1_000, failed

    def _opened(self, policy_id: str) -> Policy:
        bundle = self._folder.get(policy_id)
        bundle.manifest.require_feature_order(DECISION_V1.names)
        _require_groups(bundle.manifest)
        _require_arrays(bundle.manifest)
        require_still_sound(bundle, self._folder.marks, self._canary)
        return load_head(bundle)


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, HubError) else f"{type(error).__name__}: {error}"


def _require_groups(manifest: Manifest) -> None:
    """A head that needs a group which nobody serves could never be asked."""
    known = (*DECISION_V1.groups, *ARRAYS)
    unknown = [group for group in manifest.required_groups if group not in known]
    if unknown:
        raise BundleRefused(f"manifest.required_groups must be of {', '.join(known)}, got {', '.join(unknown)}")


def _require_arrays(manifest: Manifest) -> None:
    for group, count in manifest.arrays.items():
        if group not in ARRAYS:
            raise BundleRefused(f"manifest.arrays must be of {', '.join(ARRAYS)}, got {group}")
        if not ARRAYS[group].admits(count):
            raise BundleRefused(f"manifest.arrays.{group} must be at most {ARRAYS[group].most} and a multiple of "
                                f"{ARRAYS[group].step}, got {count}")
        if group not in manifest.required_groups:
            raise BundleRefused(f"manifest.required_groups must name {group}, which manifest.arrays takes numbers of")
    if MARKET_EMBEDDING in manifest.arrays and manifest.embedding_version == NO_EMBEDDING:
        raise BundleRefused(f"a head that takes numbers of {MARKET_EMBEDDING} is made for one embedding_version")
