"""Heads: bundles that answer. Each is a function from a feature vector to probabilities, and one rule to an Action.

A head predicts (p_short, p_flat, p_long). The rule, the same for every kind: trade the more probable direction, with
confidence p / (p_long + p_short), at the manifest's levels; stay flat if the two are equal, if the confidence is under
`min_conf`, or if p_flat exceeds `max_p_flat`. The margin is chosen so that size * leverage * stop is `risk_per_trade`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import onnxruntime
from numpy.typing import ArrayLike, NDArray

from policies.bundle import ONNX_FILE, Bundle, Manifest
from policies.errors import BundleRefused, HubError, InvalidInput
from policies.onnx_graph import PROBABILITIES
from policies.types import Action, Context, Direction, Proposal

CLASSES = (Direction.SHORT, Direction.FLAT, Direction.LONG)

Ranges = Mapping[str, tuple[float, float]]  # {parameter: (least, greatest)}


class PredictionFailed(HubError):
    """A head has no usable answer to this vector; whoever asked goes on without it."""

    code = "prediction_failed"


class Policy(Protocol):
    """What is served, registered and checked."""

    @property
    def policy_id(self) -> str: ...

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the numbers in a feature vector, in order."""
        ...

    def propose(self, context: Context) -> Proposal:
        """The policy's answer; the same for the same context. Raises HubError when there is none."""
        ...

    def predict(self, obs: ArrayLike) -> NDArray[np.float64]:
        """Probabilities of short, flat, long: (3,) for a feature vector (F,), (N, 3) for rows (N, F)."""
        ...


@dataclass(frozen=True)
class Levels:
    """The manifest's numbers that every kind has.

    leverage: >= 1. tp_pct, sl_pct: fractions of the entry price, > 0. min_conf: 0.5..1. max_p_flat: 0..1.
    risk_per_trade: loss at the stop over equity, > 0.
    """

    leverage: float = 5.0
    tp_pct: float = 0.01
    sl_pct: float = 0.008
    min_conf: float = 0.5
    max_p_flat: float = 1.0
    risk_per_trade: float = 0.002

    RANGES: ClassVar[Ranges] = {"leverage": (1.0, 50.0), "tp_pct": (1e-4, 0.5), "sl_pct": (1e-4, 0.5),
                                "min_conf": (0.5, 1.0), "max_p_flat": (0.0, 1.0), "risk_per_trade": (1e-6, 0.005)}

    @property
    def size_fraction(self) -> float:
        """Margin over equity, at most 1."""
        return min(1.0, self.risk_per_trade / (self.leverage * self.sl_pct))

    def action(self, direction: Direction) -> Action:
        held = Action(direction, self.size_fraction, self.leverage, self.tp_pct, self.sl_pct, min_conf=self.min_conf)
        return held.flat() if direction is Direction.FLAT else held


class _Head(ABC):
    """What all kinds share: the vector's checks, rows one at a time, and the rule from probabilities to an Action."""

    OWN_RANGES: ClassVar[Ranges] = {}

    def __init__(self, bundle: Bundle) -> None:
        self.manifest = bundle.manifest
        self._policy_id = bundle.policy_id
        self._levels = _levels(bundle.manifest, self.OWN_RANGES)
        optional = set(bundle.manifest.optional_features)
        self._required = np.array([name not in optional for name in bundle.manifest.features])

    @property
    def policy_id(self) -> str:
        return self._policy_id

    @property
    def features(self) -> tuple[str, ...]:
        return self.manifest.features

    def propose(self, context: Context) -> Proposal:
        """Of a flat proposal, the confidence is the one that its more probable direction had."""
        p_short, p_flat, p_long = map(float, self._answer(np.asarray(context.features, dtype=np.float64)))
        directed = p_short + p_long
        confidence = max(p_short, p_long) / directed if directed > 0 else 0.5
        direction = Direction.LONG if p_long > p_short else Direction.SHORT
        if p_long == p_short or confidence < self._levels.min_conf or p_flat > self._levels.max_p_flat:
            direction = Direction.FLAT
        return Proposal(self._levels.action(direction), confidence)

    def predict(self, obs: ArrayLike) -> NDArray[np.float64]:
        """Probabilities of short, flat, long: (3,) for a feature vector (F,), (N, 3) for rows (N, F).

        Rows are answered one at a time, so that no batch size can change a bit of an answer.
        """
        rows = np.asarray(obs, dtype=np.float64)
        if rows.ndim == 1:
            return self._answer(rows)
        if rows.ndim != 2:
            raise InvalidInput("obs", f"of shape (F,) or (N, F) with F = {len(self._required)}", rows.shape)
        return np.array([self._answer(row) for row in rows]).reshape(len(rows), len(CLASSES))

    def _answer(self, row: NDArray[np.float64]) -> NDArray[np.float64]:
        if row.shape != self._required.shape:
            raise InvalidInput("features", f"{len(self._required)} numbers", row.shape)
        probabilities = self._probabilities(row)
        if not (np.all(probabilities >= 0) and abs(probabilities.sum() - 1.0) <= 1e-3):
            raise PredictionFailed(f"{self.manifest.alias} answered {probabilities.tolist()}, not three probabilities")
        return probabilities

    @abstractmethod
    def _probabilities(self, row: NDArray[np.float64]) -> NDArray[np.float64]:
        """(3,) for one row (F,)."""


