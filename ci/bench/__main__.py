"""`python -m ci.bench`: measure, print one table, write HUB_HOME/reports/bench.json and the page beside it.

With `--only` the report is bench_NAME.json, so that a part never takes the place of the whole. Ends with 1 if
something could not be measured; an aim that was missed is a finding, not a failure.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from ci.bench.decision import Extent
from ci.bench.machine import machine, versions
from ci.bench.rows import Bench, Ran, Say, benches, run_each
from hub.home import Home
from reports.report import rows_table, write_report

BUSY_PERCENT = 25.0  # from here on the figures are those of a shared machine


def main(arguments: Sequence[str] | None = None, offered: Mapping[str, Bench] | None = None) -> int:
    """The exit code. offered: what can be measured, by name; by default everything there is."""
    started = time.monotonic()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 170)

    def say(text: str) -> None:
        console.print(f"[{time.monotonic() - started:6.1f} s] {text}", markup=False)

    names = list(offered or benches(Extent()))
    options = _options(names, arguments)
    offered = offered or benches(Extent(options.episodes, options.rounds, options.seconds))
    only = [name for name in names if name in (options.only or names)]
    home = Home(Path(os.environ.get("HUB_HOME") or "var").resolve())
    home.create()
    ran = run_each({name: offered[name] for name in only}, say)
    rows = [row for one in ran for row in one.rows]
    content = {"machine": machine(), "versions": versions(), "wall_s": round(time.monotonic() - started, 1),
               "benches": [{"name": one.name, "failed": one.failed, "wall_s": one.wall_s,
                            "busy_percent_before": one.busy_percent} for one in ran]}
    name = "bench" if only == names else "_".join(["bench", *only])
    page = write_report(home.reports, name, content, rows=rows)
    if rows:
        console.print(rows_table(rows))
    say(f"report: {page}")
    _warn(ran, say)
    return 1 if any(one.failed for one in ran) else 0


def _warn(ran: Sequence[Ran], say: Say) -> None:
    for one in ran:
        if one.failed:
            say(f"{one.name} was not measured: {one.failed}")
        if one.busy_percent > BUSY_PERCENT:
            say(f"the machine was busy with other work ({one.busy_percent:.0f} %) before {one.name}: do not trust it")


def _options(names: Sequence[str], arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=names, help="instead of all of them")
    parser.add_argument("--episodes", type=int, default=Extent.episodes, help="that the hub remembers")
    parser.add_argument("--rounds", type=int, default=Extent.rounds, help="of decision: each loads every engine twice")
    parser.add_argument("--seconds", type=float, default=Extent.seconds, help="of one load of decision")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
