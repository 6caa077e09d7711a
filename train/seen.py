"""How far a job may see: never a bar that a hub has still to decide on, or would if it ran."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from feature_repo.features import HOUR_MS
from feature_repo.market import Market, replay_range

UNTIL_MS = 6 * HOUR_MS  # a hub's clock moves on; within such a stretch an interrupted search can be gone on with


def seen_until(market: Market, symbols: Sequence[str], status: Mapping[str, Any] | None,
               wall_ms: int) -> tuple[int, str]:
    """The time, and why. status: of a running hub, None if there is none. wall_ms: the time now."""
    if status is not None:
        return int(status["hub"]["now_ms"]) // UNTIL_MS * UNTIL_MS, "the running hub's clock"
    if market.name == "hyperliquid":
        return wall_ms // UNTIL_MS * UNTIL_MS, "the last full six hours"
    _, until_ms, _ = replay_range(market, symbols)
    return until_ms, "the part of the recording that is for training"
