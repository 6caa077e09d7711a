"""Where jobs are submitted to: the Ray that RAY_ADDRESS names, or one of this machine that ends with its starter.

Ray's Jobs API is part of the dashboard, so one of this machine has a dashboard: on loopback, a free port, behind the
token of this cluster. It stands beside a running hub's Ray without touching it: no port is a fixed one.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from policies.errors import HubError
from policies.free_ports import free_port
from train.cluster import keys_in
from train.cluster_keeper import MARK

OUTSIDE = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")  # in the order in which Ray's own client looks at them
READY_S, ATTEMPTS, LOOK_EVERY_S, END_S = 120.0, 3, 0.2, 30.0
OBJECT_STORE_BYTES = 512 * 2**20
ADDRESS_FILE = "ray_current_cluster"  # where `ray start` writes where its head listens


class RayDidNotStart(HubError):
    """No Ray of this machine could be started; its own words follow."""

    code = "ray_did_not_start"


def outside_cluster() -> str:
    """Where an environment variable says that jobs go; empty if none does."""
    return next((os.environ[name] for name in OUTSIDE if os.environ.get(name)), "")


@contextmanager
def job_client(marks: Mapping[str, str], cpus: int | None = None) -> Iterator[Any]:
    """Ray's JobSubmissionClient, for the length of the block.

    marks: variables that every process of a cluster of this machine carries. cpus: of such a cluster; None: as many as
    the machine, or the container's quota, has.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    from ray.job_submission import JobSubmissionClient

    if outside := outside_cluster():
        yield JobSubmissionClient(outside)
        return
    with _head(marks, cpus) as (url, token):
        yield JobSubmissionClient(url, headers={"Authorization": f"Bearer {token}"})


@contextmanager
def _head(marks: Mapping[str, str], cpus: int | None) -> Iterator[tuple[str, str]]:
    """(URL of the dashboard, token). On a busy machine Ray gives up on its own start, so there are several tries."""
    for attempt in range(ATTEMPTS):
        folder = Path(tempfile.mkdtemp(prefix="train-ray-"))
        keeper, port = _kept(folder, marks, cpus)
        try:
            if _answers(folder, keeper, port):
                yield f"http://127.0.0.1:{port}", (folder / "token").read_text()
                return
            if attempt + 1 == ATTEMPTS:
                raise RayDidNotStart(_last_words(folder))
        finally:
            _end(keeper)
            shutil.rmtree(folder, ignore_errors=True)


def _kept(folder: Path, marks: Mapping[str, str], cpus: int | None) -> tuple[subprocess.Popen[bytes], int]:
    """A keeper that starts a head, and the port of its dashboard."""
    port, client_port = free_port(), free_port()
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--port=0",
        *((f"--num-cpus={cpus}",) if cpus else ()), "--include-dashboard=true", "--dashboard-host=127.0.0.1",
        f"--dashboard-port={port}", "--dashboard-agent-listen-port=0",
        f"--ray-client-server-port={client_port}", "--min-worker-port=0",
        "--max-worker-port=0", f"--object-store-memory={OBJECT_STORE_BYTES}", f"--temp-dir={folder}",
        "--disable-usage-stats", "--log-style=record"]
    environment = {
        **os.environ, **keys_in(folder), **marks, MARK: str(folder), "RAY_USAGE_STATS_ENABLED": "0",
        "SPT_NOENV": "1",  # Ray's processes rename themselves, and without this over their environment, mark and all
        "RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": "20",  # a job that is stopped keeps what it has
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")}
    environment = {name: value for name, value in environment.items() if name not in OUTSIDE}
    keeper = subprocess.Popen([sys.executable, "-m", "train.cluster_keeper", str(folder), *command],
                              stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                              start_new_session=True, env=environment)
    return keeper, port


def _answers(folder: Path, keeper: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until the dashboard takes connections; False if the head ended or is silent for too long."""
    deadline = time.monotonic() + READY_S
    while keeper.poll() is None and time.monotonic() < deadline:
        if (folder / ADDRESS_FILE).exists():
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return True
        time.sleep(LOOK_EVERY_S)
    return False


def _end(keeper: subprocess.Popen[bytes]) -> None:
    assert keeper.stdin is not None
    keeper.stdin.close()
    try:
        keeper.wait(END_S)
    except subprocess.TimeoutExpired:
        keeper.kill()
        keeper.wait()


def _last_words(folder: Path) -> str:
    log = folder / "head.log"
    return " ".join(log.read_text(errors="replace").split("\n")[-6:]) if log.exists() else "it said nothing"
