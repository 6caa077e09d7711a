"""From RLlib's module to a served actor: the deterministic action as a closed graph, in a bundle, compared before use.

Serving imports no torch. `DeterministicActor` holds the layers between an observation and the mean of the action, and
`reference_actions` asks RLlib itself, by its own module and distribution: the two must agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import onnx
import safetensors.numpy
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

from feature_repo.features import DECISION_V1
from policies.actor import ACTION, FEATURES, OBSERVATION, ActorLimits, flat_position, observations, standardised
from policies.actor_head import ACTION_TOLERANCE, ActorHead
from policies.bundle import Bundle, Manifest, make_bundle
from policies.checks import check_agreement, refuse_unless_sound, require_sound
from policies.errors import BundleRefused, InvalidInput
from policies.heads import load_head
from policies.manifest import ONNX_ACTOR, ONNX_FILE, TENSORS_FILE
from policies.model_heads import read_tensors
from policies.onnx_graph import ACTIONS
from train.rl.market_rows import Standard
from train.torch_export import closed_graph

INPUT = "observation"
ASKED_AT_ONCE = 4_096
CHECKED_ROWS = 1_000
ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU}

Floats32 = NDArray[np.float32]


class DeterministicActor(nn.Module):
    """observation (N, 100) -> action (N, 3): linear layers with `activation` between them, of the last the first three
    numbers, which are the mean; then cut to [-1, 1] for PPO, or squashed by tanh for SAC.
    """

    def __init__(self, weights: Sequence[tuple[Floats32, Floats32]], activation: str, squashed: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(matrix.shape[1], matrix.shape[0]) for matrix, _ in weights)
        for layer, (matrix, bias) in zip(self.layers, weights, strict=True):
            layer.load_state_dict({"weight": torch.from_numpy(matrix.copy()), "bias": torch.from_numpy(bias.copy())})
        self.activation, self.squashed, self.between = activation, squashed, ACTIVATIONS[activation]()

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[:-1]:
            rows = self.between(layer(rows))
        mean = self.layers[-1](rows)[:, :ACTION]
        return torch.tanh(mean) if self.squashed else torch.clamp(mean, -1.0, 1.0)

    def act(self, seen: Floats32) -> NDArray[np.float64]:
        """Actions (N, 3) for observations (N, 100)."""
        with torch.no_grad():
            parts = [self(torch.from_numpy(seen[start:start + ASKED_AT_ONCE])).numpy()
                     for start in range(0, len(seen), ASKED_AT_ONCE)]
        return np.concatenate(parts).astype(np.float64) if parts else np.empty((0, ACTION))


def actor_of(state: Mapping[str, Any], algo: str) -> DeterministicActor:
    """Of an RLlib module's state (weights by name), PPO's or SAC's default module with plain layers."""
    return DeterministicActor([(np.asarray(state[f"{name}.weight"]), np.asarray(state[f"{name}.bias"]))
                               for name in layer_names(state, algo)], *_form(algo))


def layer_names(state: Mapping[str, Any], algo: str) -> list[str]:
    """Names of the layers from the observation to the action, in order. InvalidInput for another module."""
    encoder = {"ppo": "encoder.actor_encoder.net.", "sac": "pi_encoder.net."}[algo]
    found = [name.removesuffix(".weight") for part in (encoder, "pi.net.")
             for name in sorted((name for name in state if name.startswith(part) and name.endswith(".weight")),
                                key=lambda name: int(name.split(".")[-2]))]
    shapes = [np.asarray(state[f"{name}.weight"]).shape for name in found]
    chained = [OBSERVATION, *(shape[0] for shape in shapes)]
    if [shape[1] for shape in shapes] != chained[:-1] or chained[-1] != 2 * ACTION:
        raise InvalidInput("module", f"plain layers from {OBSERVATION} numbers to {2 * ACTION}", shapes)
    return found


def reference_actions(module: Any, seen: Floats32) -> NDArray[np.float64]:
    """What RLlib does without exploring, (N, 3): its module, its distribution, and the environment's cut to [-1, 1]."""
    with torch.no_grad():
        answer = module.forward_inference({"obs": torch.from_numpy(seen)})
        kind = module.get_inference_action_dist_cls()
        actions = kind.from_logits(answer["action_dist_inputs"]).to_deterministic().sample()
    return np.clip(actions.numpy().astype(np.float64), -1.0, 1.0)


def actor_bundle(alias: str, actor: DeterministicActor, standard: Standard, limits: ActorLimits,
                 trained_on: Mapping[str, Any]) -> Bundle:
    """The actor as a policy; not compared yet."""
    manifest = Manifest(
        kind=ONNX_ACTOR, alias=alias, features=DECISION_V1.names, feature_service=DECISION_V1.name,
        required_groups=DECISION_V1.required_groups, optional_groups=DECISION_V1.optional_groups,
        optional_features=DECISION_V1.may_be_missing, parameters=asdict(limits), trained_on=dict(trained_on))
    graph = closed_graph(actor, OBSERVATION, INPUT, ACTIONS)
    return make_bundle(manifest, {
        ONNX_FILE: graph.SerializeToString(),
        TENSORS_FILE: safetensors.numpy.save({"mean": standard.mean, "scale": standard.scale})})


def require_acts_as_trained(bundle: Bundle, module: Any, rows: NDArray[np.float64]) -> float:
    """The largest difference of an action, served against RLlib's own. BundleRefused beyond 1e-5, or if not sound.

    rows: raw features (N, 60), none of the required ones missing.
    """
    head = load_head(bundle)
    assert isinstance(head, ActorHead)
    require_sound(head, rows[:64])
    standard = standard_of(bundle)
    seen = observations(standardised(rows, standard.mean, standard.scale), flat_position())
    expected = reference_actions(module, seen)
    refuse_unless_sound(bundle.policy_id, check_agreement(head.act, rows, expected, ACTION_TOLERANCE))
    return float(np.abs(head.act(rows) - expected).max())


def standard_of(bundle: Bundle) -> Standard:
    count = FEATURES.stop
    return Standard(**read_tensors(bundle.files[TENSORS_FILE], {"mean": (count,), "scale": (count,)}))


def actor_in(bundle: Bundle) -> DeterministicActor:
    """The actor of a bundle that `actor_bundle` has made, to learn on from it. BundleRefused for any other."""
    load_head(bundle)  # which refuses what is no policy
    if bundle.manifest.kind != ONNX_ACTOR:
        raise BundleRefused(f"{bundle.manifest.alias} is a {bundle.manifest.kind}; only an {ONNX_ACTOR} can be learnt "
                            f"on from")
    graph = onnx.load_model_from_string(bundle.files[ONNX_FILE]).graph
    arrays = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    count = 1 + max((int(name.split(".")[1]) for name in arrays if name.startswith("layers.")), default=-1)
    operators = {node.op_type for node in graph.node}
    squashed = "Clip" not in operators
    try:
        weights = [(arrays[f"layers.{place}.weight"], arrays[f"layers.{place}.bias"]) for place in range(count)]
    except KeyError as error:
        raise BundleRefused(f"{ONNX_FILE} has no layers as this project exports them: {error}") from error
    return DeterministicActor(weights, "relu" if squashed else "tanh", squashed)


def _form(algo: str) -> tuple[str, bool]:
    return ("relu", True) if algo == "sac" else ("tanh", False)
