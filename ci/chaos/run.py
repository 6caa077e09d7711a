"""One run: a hub, the load on it, and the faults one after the other, each with calm before and after."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import psutil

from ci.chaos.faults import FAULTS, HELD_REQUESTS, Rebuild, Spell, Stage
from ci.chaos.judge import judged
from ci.chaos.load import Answered, Load
from ci.chaos.recording import SYMBOLS, Recording, write_recording
from ci.chaos.target import ChaosHub, heads, until
from feature_repo.store import FeatureRepo
from hub import engine
from hub.home import Home
from sentry.ledger import LedgerReader

CALM_REQUESTS = 60
IN_A_ROW = 12  # answers by heads, after which a fault counts as over
QUIET_PERCENT, QUIET_S = 35.0, 25.0

Say = Callable[[str], None]


@dataclass(frozen=True)
class Finding:
    """What one fault did. p50_ms, p99_ms, max_ms: of the requests sent from its begin until heads decided again, and
    of at least four seconds.

    quiet_p99_ms: of those before it. head_again_s: from the end of the fault to the first answer by a head after the
    last one without; 0 if there was none without. certain: answers whose role was known from outside.
    """

    name: str
    title: str
    requests: int
    failed: int
    failures: tuple[str, ...]
    p50_ms: float
    p99_ms: float
    max_ms: float
    quiet_p99_ms: float
    by_head: int
    safe_share: float
    certain: int
    unsafe: tuple[str, ...]
    named: dict[str, int]
    head_again_s: float
    rebuild: Rebuild | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def run(home: Home, names: Sequence[str], more: Mapping[str, str], say: Say) -> tuple[list[Finding], list[Answered]]:
    """more: HUB_ settings of this run. Leaves the home with its ledger and logs; every process is gone."""
    _empty(home)
    recording = write_recording(home.root / "recorded")
    say("starting a hub on recorded bars that have a hole")
    with ChaosHub(home, recording.folder, more) as hub:
        for bundle in heads():
            hub.register(bundle)
        repo = FeatureRepo(home.root, hub.redis_url, "hyperliquid", timeout_s=1.0)
        repo.training_frame(SYMBOLS, [hub.now_ms()])  # loads what it needs now, not while latencies are taken
        until(_quiet(), "the machine to be quiet", 2 * QUIET_S)
        load = Load(hub.url, hub.tokens["bot"], SYMBOLS, hub.now_ms())
        load.start()
        stage = Stage(hub, load, recording, repo)
        try:
            stage.answer(CALM_REQUESTS)
            spells = [_suffered(stage, name, say) for name in names]
        finally:
            load.stop()
        answers = list(load.answers)
    return _findings(home, recording, names, spells, answers), answers


@dataclass(frozen=True)
class _Suffered:
    """calm_s: when the load was alone, before the fault. over_s: when heads decided again."""

    calm_s: float
    spell: Spell
    over_s: float


def _suffered(stage: Stage, name: str, say: Say) -> _Suffered:
    title, fault = FAULTS[name]
    stage.push_scores()
    calm_s = time.monotonic()
    stage.answer(CALM_REQUESTS)
    say(f"{title}: {fault.__doc__.splitlines()[0]}" if fault.__doc__ else title)
    spell = fault(stage)
    mended_s, seen = time.monotonic(), len(stage.load.answers)

    def heads_decide() -> bool:
        last = [one for one in stage.load.answers[seen:] if one.sent_s >= mended_s][-IN_A_ROW:]
        return len(last) == IN_A_ROW and all(one.by_head for one in last)

    until(heads_decide, "heads to decide again", 90.0)
    until(lambda: sum(one.sent_s >= spell.begin_s for one in stage.load.answers) >= HELD_REQUESTS, "answers")
    over_s = time.monotonic()
    stage.answer(CALM_REQUESTS)
    return _Suffered(calm_s, spell, over_s)


def _findings(home: Home, recording: Recording, names: Sequence[str], suffered: Sequence[_Suffered],
              answers: Sequence[Answered]) -> list[Finding]:
    reader = LedgerReader(home.ledger)
    rows = {row.key: row.body for row in reader.rows(kinds={"decision"})}
    reader.close()
    return [_finding(name, one, answers, rows, recording) for name, one in zip(names, suffered, strict=True)]


def _finding(name: str, one: _Suffered, answers: Sequence[Answered], rows: Mapping[str, dict[str, Any]],
             recording: Recording) -> Finding:
    spell = one.spell
    whole = [a for a in answers if one.calm_s <= a.sent_s]
    quiet = [a for a in whole if a.sent_s < spell.begin_s and a.done_s <= spell.begin_s]
    during = [a for a in whole if spell.begin_s <= a.sent_s <= one.over_s]
    checked = judged(quiet + during, spell.expected, rows, recording.frames)
    latencies = [a.latency_ms for a in during]
    failed = [a for a in during if a.status != 200]
    return Finding(
        name, FAULTS[name][0], len(during), len(failed), tuple(sorted({a.error for a in failed})[:5]),
        _percentile(latencies, 50), _percentile(latencies, 99), max(latencies),
        _percentile([a.latency_ms for a in quiet], 99), sum(a.by_head for a in during),
        checked.safe_share, checked.certain, tuple(checked.unsafe),
        dict(Counter(part for a in during for part in set(a.parts))), head_again_s(spell, during), spell.rebuild)


def head_again_s(spell: Spell, during: Sequence[Answered]) -> float:
    """Seconds from the end of the fault to the first answer by a head, sent after it and after the last without one.

    0 if every answer was by a head.
    """
    without = [a.sent_s for a in during if a.status == 200 and not a.by_head]
    if not without:
        return 0.0
    since_s = max(spell.end_s, max(without))
    return min((a.done_s for a in during if a.by_head and a.sent_s >= since_s), default=np.nan) - spell.end_s


def _percentile(latencies_ms: Sequence[float], percent: int) -> float:
    return float(np.percentile(latencies_ms, percent)) if latencies_ms else np.nan


def _empty(home: Home) -> None:
    """The home of the last run, and what a run that was killed has left running on it."""
    if home.root.exists():
        home.create()
        home.lock().close()  # refused while another run is under way
        engine.end_leftovers(home)
        shutil.rmtree(home.root)
    home.create()


def _quiet() -> Callable[[], bool]:
    """Until what a hub does after its start is over; not for ever, as others may use the machine."""
    deadline_s = time.monotonic() + QUIET_S
    return lambda: psutil.cpu_percent(1.0) < QUIET_PERCENT or time.monotonic() > deadline_s
