"""What a run found: rows against their aims, one table, and the page with the latencies over time."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.table import Table

from ci.chaos.faults import OF_REDIS
from ci.chaos.load import RATE, REQUESTS_A_MINUTE, Answered
from ci.chaos.run import Finding
from reports.report import BenchRow, Plot, write_report

MOST_P99_MS, MOST_REBUILD_S = 100.0, 60.0
MOST_P99_KILLED_MS = 400.0  # the first moment without a feeder waits as long as decisions are patient with it: 250 ms
OF_THE_FEEDER = ("feeder", "torn")
OF_REBUILDS = ("killed", "flushed", "torn")


def rows(found: Sequence[Finding]) -> list[BenchRow]:
    """Of each group of faults the worst p99, the answers that were not safe or not 2xx, and the longest rebuild."""
    of_redis = [one for one in found if one.name in OF_REDIS]
    of_the_feeder = [one for one in found if one.name in OF_THE_FEEDER]
    of_feeds = [one for one in found if one.name not in (*OF_REDIS, *OF_THE_FEEDER)]
    rebuilt = [one for one in found if one.name in OF_REBUILDS]
    made = []
    for work, part, most_ms in (("Redis frozen, killed, flushed, slow, full", of_redis, MOST_P99_MS),
                                ("A feed stops", of_feeds, MOST_P99_MS),
                                ("The feeder is killed", of_the_feeder, MOST_P99_KILLED_MS)):
        if part:
            made += [_row(f"{work}: slowest p99", _worst([one.p99_ms for one in part]), "ms", most_ms),
                     _none_row(f"{work}: unsafe answers", sum(len(one.unsafe) for one in part)),
                     _none_row(f"{work}: answers that are no 2xx", sum(one.failed for one in part))]
    if rebuilt:
        seconds = _worst([one.rebuild.seconds if one.rebuild else math.inf for one in rebuilt])
        work = "Redis killed, flushed, the feeder killed meanwhile"
        made.append(_row(f"{work}: rebuilt", seconds, "s", MOST_REBUILD_S))
        lost = sum(one.rebuild.of - one.rebuild.rows + (not one.rebuild.equal) for one in rebuilt if one.rebuild)
        made.append(_none_row(f"{work}: rows not back, or stores that differ", lost))
    return made


def guard_row(found: Finding) -> BenchRow:
    """The same check without a guard: met if it fails, since a check that cannot fail shows nothing."""
    return BenchRow(work=f"{found.title}: p99, by which the check notices", figure=found.p99_ms,
                    unit="ms", peer="", peer_figure=None, floor_figure=None, ratio_to_peer=None, ratio_to_floor=None,
                    aim=f">= {MOST_P99_MS:g}", met=found.p99_ms >= MOST_P99_MS)


def table(found: Sequence[Finding]) -> Table:
    shown = Table("fault", "requests", "no 2xx", "p50 ms", "p99 ms", "max ms", "quiet p99", "by a head", "safe",
                  "known for certain", "a head again", "rebuilt", "named", box=box.SIMPLE)
    for one in found:
        shown.add_row(one.title, str(one.requests), str(one.failed), f"{one.p50_ms:.1f}", f"{one.p99_ms:.1f}",
                      f"{one.max_ms:.0f}", f"{one.quiet_p99_ms:.1f}", f"{one.by_head / max(1, one.requests):.0%}",
                      f"{one.safe_share:.2%}", str(one.certain), f"{one.head_again_s:.2f} s", _rebuilt(one),
                      "\n".join(f"{part} {count}" for part, count in sorted(one.named.items())))
    return shown


def write(folder: Path, found: Sequence[Finding], made: Sequence[BenchRow], answers: Sequence[Answered],
          wall_s: float) -> Path:
    first_s = answers[0].sent_s if answers else 0.0
    over_time = Plot("Latency of every request", "s", "ms", {
        "latency": sorted((one.sent_s - first_s, one.latency_ms) for one in answers)})
    content = {"faults": [one.to_dict() for one in found], "requests_per_second": RATE,
               "requests_a_minute_of_the_clock": REQUESTS_A_MINUTE, "wall_s": round(wall_s, 1),
               "load_average_of_the_last_minute": os.getloadavg()[0]}
    return write_report(folder, "chaos", content, [over_time], made)


def _worst(figures: Sequence[float]) -> float:
    """NaN if one of them is none, so that it misses every aim."""
    return math.nan if any(map(math.isnan, figures)) else max(figures)


def _row(work: str, figure: float, unit: str, most: float) -> BenchRow:
    return BenchRow(work=work, figure=figure, unit=unit, peer="", peer_figure=None, floor_figure=None,
                    ratio_to_peer=None, ratio_to_floor=None, aim=f"< {most:g}", met=figure < most)


def _none_row(work: str, count: int) -> BenchRow:
    return BenchRow(work=work, figure=float(count), unit="", peer="", peer_figure=None, floor_figure=None,
                    ratio_to_peer=None, ratio_to_floor=None, aim="0", met=count == 0)


def _rebuilt(one: Finding) -> str:
    if one.rebuild is None:
        return "-"
    made = one.rebuild
    said = "" if math.isnan(made.said_s) else f" (offline {made.said_s:.2f})"
    return (f"{made.seconds:.2f} s{said}\n{made.rows} of {made.of} rows, "
            f"{'equal' if made.equal else 'NOT EQUAL'}")
