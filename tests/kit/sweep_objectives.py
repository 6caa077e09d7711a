"""What searches of tests look for; in a module, so that workers of a cluster can import it."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from train.learners import Heard, Setting, Space

SPACE = {"x": Space(0.1, 10.0, log=True), "depth": Space(2, 6, whole=True), "kind": Space(choices=("a", "b"))}
FIRST: dict[str, Setting] = {"x": 1.3, "depth": 4, "kind": "a"}


@dataclass(frozen=True)
class Bowl:
    """The lower the nearer x is to 1 and depth to 4; heard to fall step by step.

    gate: a folder. Each trial leaves a file begun_N there, and from the third on waits for a file `open`.
    """

    gate: Path | None = None
    steps: ClassVar[int] = 8

    def __call__(self, settings: Mapping[str, Setting], heard: Heard) -> tuple[float, dict[str, Any]]:
        if self.gate is not None:
            number = len(list(self.gate.iterdir()))
            (self.gate / f"begun_{number}_{os.getpid()}").touch()
            while number >= 2 and not (self.gate / "open").exists():
                threading.Event().wait(0.05)
        for step in range(1, self.steps + 1):
            heard(step, self.heard_of(settings, step))
        return self.loss_of(settings), {"of": dict(settings)}

    @staticmethod
    def loss_of(settings: Mapping[str, Setting]) -> float:
        return math.log(float(settings["x"])) ** 2 + 0.1 * (float(settings["depth"]) - 4) ** 2 + (
            0.05 if settings["kind"] == "b" else 0.0)

    @classmethod
    def heard_of(cls, settings: Mapping[str, Setting], step: int) -> float:
        return cls.loss_of(settings) + 1 / step


@dataclass(frozen=True)
class Needs:
    """Fails without a file, but for the first settings."""

    path: Path

    def __call__(self, settings: Mapping[str, Setting], heard: Heard) -> tuple[float, dict[str, Any]]:
        if dict(settings) != FIRST and not self.path.exists():
            raise FileNotFoundError(f"{self.path.name} is not there")
        return Bowl.loss_of(settings), {}


class Hopeless:
    def __call__(self, settings: Mapping[str, Setting], heard: Heard) -> tuple[float, dict[str, Any]]:
        raise ValueError("no hope")
