"""What a benchmark's hub is configured to and asked: the same for who fills its home, starts it and loads it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from hub.config import HubConfig, load
from policies.types import STRATEGIES

SEED = 7
EQUITY = 100_000.0
NO_OP_PATH = "/no-op"
LLM_VIEW = {"direction": "long", "confidence": 0.6, "size_fraction": 0.02, "leverage": 5.0, "tp_pct": 0.012,
            "sl_pct": 0.008, "limit_offset_pct": 0.0, "min_conf": 0.5, "strategy_weights": {"momentum": 1.0}}


def configuration(port: int = 8000, redis_port: int = 6380, dashboard_port: int = 8265) -> HubConfig:
    """The shipped configuration on a generated market, allowed to act, on ports of its own."""
    return load(environment={
        "HUB_MARKET__KIND": "generated", "HUB_ROLLOUT__MODE": "full", "HUB_LEDGER__SEED": str(SEED),
        "HUB_SERVER__PORT": str(port), "HUB_STORAGE__REDIS_PORT": str(redis_port),
        "HUB_STORAGE__DASHBOARD_PORT": str(dashboard_port)})


def requests_at(time_ms: int, config: HubConfig) -> Iterator[dict[str, Any]]:
    """A request in every slot, as the API hands it on."""
    for symbol, strategy in itertools.product(config.market.symbols, STRATEGIES):
        yield {"request_id": f"{symbol}.{strategy}.{time_ms}", "symbol": symbol, "strategy": strategy,
               "time_ms": time_ms, "portfolio": {"equity": EQUITY, "current_leverage": 0.0, "unrealised_pnl": 0.0},
               "llm": LLM_VIEW, "parent_decision_id": None}


