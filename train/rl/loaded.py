"""What a training goes on with: a checkpoint of another one, or the actor of a bundle.

A checkpoint brings weights, optimisers, temperature and remembered transitions; a bundle only the actor, so critics
begin anew. Either brings its standardisation: weights mean nothing under another. Either says what it has seen of
which market, and what was learnt or chosen there must not be judged there.
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
from train.rl.checkpoint import Checkpoint, is_checkpoint, load_checkpoint, read_checkpoint
from train.rl.export import actor_in, layer_names, standard_of
from train.rl.market_rows import Standard
from train.rl.settings import PPO, SAC, RlSettings

SEEN = "seen_until_ms"  # in what a checkpoint says of itself, and in `trained_on`: {origin of a market: until when}
ANY = "any market"  # of a bundle that does not say which one


@dataclass(frozen=True)
class Loaded:
    """key: what names its content. seen_until_ms: by the origin of a market, the end of what it was learnt and chosen
    on, over all that it was itself gone on with. checkpoint or bundle: one of them.
    """

    key: str
    standard: Standard
    seen_until_ms: Mapping[str, int]
    checkpoint: Checkpoint | None = None
    bundle: Bundle | None = None

    @property
    def described(self) -> str:
        if self.checkpoint is not None:
            return f"checkpoint {self.checkpoint.folder}"
        assert self.bundle is not None
        return f"the actor of {self.bundle.manifest.alias} ({self.bundle.policy_id[:12]}); critics begin anew"

    def require_unseen(self, origin: str, from_ms: int) -> None:
        """InvalidInput if it has seen anything of this market at or after from_ms, where the test begins."""
        seen_ms = max((until_ms for market, until_ms in self.seen_until_ms.items() if market in (origin, ANY)),
                      default=from_ms)
        if seen_ms > from_ms:
            raise InvalidInput("LOAD", f"what was learnt and chosen before the test range, which begins at {from_ms}",
                               self.described, f"it has seen this market until {seen_ms}; judged on bars that it has "
                               f"seen, it would only seem good")

    def into(self, algorithm: Any) -> None:
        """Let it go on. InvalidInput if it is of another algorithm or size than `opened` was told."""
        if self.checkpoint is not None:
            load_checkpoint(self.checkpoint, algorithm)
            if hasattr(algorithm, "updates"):
                algorithm.updates = 0  # it counts those of this training
            return
        assert self.bundle is not None
        actor, weights = actor_in(self.bundle), dict[str, Any]()
        state = algorithm.learner_group.get_state(components="learner/rl_module")
        module = state["learner"]["rl_module"]["default_policy"]
        held, names = actor.state_dict(), layer_names(module, SAC if actor.squashed else PPO)
        for place, name in enumerate(names):
            for part in ("weight", "bias"):
                weights[f"{name}.{part}"] = held[f"layers.{place}.{part}"].numpy()
        weights = {name: _whole(module[name], values) if name.startswith(names[-1]) else values
                   for name, values in weights.items()}
        module.update(weights)
        algorithm.learner_group.set_state(state)
        algorithm.env_runner_group.sync_weights(from_worker_or_learner_group=algorithm.learner_group,
                                                policies=["default_policy"], inference_only=True)


def opened(path: Path, settings: RlSettings) -> Loaded:
    """A checkpoint's folder, or a bundle as a folder or a file. InvalidInput or BundleRefused if it is neither, not
    whole, of another algorithm or size, or does not say what it has seen.
    """
    if path.is_dir() and is_checkpoint(path):
        return _of_checkpoint(path, settings)
    if not path.exists():
        raise InvalidInput("LOAD", "the folder of a checkpoint, or a bundle", str(path))
    bundle = read_bundle(path)
    actor = actor_in(bundle)
    algo, hidden = SAC if actor.squashed else PPO, tuple(layer.out_features for layer in actor.layers)[:-1]
    if (algo, hidden) != (settings.algo, settings.own.hidden):
        raise InvalidInput("LOAD", f"an actor of ALGO={settings.algo} SIZE={settings.size}, with layers of "
                           f"{settings.own.hidden}", f"one of ALGO={algo} with layers of {hidden}")
    return Loaded(bundle.policy_id, standard_of(bundle), _seen_by(bundle), bundle=bundle)


def _of_checkpoint(path: Path, settings: RlSettings) -> Loaded:
    found = read_checkpoint(path)
    about, seen = found.about, found.about.get(SEEN)
    if (about.get("algo"), about.get("size")) != (settings.algo, settings.size):
        raise InvalidInput("LOAD", f"a checkpoint of ALGO={settings.algo} SIZE={settings.size}",
                           f"one of ALGO={about.get('algo')} SIZE={about.get('size')}")
    if not isinstance(seen, Mapping):
        raise InvalidInput("LOAD", "a checkpoint that says which bars it has seen", str(path),
                           "whether the test would be of bars it was chosen on is not known")
    key = hashlib.sha256(found.arrays_file.read_bytes()).hexdigest()
    return Loaded(key, found.standard, {str(market): int(until_ms) for market, until_ms in seen.items()}, found)


def _seen_by(bundle: Bundle) -> dict[str, int]:
    """From its manifest. One that names its ranges but not its market has seen so much of any market."""
    told = bundle.manifest.trained_on
    try:
        if isinstance(told.get(SEEN), Mapping):
            return {str(market): int(until_ms) for market, until_ms in told[SEEN].items()}
        return {ANY: int(told["ranges"]["validation"]["until_ms"])}
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInput("LOAD", "an actor whose manifest says which bars it has seen", bundle.manifest.alias,
                           f"trained_on.ranges: {error}") from error


def _whole(held: Any, mean: Any) -> Any:
    """The last layer with its mean taken over, and the spread that it begins with."""
    own = np.array(held)
    if own.shape[0] == len(mean) or own.shape[1:] != mean.shape[1:]:
        return mean
    own[:len(mean)] = mean
    return own
