"""Step: every candidate that was made tonight plays later bars, each in a forward test of its own.

    python -m train.nightly.forward_step --home var --made FOLDER --made FOLDER --out FOLDER [--coins ...]

Ends with 0 if one passed, 3 if none did, 1 if none passed and one could not be played. A test that was finished before
an interruption is not played again; one that could not be played is.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from policies.bundle import read_bundle
from policies.errors import BundleRefused
from train.commands import FAILED, NOT_PASSED

PLAYED = (0, NOT_PASSED)
PASSED_ON = ("coins", "market", "data_dir", "seed", "signal", "generated_bars", "min_pf")
PREFIX, EMBEDDER = "candidate_", "embedder.pt"
REPORT = "forward_test_{}"  # below HOME/reports


def candidates_in(folders: Sequence[Path]) -> list[Path]:
    """The packed candidates that finished steps left; of a step that was not done there is no folder."""
    return [path for folder in folders for path in sorted(folder.glob(f"{PREFIX}*.pt"))]


def played(candidate: Path, home: Path, command: Sequence[str], arguments: Sequence[str]) -> dict[str, Any]:
    """The forward test of one candidate: how its command ended, and its report. command: of the forward test."""
    name, began = candidate.stem.removeprefix(PREFIX), time.monotonic()
    report = home / "reports" / f"{REPORT.format(name)}.json"
    report.unlink(missing_ok=True)  # of another night
    beside = candidate.parent / EMBEDDER
    try:
        embedded = read_bundle(candidate).manifest.embedding_version != "none"
    except BundleRefused:
        embedded = False  # the test says what is wrong with it
    ended = subprocess.run([
        *command, "--home", str(home), "--path", str(candidate), "--report", REPORT.format(name), *arguments,
        *(("--embedder", str(beside)) if embedded and beside.exists() else ())],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    print(ended.stdout, flush=True)
    lines = [line for line in ended.stdout.splitlines() if line.strip()]
    return {"name": name, "path": str(candidate), "passed": ended.returncode == 0, "exit_code": ended.returncode,
            "seconds": round(time.monotonic() - began, 1), "said": lines[-1] if lines else "",
            "report": json.loads(report.read_bytes()) if report.exists() else None}


def _finished(kept: Path) -> bool:
    """Whether this result need not be made again: whatever hindered a test may be gone."""
    return kept.exists() and json.loads(kept.read_bytes())["exit_code"] in PLAYED


@click.command()
@click.option("--home", type=click.Path(path_type=Path), required=True)
@click.option("--made", type=click.Path(path_type=Path), multiple=True, required=True, help="Of a finished step.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the results.")
@click.option("--command", default=shlex.join((sys.executable, "-W", "ignore", "-m", "ci.forward_test")),
              help="That plays one candidate.")
@click.option("--coins", default=None)
@click.option("--market", default=None)
@click.option("--data-dir", default=None)
@click.option("--seed", default=None)
@click.option("--signal", default=None)
@click.option("--generated-bars", default=None)
@click.option("--min-pf", default=None)
def main(home: Path, made: tuple[Path, ...], out: Path, command: str, **passed_on: str | None) -> None:
    """Play every candidate of tonight."""
    arguments = [part for name in PASSED_ON if (value := passed_on[name]) is not None
                 for part in (f"--{name.replace('_', '-')}", value)]
    results = []
    for candidate in candidates_in(made):
        kept = out / f"forward_{candidate.stem.removeprefix(PREFIX)}.json"
        if not _finished(kept):
            found = played(candidate, home, shlex.split(command), arguments)
            beside = kept.with_suffix(".new")
            beside.write_text(json.dumps(found))
            os.replace(beside, kept)
        results.append(json.loads(kept.read_bytes()))
    broken = [found["name"] for found in results if found["exit_code"] not in PLAYED]
    passed = [found["name"] for found in results if found["passed"]]
    click.echo(f"{len(passed)} of {len(results)} candidates passed"
               + (f": {', '.join(passed)}" if passed else "")
               + (f"; could not be played: {', '.join(broken)}" if broken else ""))
    sys.exit(0 if passed else FAILED if broken or not results else NOT_PASSED)


if __name__ == "__main__":
    main()
