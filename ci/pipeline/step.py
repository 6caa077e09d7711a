"""What all steps share: how they end, how they wait for what is away, and the notes by which they follow each other."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ci.pipeline.settings import PipelineSettings, setting_options
from policies.errors import HubError

FAILED, NOT_PASSED, REFUSED, AWAY, INTERRUPTED = 1, 3, 4, 6, 130
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 20.0

Say = Callable[[str], None]
Run = Callable[[PipelineSettings, Say], str]  # returns what was done, in a sentence

Found = TypeVar("Found")


class Stopped(HubError):
    """A step did not reach its aim; the chain ends here. code: of the exit."""

    code = "stopped"

    def __init__(self, exit_code: int, reason: str) -> None:
        self.exit_code = exit_code
        super().__init__(reason)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.exit_code, str(self))


class Away(HubError):
    """Somebody cannot be reached, or says to come again: nothing was judged, and trying again is right."""

    code = "away"


def notes_folder(home: Path) -> Path:
    return home / "ci"


def leave_note(home: Path, name: str, content: Any) -> Path:
    """HOME/ci/NAME.json, whole or not at all, readable by its owner only."""
    path = notes_folder(home) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_whole(path, json.dumps(content, indent=1).encode())
    return path


def read_note(home: Path, name: str, made_by: str) -> Any:
    """Stopped if there is none, with the step that leaves it."""
    try:
        return json.loads((notes_folder(home) / f"{name}.json").read_bytes())
    except FileNotFoundError:
        raise Stopped(FAILED, f"no {name}.json in {notes_folder(home)}: `python -m ci.pipeline.{made_by}` comes "
                              f"before") from None


def write_whole(path: Path, content: bytes) -> None:
    """A reader sees the old file or the new one; it is on disk on return."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.new")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def again(work: Callable[[], Found], patience_s: float, say: Say, clock: Callable[[], float] = time.monotonic,
          sleep: Callable[[float], None] = time.sleep) -> Found:
    """What the work returns, tried until it is not Away any more or patience_s have passed; then Away."""
    until_s, pause_s = clock() + patience_s, FIRST_PAUSE_S
    while True:
        try:
            return work()
        except Away as error:
            left_s = until_s - clock()
            if left_s <= 0:
                raise
            say(f"{error}; trying again")
            sleep(min(pause_s, left_s))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def ended(run: Run, settings: PipelineSettings, say: Say) -> tuple[int, str]:
    """The exit code of a step and its sentence."""
    try:
        return 0, run(settings, say)
    except Stopped as error:
        return error.exit_code, str(error)
    except Away as error:
        return AWAY, str(error)
    except KeyboardInterrupt:
        return INTERRUPTED, "interrupted"
    except HubError as error:
        return FAILED, str(error)


def command(run: Run, text: str) -> click.Command:
    """The command line of one step."""

    @click.command(help=text)
    @setting_options
    def main(settings: PipelineSettings) -> None:
        code, said = ended(run, settings, click.echo)
        click.echo(said, err=code != 0)
        sys.exit(code)

    return main
