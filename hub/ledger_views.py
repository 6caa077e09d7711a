"""Writes what the ledger knows into the offline store: outcomes, embeddings, the account and the strategy weights.

So that training sets join them point in time, like any other view. Incremental: a file beside the views says up to
which position of which ledger they reach.
"""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from feature_repo.features import GROUPS, PORTFOLIO, WEIGHTS
from feature_repo.frames import GroupFrame
from feature_repo.store import EmbeddingRow, FeatureRepo, OutcomeRow
from hub.episodes import EMBEDDER, episode_features, episode_vector
from policies.rows import Row
from policies.types import Outcome
from sentry.ledger import LedgerReader

PAGE_ROWS = 20_000


class LedgerViews:
    """reader: of the ledger. marker: the file that holds how far the views reach."""

    def __init__(self, reader: LedgerReader, repo: FeatureRepo) -> None:
        self._reader, self._repo = reader, repo
        self._marker = repo.offline.folder / "ledger_views.json"

    def write(self) -> dict[str, int]:
        """Add what was recorded since the last time; {view: rows added}."""
        genesis = next(iter(self._reader.rows(limit=1)), None)
        if genesis is None:
            return {}
        ledger = f"{genesis.body['seed']}/{genesis.at_ms}"
        position, added = _position(self._marker, ledger), defaultdict[str, int](int)
        while rows := list(self._reader.rows(position, PAGE_ROWS, kinds={"decision", "outcome"})):
            for view, count in self._write_page(rows).items():
                added[view] += count
            position = rows[-1].position
            beside = self._marker.with_suffix(".part")
            beside.write_bytes(orjson.dumps({"ledger": ledger, "position": position}))
            beside.replace(self._marker)
        return dict(added)

    def _write_page(self, rows: list[Row]) -> dict[str, int]:
        created_ms = time.time_ns() // 1_000_000
        decisions = [row.body for row in rows if row.kind == "decision" and row.body["features"] is not None]
        outcomes = [row for row in rows if row.kind == "outcome" and row.body["origin"] == "hub"]
        added = {"outcomes": self._repo.append_outcomes([self._outcome(row) for row in outcomes], created_ms),
                 "embeddings": self._repo.append_embeddings([_embedding(body) for body in decisions], created_ms)}
        for group in (PORTFOLIO, WEIGHTS):
            frames = _frames(group, decisions)
            added[group] = sum(self._repo.append(symbol, frame, created_ms) for symbol, frame in frames.items())
        return added

    def _outcome(self, row: Row) -> OutcomeRow:
        """All parts of the decision that were recorded until this row, each in its latest revision then."""
        decision_id = row.body["outcome"]["decision_id"]
        parts: dict[int, Outcome] = {}
        for key in self._reader.keys("outcome", f"{decision_id}/"):
            found = self._reader.get("outcome", key)
            if found is not None and found.position <= row.position:
                outcome = Outcome(**found.body["outcome"])
                if outcome.part not in parts or outcome.revision > parts[outcome.part].revision:
                    parts[outcome.part] = outcome
        known = list(parts.values())
        pnl, fees, funding = (sum(getattr(part, name) for part in known) for name in ("pnl", "fees", "funding"))
        horizon_ms = max(part.exit_time_ms for part in known) - min(part.entry_time_ms for part in known)
        net_return = (pnl - fees - funding) / row.body["trade"]["equity"]
        worst = max(part.drawdown_proxy for part in known)
        return OutcomeRow(decision_id, row.at_ms, (net_return, pnl, fees, funding, horizon_ms / 1_000, worst))


def _embedding(decision: dict[str, Any]) -> EmbeddingRow:
    return EmbeddingRow(decision["request"]["symbol"], decision["request"]["time_ms"],
                        episode_vector(decision["features"]["values"]), EMBEDDER)


def _frames(group: str, decisions: list[dict[str, Any]]) -> dict[str, GroupFrame]:
    """By symbol; of several decisions at one moment the last one counts."""
    rows: dict[str, dict[int, list[float | None]]] = defaultdict(dict)
    for decision in decisions:
        features = episode_features(decision)
        request = decision["request"]
        rows[request["symbol"]][request["time_ms"]] = [features.get(name, np.nan) for name in GROUPS[group].names]
    return {symbol: GroupFrame(group, np.array(sorted(held), np.int64),
                               np.array([held[time] for time in sorted(held)], np.float64))
            for symbol, held in rows.items()}


def _position(marker: Path, ledger: str) -> int:
    try:
        held = orjson.loads(marker.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return 0
    return int(held["position"]) if held["ledger"] == ledger else 0
