"""What a reinforcement-learning job may be told, with the ranges; the words are those of `make retrain_rl`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge, Gt, Le, Lt

from policies.errors import InvalidInput
from train.dataset import Brackets
from train.rl.env_settings import EnvSettings

PPO, SAC = "ppo", "sac"
ALGOS = (PPO, SAC)
SIZES = ("small", "full")
RANGES = {"STEPS": ("steps", 1_000, 10**9), "LOOKBACK": ("lookback_bars", 3_000, 1_000_000),
          "SEEDS": ("seeds", 1, 100), "STEPS_PER_UPDATE": ("steps_per_update", 1, 10_000),
          "PATIENCE": ("patience", 1, 10_000)}


@dataclass(frozen=True)
class PpoSettings:
    """envs: accounts side by side. rollout: steps of each between two trainings; batch_rows: of a gradient step.
    first_deviations: spread of size, stop and target at the start, in the units of an action.
    """

    envs: Annotated[int, Ge(1), Le(65_536)]
    rollout: Annotated[int, Ge(1)]
    batch_rows: Annotated[int, Ge(1)]
    epochs: Annotated[int, Ge(1)]
    learning_rate: Annotated[float, Gt(0), Lt(1)]
    gamma: Annotated[float, Gt(0), Lt(1)]
    gae: Annotated[float, Ge(0), Le(1)]
    clip: Annotated[float, Gt(0), Lt(1)]
    entropy: Annotated[float, Ge(0)]
    hidden: tuple[int, ...]
    first_deviations: tuple[float, float, float] = (0.5, 0.1, 0.1)


@dataclass(frozen=True)
class SacSettings:
    """envs: accounts side by side. rollout: steps of each between two trainings. remembered: transitions at most.
    first_steps: sampled before the first update. alpha: entropy temperature at the start. first_deviations: as of
    PPO.
    """

    envs: Annotated[int, Ge(1), Le(65_536)]
    rollout: Annotated[int, Ge(1)]
    batch_rows: Annotated[int, Ge(1)]
    remembered: Annotated[int, Ge(1)]
    first_steps: Annotated[int, Ge(0)]
    actor_rate: Annotated[float, Gt(0), Lt(1)]
    critic_rate: Annotated[float, Gt(0), Lt(1)]
    alpha_rate: Annotated[float, Gt(0), Lt(1)]
    alpha: Annotated[float, Gt(0)]
    tau: Annotated[float, Gt(0), Le(1)]
    gamma: Annotated[float, Gt(0), Lt(1)]
    hidden: tuple[int, ...]
    first_deviations: tuple[float, float, float] = (0.5, 0.1, 0.1)


# small is made for two cores and an edge of minutes (docs/decisions/0020); full has the user's own figures for PPO, and
# RLlib's for SAC.
PPO_PROFILES: Mapping[str, PpoSettings] = {
    "small": PpoSettings(64, 64, 256, 8, 2e-3, 0.9, 0.9, 0.2, 0.0, (64, 64)),
    "full": PpoSettings(8, 2_048, 64, 10, 3e-4, 0.99, 0.95, 0.2, 0.0, (256, 256))}
SAC_PROFILES: Mapping[str, SacSettings] = {
    "small": SacSettings(64, 8, 256, 200_000, 4_096, 1e-3, 1e-3, 3e-4, 0.005, 0.01, 0.9, (64, 64)),
    "full": SacSettings(64, 8, 256, 1_000_000, 10_000, 3e-4, 3e-4, 3e-4, 1.0, 0.005, 0.99, (256, 256))}


@dataclass(frozen=True)
class RlSettings:
    """symbols: what is traded. steps: of all accounts together, per training. seeds: trainings.

    steps_per_update: of SAC, environment steps for each gradient step. validation_share, test_share: of the time range,
    at its end. evaluations: how often a training is looked at on the validation range, evenly; patience: so many looks
    without a better one end it early, after half of the steps. env: of the environment. brackets: horizon of a served
    trade, and what the trials are counted for.
    """

    symbols: tuple[str, ...]
    algo: str = PPO
    steps: Annotated[int, Ge(1_000), Le(10**9)] = 200_000
    lookback_bars: Annotated[int, Ge(3_000), Le(1_000_000)] = 25_200
    size: str = "small"
    seed: int = 7
    seeds: Annotated[int, Ge(1), Le(100)] = 1
    steps_per_update: Annotated[int, Ge(1), Le(10_000)] = 16
    validation_share: Annotated[float, Gt(0), Lt(1)] = 0.15
    test_share: Annotated[float, Gt(0), Lt(1)] = 0.25
    evaluations: Annotated[int, Ge(1), Le(1_000)] = 20
    patience: Annotated[int, Ge(1), Le(10_000)] = 8
    env: EnvSettings = field(default_factory=EnvSettings)
    brackets: Brackets = field(default_factory=Brackets)

    def __post_init__(self) -> None:
        if self.algo not in ALGOS:
            raise InvalidInput("ALGO", f"one of {', '.join(ALGOS)}", self.algo)
        if self.size not in SIZES:
            raise InvalidInput("SIZE", f"one of {', '.join(SIZES)}", self.size)
        if not self.symbols or len(set(self.symbols)) != len(self.symbols) or not all(self.symbols):
            raise InvalidInput("COINS", "different symbols, at least one", self.symbols)
        for word, (name, low, high) in RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise InvalidInput(word, f"{low} to {high}", value)
        if self.algo == SAC and self.steps <= self.sac.first_steps:
            raise InvalidInput("STEPS", f"more than {self.sac.first_steps} with ALGO=sac SIZE={self.size}: so many "
                               f"come before its first update", self.steps)
        if not self.validation_share + self.test_share < 0.9:
            raise InvalidInput("validation_share, test_share", "together less than 0.9",
                               (self.validation_share, self.test_share))

    @property
    def ppo(self) -> PpoSettings:
        return PPO_PROFILES[self.size]

    @property
    def sac(self) -> SacSettings:
        return SAC_PROFILES[self.size]

    @property
    def own(self) -> PpoSettings | SacSettings:
        """Those of the algorithm that is asked for."""
        return self.sac if self.algo == SAC else self.ppo


def steps_from(text: str) -> int:
    """1e6, 200000 or 200_000 as a whole number; InvalidInput otherwise."""
    try:
        steps = float(text.replace("_", ""))
    except ValueError:
        steps = float("nan")
    if not 0 < steps < 1e12 or steps != round(steps):
        raise InvalidInput("STEPS", "a whole number, such as 200000 or 1e6", text)
    return int(steps)
