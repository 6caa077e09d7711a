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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies.errors import InvalidInput
from train.rl.arrays import read_arrays, write_arrays

STATE, ARRAYS, REMEMBERED = "state.json", "arrays.npz", "remembered.npz"
LOG_ALPHA = "log_alpha"
MODULE, PARTS = "default_policy", ("rl_module", "optimizer")

Arrays = dict[str, NDArray[Any]]


def save_checkpoint(folder: Path, algorithm: Any, about: Mapping[str, Any], standard: Mapping[str, Any]) -> None:
    """In place of what is there, whole or not at all. about: plain JSON. standard: arrays of the standardisation."""
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True, mode=0o700)
    arrays: Arrays = {f"standard/{name}": np.asarray(values) for name, values in standard.items()}
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


def load_checkpoint(folder: Path, algorithm: Any) -> dict[str, Any]:
    """Go on from it; what it says about itself. InvalidInput if it is not one, or one of another algorithm or size."""
    told, arrays = _read(folder)
    state = {name: part for name, part in _nested(told["learner"], arrays).items() if name in PARTS}
    own = algorithm.learner_group.get_state()["learner"]["rl_module"][MODULE]
    given = state.get("rl_module", {}).get(MODULE, {})
    if {name: np.shape(part) for name, part in own.items()} != {name: np.shape(part) for name, part in given.items()}:
        raise InvalidInput("LOAD", "a checkpoint of the same algorithm and size", str(folder))
    algorithm.learner_group.set_state({"learner": {**state, "weights_seq_no": 0}})
    _set_log_alpha(algorithm, told[LOG_ALPHA])
    if hasattr(algorithm, "experience") and (folder / REMEMBERED).is_file():
        algorithm.experience.load(folder / REMEMBERED)
    algorithm.env_runner_group.sync_weights(from_worker_or_learner_group=algorithm.learner_group, policies=[MODULE],
                                            inference_only=True)
    found: dict[str, Any] = told["about"]
    return found


def is_checkpoint(folder: Path) -> bool:
    return (folder / STATE).is_file() and (folder / ARRAYS).is_file()


def about_checkpoint(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = _read(folder)[0]["about"]
    return found


def module_state(folder: Path) -> dict[str, Any]:
    """The weights of the module by name."""
    told, arrays = _read(folder)
    found: dict[str, Any] = _nested(told["learner"], arrays)["rl_module"][MODULE]
    return found


def standard_arrays(folder: Path) -> Arrays:
    """How features were standardised."""
    arrays = _read(folder)[1]
    return {name.removeprefix("standard/"): values for name, values in arrays.items() if name.startswith("standard/")}


def _read(folder: Path) -> tuple[dict[str, Any], Arrays]:
    try:
        told = json.loads((folder / STATE).read_bytes())
        return told, read_arrays(folder / ARRAYS)
    except (OSError, ValueError, KeyError) as error:
        raise InvalidInput("LOAD", "a checkpoint of make retrain_rl", f"{folder}: {error}") from error


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
