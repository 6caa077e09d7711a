"""What every supervised learner is: a family of models with a search space, that fits rows and exports scores as ONNX.

A learner knows nothing of folds, trades or bundles. `train.supervised` calibrates its scores into probabilities of
(short, flat, long), chooses when to trade, and makes the bundle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from feature_repo.windows import CHANNELS
from policies.errors import InvalidInput

ROWS, SCORES = "features", "scores"  # input and output of an exported graph

Setting = float | int | str
Heard = Callable[[int, float], None]  # (step from 1, validation loss); it may raise to end a trial early


@dataclass(frozen=True)
class Layout:
    """What stands where in a row of width `width`: features, then the embedding, then the window, oldest bar first.

    features: names in the order of the feature service. optional: those that may be NaN. embedding: numbers of the
    market's embedding, 0 for none. window_bars: bars of raw window, 0 for none; each with the numbers of CHANNELS.
    """

    features: tuple[str, ...]
    optional: tuple[str, ...] = ()
    embedding: int = 0
    window_bars: int = 0

    @property
    def width(self) -> int:
        return len(self.features) + self.embedding + self.window_bars * len(CHANNELS)

    @property
    def window(self) -> slice:
        return slice(len(self.features) + self.embedding, self.width)

    @property
    def tabular(self) -> slice:
        """Everything but the window."""
        return slice(0, len(self.features) + self.embedding)


@dataclass(frozen=True)
class Labelled:
    """Rows to learn from. values: float32 (N, layout.width); NaN in optional features only. classes: int64 (N,), places
    in policies.heads.CLASSES. returns: float64 (N, 2), net return on margin of a long and of a short, >= -1.
    """

    values: NDArray[np.float32]
    classes: NDArray[np.int64]
    returns: NDArray[np.float64]

    def __post_init__(self) -> None:
        if not len(self.values) == len(self.classes) == len(self.returns) > 0:
            raise InvalidInput("rows", "as many values as classes and returns, at least one",
                               (len(self.values), len(self.classes), len(self.returns)))

    def __len__(self) -> int:
        return len(self.classes)


class Fitted(Protocol):
    """A fitted model."""

    @property
    def steps(self) -> int:
        """Epochs, trees or iterations that the kept model had."""
        ...

    @property
    def importances(self) -> Mapping[str, float]:
        """Share of each input in the answers, summing to 1; {} where the family has no such figure."""
        ...

    def scores(self, values: NDArray[np.float32]) -> NDArray[np.float64]:
        """(N, 3) for (N, width): one number per class, the more the likelier; not calibrated."""
        ...

    def graph(self) -> ModelProto:
        """The same as ONNX: input `features` float32 (N, width), output `scores` float32 (N, 3), no external data."""
        ...


class Learner(Protocol):
    """A family of models."""

    @property
    def name(self) -> str: ...

    @property
    def uses_window(self) -> bool: ...

    @property
    def version(self) -> str:
        """What its search space and defaults are called in the book of trials."""
        ...

    def space(self) -> Mapping[str, Space]:
        """What a sweep may vary."""
        ...

    def defaults(self) -> Mapping[str, Setting]:
        """The settings that are tried first; a value for each name of the space."""
        ...

    def fit(self, fit: Labelled, validation: Labelled, layout: Layout, settings: Mapping[str, Setting], seed: int,
            heard: Heard) -> Fitted:
        """Learn from `fit`, stop early by `validation`. The same arguments give the same model on one machine."""
        ...


@dataclass(frozen=True)
class Space:
    """One dimension of a search: `low`..`high`, of whole numbers if `whole`, on a log scale if `log`; or `choices`."""

    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    choices: tuple[Setting, ...] = ()
