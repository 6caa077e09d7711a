"""No job sees a bar that a hub has still to decide on."""

from __future__ import annotations

import pytest

from feature_repo.features import HOUR_MS, MINUTE_MS
from feature_repo.generated import START_MS, GeneratedMarket
from train.seen import UNTIL_MS, seen_until

MARKET = GeneratedMarket(3, 1.0, ("BTC", "ETH"), 1_000)


@pytest.mark.parametrize("now_ms", [7 * HOUR_MS + 1, 11 * HOUR_MS, 12 * HOUR_MS - 1])
def test_bars_are_seen_up_to_the_last_six_hours_of_a_running_hub(now_ms: int) -> None:
    assert seen_until(MARKET, ("BTC",), {"hub": {"now_ms": now_ms}}, 0)[0] == 6 * HOUR_MS == UNTIL_MS


def test_a_new_stretch_of_six_hours_is_seen_when_it_is_over() -> None:
    assert seen_until(MARKET, ("BTC",), {"hub": {"now_ms": 12 * HOUR_MS}}, 0)[0] == 12 * HOUR_MS


def test_without_a_hub_the_part_that_one_would_replay_is_not_seen() -> None:
    until_ms, why = seen_until(MARKET, ("BTC", "ETH"), None, 0)
    assert until_ms == START_MS + 600 * MINUTE_MS
    assert "for training" in why


def test_of_a_recording_that_ends_before_the_hubs_clock_the_later_part_is_kept_for_trying() -> None:
    last_ms = int(MARKET.bars("BTC").close_time_ms[-1])
    beyond = {"hub": {"now_ms": last_ms + 7 * HOUR_MS}}
    assert seen_until(MARKET, ("BTC", "ETH"), beyond, 0) == seen_until(MARKET, ("BTC", "ETH"), None, 0)
    at_its_end = {"hub": {"now_ms": last_ms}}
    assert seen_until(MARKET, ("BTC", "ETH"), at_its_end, 0)[0] == last_ms // UNTIL_MS * UNTIL_MS
