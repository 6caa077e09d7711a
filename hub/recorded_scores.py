"""A score that the bot has pushed, as the ledger holds it."""

from __future__ import annotations

from dataclasses import dataclass

from policies.rows import Row

SENTIMENT = "sentiment"  # what an observation of a score is called


@dataclass(frozen=True)
class RecordedScore:
    """known_ms: when it was recorded, and so known. made_ms: when the bot made it; of two the later made one counts."""

    known_ms: int
    made_ms: int
    score: float
    confidence: float


def score_of(row: Row) -> RecordedScore:
    """row: an observation of SENTIMENT."""
    detail = row.body["detail"]
    return RecordedScore(row.at_ms, detail["time_ms"], detail["score"], detail["confidence"])
