"""Whether answers were safe: each one is held against what is known from outside and against its row in the ledger.

An answer by a head must have been made from features that are fresh and equal to what the recording gives. An answer
without one must say why, act on nothing and ask for no more than the LLM did. Where a fault makes a required group
unusable beyond doubt, no answer may be by a head; where only an optional group has stopped, heads must still be asked.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ci.chaos.load import LLM_VIEW, Answered
from feature_repo.features import BARS, DECISION_V1, GROUPS
from feature_repo.frames import GroupFrame
from policies.rows import LLM_ONLY

FOREVER_S, EVER_MS = math.inf, 2**60


@dataclass(frozen=True)
class Expectation:
    """What every answer must be that was sent at or after sent_from_s, was there by done_until_s, and is of a moment in
    (after_ms, before_ms) of the replay clock.

    by_head: whether a head must have answered, or none may have. named: parts, one of whose names each entry of
    `degraded` begins with.
    """

    by_head: bool
    named: tuple[str, ...]
    sent_from_s: float = -FOREVER_S
    done_until_s: float = FOREVER_S
    after_ms: int = -1
    before_ms: int = EVER_MS

    def concerns(self, answer: Answered) -> bool:
        return (answer.status == 200 and self.sent_from_s <= answer.sent_s and answer.done_s <= self.done_until_s
                and self.after_ms < answer.body["time_ms"] < self.before_ms)

    def broken_by(self, answer: Answered) -> list[str]:
        found = []
        if answer.by_head != self.by_head:
            found.append("a head answered, which cannot have had its features" if answer.by_head
                         else "no head answered, although only an optional group was stale")
        found += [f"does not name {part}" for part in self.named
                  if not any(said == part or said.startswith(part) for said in answer.parts)]
        return found


@dataclass
class Judgement:
    """unsafe: the request and what was wrong, of each answer that broke a rule. certain: how many answers were held
    against an expectation."""

    answers: int = 0
    safe: int = 0
    certain: int = 0
    unsafe: list[str] = field(default_factory=list)

    @property
    def safe_share(self) -> float:
        return self.safe / self.answers if self.answers else math.nan


def judged(answers: Iterable[Answered], expected: Iterable[Expectation], rows: Mapping[str, dict[str, Any]],
           frames: Mapping[str, GroupFrame]) -> Judgement:
    """rows: bodies of the ledger's decisions by decision_id. frames: of BARS by symbol, as the recording gives them.

    Answers that are no 2xx decide nothing; they are counted elsewhere.
    """
    result, rules = Judgement(), list(expected)
    for answer in answers:
        if answer.status != 200:
            continue
        result.answers += 1
        concerned = [rule for rule in rules if rule.concerns(answer)]
        result.certain += bool(concerned)
        wrong = [text for rule in concerned for text in rule.broken_by(answer)]
        row = rows.get(answer.body["decision_id"] or "")
        wrong += _wrong_of_head(answer, row, frames) if answer.by_head else _wrong_of_llm(answer, row)
        if wrong:
            result.unsafe.append(f"{answer.body['request_id']}: {'; '.join(wrong)}")
        else:
            result.safe += 1
    return result


def _wrong_of_head(answer: Answered, row: Mapping[str, Any] | None, frames: Mapping[str, GroupFrame]) -> list[str]:
    if row is None:
        return ["a head acts and the ledger does not hold the decision"]
    features = row["features"]
    if features is None:
        return ["a head acts without features"]
    now_ms, times = row["request"]["time_ms"], features["event_time_ms"]
    values = dict(zip(DECISION_V1.names, features["values"], strict=True))
    wrong = [f"{group} is not fresh, its event time is {times.get(group)} at {now_ms}"
             for group in DECISION_V1.required_groups if not _fresh(group, times, now_ms)]
    wrong += [f"{group} is stale and its values were taken" for group, names in DECISION_V1.groups.items()
              if not _fresh(group, times, now_ms) and any(values[name] is not None for name in names)]
    if not wrong and not _equal(values, frames[answer.symbol], times[BARS]):
        wrong.append(f"{BARS} differs from the recording at {times[BARS]}")
    return wrong


def _wrong_of_llm(answer: Answered, row: Mapping[str, Any] | None) -> list[str]:
    """The split itself may give a decision to the LLM; then nothing is degraded."""
    body, wrong = answer.body, []
    if body["acts"]:
        wrong.append("acts without a head")
    if not body["degraded"] and (row is None or row["drawn"]["policy_id"] != LLM_ONLY):
        wrong.append("no head answered and nothing says why")
    action = body["action"]
    if action["direction"] not in ("flat", LLM_VIEW["direction"]):
        wrong.append(f"{action['direction']} is not the LLM's direction")
    wrong += [f"{name} is more than the LLM's" for name in ("size_fraction", "leverage")
              if not action[name] <= LLM_VIEW[name]]
    return wrong


def _fresh(group: str, times: Mapping[str, int], now_ms: int) -> bool:
    return group in times and 0 <= now_ms - times[group] <= GROUPS[group].ttl_ms


def _equal(values: Mapping[str, float | None], frame: GroupFrame, event_ms: int) -> bool:
    place = frame.until(event_ms) - 1
    if place < 0 or int(frame.event_time_ms[place]) != event_ms:
        return False
    given = [math.nan if values[name] is None else values[name] for name in GROUPS[BARS].names]
    return np.array_equal(np.array(given, np.float64), frame.values[place], equal_nan=True)
