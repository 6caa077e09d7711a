"""Signals by bucket, and what levels earn on them: against one trade stepped after the other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bo_signals import generated_signals

from feature_repo.features import DECISION_V1, MINUTE_MS
from policies.errors import InvalidInput
from policies.fills import BracketTrade, Costs, bar_at
from policies.types import Action, Direction
from router.param_start import BUCKETS
from router.params import ParamBandit, market_settings
from train.bo.entries import MOST_REWARD, earned, keep_signals, load_signals
from train.bo.rules import RULES
from train.steps import Steps

SIGNALS = generated_signals()
SPAN = (0, 2**60)
POINTS = [(0.008, 0.004, 0.0), (0.012, 0.008, 0.0005), (0.006, 0.010, 0.002)]
HORIZON = 15


def counts(strategy: str) -> dict[str, int]:
    return {bucket: sum(len(one.entries(strategy, bucket, *SPAN)[0]) for one in SIGNALS.values()) for bucket in BUCKETS}


def test_every_signal_falls_into_the_bucket_that_decisions_see() -> None:
    bandit = ParamBandit(settings=market_settings(DECISION_V1.names))
    assert bandit.bucket(tuple(np.zeros(len(DECISION_V1)))) == "wild_flat"
    for strategy in RULES:
        assert sum(counts(strategy).values()) == sum((one.directions[strategy] != 0).sum() for one in SIGNALS.values())
        assert sum(counts(strategy).values()) > 10


@pytest.mark.parametrize("strategy", ["momentum", "scalping", "market_making"])
def test_what_points_earn_is_what_stepping_one_trade_after_the_other_says(strategy: str) -> None:
    bucket = max(counts(strategy), key=lambda name: counts(strategy)[name])
    found = earned(SIGNALS, strategy, bucket, SPAN, POINTS, HORIZON, 5.0, Costs())
    for place, (tp, sl, offset) in enumerate(POINTS):
        expected = []
        for one in SIGNALS.values():
            free_ms, bars = 0, one.bars
            times, sides = one.entries(strategy, bucket, *SPAN)
            for time_ms, side in zip(times.tolist(), sides.tolist(), strict=True):
                entry = int(np.searchsorted(bars.open_time_ms, time_ms))
                if time_ms < free_ms:
                    continue
                direction = Direction.LONG if side > 0 else Direction.SHORT
                trade = BracketTrade(Action(direction, 0.05, 5.0, tp, sl, offset), time_ms,
                                     float(bars.close[entry - 1]), 1e4, HORIZON, MINUTE_MS)
                closed = next(filter(None, (trade.step(bar_at(bars, bar)) for bar in range(entry, len(bars)))), None)
                if closed is None:
                    break
                free_ms = closed.exit_time_ms
                if closed.exit_reason != "not_filled":
                    net = (closed.gross - closed.fees - closed.funding) / sl
                    expected.append((time_ms, float(np.clip(net, -MOST_REWARD, MOST_REWARD))))
        own = found.of(place)
        assert sorted(zip(own.entry_ms.tolist(), own.reward.tolist(), strict=True)) == sorted(expected)
        assert len(expected) > 5


def test_figures_are_those_of_each_point() -> None:
    found = earned(SIGNALS, "scalping", "wild_up", SPAN, POINTS, HORIZON, 5.0, Costs())
    trades, mean, sd = found.figures
    for place in range(len(POINTS)):
        own = found.of(place).reward
        assert (len(own), own.mean(), own.std(ddof=1)) == pytest.approx((trades[place], mean[place], sd[place]))


def test_no_trade_reaches_beyond_the_end_of_its_span() -> None:
    bars = SIGNALS["BTC"].bars
    until = int(bars.open_time_ms[900])
    inside = earned(SIGNALS, "momentum", "wild_up", (0, until), POINTS, HORIZON, 5.0, Costs())
    assert len(inside.reward) > 0
    assert inside.entry_ms.max() + HORIZON * MINUTE_MS < until
    later = earned(SIGNALS, "momentum", "wild_up", (until, 2**60), POINTS, HORIZON, 5.0, Costs())
    assert later.entry_ms.min() >= until


def test_a_bucket_without_signals_earns_nothing() -> None:
    found = earned(SIGNALS, "momentum", "calm_flat", SPAN, POINTS, HORIZON, 5.0, Costs())
    assert (len(found.reward), found.figures[0].tolist()) == (0, [0, 0, 0])
    with pytest.raises(InvalidInput, match="points"):
        earned(SIGNALS, "momentum", "calm_flat", SPAN, [(0.01, 0.005)], HORIZON, 5.0, Costs())


def test_what_is_kept_is_read_again(tmp_path: Path) -> None:
    keep_signals(Steps(tmp_path), "signals", SIGNALS)
    again = load_signals(tmp_path, "signals")
    assert again.keys() == SIGNALS.keys()
    for symbol, one in SIGNALS.items():
        for name in ("time_ms", "bucket"):
            np.testing.assert_array_equal(getattr(again[symbol], name), getattr(one, name))
        assert again[symbol].directions.keys() == one.directions.keys()
        np.testing.assert_array_equal(again[symbol].bars.close, one.bars.close)
        np.testing.assert_array_equal(again[symbol].bars.funding_rate, one.bars.funding_rate)
