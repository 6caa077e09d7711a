"""The hub's own episodes as experience for SAC: what was known, what was done, what it earned.

Read from the ledger's table of episodes, never written. A trade of the hub is one transition: from the flat account at
its decision to its end, which counts as the end of an episode, since what the market showed by then is not recorded.
Only trades that lie in the training range as a whole: what is chosen or judged on later bars must not have seen them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from feature_repo.features import DECISION_V1
from policies.actor import ActorLimits, flat_position, observations, standardised
from policies.types import Direction, Outcome
from sentry.ledger import EpisodeRecord, LedgerReader
from train.rl.env_settings import EnvSettings
from train.rl.experience import Experience
from train.rl.market_rows import Standard, TimeRange

LEDGER = "hub.sqlite"
PER_PAGE = 1_000


def add_episodes(experience: Experience, home: Path, settings: EnvSettings, standard: Standard, training: TimeRange,
                 symbols: Collection[str]) -> int:
    """Add every trade of HOME's ledger that was filled and whose equity is known; how many there were.

    Of these symbols, entered at or after the start of the training range and over at or before its stop.
    WriterUnavailable if there is no ledger yet.
    """
    reader = LedgerReader(home / LEDGER)
    try:
        own = (record for record in _all(reader) if record.symbol in symbols and _within(record, training))
        found = [one for one in (_transition(record, settings) for record in own) if one is not None]
    finally:
        reader.close()
    if not found:
        return 0
    values, actions, rewards = (np.array(column, np.float64) for column in zip(*found, strict=True))
    seen = observations(standardised(values, standard.mean, standard.scale), flat_position())
    experience.add(seen, actions.astype(np.float32), rewards, seen, np.ones(len(found), bool))
    return len(found)


def _all(reader: LedgerReader) -> Iterator[EpisodeRecord]:
    after = (-1, "")
    while page := reader.episodes(PER_PAGE, after):
        yield from page
        after = page[-1].timestamp_ms, page[-1].id


def _within(record: EpisodeRecord, training: TimeRange) -> bool:
    """By its entry and its exit: a record's own time is when its outcome was reported, which may be any time later."""
    outcome = record.outcome
    return bool(training.start_ms <= outcome["entry_time_ms"] and outcome["exit_time_ms"] <= training.stop_ms)


def _transition(record: EpisodeRecord, settings: EnvSettings) -> tuple[list[float], list[float], float] | None:
    """Raw features in the order of decision_v1, action, reward; None for what was not a trade of known size.

    The features of an episode are an object, whose keys the ledger sorts by name: their order is not the vector's.
    """
    outcome, limits = Outcome.from_dict(record.outcome), settings.limits
    direction = Direction(record.decision["direction"])
    if direction is Direction.FLAT or outcome.exit_reason == "not_filled" or outcome.equity is None:
        return None
    equity = outcome.equity - outcome.net_pnl
    values = [_number(record.features.get(name)) for name in DECISION_V1.names]
    required = [value for name, value in zip(DECISION_V1.names, values, strict=True)
                if name not in DECISION_V1.may_be_missing]
    if not equity > 0 or not np.isfinite(required).all():
        return None
    levels = record.decision["executed"]
    exposure = outcome.size * outcome.entry_price / equity
    stop = float(np.clip(levels["sl_pct"], limits.least_stop_pct, limits.most_stop_pct))
    size = min(1.0, exposure * stop / limits.risk_per_trade)
    action = [direction.sign * size, *_places(levels["sl_pct"], levels["tp_pct"], limits)]
    # An actor cannot ask for more than this: of a larger trade it would have earned its share.
    share = min(1.0, size * limits.risk_per_trade / stop / exposure, limits.most_exposure / exposure)
    reward = share * outcome.net_pnl / equity / limits.risk_per_trade
    return values, action, float(np.clip(reward, -settings.reward_clip, settings.reward_clip))


def _places(stop: float, target: float, limits: ActorLimits) -> list[float]:
    """The numbers of an action that ask for these levels, cut to [-1, 1]."""
    bounds = ((stop, limits.least_stop_pct, limits.most_stop_pct),
              (target, limits.least_target_pct, limits.most_target_pct))
    return [float(np.clip(2.0 * (value - low) / (high - low) - 1.0, -1.0, 1.0)) for value, low, high in bounds]


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)
