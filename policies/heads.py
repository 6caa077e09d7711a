"""Heads: bundles that answer, by kind. See `policies.head` for what they share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from policies.actor_head import ActorHead
from policies.bundle import Bundle
from policies.ensemble import EnsembleHead
from policies.errors import BundleRefused
from policies.head import CLASSES, Head, Levels, LevelsHead, Policy, PredictionFailed, Ranges
from policies.manifest import ENSEMBLE, ONNX_ACTOR, WINDOW_ENCODER
from policies.model_heads import CatboostClassifierHead, LinearSoftmaxHead, OnnxClassifierHead

__all__ = ["CLASSES", "HEADS", "ActorHead", "CatboostClassifierHead", "EnsembleHead", "Levels", "LinearSoftmaxHead",
           "MomentumHead", "OnnxClassifierHead", "Policy", "PredictionFailed", "load_head"]


class MomentumHead(LevelsHead):
    """The baseline: goes with the recent return when it is large against the usual volatility.

    inputs.momentum names a return in standard deviations, z. |z| < threshold or a z that is not finite: flat for sure.
    Else p_long = 1 / (1 + exp(-z)), p_short = 1 - p_long.
    """

    OWN_RANGES: ClassVar[Ranges] = {"threshold": (0.0, 100.0)}

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle)
        if set(self.manifest.inputs) != {"momentum"}:
            raise BundleRefused("a momentum_rule names its feature as inputs.momentum, and no other")
        self._place = self.manifest.features.index(self.manifest.inputs["momentum"])
        self._threshold = float(self.manifest.parameters.get("threshold", 1.0))

    @property
    def needed_features(self) -> tuple[str, ...]:
        return (self.manifest.inputs["momentum"],)

    def _probabilities(self, row: NDArray[np.float64]) -> NDArray[np.float64]:
        z = float(row[self._place])
        if not np.isfinite(z) or abs(z) < self._threshold:
            return np.array([0.0, 1.0, 0.0])
        p_long = 1.0 / (1.0 + np.exp(-np.clip(z, -30.0, 30.0)))
        return np.array([1.0 - p_long, 0.0, p_long])


HEADS: Mapping[str, type[Head]] = {  # an ensemble is made of these
    "momentum_rule": MomentumHead, "onnx_classifier": OnnxClassifierHead,
    "catboost_classifier": CatboostClassifierHead, "linear_softmax": LinearSoftmaxHead,
    ONNX_ACTOR: ActorHead}


def load_head(bundle: Bundle) -> Policy:
    """The head that serves this bundle. Raises BundleRefused if it cannot be served as its manifest says.

    It opens the weights in this process: for a file of unknown origin use `policies.loader.load_checked`.
    """
    if bundle.manifest.kind == WINDOW_ENCODER:
        raise BundleRefused("a window_encoder is no policy: it encodes windows, it does not decide")
    if bundle.manifest.kind == ENSEMBLE:
        return EnsembleHead(bundle, _load_plain)
    return _load_plain(bundle)


def _load_plain(bundle: Bundle) -> Head:
    return HEADS[bundle.manifest.kind](bundle)
