"""What is remembered of a decision: what folds need of its trade, the memory's vector, and the episode that is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from feature_repo.features import DECISION_V1
from policies.rows import Row
from router.memory import normalise
from sentry.ledger import EpisodeRecord

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


def trade_of(decision: Row) -> dict[str, Any]:
    """What the folds need of a decision when its outcome comes; recorded with the outcome, so rows stand alone."""
    body = decision.body
    request, llm = body["request"], body["request"]["llm"]
    action = body["action"] if body["acts"] or llm is None else llm
    return {
        "symbol": request["symbol"], "strategy": request["strategy"], "policy_id": body["policy_id"],
        "acts": body["acts"], "decided_ms": request["time_ms"], "equity": request["portfolio"]["equity"],
        "direction": action["direction"], "leverage": action["leverage"], "bucket": body["bucket"],
        "executed": {name: action[name] for name in ("leverage", "tp_pct", "sl_pct", "min_conf")},
        "features": None if body["features"] is None else body["features"]["values"],
        "episode": None if body["features"] is None else episode_features(body),
    }


def episode_of(row: Row, config_hash: str) -> EpisodeRecord | None:
    """The episode that an outcome row completes, as the ledger's tables keep it; None if it completes none."""
    outcome, trade = row.body["outcome"], row.body["trade"]
    if not outcome["final"] or not of_this_service(trade["features"]):
        return None
    decision = {name: trade[name] for name in ("policy_id", "acts", "direction", "leverage", "bucket", "executed")}
    decision["context"] = trade.get("episode")
    return EpisodeRecord(
        id=outcome["decision_id"], timestamp_ms=row.at_ms, strategy=trade["strategy"], symbol=trade["symbol"],
        features=dict(zip(DECISION_V1.names, trade["features"], strict=True)), decision=decision, outcome=outcome,
        vector=episode_vector(trade["features"]).tobytes(), version=EMBEDDER,
        config_hash=config_hash)