class MomentumHead(_Head):
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

    def _probabilities(self, row: NDArray[np.float64]) -> NDArray[np.float64]:
        z = float(row[self._place])
        if not np.isfinite(z) or abs(z) < self._threshold:
            return np.array([0.0, 1.0, 0.0])
        p_long = 1.0 / (1.0 + np.exp(-np.clip(z, -30.0, 30.0)))
        return np.array([1.0 - p_long, 0.0, p_long])


class OnnxClassifierHead(_Head):
    """A trained classifier of (short, flat, long) in ONNX Runtime, on one thread.

    A required feature that is not finite raises PredictionFailed; an optional one may be NaN, as it was in training.
    """

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle)
        if self.manifest.inputs:
            raise BundleRefused("an onnx_classifier reads the whole vector: manifest.inputs must be empty")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(bundle.files[ONNX_FILE], options,
                                                         providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors share no base class
            raise BundleRefused(f"{ONNX_FILE} cannot be opened: {error}") from error
        self._input = self._session.get_inputs()[0].name

    def _probabilities(self, row: NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(over="ignore"):  # beyond float32 is not finite, which is refused below
            values = row.astype(np.float32)
        fine = np.isfinite(values) | (np.isnan(values) & ~self._required)
        if not fine.all():
            name = self.manifest.features[int(np.argmin(fine))]
            raise PredictionFailed(f"{self.manifest.alias} cannot answer: {name} is {row[np.argmin(fine)]}")
        try:
            answer = self._session.run([PROBABILITIES], {self._input: values.reshape(1, -1)})[0]
        except Exception as error:  # its errors share no base class
            raise PredictionFailed(f"{self.manifest.alias} failed: {error}") from error
        if answer.shape != (1, len(CLASSES)):
            raise PredictionFailed(f"{self.manifest.alias} answered shape {answer.shape}, not (1, {len(CLASSES)})")
        return answer[0].astype(np.float64)


HEADS: Mapping[str, type[_Head]] = {"momentum_rule": MomentumHead, "onnx_classifier": OnnxClassifierHead}


def load_head(bundle: Bundle) -> Policy:
    """The head that serves this bundle. Raises BundleRefused if it cannot be served as its manifest says."""
    return HEADS[bundle.manifest.kind](bundle)


def _levels(manifest: Manifest, own_ranges: Ranges) -> Levels:
    ranges = {**Levels.RANGES, **own_ranges}
    for name, value in manifest.parameters.items():
        if name not in ranges:
            raise BundleRefused(f"a {manifest.kind} has no parameter {name!r}; known: {', '.join(sorted(ranges))}")
        low, high = ranges[name]
        if not low <= value <= high:
            raise BundleRefused(f"manifest.parameters.{name} must be between {low:g} and {high:g}, got {value}")
    return Levels(**{name: float(value) for name, value in manifest.parameters.items() if name not in own_ranges})
