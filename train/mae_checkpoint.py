"""How far a training of the auto-encoder has come, as one safetensors file: tensors, and a little JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from policies.errors import InvalidInput

STATE = "state"  # the key of the JSON text in the file's metadata
WEIGHT, BEST, OPTIMISER = "weight/", "best/", "optimiser/"


@dataclass(frozen=True)
class Epoch:
    """What an epoch came to. Losses: mean squared error over hidden bars, in scaled units."""

    fit_loss: float
    validation_loss: float


@dataclass(frozen=True)
class Checkpoint:
    """The state after len(epochs) epochs. best: the weights of the epoch with the lowest validation loss.

    optimiser: by "place of the parameter/name of the state". stopped: why training is over; "" while it is not.
    """

    epochs: tuple[Epoch, ...]
    weights: Mapping[str, Tensor]
    best: Mapping[str, Tensor]
    optimiser: Mapping[str, Tensor]
    stopped: str = ""

    @property
    def best_epoch(self) -> int:
        """From 1; the first of equals."""
        losses = [epoch.validation_loss for epoch in self.epochs]
        return losses.index(min(losses)) + 1


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """A reader sees the old file or the new one, whole, also after a loss of power."""
    state = {"epochs": [[e.fit_loss, e.validation_loss] for e in checkpoint.epochs], "stopped": checkpoint.stopped}
    # Copies: the best weights may be the present ones, and the format refuses tensors that share memory.
    tensors = {prefix + name: tensor.detach().cpu().contiguous().clone()
               for prefix, part in ((WEIGHT, checkpoint.weights), (BEST, checkpoint.best),
                                    (OPTIMISER, checkpoint.optimiser)) for name, tensor in part.items()}
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    part_path = path.with_suffix(f".{os.getpid()}.part")  # two that train at once must not share it
    with part_path.open("wb") as file:
        file.write(save(tensors, {STATE: json.dumps(state)}))
        file.flush()
        os.fsync(file.fileno())
    os.replace(part_path, path)


def read_checkpoint(path: Path) -> Checkpoint | None:
    """None if there is none yet; InvalidInput if the file is no checkpoint."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            state = json.loads(file.metadata()[STATE])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        epochs = tuple(Epoch(float(fit), float(validation)) for fit, validation in state["epochs"])
        stopped = str(state["stopped"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise InvalidInput("checkpoint", "a file that this training wrote (delete it to begin anew)", str(path),
                           str(error)) from error
    return Checkpoint(epochs, _under(WEIGHT, tensors), _under(BEST, tensors), _under(OPTIMISER, tensors), stopped)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
