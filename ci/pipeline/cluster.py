"""Step: a Ray cluster for the job, which the steps after it join, and which ends with the job.

    python -m ci.pipeline.cluster start      (for steps that are processes of their own; ends by itself after two hours)
    python -m ci.pipeline.cluster stop

Where RAY_ADDRESS names a cluster, that one is used and nothing is started. One of ours has a token and certificates of
its own, made anew; HOME/ci/cluster.json tells the later steps where it is and how to be let in.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import psutil

from ci.pipeline.held import held, started, until_let_go, when_ready
from ci.pipeline.step import notes_folder
from policies.errors import HubError
from train.leftovers import end_marked

MODULE, NOTE = "ci.pipeline.cluster", "cluster.json"
ADDRESS, MARK = "RAY_ADDRESS", "CI_CLUSTER_OF"  # every process of our cluster carries the mark
STOP_S = 3.0  # in which processes that are asked to end may do so; then they are killed
KEYS = ("RAY_USE_TLS", "RAY_TLS_", "RAY_AUTH_")  # beginnings of the variables that let somebody in
END_OF_JOB_S = 7_200.0  # for a cluster that nobody stops


@contextmanager
def cluster(home: Path) -> Iterator[str]:
    """A cluster for the length of the block; yields a sentence about it."""
    if outside := os.environ.get(ADDRESS):
        yield f"joined {outside}"
        return
    end_marked(MARK, str(home))
    try:
        with held(MODULE, ["hold", "--home", str(home)], _ready(home), _log(home), _marks(home)) as note:
            yield _said(note)
    finally:
        end_marked(MARK, str(home))


def environment_of(home: Path) -> dict[str, str]:
    """What a process must have in its environment to join the job's cluster; empty if there is none of ours."""
    note = _running(home)
    return {} if note is None or os.environ.get(ADDRESS) else {**note["environment"], ADDRESS: note["address"]}


def start(home: Path) -> str:
    """Start one that outlives this process; a second one is not started."""
    if outside := os.environ.get(ADDRESS):
        return f"joined {outside}"
    if note := _running(home):
        return _said(note)
    end_marked(MARK, str(home))
    process = started(MODULE, ["hold", "--home", str(home), "--seconds", str(END_OF_JOB_S)], _ready(home), _log(home),
                      subprocess.DEVNULL, _marks(home))
    return _said(when_ready(process, _ready(home), _log(home)))


def stop(home: Path) -> str:
    """End whatever is left of the one that `start` has started, also of one that somebody has killed."""
    count = end_marked(MARK, str(home), STOP_S)
    _ready(home).unlink(missing_ok=True)
    return f"ended {count} processes" if count else "none of ours was running"


def hold(home: Path, seconds: float | None) -> None:
    """Be the process whose cluster it is. Most of Ray's own end with it, however it ends; `stop` sees to the rest."""
    before = dict(os.environ)
    from train.cluster import ray_cluster

    with ray_cluster() as cores:
        import ray

        mine = psutil.Process()
        changed = {name: value for name, value in os.environ.items()
                   if name.startswith(KEYS) and before.get(name) != value}
        until_let_go(_ready(home), {
            "pid": mine.pid, "created": mine.create_time(), "cores": cores, "environment": changed,
            "address": ray.get_runtime_context().gcs_address}, seconds)


def _running(home: Path) -> dict[str, Any] | None:
    """The note of a cluster whose holder is alive."""
    try:
        note: dict[str, Any] = json.loads(_ready(home).read_bytes())
        alive = psutil.Process(note["pid"]).create_time() == note["created"]
    except (FileNotFoundError, psutil.Error):
        return None
    return note if alive else None


def _marks(home: Path) -> dict[str, str]:
    # Processes that name themselves write over their environment, and the mark with it, unless told not to.
    return {MARK: str(home), "SPT_NOENV": "1"}


def _ready(home: Path) -> Path:
    return notes_folder(home) / NOTE


def _log(home: Path) -> Path:
    return home / "logs" / "ci_cluster.log"


def _said(note: dict[str, Any]) -> str:
    return f"{note['cores']} cores at {note['address']}"


@click.group(help="A Ray cluster for the job.")
def main() -> None:
    pass


def _subcommand(name: str, text: str) -> None:
    @main.command(name, help=text)
    @click.option("--home", type=click.Path(path_type=Path), envvar="HUB_HOME", default=Path("var"), show_default=True)
    def do(home: Path) -> None:
        try:
            click.echo({"start": start, "stop": stop}[name](home.resolve()))
        except HubError as error:
            raise click.ClickException(str(error)) from error


_subcommand("start", "Start one, unless RAY_ADDRESS names one.")
_subcommand("stop", "End the one that was started here.")


@main.command("hold", hidden=True)
@click.option("--home", type=click.Path(path_type=Path), required=True)
@click.option("--seconds", type=float, default=None)
def _hold(home: Path, seconds: float | None) -> None:
    hold(home, seconds)


if __name__ == "__main__":
    sys.exit(main())
