"""How far a job may see: never a bar that a hub has still to decide on, or would if it ran."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from feature_repo.features import HOUR_MS
from feature_repo.market import Market, replay_range

UNTIL_MS = 6 * HOUR_MS  # a hub's clock moves on; within such a stretch an interrupted search can be gone on with
HUB = "the running hub's clock"


def seen_until(market: Market, symbols: Sequence[str], status: Mapping[str, Any] | None,
               wall_ms: int) -> tuple[int, str]:
    """The time, and why. status: of a running hub, None if there is none. wall_ms: the time now.

    A hub whose clock is beyond a whole recording plays another one; of this one, as without a hub, the part that one
    would replay is held back: whatever is made of the rest can be tried on it.
    """
    if market.name == "hyperliquid":
        clock_ms, why = (wall_ms, "the last full six hours") if status is None else (_clock(status), HUB)
        return clock_ms // UNTIL_MS * UNTIL_MS, why
    _, until_ms, stop_ms = replay_range(market, symbols)
    if status is not None and _clock(status) // UNTIL_MS * UNTIL_MS <= stop_ms:
        return _clock(status) // UNTIL_MS * UNTIL_MS, HUB
    return until_ms, "the part of the recording that is for training"


def _clock(status: Mapping[str, Any]) -> int:
    return int(status["hub"]["now_ms"])
