"""What a search comes to: judged candidates, best first, and how it got there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from policies.bundle import Bundle
from train.intervals import BlockGrid
from train.jobs import Arrays
from train.judgement import Judgement
from train.retrain_settings import RetrainSettings
from train.sweep import Trial


@dataclass(frozen=True)
class Candidate:
    """One judged head. baseline: whom it was compared with. trades: of the walk-forward, of the first seed, whose
    training is the one that is handed over. by_seed: profit factor of each seed. folds: results of its fits.
    bundle: of the final fit, with the judgement in its manifest. training_s: of all its fits.
    """

    name: str
    baseline: str | None
    judgement: Judgement
    passed: bool
    missed: tuple[str, ...]
    trades: Arrays
    by_seed: tuple[float, ...]
    folds: tuple[Mapping[str, Any], ...]
    bundle: Bundle
    served_ms: float
    training_s: float


@dataclass(frozen=True)
class Retrained:
    """candidates: best first. sweeps: by learner's plain head. embedder: None if no head uses one; reconstruction: how
    well it guesses hidden bars, see `train.mae_report`. trials: counted for the target, ever. failed: heads that could
    not be made, and why.
    """

    key: str
    settings: RetrainSettings
    candidates: tuple[Candidate, ...]
    sweeps: Mapping[str, tuple[Trial, ...]]
    embedder: Bundle | None
    reconstruction: tuple[Mapping[str, Any], ...]
    grid: BlockGrid
    trials: int
    failed: Mapping[str, str]

    @property
    def job(self) -> str:
        """What names the search and the heads that it could make; as long as all could be made, its key alone."""
        return self.key if not self.failed else f"{self.key} without {','.join(sorted(self.failed))}"

    @property
    def asked_for(self) -> tuple[Candidate, ...]:
        """The candidates without the baselines that nobody named."""
        return tuple(candidate for candidate in self.candidates if candidate.name in self.settings.heads)


def plain(judgement: Judgement) -> dict[str, Any]:
    """As JSON that a manifest may hold: figures that are none are null."""
    def cleaned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: cleaned(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [cleaned(inner) for inner in value]
        return None if isinstance(value, float) and not np.isfinite(value) else value

    found: dict[str, Any] = cleaned(asdict(judgement))
    return found


def ranked(judgement: Judgement) -> tuple[float, float]:
    """The less the better: by confidence after all trials, then by what the profit factor is at least; NaN is last."""
    confidence, least = judgement.deflated_sharpe, judgement.head.profit_factor_interval.low
    return (-round(confidence, 3) if np.isfinite(confidence) else 1.0, -least if np.isfinite(least) else 1.0)
