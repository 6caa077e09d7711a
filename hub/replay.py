"""Makes every decision of a ledger again, from the ledger and the bundles alone, and compares field by field.

A decision is recomputed from the state at its own `as_of`, with the features, failures and latencies that it recorded:
those only the moment knew. Everything else, the heads' proposals included, must come out equal. How fast a head answers
here is not asked, so a busy machine finds what an idle one finds. Verdicts and epochs are recomputed too, and an
outcome must agree with its own prices and with the episode that was made of it: the fold after the last outcome has
nothing recorded to be compared with.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from hub import decide
from hub.decide import Answer, Features
from hub.head_rack import HeadRack
from hub.state import HubState
from policies.errors import InvalidInput
from policies.registry import PolicyFolder
from policies.rows import Row
from policies.types import Outcome
from sentry.ledger import EpisodeRecord, LedgerReader
from sentry.outcome_checks import require_pnl

PROGRESS_EVERY = 2_000
EPISODES_PER_PAGE = 1_000


@dataclass(frozen=True)
class Difference:
    position: int
    key: str
    path: str
    recorded: Any
    recomputed: Any

    def __str__(self) -> str:
        return f"{self.key} at {self.position}: {self.path}: recorded {self.recorded!r}, recomputed {self.recomputed!r}"


@dataclass
class ReplayReport:
    """What was compared and what differed. `unequal` counts rows, `differences` fields."""

    rows: int = 0
    decisions: int = 0
    proposals: int = 0
    consequences: int = 0
    outcomes: int = 0
    unequal: int = 0
    differences: list[Difference] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        return not self.differences

    def summary(self) -> str:
        what = (f"{self.decisions} decisions with {self.proposals} head proposals, {self.consequences} verdicts and "
                f"epochs, {self.outcomes} outcomes, {self.rows} rows")
        if self.equal:
            return f"all equal: {what}"
        return f"DIFFERENT: {self.unequal} rows differ in {len(self.differences)} fields, of {what}"

    def lines(self, limit: int) -> Iterator[str]:
        yield from map(str, self.differences[:limit])
        if len(self.differences) > limit:
            yield f"... and {len(self.differences) - limit} more"

    def compare(self, row: Row, path: str, recorded: Any, recomputed: Any) -> None:
        found = [Difference(row.position, row.key, *parts) for parts in _differences(path, recorded, recomputed)]
        self.differences += found
        self.unequal += bool(found)

    def add(self, found: Difference) -> None:
        self.differences.append(found)
        self.unequal += 1


def replay_ledger(ledger: Path, policies: Path, progress: Callable[[int, int], None] | None = None) -> ReplayReport:
    """Replay the ledger at `ledger` with the bundles under `policies`."""
    reader, rack, state, report = LedgerReader(ledger), HeadRack(PolicyFolder(policies)), HubState(), ReplayReport()
    decided_at: dict[int, list[int]] = defaultdict(list)
    episodes: dict[str, tuple[int, bytes]] = {}
    for row in reader.rows():
        if row.kind == "decision":
            decided_at[row.body["as_of"]].append(row.position)
    total = reader.head()
    for row in reader.rows():
        _check_row(report, state, row)
        state.apply(row)
        if row.kind == "outcome" and (episode := state.episode(row)) is not None:
            episodes[episode.id] = (row.position, _digest(episode))
        for position in decided_at.pop(row.position, ()):
            decision = next(reader.rows(after=position - 1, limit=1))
            report.compare(decision, "", decision.body, _decided_again(report, state, rack, decision))
            report.decisions += 1
        report.rows += 1
        if progress and (report.rows % PROGRESS_EVERY == 0 or report.rows == total):
            progress(report.rows, total)
    for as_of, positions in decided_at.items():
        for position in positions:
            decision = next(reader.rows(after=position - 1, limit=1))
            report.compare(decision, "as_of", as_of, f"a position of this ledger, 1 to {total}")
    _check_episodes(report, reader, episodes)
    return report


def _decided_again(report: ReplayReport, state: HubState, rack: HeadRack, decision: Row) -> dict[str, Any]:
    body = decision.body
    features = Features.from_dict(body["features"], body["features_failed"])
    chosen = decide.plan(state, body["request"], features)
    answers = {}
    for policy_id in chosen.ask:
        recorded = body["proposals"].get(policy_id, {"latency_ms": None, "failed": "not recorded"})
        if "failed" in recorded:
            answers[policy_id] = Answer(None, recorded["latency_ms"], recorded["failed"])
            continue
        rack.load_new([policy_id])
        proposal, _, failed = rack.propose([policy_id], decide.context_of(body["request"], features))[policy_id]
        answers[policy_id] = Answer(proposal, recorded["latency_ms"], failed)
        report.proposals += 1
    again = decide.conclude(state, chosen, body["request"], body["request_hash"], features, answers)
    return dict(orjson.loads(orjson.dumps(again)))


def _check_row(report: ReplayReport, state: HubState, row: Row) -> None:
    """A verdict or an epoch must be what the state calls for; an outcome must agree with itself."""
    called_for = state.consequences(row.at_ms) if state.position else []
    if row.kind == "epoch" and not called_for:
        called_for = state.expire_epoch(row.at_ms, row.body["reason"])
    if called_for and row.body.get("actor", "sentry") == "sentry":
        report.consequences += 1
        report.compare(row, "kind", row.kind, called_for[0].kind)
        if row.kind == called_for[0].kind:
            report.compare(row, "", row.body, orjson.loads(orjson.dumps(called_for[0].body)))
    elif row.kind == "verdict" and row.body["actor"] == "sentry":
        report.compare(row, "kind", row.kind, "no verdict")
    elif row.kind == "outcome":
        report.outcomes += 1
        _check_outcome(report, row)


def _check_outcome(report: ReplayReport, row: Row) -> None:
    """By the writer's own rule."""
    try:
        require_pnl(Outcome.from_dict(row.body["outcome"]), row.body["trade"])
    except InvalidInput as error:
        report.compare(row, f"outcome.{error.field}", row.body["outcome"][error.field], error.legal)


