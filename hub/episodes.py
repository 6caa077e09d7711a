"""What is remembered of a decision: the memory's vector, and the context that an episode tells people and the LLM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from feature_repo.features import DECISION_V1
from router.memory import normalise

# What the memory's vectors are: the scaled features themselves, which is the embedder "none".
EMBEDDER = f"{DECISION_V1.name}/none"


def episode_vector(features: Sequence[float | None]) -> np.ndarray:
    """The memory's vector of a feature list: normalised, float32, missing values (None or NaN) neutral."""
    values = np.array([np.nan if value is None else value for value in features], dtype=np.float64)
    return normalise(values, DECISION_V1.scales)


def of_this_service(features: list[float | None] | None) -> bool:
    """Whether the memory can hold it. A ledger that began under another list of features keeps those as rows only."""
    return features is not None and len(features) == len(DECISION_V1)


def episode_features(decision: dict[str, Any]) -> dict[str, float | None]:
    """`episode_v1` of a decision's row: what was stored, the account as the request had it, the weights as answered."""
    portfolio = decision["request"]["portfolio"]
    return {**decision["features"].get("episode", {}), "current_leverage": portfolio["current_leverage"],
            "unrealised_pnl_pct": portfolio["unrealised_pnl"] / portfolio["equity"],
            **{f"weight_{strategy}": weight for strategy, weight in decision["weights"].items()}}
