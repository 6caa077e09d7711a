"""The heads that one serving process holds: bundles loaded by hash, asked for proposals, failures told apart."""

from __future__ import annotations

import time
from collections.abc import Iterable

from feature_repo.features import ARRAYS, DECISION_V1, MARKET_EMBEDDING
from policies.bundle import Manifest
from policies.errors import BundleRefused, HubError
from policies.head import Policy
from policies.loader import load_checked
from policies.registry import PolicyFolder
from policies.types import NO_EMBEDDING, Context, Proposal


class HeadRack:
    """Loads each bundle once, on first use or by `load`. A head that fails is reported, never silently replaced."""

    def __init__(self, folder: PolicyFolder) -> None:
        self._folder = folder
        self._heads: dict[str, Policy] = {}

    def load(self, policy_id: str) -> Policy:
        """Raises BundleRefused if it cannot be served: made for other features, or not sound."""
        head = self._heads.get(policy_id)
        if head is None:
            bundle = self._folder.get(policy_id)
            bundle.manifest.require_feature_order(DECISION_V1.names)
            _require_groups(bundle.manifest)
            _require_arrays(bundle.manifest)
            # Its canary ran when it was registered; without that mark it runs here, once.
            head = load_checked(bundle, marks=self._folder.marks)
            self._heads[policy_id] = head
        return head

    def propose(self, policy_ids: Iterable[str], context: Context) -> dict[str, tuple[Proposal | None, float, str]]:
        """By policy: (proposal, milliseconds it took, "") or (None, milliseconds, why it failed)."""
        return {policy_id: self._ask(policy_id, context) for policy_id in policy_ids}

    def _ask(self, policy_id: str, context: Context) -> tuple[Proposal | None, float, str]:
        started = time.perf_counter()
        proposal, failed = None, ""
        try:
            proposal = self.load(policy_id).propose(context)
        except HubError as error:
            failed = str(error)
        except Exception as error:  # a head is foreign code's output: whatever it raises must not reach its neighbours
            failed = f"{type(error).__name__}: {error}"
        return proposal, (time.perf_counter() - started) * 1_000, failed


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
