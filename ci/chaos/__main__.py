"""`python -m ci.chaos`: break the feature store of a running hub, one fault after the other, and check every answer.

Prints one table, writes HUB_HOME/reports/chaos.json and the page beside it, and exits with 1 if an aim is missed. At
the end the deadline of reads is switched off, to show that the check notices; `--without deadline` does only that.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import click
from rich.console import Console

from ci.chaos.faults import FAULTS
from ci.chaos.report import guard_row, rows, table, write
from ci.chaos.run import run
from hub.config import home_of
from hub.home import Home
from policies.errors import HubError

GUARDS = {"deadline": ("frozen", {"HUB_FEATURES__DEADLINE_MS": "10000"})}


@click.command()
@click.option("--faults", default=",".join(FAULTS), show_default=True, help="Separated by commas.")
@click.option("--without", type=click.Choice(sorted(GUARDS)), default=None,
              help="Switch this guard off and show that the check fails.")
@click.option("--guards/--no-guards", default=True, show_default=True,
              help="Whether to switch the guards off at the end, one by one.")
def main(faults: str, without: str | None, guards: bool) -> None:
    """Break the feature store of a running hub and check every answer."""
    names = tuple(faults.split(","))
    unknown = [name for name in names if name not in FAULTS]
    if unknown:
        raise click.BadParameter(f"{', '.join(unknown)}; there are {', '.join(FAULTS)}", param_hint="--faults")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        met = _chaos(home_of(), names if without is None else (), [without] if without else sorted(GUARDS) if guards
                     else [])
    except HubError as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        click.echo("interrupted; what had been started is ended")
        sys.exit(130)
    sys.exit(0 if met else 1)


def _chaos(root: Path, names: tuple[str, ...], guards: list[str]) -> bool:
    started = time.monotonic()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 170)

    def say(text: str) -> None:
        console.print(f"[{time.monotonic() - started:6.1f} s] {text}", markup=False)

    home = Home(root / "chaos")
    found, answers = run(home, names, {}, say) if names else ([], [])
    shown = rows(found)
    for guard in guards:
        fault, settings = GUARDS[guard]
        say(f"without the guard `{guard}` ({', '.join(f'{k}={v}' for k, v in settings.items())}): the check must fail")
        unguarded, more = run(Home(root / "chaos_without"), (fault,), settings, say)
        unguarded = [replace(one, title=f"{one.title}, without {guard}") for one in unguarded]
        shown.append(guard_row(unguarded[0]))
        found, answers = [*found, *unguarded], answers or more
    console.print(table(found))
    page = write(root / "reports", found, shown, answers, time.monotonic() - started)
    for row in shown:
        figure = "-" if row.figure is None or math.isnan(row.figure) else f"{row.figure:.4g} {row.unit}"
        say(f"{'met   ' if row.met else 'MISSED'} {row.work}: {figure} (aim {row.aim})")
    for one in found:
        for text in one.unsafe[:5]:
            say(f"unsafe, {one.title}: {text}")
    say(f"report: {page}; load average {os.getloadavg()[0]:.1f}")
    return all(row.met for row in shown)


if __name__ == "__main__":
    main()
