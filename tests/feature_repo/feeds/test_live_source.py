"""The live exchange as rows of feature groups, and through the feeder into a real Redis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from followed import Followed
from hyperliquid_server import HyperliquidServer
from hyperliquid_wire import level, trade_rows
from waiting import eventually

from feature_repo.features import BARS, DEPTH, FLOW, FUNDING, GROUPS, MID, PRICE, QUOTE
from feature_repo.feeder import Feeder
from feature_repo.feeds import events
from feature_repo.hyperliquid import bars_of
from feature_repo.live_source import LiveSource
from feature_repo.store import FeatureRepo
from feature_repo.transforms import bar_frames, window_frame

SECOND, MINUTE, HOUR = 1_000, 60_000, 3_600_000
T0 = 1_750_000_020_000 // HOUR * HOUR
Follow = Callable[..., Followed]


def book_row(symbol: str, time_ms: int, bid: float) -> dict[str, Any]:
    return {"coin": symbol, "time": time_ms, "levels": [[level(bid - k, 1.0) for k in range(20)],
                                                       [level(bid + 1 + k, 2.0) for k in range(3)]]}


def quote_row(symbol: str, time_ms: int, bid: float) -> dict[str, Any]:
    return {"coin": symbol, "time": time_ms, "bbo": [level(bid, 3.0), level(bid + 1, 1.0)]}


@pytest.fixture
def lively(venue: HyperliquidServer) -> HyperliquidServer:
    """Beside candles and funding, a book and a quote of BTC each second, and trades, over ten minutes."""
    seconds = range(1, 600)
    venue.books["BTC"] = [book_row("BTC", T0 + s * SECOND, 100.0 + s) for s in seconds]
    venue.quotes["BTC"] = [quote_row("BTC", T0 + s * SECOND, 100.0 + s) for s in seconds]
    venue.trades["BTC"] = trade_rows("BTC", T0, 300, every_ms=2_000)
    return venue


@pytest.fixture
def followed(lively: HyperliquidServer, follow: Follow) -> Followed:
    return follow(from_ms=T0 - 85 * MINUTE)


@pytest.fixture
def source(lively: HyperliquidServer, followed: Followed) -> LiveSource:
    return LiveSource(followed.live, lambda: lively.now_ms)


def advance(followed: Followed, to_ms: int) -> None:
    """Until all that the venue has said by then was heard: what is heard later is known later."""
    followed.server.advance(to_ms)
    followed.read_all()


def newest(source: LiveSource, venue: HyperliquidServer, group: str) -> int:
    frame = source.frames("BTC", T0, venue.now_ms).get(group)
    return int(frame.event_time_ms[-1]) if frame is not None and len(frame) else 0


def test_live_candles_become_the_rows_of_the_same_bars_as_history(
        lively: HyperliquidServer, source: LiveSource) -> None:
    for minute in range(1, 61):
        lively.advance(T0 + minute * MINUTE + 3 * SECOND)
    eventually(lambda: newest(source, lively, BARS) == T0 + HOUR, "the features of the last closed candle")
    rows = [events.candle(row) for row in lively.final_candles("BTC") if row["t"] >= T0 - 85 * MINUTE]
    bars = bars_of("BTC", rows, None)
    whole = bar_frames(bars)
    live = source.frames("BTC", T0, lively.now_ms)
    for group in (BARS, PRICE):
        expected = whole[group].reaching(T0, lively.now_ms)
        assert live[group].equals(expected)
        assert len(expected) == 145 - 122 + 1
    newest_window, windows = source.windows("BTC", T0, lively.now_ms), window_frame(bars)
    assert newest_window.event_time_ms.tolist() == [T0 + HOUR] == windows.event_time_ms[-1:].tolist()
    assert newest_window.row(0).tobytes() == windows.row(len(windows) - 1).tobytes()
    settled = [row for row in lively.funding["BTC"] if T0 - 85 * MINUTE <= row["time"] <= T0 + MINUTE]
    assert live[FUNDING].values[:2, 0].tolist() == [float(row["fundingRate"]) for row in settled]
    assert live[FUNDING].event_time_ms[:2].tolist() == [row["time"] // MINUTE * MINUTE + MINUTE for row in settled]


def test_the_present_book_quote_flow_and_mid_are_sampled_and_never_ahead(
        lively: HyperliquidServer, followed: Followed, source: LiveSource) -> None:
    for second in range(2, 130, 2):
        advance(followed, T0 + second * SECOND)
        assert newest(source, lively, QUOTE) >= lively.now_ms - 5 * SECOND, "a quote of this sample"
    frames = source.frames("BTC", T0, lively.now_ms)
    for group in (QUOTE, DEPTH, FLOW, MID):
        times = frames[group].event_time_ms
        assert (times <= lively.now_ms).all()
        assert 10 < len(times) <= (times[-1] - times[0]) // 5_000 + 2, "one row per sample"
    quote = dict(zip(GROUPS[QUOTE].names, frames[QUOTE].values[-1], strict=True))
    assert quote["best_ask"] - quote["best_bid"] == 1.0
    assert quote["imbalance_1"] == 0.5
    depth = dict(zip(GROUPS[DEPTH].names, frames[DEPTH].values[-1], strict=True))
    assert depth["bid_depth_20"] > depth["bid_depth_5"]
    assert depth["ask_depth_20"] == depth["ask_depth_5"], "three levels are all there are"
    assert -1 <= frames[FLOW].values[-1, 0] <= 1


def test_a_feed_that_falls_silent_grows_old_in_the_online_store_and_recovers(
        lively: HyperliquidServer, followed: Followed, source: LiveSource, repo: FeatureRepo) -> None:
    feeder = Feeder([source], repo, ("BTC",))

    def quote_age_ms() -> int:
        feeder.poll(lively.now_ms)
        return lively.now_ms - repo.online_event_times(["BTC"])["BTC"][QUOTE]

    advance(followed, T0 + 600 * SECOND)
    assert quote_age_ms() <= 5 * SECOND
    advance(followed, T0 + 640 * SECOND)
    assert quote_age_ms() > GROUPS[QUOTE].ttl_ms, "the venue says no more of it"
    lively.quotes["BTC"].append(quote_row("BTC", T0 + 641 * SECOND, 500.0))
    advance(followed, T0 + 642 * SECOND)
    assert quote_age_ms() <= 5 * SECOND
