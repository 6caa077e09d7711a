"""The benchmarks by name, and running them one after the other: one that fails costs its own rows and no others'."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ci.bench.decision import Extent
from ci.bench.machine import busy_percent
from reports.report import BenchRow

BUSY_WINDOW_S = 1.0

Say = Callable[[str], None]
Bench = Callable[[Say], list[BenchRow]]


@dataclass(frozen=True)
class Ran:
    """What became of one benchmark. failed: in words, empty if it has its rows. busy_percent: just before it began."""

    name: str
    rows: list[BenchRow]
    failed: str
    wall_s: float
    busy_percent: float


def benches(extent: Extent) -> dict[str, Bench]:
    """By name, in the order in which they run. What one measures is imported when it runs: Feast takes seconds."""

    def decision(say: Say) -> list[BenchRow]:
        from ci.bench import decision

        return decision.run(say, extent)

    def join(say: Say) -> list[BenchRow]:
        from ci.bench import point_in_time

        return point_in_time.run(say)

    def online(say: Say) -> list[BenchRow]:
        from ci.bench import online

        return online.run(say)

    def backtest(say: Say) -> list[BenchRow]:
        from ci.bench import backtest

        return backtest.run(say)

    def environment(say: Say) -> list[BenchRow]:
        from ci.bench import environment

        return environment.run(say)

    def sampling(say: Say) -> list[BenchRow]:
        from ci.bench import sampling

        return sampling.run(say)

    return {"decision": decision, "join": join, "online": online, "backtest": backtest, "environment": environment,
            "sampling": sampling}


def run_each(chosen: Mapping[str, Bench], say: Say) -> list[Ran]:
    """One at a time, since each wants the machine for itself. An interrupt ends them all."""
    ran = []
    for name, bench in chosen.items():
        busy, started = busy_percent(BUSY_WINDOW_S), time.monotonic()
        rows, failed = [], ""
        try:
            rows = bench(lambda text, name=name: say(f"{name}: {text}"))  # type: ignore[misc]
        except Exception as error:  # whatever it is, the others can still be measured
            failed = f"{type(error).__name__}: {error}"
            say(f"{name} FAILED: {failed}\n{traceback.format_exc()}")
        ran.append(Ran(name, rows, failed, round(time.monotonic() - started, 1), busy))
    return ran