def _check_episodes(report: ReplayReport, reader: LedgerReader, made: dict[str, tuple[int, bytes]]) -> None:
    """The episode tables hold just what the outcomes make. made: by id, the position of the outcome and a digest."""
    after = (-1, "")
    while page := reader.episodes(EPISODES_PER_PAGE, after):
        for episode in page:
            position, digest = made.pop(episode.id, (0, b""))
            if digest != _digest(episode):
                report.add(Difference(position, episode.id, "episode", episode.outcome, "what its outcome makes"))
        after = (page[-1].timestamp_ms, page[-1].id)
    for episode_id, (position, _) in made.items():
        report.add(Difference(position, episode_id, "episode", "absent", "what its outcome makes"))


def _digest(episode: EpisodeRecord) -> bytes:
    """Of all columns, so that a replay need not hold the episodes themselves."""
    told = orjson.dumps({**asdict(episode), "vector": episode.vector.hex()}, option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(told).digest()


def _differences(path: str, recorded: Any, recomputed: Any) -> Iterator[tuple[str, Any, Any]]:
    """(path, recorded, recomputed) of every leaf that differs."""
    if isinstance(recorded, dict) and isinstance(recomputed, dict):
        for name in sorted(recorded.keys() | recomputed.keys()):
            inner = f"{path}.{name}" if path else name
            yield from _differences(inner, recorded.get(name, "absent"), recomputed.get(name, "absent"))
    elif isinstance(recorded, list) and isinstance(recomputed, list) and len(recorded) == len(recomputed):
        for place, pair in enumerate(zip(recorded, recomputed, strict=True)):
            yield from _differences(f"{path}[{place}]", *pair)
    elif recorded != recomputed:
        yield path, recorded, recomputed
