"""The folder of one night: what its steps left, how they ended, and what earlier nights took."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from train.nightly.plan import Plan, Step, with_folders
from train.steps import RESULT, Steps

DONE, NOT_PASSED, KEPT_BACK = "done", "not passed", "kept back"
FAILED, STOPPED, SKIPPED = "failed", "stopped", "skipped"
KEPT = (DONE, NOT_PASSED)  # not done again; whatever went wrong is, and what a hub that was away should have had
NIGHTS, NIGHTS_KEPT = "nightly", 30
BEGAN = ".began"


@dataclass(frozen=True)
class Ended:
    """How a step ended. seconds: of the run that ended it; one that had been interrupted took longer. said: its last
    line, or the reason. exit_code: None if it was not run.
    """

    step: str
    state: str
    said: str = ""
    seconds: float = 0.0
    exit_code: int | None = None


class Night:
    """home: HUB_HOME. name: of the night, such as its date."""

    def __init__(self, home: Path, name: str, plan: Plan) -> None:
        self.home, self.name, self.plan = home, name, plan
        self.folder = home / NIGHTS / name
        self._steps = Steps(self.folder)
        os.utime(self.folder)

    def kept(self, name: str) -> Ended | None:
        """How a step ended that need not be run again."""
        folder = self.plan.folder_of(name)
        return Ended(**self._steps.result(folder)) if self._steps.has(folder) else None

    def files(self, name: str) -> dict[str, Path]:
        """What a kept step left, by file name."""
        folder = self.folder / self.plan.folder_of(name)
        return {path.name: path for path in sorted(folder.glob("*")) if path.name != RESULT}

    def forget(self, name: str) -> None:
        """Have a kept step run again."""
        shutil.rmtree(self.folder / self.plan.folder_of(name), ignore_errors=True)

    def begin(self, step: Step) -> tuple[str, ...]:
        """Make the folder that the step may leave files in, and say how it is run."""
        out = self._steps.scratch(self.plan.folder_of(step.name))
        if not (out / BEGAN).exists():  # an interrupted run's files are this step's, too
            (out / BEGAN).touch()
        folders = {name: str(self.folder / self.plan.folder_of(name)) for name in self.plan.steps}
        return with_folders(step.command, str(out), folders)

    def end(self, step: Step, ended: Ended) -> None:
        """Keep a step with its files if it need not be run again."""
        if ended.state not in KEPT:
            return
        folder = self.plan.folder_of(step.name)
        out = self._steps.under_way(folder)
        began_ns = (out / BEGAN).stat().st_mtime_ns
        left = [path for path in out.glob("*") if path.name != BEGAN]
        made = [path for pattern in step.makes for path in self.home.glob(pattern)
                if path.stat().st_mtime_ns > began_ns]
        self._steps.keep(folder, asdict(ended), files={path.name: path.read_bytes() for path in (*left, *made)})

    def log_of(self, name: str) -> Path:
        return self.folder / f"{name}.log"


def seconds_before(home: Path, name: str) -> dict[str, list[float]]:
    """By step, what each night before took for it, oldest first. name: of the night that is left out."""
    found: dict[str, list[float]] = {}
    for folder in _nights(home):
        if folder.name == name:
            continue
        steps = Steps(folder)
        for path in sorted(folder.glob(f"*/{RESULT}")):
            if path.parent.name.startswith("."):
                continue
            ended = Ended(**steps.result(path.parent.name))
            found.setdefault(ended.step, []).append(ended.seconds)
    return found


def forget_old(home: Path, kept: int = NIGHTS_KEPT) -> None:
    """Remove the folders of all but the newest nights."""
    for folder in _nights(home)[:-kept]:
        shutil.rmtree(folder, ignore_errors=True)


def _nights(home: Path) -> list[Path]:
    """By when they were begun or gone on with."""
    folders = [path for path in (home / NIGHTS).glob("*") if path.is_dir()]
    return sorted(folders, key=lambda path: (path.stat().st_mtime_ns, path.name))
