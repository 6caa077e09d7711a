"""`python -m ci.bench`: measure, print one table, write HUB_HOME/reports/bench.json and the page beside it."""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

from rich.console import Console

from ci.bench import decision
from ci.bench.report import machine, table, versions, write
from hub.home import Home

BUSY_PERCENT = 25.0  # from here on the figures are those of a shared machine


def main() -> None:
    started = time.monotonic()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)

    def say(text: str) -> None:
        console.print(f"[{time.monotonic() - started:6.1f} s] {text}", markup=False)

    options = _options()
    home = Home(Path(os.environ.get("HUB_HOME") or "var").resolve())
    home.create()
    extent = decision.Extent(options.episodes, options.rounds, options.seconds)
    measured = decision.run(extent, say)
    found = decision.findings(measured)
    busy = statistics.median(measured.busy_percent)
    more = {"machine": machine(), "versions": versions(), "episodes": extent.episodes, "heads": 2, "features": 40,
            "seconds_a_run": extent.seconds, "degraded_share": measured.partial_share(),
            "busy_percent_before_a_load": {"median": busy, "max": max(measured.busy_percent)},
            "wall_s": round(time.monotonic() - started, 1)}
    page = write(home.reports, "bench", found, more)
    console.print(table(found))
    say(f"degraded answers: {measured.partial_share():.2%}; report: {page}")
    if busy > BUSY_PERCENT:
        say(f"the machine was busy with other work ({busy:.0f} % before a load): do not trust these figures")


def _options() -> argparse.Namespace:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--episodes", type=int, default=decision.Extent.episodes)
    arguments.add_argument("--rounds", type=int, default=decision.Extent.rounds, help="each loads every engine twice")
    arguments.add_argument("--seconds", type=float, default=decision.Extent.seconds, help="of one load")
    return arguments.parse_args()


if __name__ == "__main__":
    main()
