"""A training as inert files, to go on with: weights, optimisers, SAC's temperature, remembered transitions.

RLlib's own checkpoints are pickles, which run what they say when they are read, and they leave out SAC's temperature:
a restored training explored as wildly as a new one. Here arrays are arrays and the rest is JSON. What the random
generators had reached is not kept: a training that is gone on with is a training of the same kind, not bit for bit the
one that was not interrupted.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies.actor import FEATURES
from policies.errors import InvalidInput
from train.rl.arrays import read_arrays, write_arrays
from train.rl.experience import COLUMNS
from train.rl.market_rows import Standard

STATE, ARRAYS, REMEMBERED = "state.json", "arrays.npz", "remembered.npz"
LOG_ALPHA, STANDARD = "log_alpha", "standard"
MODULE, PARTS = "default_policy", ("rl_module", "optimizer")

Arrays = dict[str, NDArray[Any]]


def save_checkpoint(folder: Path, algorithm: Any, about: Mapping[str, Any], standard: Mapping[str, Any]) -> None:
    """In place of what is there, whole or not at all. about: plain JSON. standard: arrays of the standardisation."""
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True, mode=0o700)
    arrays: Arrays = {f"{STANDARD}/{name}": np.asarray(values) for name, values in standard.items()}
    learner = algorithm.learner_group.get_state()["learner"]
    tree = _flat({name: learner[name] for name in PARTS}, "learner", arrays)
    (beside / STATE).write_text(json.dumps({"learner": tree, LOG_ALPHA: _log_alpha(algorithm), "about": dict(about)}))
    write_arrays(beside / ARRAYS, arrays)
    if hasattr(algorithm, "experience"):
        algorithm.experience.save(beside / REMEMBERED)
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    beside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


@dataclass(frozen=True)
class Checkpoint:
    """What a folder holds, read once: JSON and arrays. The transitions stay on disk until an algorithm takes them."""

    folder: Path
    told: Mapping[str, Any]
    arrays: Arrays

    @property
    def about(self) -> dict[str, Any]:
        found: dict[str, Any] = self.told["about"]
        return found

    @property
    def module(self) -> dict[str, Any]:
        """The weights of the module by name."""
        found: dict[str, Any] = self.learner["rl_module"][MODULE]
        return found

    @property
    def learner(self) -> dict[str, Any]:
        found: dict[str, Any] = _nested(self.told["learner"], self.arrays)
        return found

    @property
    def standard(self) -> Standard:
        """How features were standardised. InvalidInput if it is not there whole, or a scale is not above 0."""
        count = FEATURES.stop
        mean, scale = (self.arrays.get(f"{STANDARD}/{name}", np.empty(0)) for name in ("mean", "scale"))
        if mean.shape != (count,) or scale.shape != (count,) or not np.isfinite(mean).all() or not (
                np.isfinite(scale) & (scale > 0)).all():
            raise InvalidInput("LOAD", f"a checkpoint with {count} finite means and scales above 0 of its features",
                               str(self.folder))
        return Standard(mean, scale)


def read_checkpoint(folder: Path) -> Checkpoint:
    """InvalidInput if it is not one, or if an array that it speaks of is not there."""
    try:
        found = Checkpoint(folder, json.loads((folder / STATE).read_bytes()), read_arrays(folder / ARRAYS))
        missing = [name for name in _named(found.told["learner"]) if name not in found.arrays]
        if found.told[LOG_ALPHA] is not None:  # SAC's, which does not go on without what it remembers
            missing += [name for name in COLUMNS if name not in _names_in(folder / REMEMBERED)]
        whole = isinstance(found.about, dict) and MODULE in found.learner["rl_module"] if not missing else True
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInput("LOAD", "a checkpoint of make retrain_rl", f"{folder}: {error}") from error
    if missing or not whole:
        raise InvalidInput("LOAD", "a whole checkpoint of make retrain_rl", str(folder),
                           f"missing: {', '.join(missing[:3]) or MODULE}")
    return found


def load_checkpoint(found: Checkpoint, algorithm: Any) -> None:
    """Go on from it. InvalidInput if it is one of another algorithm or size."""
    state = {name: part for name, part in found.learner.items() if name in PARTS}
    own = algorithm.learner_group.get_state()["learner"]["rl_module"][MODULE]
    given = found.module
    if {name: np.shape(part) for name, part in own.items()} != {name: np.shape(part) for name, part in given.items()}:
        raise InvalidInput("LOAD", "a checkpoint of the same algorithm and size", str(found.folder))
    algorithm.learner_group.set_state({"learner": {**state, "weights_seq_no": 0}})
    _set_log_alpha(algorithm, found.told[LOG_ALPHA])
    if hasattr(algorithm, "experience"):
        algorithm.experience.load(found.folder / REMEMBERED)
    algorithm.env_runner_group.sync_weights(from_worker_or_learner_group=algorithm.learner_group, policies=[MODULE],
                                            inference_only=True)


def is_checkpoint(folder: Path) -> bool:
    return (folder / STATE).is_file() and (folder / ARRAYS).is_file()


def _names_in(path: Path) -> list[str]:
    with np.load(path, allow_pickle=False) as found:
        return list(found.files)


def _named(tree: Any) -> Iterator[str]:
    """The arrays that a tree of `_flat` speaks of."""
    if "array" in tree:
        yield tree["array"]
    for part in (*(part for _, part in tree.get("map", ())), *tree.get("list", ())):
        yield from _named(part)


def _flat(value: Any, path: str, arrays: Arrays) -> Any:
    """JSON in which an array is its name; arrays are put aside. Keys of mappings may be whole numbers."""
    if isinstance(value, Mapping):
        return {"map": [[key, _flat(part, f"{path}/{key}", arrays)] for key, part in value.items()]}
    if isinstance(value, list | tuple):
        return {"list": [_flat(part, f"{path}/{place}", arrays) for place, part in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return {"is": value}
    arrays[path] = np.asarray(value)
    return {"array": path}


def _nested(tree: Any, arrays: Arrays) -> Any:
    if "map" in tree:
        return {key: _nested(part, arrays) for key, part in tree["map"]}
    if "list" in tree:
        return [_nested(part, arrays) for part in tree["list"]]
    return arrays[tree["array"]] if "array" in tree else tree["is"]


def _log_alpha(algorithm: Any) -> float | None:
    """Logarithm of SAC's temperature, which its learner keeps beside its module."""
    alphas = getattr(algorithm.learner_group._learner, "curr_log_alpha", None)
    return None if alphas is None else float(alphas[MODULE].detach().numpy().reshape(-1)[0])


def _set_log_alpha(algorithm: Any, value: float | None) -> None:
    alphas = getattr(algorithm.learner_group._learner, "curr_log_alpha", None)
    if alphas is not None and value is not None:
        alphas[MODULE].data.fill_(value)
