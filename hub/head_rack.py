"""The heads that one serving process holds: bundles loaded by hash, asked for proposals, failures told apart."""

from __future__ import annotations

import time
from collections.abc import Iterable

from feature_repo.features import DECISION_V1
from policies.bundle import Manifest
from policies.checks import require_sound
from policies.errors import BundleRefused, HubError
from policies.heads import Policy, load_head
from policies.registry import PolicyFolder
from policies.types import Context, Proposal


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
            head = load_head(bundle)
            require_sound(head)
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
    unknown = [group for group in manifest.required_groups if group not in DECISION_V1.groups]
    if unknown:
        raise BundleRefused(f"manifest.required_groups must be of {', '.join(DECISION_V1.groups)}, "
                            f"got {', '.join(unknown)}")
