"""What a training goes on with: a checkpoint of another one, or the actor of a bundle.

A checkpoint brings weights, optimisers, temperature and remembered transitions; a bundle only the actor, so critics
begin anew. Either brings its standardisation: weights mean nothing under another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from policies.bundle import Bundle, read_bundle
from policies.errors import InvalidInput
from train.rl.checkpoint import (
    ARRAYS,
    about_checkpoint,
    is_checkpoint,
    load_checkpoint,
    standard_arrays,
)
from train.rl.export import actor_in, layer_names, standard_of
from train.rl.market_rows import Standard
from train.rl.settings import SAC, RlSettings


@dataclass(frozen=True)
class Loaded:
    """key: what names its content. checkpoint or bundle: one of them."""

    key: str
    standard: Standard
    checkpoint: Path | None = None
    bundle: Bundle | None = None

    @property
    def described(self) -> str:
        if self.checkpoint is not None:
            return f"checkpoint {self.checkpoint}"
        assert self.bundle is not None
        return f"the actor of {self.bundle.manifest.alias} ({self.bundle.policy_id[:12]}); critics begin anew"

    def into(self, algorithm: Any) -> None:
        """Let it go on. InvalidInput if it is of another algorithm or size."""
        if self.checkpoint is not None:
            load_checkpoint(self.checkpoint, algorithm)
            return
        assert self.bundle is not None
        actor = actor_in(self.bundle)
        algo = SAC if actor.squashed else "ppo"
        weights = {}
        state = algorithm.learner_group.get_state(components="learner/rl_module")
        module = state["learner"]["rl_module"]["default_policy"]
        if not any(name.startswith("pi_encoder" if algo == SAC else "encoder.actor_encoder") for name in module):
            raise InvalidInput("LOAD", f"an actor of the same algorithm; it was trained by {algo}", self.described)
        held = actor.state_dict()
        for place, name in enumerate(layer_names(module, algo)[:len(actor.layers)]):
            for part in ("weight", "bias"):
                weights[f"{name}.{part}"] = held[f"layers.{place}.{part}"].numpy()
        last = layer_names(module, algo)[-1]
        weights = {name: _whole(module[name], values) if name.startswith(last) else values
                   for name, values in weights.items()}
        if {name: values.shape for name, values in weights.items()} != {name: np.shape(module[name])
                                                                        for name in weights}:
            raise InvalidInput("LOAD", "an actor of the same SIZE", self.described)
        module.update(weights)
        algorithm.learner_group.set_state(state)
        algorithm.env_runner_group.sync_weights(from_worker_or_learner_group=algorithm.learner_group,
                                                policies=["default_policy"], inference_only=True)


def opened(path: Path, settings: RlSettings) -> Loaded:
    """A checkpoint's folder, or a bundle as a folder or a file. InvalidInput or BundleRefused if it is neither."""
    if path.is_dir() and is_checkpoint(path):
        about: Mapping[str, Any] = about_checkpoint(path)
        if (about.get("algo"), about.get("size")) != (settings.algo, settings.size):
            raise InvalidInput("LOAD", f"a checkpoint of ALGO={settings.algo} SIZE={settings.size}",
                               f"one of ALGO={about.get('algo')} SIZE={about.get('size')}")
        key = hashlib.sha256((path / ARRAYS).read_bytes()).hexdigest()
        return Loaded(key, Standard(**standard_arrays(path)), checkpoint=path)
    if not path.exists():
        raise InvalidInput("LOAD", "the folder of a checkpoint, or a bundle", str(path))
    bundle = read_bundle(path)
    actor_in(bundle)
    return Loaded(bundle.policy_id, standard_of(bundle), bundle=bundle)


def _whole(held: Any, mean: Any) -> Any:
    """The last layer with its mean taken over, and the spread that it begins with."""
    own = np.array(held)
    if own.shape[0] == len(mean) or own.shape[1:] != mean.shape[1:]:
        return mean
    own[:len(mean)] = mean
    return own
