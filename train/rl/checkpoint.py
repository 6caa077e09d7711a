"""A training as inert files, to go on with: weights, optimisers, SAC's temperature, remembered transitions.

RLlib's own checkpoints are pickles, which run what they say when they are read, and they leave out SAC's temperature:
a restored training explored as wildly as a new one. Here arrays are arrays and the rest is JSON. What the random
generators had reached is not kept: a training that is gone on with is a training of the same kind, not bit for bit the
one that was not interrupted.

`state.json` names the files that belong to it. A later state comes with files of other names, and one replacement of
`state.json` changes from the old to the new: at every moment the folder holds one whole checkpoint.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies.actor import FEATURES
from policies.errors import InvalidInput
from train.rl.arrays import read_arrays, write_arrays
from train.rl.experience import COLUMNS
from train.rl.market_rows import Standard

STATE, ARRAYS, REMEMBERED, FILES, NUMBER = "state.json", "arrays", "remembered", "files", "number"
LOG_ALPHA, UPDATES, STANDARD, BEST = "log_alpha", "updates", "standard", "best"
MODULE, PARTS = "default_policy", ("rl_module", "optimizer")

Arrays = dict[str, NDArray[Any]]


def save_checkpoint(folder: Path, algorithm: Any, about: Mapping[str, Any], standard: Mapping[str, Any],
                    best: Mapping[str, Any] = MappingProxyType({})) -> None:
    """In place of what is there, whole or not at all. about: plain JSON. standard: arrays of the standardisation. best:
    weights by name of the best look of those in `about`.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    before = _state_in(folder)
    _keep_only(folder, before)  # without what an interrupted save has left
    number = 1 + int(before.get(NUMBER, 0))
    arrays: Arrays = {f"{part}/{name}": np.asarray(values) for part, by_name in ((STANDARD, standard), (BEST, best))
                      for name, values in by_name.items()}
    learner = algorithm.learner_group.get_state()["learner"]
    tree = _flat({name: learner[name] for name in PARTS}, "learner", arrays)
    files = {ARRAYS: f"{ARRAYS}.{number}.npz"}
    write_arrays(folder / files[ARRAYS], arrays)
    if hasattr(algorithm, "experience"):
        files[REMEMBERED] = f"{REMEMBERED}.{number}.npz"
        algorithm.experience.save(folder / files[REMEMBERED])
    state = {FILES: files, NUMBER: number, "learner": tree, LOG_ALPHA: _log_alpha(algorithm),
             UPDATES: getattr(algorithm, "updates", None), "about": dict(about)}
    part = folder / f".{STATE}.new"
    with part.open("w") as file:
        json.dump(state, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(folder / STATE)
    _keep_only(folder, state)


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
    def best(self) -> Arrays:
        """The weights of what acts, by name, at the best look so far; empty if none was given."""
        return {name.removeprefix(f"{BEST}/"): values for name, values in self.arrays.items()
                if name.startswith(f"{BEST}/")}

    @property
    def arrays_file(self) -> Path:
        return self.folder / self.told[FILES][ARRAYS]

    @property
    def remembered_file(self) -> Path | None:
        name = self.told[FILES].get(REMEMBERED)
        return None if name is None else self.folder / name

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
        told = json.loads((folder / STATE).read_bytes())
        if FILES not in told and "about" in told:
            raise InvalidInput("LOAD", "a checkpoint of this version", str(folder), "it is of an earlier one, which "
                               "did not say which bars it has seen: whether its test is of others is not known")
        found = Checkpoint(folder, told, read_arrays(folder / told[FILES][ARRAYS]))
        missing = [name for name in _named(told["learner"]) if name not in found.arrays]
        if found.remembered_file is not None:
            missing += set(COLUMNS) - set(_names_in(found.remembered_file))
        if not missing and not (found.module and isinstance(found.about, dict) and told.keys() >= {LOG_ALPHA, UPDATES}):
            missing = [MODULE]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInput("LOAD", "a checkpoint of make retrain_rl", f"{folder}: {error}") from error
    if missing:
        raise InvalidInput("LOAD", "a whole checkpoint of make retrain_rl", str(folder),
                           f"missing: {', '.join(missing[:3])}")
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
    if found.remembered_file is not None:
        algorithm.experience.load(found.remembered_file)
        algorithm.updates = found.told[UPDATES]
    algorithm.env_runner_group.sync_weights(from_worker_or_learner_group=algorithm.learner_group, policies=[MODULE],
                                            inference_only=True)


def is_checkpoint(folder: Path) -> bool:
    return (folder / STATE).is_file()


def _state_in(folder: Path) -> dict[str, Any]:
    """What the folder says of itself; nothing if it holds no checkpoint."""
    if not is_checkpoint(folder):
        return {}
    found: dict[str, Any] = json.loads((folder / STATE).read_bytes())
    return found


def _keep_only(folder: Path, state: Mapping[str, Any]) -> None:
    """Remove what this state does not name."""
    for path in folder.iterdir():
        if path.name not in (STATE, *state.get(FILES, {}).values()):
            path.unlink()


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
