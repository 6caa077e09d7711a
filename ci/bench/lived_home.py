"""A home in which a hub has lived: two trained heads, and an episode of each of many past decisions.

The ledger is written by the hub's own classes without its processes: `hub.decide` makes each decision's row,
PolicySentry judges and records it and its outcome. Only what the heads proposed and what the market then did is made
up, so that both heads keep their share of the traffic.

    python -m ci.bench.lived_home --home /tmp/bench --episodes 50000
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from ci.bench.setting import EQUITY, SEED, configuration, requests_at
from feature_repo.features import MINUTE_MS
from feature_repo.market import Market, replay_range
from feature_repo.store import FeatureRepo
from feature_repo.transforms import FeatureFrame, compute_features
from hub import decide
from hub.actors import sentry_parts
from hub.config import HubConfig
from hub.decide import Answer, Features
from hub.home import Home
from hub.market import settle
from policies.keyed_random import uniform
from policies.registry import PolicyFolder
from policies.types import STRATEGIES, Action, Direction, Proposal
from sentry.audit import AuditTrail
from sentry.ledger import Ledger
from sentry.policy_sentry import PolicySentry
from train.first_heads import FirstHeadsSettings, packed_path, train_first_heads

HELD_BARS = 10  # each trade is over before its slot is asked again
MOMENT_BARS = 12
MOMENTS_A_COMMIT = 20
TRAINING = FirstHeadsSettings(lookback_bars=8_000, training_rows=6_000)  # quick, and as costly to ask as any other
WIN_SHARE, GAIN, LOSS = 0.62, 0.8, 0.5  # gains and losses as shares of the stop: a profit factor of 2.6


def live_in(home: Home, config: HubConfig, episodes: int) -> None:
    """Train both heads, then decide and learn until there are that many episodes, up to where the replay begins."""
    choice, market = settle(config, None)
    _, split_ms, _ = replay_range(market, choice.symbols)
    past = _Past(home, config, market)
    try:
        for path in _trained(home, config, market, split_ms):
            past.register(path)
        slots, step_ms = len(choice.symbols) * len(STRATEGIES), MOMENT_BARS * MINUTE_MS
        moments = range(split_ms - -(-episodes // slots) * step_ms, split_ms, step_ms)
        for first in range(0, len(moments), MOMENTS_A_COMMIT):
            past.live(moments[first:first + MOMENTS_A_COMMIT], episodes)
    finally:
        past.close()


def _trained(home: Home, config: HubConfig, market: Market, until_ms: int) -> list[Path]:
    # Only its offline store is used.
    repo = FeatureRepo(home.root, f"redis://127.0.0.1:{config.storage.redis_port}/0", market.origin)
    bundles = train_first_heads(market, repo, home.root, until_ms, config.market.symbols, until_ms, TRAINING)
    return [packed_path(home.root, bundle) for bundle in bundles]


class _Past:
    """The hub's writer in this process. episodes: that it has recorded so far."""

    def __init__(self, home: Home, config: HubConfig, market: Market) -> None:
        self.episodes = 0
        self._config, self._market = config, market
        self._policies = PolicyFolder(home.policies)
        self._frames: dict[str, FeatureFrame] = {}
        self._first_ms = int(market.bars(config.market.symbols[0]).open_time_ms[0])
        parts = sentry_parts(config)
        self._ledger, self._audit = Ledger(home.ledger), AuditTrail(home.audit)
        self._sentry = PolicySentry(self._ledger, self._audit, parts.fold_factory, parts.genesis, self._first_ms,
                                    parts.gate_settings)

    def register(self, path: Path) -> None:
        bundle = self._policies.add(path)
        manifest = orjson.loads(bundle.manifest.canonical_json())
        self._sentry.register(bundle.policy_id, bundle.manifest.alias, manifest, "bench", self._first_ms)

    def live(self, moments: Sequence[int], most: int) -> None:
        """At each of these times a decision in every slot, until there are `most` episodes, and what came of it."""
        with self._ledger.transaction():
            for time_ms in moments:
                exit_ms = time_ms + HELD_BARS * MINUTE_MS
                self._sentry.expire_epoch(time_ms)
                requests = list(requests_at(time_ms, self._config))[:most - self.episodes]
                for decision_id, body in [self._decided(request, time_ms) for request in requests]:
                    self._sentry.record_outcome(outcome_of(decision_id, body, exit_ms), "hub", exit_ms)
                self.episodes += len(requests)
        self._sentry.after_commit()

    def _decided(self, request: dict[str, Any], time_ms: int) -> tuple[str, dict[str, Any]]:
        state: Any = self._sentry.fold
        features = self._features(request["symbol"], time_ms)
        chosen = decide.plan(state, request, features)
        answers = {policy_id: Answer(_proposal(policy_id, request["request_id"]), 2.0) for policy_id in chosen.ask}
        body = decide.conclude(state, chosen, request, "made", features, answers)
        committed = self._sentry.commit_decision(body, time_ms)
        assert committed.row is not None, "nothing can come between in one process"
        return committed.row.key, body

    def _features(self, symbol: str, time_ms: int) -> Features:
        if symbol not in self._frames:
            self._frames[symbol] = compute_features(self._market.bars(symbol))
        frame = self._frames[symbol]
        row = int(frame.event_time_ms.searchsorted(time_ms, "right")) - 1
        event_ms = int(frame.event_time_ms[row])
        return Features(tuple(frame.values[row].tolist()), {"bars": event_ms, "funding": event_ms})

    def close(self) -> None:
        self._audit.close()
        self._ledger.close()


def outcome_of(decision_id: str, body: dict[str, Any], exit_ms: int) -> dict[str, Any]:
    """What a market that is kind to everyone makes of a decision: a profit factor of 2.6 without fees."""
    action = Action.from_dict(body["action"])
    won = uniform(SEED, "outcome", decision_id) < WIN_SHARE
    move = action.direction.sign * action.sl_pct * (GAIN if won else -LOSS)
    entry = 100.0
    size = max(action.size_fraction * action.leverage, 1e-3) * EQUITY / entry
    return {"decision_id": decision_id, "part": 0, "revision": 0,
            "entry_time_ms": body["request"]["time_ms"] + MINUTE_MS, "exit_time_ms": exit_ms, "entry_price": entry,
            "exit_price": entry * (1 + move), "size": size, "pnl": entry * move * size * action.direction.sign,
            "fees": 0.0, "funding": 0.0, "exit_reason": "horizon"}


def _proposal(policy_id: str, request_id: str) -> Proposal:
    direction = Direction.LONG if uniform(SEED, "direction", policy_id, request_id) < 0.5 else Direction.SHORT
    return Proposal(Action(direction, 0.02, 10.0, 0.012, 0.008), 0.8)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--home", type=Path, required=True)
    arguments.add_argument("--episodes", type=int, default=50_000)
    options = arguments.parse_args()
    logging.disable(logging.INFO)
    home = Home(options.home)
    home.create()
    live_in(home, configuration(), options.episodes)


if __name__ == "__main__":
    main()
