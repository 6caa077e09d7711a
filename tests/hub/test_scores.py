from __future__ import annotations

from pathlib import Path

from plain_hub import PlainHub

from feature_repo.features import MINUTE_MS
from hub.scores import LedgerScores


def score(symbol: str, value: float, time_ms: int | None = None) -> dict[str, object]:
    return {"source": "reddit", "symbol": symbol, "time_ms": time_ms, "score": value, "confidence": 0.5}


async def test_scores_are_known_from_when_they_were_recorded_on(hub: PlainHub) -> None:
    await hub.decide_later()
    scores = LedgerScores(hub.home.ledger)
    assert scores.catch_up() == set()
    early = hub.time_ms
    await hub.service.push_score(score("BTC", 0.1, early - 60 * MINUTE_MS))
    await hub.decide_later()
    await hub.service.push_score(score("BTC", 0.2))
    await hub.service.push_score(score("ETH", -1.0))
    assert scores.catch_up() == {("BTC", "reddit"), ("ETH", "reddit")}
    assert scores.catch_up() == set()
    frame = scores.frame("BTC", "reddit")
    assert frame.event_time_ms.tolist() == [early, hub.time_ms], "whatever the time that the bot gave it"
    assert frame.values.tolist() == [[0.1, 0.5], [0.2, 0.5]]
    assert len(scores.frame("SOL", "reddit")) == len(scores.frame("BTC", "twitter")) == 0
    known = scores.frames("BTC", 0, hub.time_ms - 1)["reddit"]
    assert known.values[:, 0].tolist() == [0.1]


async def test_of_scores_at_one_moment_the_last_one_counts(hub: PlainHub) -> None:
    await hub.decide_later()
    for number, value in enumerate((0.1, 0.9, 0.5)):
        await hub.service.push_score(score("BTC", value, hub.time_ms - number))
    scores = LedgerScores(hub.home.ledger)
    scores.catch_up()
    assert scores.frame("BTC", "reddit").values[:, 0].tolist() == [0.5]


def test_before_there_is_a_ledger_there_are_no_scores(tmp_path: Path) -> None:
    assert LedgerScores(tmp_path / "none.sqlite").catch_up() == set()
