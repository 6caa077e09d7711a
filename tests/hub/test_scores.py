from __future__ import annotations

import math
from pathlib import Path

import pytest
from plain_hub import SYMBOLS, PlainHub, rows_of

from feature_repo.features import DECISION_V1, GROUPS, MINUTE_MS
from hub.decide import Features
from hub.recorded_scores import RecordedScore
from hub.scores import LedgerScores, with_scores
from policies.errors import InvalidInput


def score(symbol: str, value: float, time_ms: int | None = None) -> dict[str, object]:
    return {"source": "reddit", "symbol": symbol, "time_ms": time_ms, "score": value, "confidence": 0.5}


async def test_scores_are_known_from_when_they_were_recorded_on(hub: PlainHub) -> None:
    await hub.decide_later()
    scores = LedgerScores(hub.home.ledger, SYMBOLS)
    assert scores.catch_up() == {}
    early = hub.time_ms
    await hub.service.push_score(score("BTC", 0.1, early - 60 * MINUTE_MS))
    await hub.decide_later()
    await hub.service.push_score(score("BTC", 0.2))
    await hub.service.push_score(score("ETH", -1.0))
    news = scores.catch_up()
    assert set(news) == {("BTC", "reddit"), ("ETH", "reddit")}
    assert news["BTC", "reddit"].equals(scores.frame("BTC", "reddit"))
    assert scores.catch_up() == {}
    frame = scores.frame("BTC", "reddit")
    assert frame.event_time_ms.tolist() == [early, hub.time_ms], "whatever the time that the bot gave it"
    assert frame.values.tolist() == [[0.1, 0.5], [0.2, 0.5]]
    assert len(scores.frame("SOL", "reddit")) == len(scores.frame("BTC", "twitter")) == 0
    known = scores.frames("BTC", 0, hub.time_ms - 1)["reddit"]
    assert known.values[:, 0].tolist() == [0.1]


async def test_of_scores_at_one_moment_the_last_one_counts(hub: PlainHub) -> None:
    await hub.decide_later()
    for value in (0.1, 0.9, 0.5):
        assert (await hub.service.push_score(score("BTC", value)))["accepted"] == "recorded"
    scores = LedgerScores(hub.home.ledger, SYMBOLS)
    scores.catch_up()
    assert scores.frame("BTC", "reddit").values[:, 0].tolist() == [0.5]


async def test_a_score_that_was_made_before_the_newest_one_is_recorded_and_changes_nothing(hub: PlainHub) -> None:
    await hub.decide_later()
    await hub.service.push_score(score("BTC", 0.9, hub.time_ms))
    await hub.service.push_score(score("BTC", -0.9, hub.time_ms - 60 * MINUTE_MS))
    scores = LedgerScores(hub.home.ledger, SYMBOLS)
    scores.catch_up()
    assert scores.frame("BTC", "reddit").values[:, 0].tolist() == [0.9]
    assert hub.state.scores["BTC", "reddit"].score == 0.9


async def test_a_score_made_longer_ago_than_it_would_be_fresh_is_refused(hub: PlainHub) -> None:
    await hub.decide_later()
    ttl_ms = GROUPS["reddit"].ttl_ms
    with pytest.raises(InvalidInput, match="time_ms"):
        await hub.service.push_score(score("BTC", 0.9, hub.time_ms - ttl_ms - 1))


async def test_scores_of_symbols_that_are_configured_no_more_are_left_to_the_ledger(hub: PlainHub) -> None:
    await hub.decide_later()
    await hub.service.push_score(score("HYPE", 0.9))
    assert LedgerScores(hub.home.ledger, ("BTC",)).catch_up() == {}


async def test_the_next_decision_sees_a_score_that_has_not_reached_the_store(hub: PlainHub) -> None:
    await hub.decide_later()
    hub.features.event_time_ms = {"reddit": hub.time_ms - 60 * MINUTE_MS}
    await hub.service.push_score(score("BTC", -0.25))
    await hub.decide()
    row = rows_of(hub, "decision")[-1]
    seen = dict(zip(DECISION_V1.names, row.body["features"]["values"], strict=True))
    assert (seen["reddit_score"], seen["reddit_confidence"], seen["reddit_missing"]) == (-0.25, 0.5, 0.0)
    assert row.body["features"]["event_time_ms"]["reddit"] == hub.time_ms
    await hub.decide(symbol="ETH")
    other = dict(zip(DECISION_V1.names, rows_of(hub, "decision")[-1].body["features"]["values"], strict=True))
    assert other["reddit_score"] != -0.25


def test_a_score_grows_stale_and_never_replaces_a_newer_one_of_the_store() -> None:
    ttl_ms, place = GROUPS["reddit"].ttl_ms, DECISION_V1.names.index("reddit_score")
    scores = {("BTC", "reddit"): RecordedScore(1_000, 1_000, 0.7, 0.9)}
    stored = Features((0.0,) * len(DECISION_V1), {}, episode={"reddit_score": 0.0, "mid_price": 5.0})
    fresh = with_scores(stored, scores, "BTC", 1_000 + ttl_ms)
    assert fresh.values is not None
    assert fresh.values[place] == 0.7
    assert fresh.episode == {"reddit_score": 0.7, "mid_price": 5.0}
    stale = with_scores(stored, scores, "BTC", 1_001 + ttl_ms)
    assert stale.values is not None
    assert math.isnan(stale.values[place])
    assert stale.values[DECISION_V1.indicators["reddit"]] == 1.0
    newer = Features((0.0,) * len(DECISION_V1), {"reddit": 1_001})
    assert with_scores(newer, scores, "BTC", 2_000) == newer
    assert with_scores(stored, scores, "BTC", 999) == stored, "recorded after the moment decided on"
    assert with_scores(Features(None, {}, "away"), scores, "BTC", 2_000).values is None


def test_before_there_is_a_ledger_there_are_no_scores(tmp_path: Path) -> None:
    assert LedgerScores(tmp_path / "none.sqlite", SYMBOLS).catch_up() == {}
