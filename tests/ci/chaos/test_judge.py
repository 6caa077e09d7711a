"""The judge: every rule of a safe answer broken once, on a recording written for the purpose."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ci.chaos.judge import Expectation, Judgement, judged
from ci.chaos.load import LLM_VIEW, Answered
from ci.chaos.recording import Recording, write_recording
from feature_repo.features import BARS, DECISION_V1, FEAR_GREED, GROUPS, MINUTE_MS


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return write_recording(tmp_path_factory.mktemp("recorded"))


def by_head(recording: Recording, **changes: Any) -> tuple[Answered, dict[str, dict[str, Any]]]:
    """An answer by a head at the split, from the newest bar, and its row; `changes` alter the row's features."""
    now_ms = recording.split_ms
    frame = recording.frames["BTC"]
    newest = frame.until(now_ms) - 1
    values: dict[str, float | None] = dict.fromkeys(DECISION_V1.names)
    values |= dict(zip(GROUPS[BARS].names, frame.values[newest].tolist(), strict=True))
    features: dict[str, Any] = {"values": list(values.values()),
                                "event_time_ms": {BARS: int(frame.event_time_ms[newest])}}
    row = {"request": {"time_ms": now_ms}, "features": {**features, **changes}}
    body = {"decision_id": "d", "request_id": "r", "time_ms": now_ms, "role": "production", "acts": True,
            "degraded": [], "action": {**LLM_VIEW}}
    return Answered(1.0, 1.01, "BTC", True, 200, body), {"d": row}


def by_llm(recording: Recording, **changes: Any) -> Answered:
    body = {"decision_id": "d", "request_id": "r", "time_ms": recording.split_ms, "role": "llm_only", "acts": False,
            "degraded": [{"part": "features", "reason": "Redis: TimeoutError"}], "action": {**LLM_VIEW}}
    return Answered(1.0, 1.01, "BTC", False, 200, {**body, **changes})


def of_one(answer: Answered, recording: Recording, rows: dict[str, dict[str, Any]] | None = None,
           *expected: Expectation) -> Judgement:
    return judged([answer], expected, rows or {}, recording.frames)


def test_a_head_that_saw_the_newest_bar_of_the_recording_is_safe(recording: Recording) -> None:
    answer, rows = by_head(recording)
    assert of_one(answer, recording, rows).unsafe == []
    assert rows["d"]["features"]["event_time_ms"][BARS] == recording.split_ms


def test_a_head_without_a_row_or_without_features_is_not_safe(recording: Recording) -> None:
    answer, rows = by_head(recording)
    assert "ledger does not hold" in of_one(answer, recording).unsafe[0]
    rows["d"]["features"] = None
    assert "without features" in of_one(answer, recording, rows).unsafe[0]


def test_a_head_that_saw_stale_future_or_no_bars_is_not_safe(recording: Recording) -> None:
    ttl_ms = GROUPS[BARS].ttl_ms
    for times in ({BARS: recording.split_ms - ttl_ms - 1}, {BARS: recording.split_ms + MINUTE_MS}, {}):
        answer, rows = by_head(recording, event_time_ms=times)
        assert "not fresh" in of_one(answer, recording, rows).unsafe[0]


def test_a_head_that_saw_other_numbers_than_the_recording_gives_is_not_safe(recording: Recording) -> None:
    answer, rows = by_head(recording)
    rows["d"]["features"]["values"][3] += 1e-9
    assert "differs from the recording" in of_one(answer, recording, rows).unsafe[0]


def test_values_of_a_stale_optional_group_must_be_missing(recording: Recording) -> None:
    answer, rows = by_head(recording)
    rows["d"]["features"]["values"][DECISION_V1.names.index("fear_greed")] = 0.4
    assert "values were taken" in of_one(answer, recording, rows).unsafe[0]
    rows["d"]["features"]["event_time_ms"][FEAR_GREED] = recording.mood_ends_ms
    assert of_one(answer, recording, rows).unsafe == []


@pytest.mark.parametrize(("changes", "said"), [
    ({"acts": True}, "acts without a head"), ({"degraded": []}, "nothing says why"),
    ({"action": {**LLM_VIEW, "direction": "short"}}, "not the LLM's direction"),
    ({"action": {**LLM_VIEW, "leverage": 6.0}}, "leverage is more"),
    ({"action": {**LLM_VIEW, "size_fraction": float("nan")}}, "size_fraction is more")])
def test_an_answer_without_a_head_acts_on_nothing_says_why_and_adds_no_risk(
        recording: Recording, changes: dict[str, Any], said: str) -> None:
    assert of_one(by_llm(recording), recording).unsafe == []
    assert said in of_one(by_llm(recording, **changes), recording).unsafe[0]


def test_a_decision_that_the_split_gave_to_the_llm_needs_no_reason(recording: Recording) -> None:
    answer, rows = by_llm(recording, degraded=[]), {"d": {"drawn": {"policy_id": "llm_only"}}}
    assert of_one(answer, recording, rows).unsafe == []
    rows["d"]["drawn"]["policy_id"] = "0" * 64
    assert "nothing says why" in of_one(answer, recording, rows).unsafe[0]


def test_no_head_may_answer_while_its_features_cannot_be_had(recording: Recording) -> None:
    answer, rows = by_head(recording)
    frozen = Expectation(False, ("features",), sent_from_s=0.5, done_until_s=2.0)
    assert "cannot have had" in of_one(answer, recording, rows, frozen).unsafe[0]
    earlier = dataclasses.replace(answer, sent_s=0.4)
    assert of_one(earlier, recording, rows, frozen).unsafe == [], "sent before the fault"


def test_a_group_that_has_stopped_must_be_named_and_heads_go_on_without_it(recording: Recording) -> None:
    stopped = Expectation(True, ("features fear_greed",), after_ms=recording.split_ms - 1)
    answer, rows = by_head(recording)
    assert "does not name" in of_one(answer, recording, rows, stopped).unsafe[0]
    answer.body["degraded"] = [{"part": "features fear_greed", "reason": "stale"}]
    found = of_one(answer, recording, rows, stopped)
    assert (found.unsafe, found.certain, found.safe_share) == ([], 1, 1.0)
    silent = by_llm(recording, degraded=[{"part": "features fear_greed", "reason": "stale"}])
    assert "no head answered" in of_one(silent, recording, {}, stopped).unsafe[0]


def test_answers_that_are_no_2xx_are_left_to_others(recording: Recording) -> None:
    refused = Answered(1.0, 1.01, "BTC", False, 503, {}, "away")
    assert np.isnan(of_one(refused, recording).safe_share)
    assert of_one(refused, recording, {}, Expectation(False, ())).answers == 0


def test_the_recording_has_the_hole_and_the_split_that_it_names(tmp_path: Path) -> None:
    from feature_repo.feeds.recorded import RecordedFeeds
    from feature_repo.files import FileMarket
    from feature_repo.market import replay_range

    recording = write_recording(tmp_path)
    market = FileMarket(tmp_path, symbols=("BTC", "ETH"))
    _, split_ms, stop_ms = replay_range(market, ("BTC", "ETH"))
    assert split_ms == recording.split_ms
    assert split_ms < recording.hole_start_ms < recording.mood_stale_after_ms < stop_ms
    times = recording.frames["ETH"].event_time_ms
    gap = int(np.argmax(np.diff(times)))
    assert (times[gap], times[gap + 1]) == (recording.hole_start_ms, recording.bars_back_ms)
    mood = RecordedFeeds(tmp_path).fear_greed()
    assert mood is not None
    assert mood.event_time_ms.tolist() == [recording.mood_ends_ms]
