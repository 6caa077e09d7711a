"""Step: lint, types, layers and tests, by the targets that everybody uses."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from ci.pipeline.settings import PipelineSettings, variables
from ci.pipeline.step import FAILED, Say, Stopped, command

ROOT = Path(__file__).resolve().parents[2]
CHECK, ALL = "check", "all"
KEPT = {"HUB_HOME", "HUB_DATA_DIR"}  # that `make test` has too
OF_MAKE = {"MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL"}  # carry what an outer make was told


def commands(tests: str) -> list[list[str]]:
    """What is run, in order. tests: see `PipelineSettings`."""
    parts = [part for part in tests.split(",") if part]
    paths = [part for part in parts if part not in (CHECK, ALL)]
    found = [["make", "check"]] if CHECK in parts else []
    if ALL in parts:
        return [*found, ["make", "test"]]
    return [*found, [sys.executable, "-m", "pytest", *paths]] if paths else found


def environment_for_tests(given: Mapping[str, str]) -> dict[str, str]:
    """What the chain was told and what it knows of the running hub is nothing for tests."""
    left_out = (variables() - KEPT) | OF_MAKE
    return {name: value for name, value in given.items() if name not in left_out}


def run(settings: PipelineSettings, say: Say) -> str:
    asked = commands(settings.tests)
    for one in asked:
        say(f"running {' '.join(one)}")
        returned = subprocess.run(one, cwd=ROOT, env=environment_for_tests(os.environ), check=False).returncode
        if returned:
            raise Stopped(FAILED, f"`{' '.join(one)}` ended with {returned}")
    return f"{len(asked)} commands ended well" if asked else "none asked for"


main = command(run, "Run the checks and the tests.")

if __name__ == "__main__":
    main()
