"""A small fold for the sentry's tests: registered policies share the traffic, gates judge their outcomes."""

from __future__ import annotations

from typing import Any

import numpy as np

from policies.rows import BLOCKING_KINDS, LLM_ONLY, NewRow, Row
from policies.track_record import TrackRecord
from policies.types import Direction, Judgement
from sentry.gates import Gates, GateSettings
from sentry.ledger import EpisodeRecord

SEED = 11
CADENCE_MS = 60_000
SETTINGS = GateSettings(throttle_min_trades=3)

GENESIS = NewRow("genesis", "genesis", {"seed": SEED, "schema": 1, "config": {"a": 1}, "config_hash": "c" * 64,
                                        "code_hash": "e" * 64})


class FakeFold:
    def __init__(self) -> None:
        self.position = self.last_blocking_position = self.seed = 0
        self.gates = Gates(SETTINGS)
        self.records: dict[str, TrackRecord] = {}
        self.paused: set[str] = set()
        self.shares: dict[str, float] = {LLM_ONLY: 1.0}
        self.epoch, self.ends_ms = 0, 0
        self.epoch_due = False
        self.touched = ""

    def apply(self, row: Row) -> None:
        assert row.position == self.position + 1
        body = row.body
        self.touched = ""
        if row.kind == "genesis":
            self.seed = body["seed"]
        elif row.kind == "policy":
            self.records[body["policy_id"]] = TrackRecord()
        elif row.kind == "command":
            self.paused ^= {body["policy_id"]}
        elif row.kind == "epoch":
            self.epoch, self.ends_ms, self.shares = body["epoch"], body["ends_ms"], body["shares"]
        elif row.kind == "verdict":
            self.gates.apply(body["policy_id"], Judgement(body["judgement"]), body["rule"])
            self.records[body["policy_id"]] = TrackRecord()
        elif row.kind == "outcome":
            self.touched = body["trade"]["policy_id"]
            if self.touched != LLM_ONLY:
                self.records[self.touched].record(row.key, body["outcome"]["pnl"] / body["trade"]["equity"])
        if row.kind in BLOCKING_KINDS:
            self.last_blocking_position = row.position
            self.epoch_due = row.kind != "epoch"
        self.position = row.position

    def consequences(self, at_ms: int) -> list[NewRow]:
        finding = self.gates.due(self.touched, self.records[self.touched]) if self.touched in self.records else None
        if finding is not None:
            return [NewRow("verdict", None, {
                "policy_id": self.touched, "judgement": finding.judgement, "rule": finding.rule,
                "figure": finding.figure, "limit": finding.limit, "trades": self.records[self.touched].trades,
                "caused_by": self.position})]
        return self.expire_epoch(at_ms) if self.epoch_due else []

    def admits(self, decision: dict[str, Any]) -> bool:
        return decision["policy_id"] == LLM_ONLY or self.shares.get(decision["policy_id"], 0) > 0

    def epoch_expired(self, now_ms: int) -> bool:
        return now_ms >= self.ends_ms

    def expire_epoch(self, now_ms: int) -> list[NewRow]:
        able = [p for p in self.records if p not in self.paused and self.gates.standing(p) is Judgement.APPROVE]
        shares = {policy_id: 1 / len(able) for policy_id in able} or {LLM_ONLY: 1.0}
        number = self.epoch + 1
        return [NewRow("epoch", f"epoch/{number}", {
            "epoch": number, "reason": "test", "started_ms": now_ms, "ends_ms": now_ms + CADENCE_MS, "shares": shares})]

    def trade_of(self, decision: Row) -> dict[str, Any]:
        body = decision.body
        return {"symbol": "BTC", "strategy": "momentum", "policy_id": body["policy_id"], "acts": True,
                "decided_ms": decision.at_ms, "direction": body["direction"], "equity": 10_000.0}

    def episode(self, row: Row) -> EpisodeRecord | None:
        outcome = row.body["outcome"]
        return EpisodeRecord(outcome["decision_id"], row.at_ms, "momentum", "BTC", {"x": 1.0}, {}, outcome,
                             np.array([1.0, outcome["pnl"]], dtype="<f4").tobytes(), "v1", "c" * 64)

    def policies(self) -> list[str]:
        return list(self.records)


def decision(request_id: str, policy_id: str, as_of: int, direction: Direction = Direction.LONG) -> dict[str, Any]:
    return {"request_id": request_id, "request_hash": f"hash of {request_id}", "policy_id": policy_id, "as_of": as_of,
            "direction": direction.value}


def outcome(decision_id: str, exit_price: float = 101.0, **others: Any) -> dict[str, Any]:
    """A long trade of 10 units, entered at 100 USD."""
    return {"decision_id": decision_id, "part": 0, "revision": 0, "entry_time_ms": 1_000, "exit_time_ms": 2_000,
            "entry_price": 100.0, "exit_price": exit_price, "size": 10.0, "pnl": (exit_price - 100.0) * 10.0,
            "fees": 0.1, "funding": 0.0, "exit_reason": "target", **others}
