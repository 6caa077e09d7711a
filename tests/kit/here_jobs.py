"""Jobs as plain processes of this machine: what a night needs of a cluster, without one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from train.nightly.plan import OUT, Step

SAYS = "import sys; print('begun'); print(sys.argv[1])"
LEAVES = "import sys, pathlib; pathlib.Path(sys.argv[1], sys.argv[2]).write_text(sys.argv[3])"
WAITS = "import time; print('begun', flush=True); time.sleep(600)"


@dataclass
class HereJobs:
    """folder: for what they print. started: the steps, in order."""

    folder: Path
    started: list[str] = field(default_factory=list)
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, step: str, command: Sequence[str], environment: Mapping[str, str]) -> str:
        self.started.append(step)
        job = f"{step}.{len(self.started)}"
        with self._log(job).open("wb") as log:
            self.running[job] = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **environment})
        return job

    def exit_code(self, job: str) -> int | None:
        return self.running[job].poll()

    def output(self, job: str) -> str:
        return self._log(job).read_text()

    def stop(self, job: str) -> None:
        self.running[job].send_signal(signal.SIGINT)
        self.running[job].wait(30)

    def _log(self, job: str) -> Path:
        self.folder.mkdir(exist_ok=True)
        return self.folder / job


def says(name: str, text: str = "well", needs: Sequence[str] = (), code: int = 0, **more: object) -> Step:
    """A step that prints a line and ends."""
    script = SAYS + f"; sys.exit({code})"
    return Step(name, (sys.executable, "-c", script, text), tuple(needs), **more)  # type: ignore[arg-type]


def leaves(name: str, file: str, text: str, needs: Sequence[str] = (), **more: object) -> Step:
    """A step that leaves a file in its own folder."""
    return Step(name, (sys.executable, "-c", LEAVES, OUT, file, text), tuple(needs), **more)  # type: ignore[arg-type]
