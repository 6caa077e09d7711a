"""What every head is: a function from an input row to probabilities, and one rule from those to an Action.

A head predicts (p_short, p_flat, p_long). The rule, the same for every kind but the ensemble: trade the more probable
direction, with confidence p / (p_long + p_short), at the manifest's levels; stay flat if the two are equal, if the
confidence is under `min_conf`, or if p_flat exceeds `max_p_flat`. The margin is chosen so that size * leverage * stop
is `risk_per_trade`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from policies.bundle import Bundle
from policies.errors import BundleRefused, HubError, InvalidInput, one_line
from policies.manifest import Manifest
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

    @property
    def arrays(self) -> Mapping[str, int]:
        """By array group, how many of its last numbers follow the features in an input row, groups sorted by name."""
        ...

    @property
    def width(self) -> int:
        """Numbers in an input row."""
        ...

    @property
    def optional_features(self) -> tuple[str, ...]:
        """Those features that may be NaN."""
        ...

    @property
    def needed_features(self) -> tuple[str, ...]:
        """Those features without which it never trades."""
        ...

    def propose(self, context: Context) -> Proposal:
        """The policy's answer; the same for the same context. Raises HubError when there is none."""
        ...

    def predict(self, obs: ArrayLike) -> NDArray[np.float64]:
        """Probabilities of short, flat, long: (3,) for an input row (width,), (N, 3) for rows (N, width)."""
        ...


@dataclass(frozen=True)
class Levels:
    """The manifest's numbers that every kind but the ensemble has.

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


class Head(ABC):
    """What all kinds share: the row's building and checks, and rows one at a time."""

    def __init__(self, bundle: Bundle) -> None:
        self.manifest = bundle.manifest
        self._policy_id = bundle.policy_id
        self._width = bundle.manifest.width
        self._groups = tuple(sorted(bundle.manifest.arrays.items()))
        optional = set(bundle.manifest.optional_features)
        named = [name not in optional for name in bundle.manifest.features]
        self._required = np.array(named + [True] * (self._width - len(named)))

    @property
    def policy_id(self) -> str:
        return self._policy_id

    @property
    def features(self) -> tuple[str, ...]:
        return self.manifest.features

    @property
    def arrays(self) -> Mapping[str, int]:
        return self.manifest.arrays

    @property
    def width(self) -> int:
        return self._width

    @property
    def optional_features(self) -> tuple[str, ...]:
        return self.manifest.optional_features

    @property
    def needed_features(self) -> tuple[str, ...]:
        return tuple(name for name in self.features if name not in self.optional_features)

    def propose(self, context: Context) -> Proposal:
        return self.decide(self._row(context))

    @abstractmethod
    def decide(self, row: NDArray[np.float64]) -> Proposal:
        """The proposal for one input row (width,)."""

    def predict(self, obs: ArrayLike) -> NDArray[np.float64]:
        """Probabilities of short, flat, long: (3,) for an input row (width,), (N, 3) for rows (N, width).

        Rows are answered one at a time, so that no batch size can change a bit of an answer.
        """
        rows = np.asarray(obs, dtype=np.float64)
        if rows.ndim == 1:
            return self._answer(rows)
        if rows.ndim != 2:
            raise InvalidInput("obs", f"of shape (F,) or (N, F) with F = {self._width}", rows.shape)
        return np.array([self._answer(row) for row in rows]).reshape(len(rows), len(CLASSES))

    def _row(self, context: Context) -> NDArray[np.float64]:
        """(width,): the features, then for each array group in the order of names its last numbers."""
        if not self._groups:
            return np.asarray(context.features, dtype=np.float64)
        if len(context.features) != len(self.features):
            raise InvalidInput("features", f"{len(self.features)} numbers", len(context.features))
        parts = [np.asarray(context.features, dtype=np.float64)]
        for group, count in self._groups:
            values = context.arrays.get(group)
            if values is None or len(values) < count:
                found = "absent" if values is None else f"{len(values)} numbers"
                raise PredictionFailed(f"{self.manifest.alias} cannot answer: {group} is {found}, it needs {count}")
            parts.append(np.asarray(values[len(values) - count:], dtype=np.float64))
        return np.concatenate(parts)

    def _answer(self, row: NDArray[np.float64]) -> NDArray[np.float64]:
        if row.shape != (self._width,):
            raise InvalidInput("features", f"{self._width} numbers", row.shape)
        probabilities = self._probabilities(row)
        if not (np.all(probabilities >= 0) and abs(probabilities.sum() - 1.0) <= 1e-3):
            raise PredictionFailed(f"{self.manifest.alias} answered {probabilities.tolist()}, not three probabilities")
        return probabilities

    def usable(self, row: NDArray[np.float64]) -> NDArray[np.float32]:
        """The row (width,) for a model that reads all of it.

        Raises PredictionFailed if a required number is not finite; an optional one may be NaN, as it was in training.
        """
        if row.shape != (self._width,):
            raise InvalidInput("features", f"{self._width} numbers", row.shape)
        with np.errstate(over="ignore"):  # beyond float32 is not finite, which is refused below
            values = row.astype(np.float32)
        fine = np.isfinite(values) | (np.isnan(values) & ~self._required)
        if not fine.all():
            place = int(np.argmin(fine))
            raise PredictionFailed(f"{self.manifest.alias} cannot answer: {self._named(place)} is {row[place]}")
        return values

    def _named(self, place: int) -> str:
        """What the number at this place of a row is."""
        if place < len(self.features):
            return self.features[place]
        first = len(self.features)
        for group, count in self._groups:
            if place < first + count:
                return f"{group}[{place - first}]"
            first += count
        raise IndexError(place)

    @abstractmethod
    def _probabilities(self, row: NDArray[np.float64]) -> NDArray[np.float64]:
        """(3,) for one row (width,)."""


