"""The head of a policy that learned by reinforcement: a deterministic actor in ONNX, served one decision at a time.

`policies.actor` says what its numbers mean. A decision of the hub opens a bracket in a free slot, so a served actor
always sees itself flat, with no drawdown; what it does about a position that it holds is known in training only.

proposal       direction, margin = |exposure| / leverage, target and stop as the action asks; confidence 0.5 + |size|/2
probabilities  short max(-size, 0), flat 1 - |size|, long max(size, 0): how large it would be, not how likely to earn
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from policies.actor import (
    ACTION,
    FEATURES,
    LIMIT_RANGES,
    OBSERVATION,
    ActorLimits,
    bracket,
    flat_position,
    observations,
    standardised,
)
from policies.bundle import Bundle
from policies.errors import BundleRefused, InvalidInput, one_line
from policies.head import CLASSES, Head, PredictionFailed, require_parameters
from policies.manifest import ONNX_FILE, TENSORS_FILE
from policies.model_heads import read_tensors
from policies.onnx_graph import ACTIONS
from policies.onnx_session import OnnxFunction
from policies.types import Action, Proposal

ACTION_TOLERANCE = 1e-5  # by which a served action may differ from the training framework's
BEYOND = 1e-6  # by which rounding may carry an action over [-1, 1]
MIN_CONF = 0.5

Floats = NDArray[np.float64]


class ActorHead(Head):
    """model.onnx: `observation` float32 (N, 100) -> `action` float32 (N, 3) in [-1, 1]. weights.safetensors: `mean` and
    `scale` > 0, float32 (60,), of the features. parameters: those of `ActorLimits`, by name.
    """

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle)
        count = FEATURES.stop
        if len(self.features) != count or self.arrays or self.manifest.inputs:
            raise BundleRefused(f"an {self.manifest.kind} reads {count} features and nothing else; this one has "
                                f"{len(self.features)}, arrays {dict(self.arrays)} and {len(self.manifest.inputs)} "
                                f"inputs")
        require_parameters(self.manifest, LIMIT_RANGES)
        self.limits = _limits_of(self.manifest.parameters)
        tensors = read_tensors(bundle.files[TENSORS_FILE], {"mean": (count,), "scale": (count,)})
        if not np.all(tensors["scale"] > 0):
            raise BundleRefused(f"{TENSORS_FILE}: `scale` must be > 0")
        self._tensors = MappingProxyType(tensors)
        self._graph = OnnxFunction(bundle.files[ONNX_FILE], OBSERVATION, ACTIONS, ONNX_FILE)
        self._flat = flat_position()

    def decide(self, row: Floats) -> Proposal:
        action = self._act(row)
        asked, size = bracket(action, self.limits), float(action[0])
        return Proposal(Action(CLASSES[int(asked.direction) + 1], float(asked.size_fraction), self.limits.leverage,
                               float(asked.target), float(asked.stop), min_conf=MIN_CONF),
                        0.5 + min(1.0, abs(size)) / 2.0)

    def act(self, rows: ArrayLike) -> Floats:
        """Actions (N, 3) for input rows (N, 60), one row at a time, so that no batch can change a bit of an answer."""
        given = np.asarray(rows, dtype=np.float64)
        if given.ndim != 2:
            raise InvalidInput("rows", f"of shape (N, {self.width})", given.shape)
        return np.array([self._act(row) for row in given]).reshape(len(given), ACTION)

    def _probabilities(self, row: Floats) -> Floats:
        size = float(np.clip(self._act(row)[0], -1.0, 1.0))
        return np.array([max(-size, 0.0), 1.0 - abs(size), max(size, 0.0)])

    def _act(self, row: Floats) -> Floats:
        """(3,) for one row (60,)."""
        features = standardised(self.usable(row), self._tensors["mean"], self._tensors["scale"])
        try:
            answer = self._graph(observations(features, self._flat)[None])
        except Exception as error:  # the errors of the library share no base class
            raise PredictionFailed(f"{self.manifest.alias} failed: {one_line(error)}") from error
        if answer.shape != (1, ACTION):
            raise PredictionFailed(f"{self.manifest.alias} answered shape {answer.shape} to one row, not (1, {ACTION})")
        action = answer[0].astype(np.float64)
        if not np.all(np.abs(action) <= 1.0 + BEYOND):  # so that NaN fails
            raise PredictionFailed(f"{self.manifest.alias} answered {action.tolist()}, not an action in [-1, 1]")
        return action


def _limits_of(parameters: Any) -> ActorLimits:
    try:
        return ActorLimits(**{name: float(value) for name, value in parameters.items()})
    except InvalidInput as error:
        raise BundleRefused(f"manifest.parameters: {error}") from error
