"""What people ask of the hub, as JSON values read from the fold: nothing here changes anything."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from feature_repo.features import ARRAYS, DECISION_V1
from hub import decide
from hub.combining import levels_of
from hub.decide import Features
from hub.folded import HeadState
from hub.state import HubState
from policies.rows import LLM_ONLY
from policies.track_record import TrackRecord
from policies.types import Role

if TYPE_CHECKING:
    from hub.service import HubService


def feature_ages(ages: dict[str, dict[str, int] | None]) -> list[dict[str, Any]]:
    """One entry per symbol and group of `decision_v1`, or array group, that is told of, and per required one: a feed
    that dies is seen by its age. age_ms None: never written, or nothing can be read.
    """
    ttl_of = {**DECISION_V1.ttl_ms, **{name: group.ttl_ms for name, group in ARRAYS.items()}}
    told = []
    for symbol, groups in ages.items():
        known = dict.fromkeys(DECISION_V1.required_groups) | (groups or {})
        for group in (group for group in known if group in ttl_of):
            age_ms, ttl_ms = known[group], ttl_of[group]
            told.append({"symbol": symbol, "group": group, "age_ms": age_ms, "ttl_ms": ttl_ms,
                         "fresh": age_ms is not None and 0 <= age_ms <= ttl_ms,
                         "required": group in DECISION_V1.required_groups})
    return told


def status(service: HubService, market: str, ages: dict[str, dict[str, int] | None]) -> dict[str, Any]:
    state, seen = service.state, service.seen
    config = state.config
    return {
        "hub": {"rollout": config.rollout.mode.value, "learning_enabled": config.learning.enabled,
                "clock": service.clock.mode, "now_ms": service.clock.now_ms(), "market": market,
                "symbols": list(service.symbols), "position": state.position, "epoch": state.epoch.number,
                "epoch_ends_ms": state.epoch.ends_ms, "decisions": state.decisions, "outcomes": state.outcomes,
                "config": state.config_hash, "code": state.code_hash},
        "heads": policies(state),
        "llm_only_share": state.epoch.roles.shares.get(LLM_ONLY, 0.0),
        "llm_only_decisions": state.llm_only_decisions,
        "allocation": decide.weights(state, None),
        "degraded": [{"part": part, "reason": reason, "count": count}
                     for (part, reason), count in seen.degraded.most_common(20)],
        "degraded_now": [{"part": part, "reason": reason} for part, reason in sorted(state.degraded.items())],
        "features": feature_ages(ages),
        "embedding": service.embeddings.shown(),
        "rl": service.rl.shown(),
        "params_start": state.start.start_id or None,
        "book": {"peak_equity": finite(state.book.peak_equity), "equity": finite(state.book.equity),
                 "drawdown_percent": finite(state.book.drawdown_percent), "no_new_risk": state.book.tripped},
        "latency_ms": percentiles(list(seen.latencies_ms)),
        "conflicts": seen.conflicts,
    }


def policies(state: HubState) -> list[dict[str, Any]]:
    return [_head(state, head) for head in state.heads.values()]


def policy(state: HubState, policy_id: str) -> dict[str, Any]:
    head = state.heads[policy_id]
    return {**_head(state, head), "manifest": head.manifest, "registered_position": head.position}


def allocation(state: HubState) -> dict[str, Any]:
    return {"mode": state.config.learning.allocation_mode, "weights": decide.weights(state, None),
            "bandit": state.strategy_weights()}


def params(state: HubState, strategy: str, symbol: str | None, features: Features) -> dict[str, Any]:
    """The levels for a strategy in this market, or in the normal flat one, and what they rest on."""
    values = features.values if features.values is not None else (math.nan,) * len(DECISION_V1)
    bucket, key = state.params.bucket(values), f"position/{state.position}"
    found, bo = state.params.start.of(strategy, bucket), state.config.learning.bo
    optimiser = None
    if bo.enabled:
        optimiser = {"suggests": state.optimiser.suggests(strategy, bucket), "min_samples": bo.min_samples,
                     "suggestion": state.optimiser.suggest(strategy, values, key)}
    return {"strategy": strategy, "symbol": symbol, "bucket": bucket, "param_mode": state.config.learning.param_mode,
            "proposal": levels_of(state, strategy, values, key), "start": None if found is None else asdict(found),
            "optimiser": optimiser, "degraded": features.failed,
            "arms": {name: [{"value": value, "trades": arm.trades, "reward_sum": arm.total}
                            for value, arm in options.items()]
                     for name, options in state.params.arms(strategy, values).items()}}


def percentiles(values: list[float]) -> dict[str, float | None]:
    if not values:
        return {"p50": None, "p95": None, "p99": None}
    p50, p95, p99 = np.percentile(values, [50, 95, 99])
    return {"p50": float(p50), "p95": float(p95), "p99": float(p99)}


def finite(value: float | None) -> float | None:
    """JSON has no NaN and no infinity; both mean that there is no figure yet."""
    return value if value is not None and math.isfinite(value) else None


def _head(state: HubState, head: HeadState) -> dict[str, Any]:
    """profit_factor and max_drawdown_percent are since the last throttle, halt or resume; `lifetime` is over all."""
    report = state.ladder_report(head.policy_id)
    return {
        "policy_id": head.policy_id, "alias": head.alias,
        "role": state.epoch.roles.roles.get(head.policy_id, Role.SHADOW).value,
        "share": state.epoch.roles.shares.get(head.policy_id, 0.0), "decisions": head.decisions,
        **_figures(head.record), "lifetime": _figures(head.lifetime),
        "latency_p95_ms": finite(state.gates.latency_p95_ms(head.policy_id)),
        "judgement": head.verdict["judgement"], "rule": head.verdict["rule"], "figure": finite(head.verdict["figure"]),
        "green_lit": head.green_lit, "missing": list(report.missing),
        "e_value": finite(state.evidence[head.policy_id].e_value),
        "paused": head.paused, "promoted": state.promoted == head.policy_id,
    }


def _figures(record: TrackRecord) -> dict[str, Any]:
    return {"trades": record.trades, "profit_factor": finite(record.profit_factor),
            "max_drawdown_percent": record.max_drawdown_percent}