class LevelsHead(Head):
    """A head whose answer is probabilities, and whose levels are the manifest's."""

    OWN_RANGES: ClassVar[Ranges] = {}

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle)
        require_parameters(bundle.manifest, {**Levels.RANGES, **self.OWN_RANGES})
        self._levels = Levels(**{name: float(value) for name, value in bundle.manifest.parameters.items()
                                 if name not in self.OWN_RANGES})

    def decide(self, row: NDArray[np.float64]) -> Proposal:
        """Of a flat proposal, the confidence is the one that its more probable direction had."""
        p_short, p_flat, p_long = map(float, self._answer(row))
        directed = p_short + p_long
        confidence = max(p_short, p_long) / directed if directed > 0 else 0.5
        direction = Direction.LONG if p_long > p_short else Direction.SHORT
        if p_long == p_short or confidence < self._levels.min_conf or p_flat > self._levels.max_p_flat:
            direction = Direction.FLAT
        return Proposal(self._levels.action(direction), confidence)


class ModelHead(LevelsHead):
    """A head of a trained model that reads the whole row, as float32, and answers with probabilities."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle)
        if self.manifest.inputs:
            raise BundleRefused(f"a policy of kind {self.manifest.kind} reads the whole vector: "
                                f"manifest.inputs must be empty")

    def _probabilities(self, row: NDArray[np.float64]) -> NDArray[np.float64]:
        values = self.usable(row)
        try:
            answer = self._model(values)
        except Exception as error:  # the errors of the libraries share no base class
            raise PredictionFailed(f"{self.manifest.alias} failed: {one_line(error)}") from error
        if answer.shape != (len(CLASSES),):
            raise PredictionFailed(f"{self.manifest.alias} answered shape {answer.shape} to one row, not (3,)")
        return answer.astype(np.float64)

    @abstractmethod
    def _model(self, row: NDArray[np.float32]) -> NDArray[np.floating]:
        """(3,) for one row (width,) that is finite where it must be."""


def require_parameters(manifest: Manifest, ranges: Ranges) -> None:
    """BundleRefused unless every parameter is known and in its range."""
    for name, value in manifest.parameters.items():
        if name not in ranges:
            raise BundleRefused(f"a {manifest.kind} has no parameter {name!r:.100}; known: {', '.join(sorted(ranges))}")
        low, high = ranges[name]
        if not low <= value <= high:
            raise BundleRefused(f"manifest.parameters.{name} must be between {low:g} and {high:g}, got {value}")
