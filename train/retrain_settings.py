"""What a search for better supervised heads may be told, with the ranges; the words are those of `make retrain_sup`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated

from annotated_types import Ge, Le

from feature_repo.windows import WINDOW_BARS
from policies.errors import InvalidInput
from policies.fills import Costs
from train.dataset import Brackets
from train.mae_settings import PROFILES, MaeSettings
from train.supervised import ENSEMBLE, PLANS

SIZES = ("small", "full")
HEADS = (*PLANS, ENSEMBLE)
RANGES = {"WINDOW": ("window_bars", 10, WINDOW_BARS), "LOOKBACK": ("lookback_bars", 3_000, 1_000_000),
          "TRIALS": ("trials", 1, 1_000), "SEEDS": ("seeds", 1, 100), "FOLDS": ("folds", 1, 50)}
# The tests of the walk-forward are the later half of the rows and must be two blocks of 240 bars at least; rows begin
# where every feature is there, after some 120 bars, and end a horizon before the bars do.
LEAST_BARS = 1_100
FIT_ROWS = {"small": 12_000, "full": 1_000_000}  # of a fit at most; neighbouring rows are nearly the same


@dataclass(frozen=True)
class RetrainSettings:
    """symbols: what is traded. window_bars: of raw input. lookback_bars: of history. trials: of each sweep.
    seeds: trainings of each head and fold. folds: of the walk-forward. size: small, made for two cores, or full.
    mae: of the embedder; None is the profile of the size.
    """

    symbols: tuple[str, ...]
    window_bars: Annotated[int, Ge(10), Le(WINDOW_BARS)] = 60
    lookback_bars: Annotated[int, Ge(3_000), Le(1_000_000)] = 25_200
    heads: tuple[str, ...] = HEADS
    trials: Annotated[int, Ge(1), Le(1_000)] = 4
    seeds: Annotated[int, Ge(1), Le(100)] = 1
    folds: Annotated[int, Ge(1), Le(50)] = 2
    size: str = "small"
    seed: int = 7
    brackets: Brackets = field(default_factory=Brackets)
    costs: Costs = field(default_factory=Costs)
    mae: MaeSettings | None = None

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise InvalidInput("SIZE", f"one of {', '.join(SIZES)}", self.size)
        if not self.symbols or len(set(self.symbols)) != len(self.symbols) or not all(self.symbols):
            raise InvalidInput("COINS", "different symbols, at least one", self.symbols)
        if not self.heads or not set(self.heads) <= set(HEADS):
            raise InvalidInput("HEADS", f"of {', '.join(HEADS)}", self.heads)
        for word, (name, low, high) in RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise InvalidInput(word, f"{low} to {high}", value)
        if self.embeds and self.window_bars % self.embedder.patch_bars:
            raise InvalidInput("WINDOW", f"a multiple of {self.embedder.patch_bars} for heads with an embedding",
                               self.window_bars)

    @property
    def plans(self) -> tuple[str, ...]:
        """The heads that are fitted: those asked for, whom they must beat, and an ensemble's members."""
        wanted = {name for name in self.heads if name != ENSEMBLE}
        if ENSEMBLE in self.heads and sum(PLANS[name].learner != "linear" for name in wanted) < 2:
            wanted |= {"catboost", "tabnet"}
        wanted |= {PLANS[name].baseline for name in wanted} | {"linear"}
        return tuple(name for name in PLANS if name in wanted)

    @property
    def swept(self) -> tuple[str, ...]:
        """The heads whose settings are searched for; one with an embedding takes those of its learner's plain head."""
        learners = {PLANS[name].learner for name in self.plans}
        return tuple(name for name, plan in PLANS.items() if plan.learner in learners and not plan.embedding)

    @property
    def members(self) -> tuple[str, ...]:
        """Of the ensemble: every head but the linear ones."""
        return tuple(name for name in self.plans if PLANS[name].learner != "linear") if ENSEMBLE in self.heads else ()

    @property
    def embeds(self) -> bool:
        return any(PLANS[name].embedding for name in self.plans)

    @property
    def embedder(self) -> MaeSettings:
        return self.mae or replace(PROFILES[self.size], seq_len=self.window_bars, seed=self.seed, threads=2)

    @property
    def fit_rows(self) -> int:
        return FIT_ROWS[self.size]
