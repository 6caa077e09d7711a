"""States made of rows in memory, for tests of what is a pure function of a state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from plain_hub import START_MS

from hub.config import parse
from hub.state import HubState
from policies.bundle import Bundle
from policies.rows import NewRow, Row


def state_of(settings: Mapping[str, Any], *bundles: Bundle, seed: int = 3) -> HubState:
    """A ledger's beginning: its configuration and these policies, the first of which is the incumbent."""
    config = parse(settings)
    state = HubState()
    fold(state, NewRow("genesis", "genesis", {
        "seed": seed, "schema": 1, "config": config.configuration(), "config_hash": config.configuration_hash,
        "code_hash": "e" * 64}))
    for bundle in bundles:
        fold(state, NewRow("policy", bundle.policy_id, {
            "policy_id": bundle.policy_id, "alias": bundle.manifest.alias, "actor": "ops",
            "manifest": orjson.loads(bundle.manifest.canonical_json())}))
    return state


def fold(state: HubState, new: NewRow, at_ms: int = START_MS) -> None:
    """Apply a row and what follows from it, as the writer would."""
    waiting = [new]
    while waiting:
        for one in waiting:
            position = state.position + 1
            state.apply(Row(position, one.kind, one.key or str(position), at_ms, one.body))
        waiting = state.consequences(at_ms)
