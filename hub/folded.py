"""What the fold of the ledger holds of each policy, of the roles in force and of each trade."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from feature_repo.features import MARKET_EMBEDDING
from policies.rows import LLM_ONLY
from policies.track_record import TrackRecord
from policies.types import Outcome
from router.optimiser import Place
from router.thompson import EpochRoles


@dataclass
class HeadState:
    """One registered policy. `lifetime` is never reset, `record` is since the last throttle, halt or resume.

    decisions: that it made. drawn: decisions that fell to it, whether or not it answered.
    """

    policy_id: str
    alias: str
    manifest: dict[str, Any]
    position: int
    record: TrackRecord = field(default_factory=TrackRecord)
    lifetime: TrackRecord = field(default_factory=TrackRecord)
    paused: bool = False
    green_lit: bool = False
    resets: int = 0
    decisions: int = 0
    drawn: int = 0
    verdict: dict[str, Any] = field(default_factory=lambda: {"judgement": "approve", "rule": None, "figure": None})

    @property
    def made_for_embedding(self) -> str | None:
        """The one version of the market's embedding that it can be asked with; None if it takes no embedding."""
        takes = MARKET_EMBEDDING in self.manifest.get("arrays", {})
        return self.manifest.get("embedding_version", "") if takes else None

    def reset_record(self) -> None:
        self.record = TrackRecord()
        self.resets += 1


@dataclass(frozen=True)
class Epoch:
    """A stretch of the ledger with fixed roles. Number 0 stands before the first one: nobody acts."""

    number: int = 0
    started_ms: int = 0
    ends_ms: int = 0
    roles: EpochRoles = field(default_factory=lambda: EpochRoles({}, {LLM_ONLY: 1.0}, 1.0, False))


@dataclass(frozen=True)
class Learnt:
    """What the bandits were taught by a trade: its reward, and the parameter arms and the optimiser's point that were
    credited with it."""

    reward: float
    credited: dict[str, float]
    place: Place | None


@dataclass
class Trade:
    """What the folds have taken from one decision's outcomes, so that a revision can replace it."""

    parts: dict[int, Outcome] = field(default_factory=dict)
    learnt: Learnt | None = None
    resets: int = -1  # of the head, when the trade entered its record
