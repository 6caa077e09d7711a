"""Which leverage, target, stop and confidence work in which market: one small bandit per parameter and market bucket.

A value's mean reward has a Normal posterior (rewards come in risk units, so their spread is taken as known); each
parameter takes the value with the largest draw. Parameters learn apart from each other: five values of four parameters
are 20 arms, their combinations would be 625 and never be seen.

A start (`router.param_start`) is a prior: every value of tp and sl in its buckets gets the same few pseudo-trades, with
the advantage that was found as their mean reward at the value nearest to the one found, and half of it for each value
further away. All get them, because an arm that alone had been tried would be drawn less often than untried ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt, Le
from numpy.typing import NDArray

from policies.errors import InvalidInput, UnknownEntity
from policies.keyed_random import generator
from router.param_start import ParamStart

PARAMETERS = ("leverage", "tp_pct", "sl_pct", "min_conf")
STARTED = ("tp_pct", "sl_pct")  # parameters that a start speaks of
DEFAULT_STRATEGY = "default"  # the grid of a strategy that has none of its own


@dataclass(frozen=True)
class ParamGrid:
    """The values each parameter may take. leverage: factor; tp, sl: fractions of price; min_conf: 0..1."""

    leverage_grid: tuple[Annotated[float, Ge(1)], ...] = (2, 4, 6, 8, 10)
    tp_grid_pct: tuple[Annotated[float, Gt(0)], ...] = (0.006, 0.008, 0.010, 0.012, 0.015)
    sl_grid_pct: tuple[Annotated[float, Gt(0)], ...] = (0.004, 0.005, 0.006, 0.008, 0.010)
    min_conf_grid: tuple[Annotated[float, Ge(0), Le(1)], ...] = (0.50, 0.55, 0.60, 0.65, 0.70)

    @property
    def values(self) -> dict[str, tuple[float, ...]]:
        """By parameter, in ascending order and without duplicates."""
        grids = (self.leverage_grid, self.tp_grid_pct, self.sl_grid_pct, self.min_conf_grid)
        return {name: tuple(sorted({float(value) for value in grid}))
                for name, grid in zip(PARAMETERS, grids, strict=True)}


@dataclass(frozen=True)
class ParamSettings:
    """volatility_index, trend_index: places of two features in the vector.

    volatility_low, volatility_high: edges of the terciles, finite and low < high, in the feature's own unit, which may
    be negative (a logarithm). The defaults are a minute's realised volatility.
    prior_trades: weight of the prior mean 0. reward_sd: spread of one reward, in risk units.
    """

    volatility_index: Annotated[int, Ge(0)] = 0
    trend_index: Annotated[int, Ge(0)] = 1
    volatility_low: float = 0.0005
    volatility_high: float = 0.0010
    prior_trades: Annotated[float, Gt(0)] = 1.0
    reward_sd: Annotated[float, Gt(0)] = 1.0


def market_settings(features: Sequence[str]) -> ParamSettings:
    """Of vectors with these features, which are those of `decision_v1`: buckets are terciles of the volatility of the
    last 120 minutes (per minute, 0.05 % and 0.1 %; the feature is its logarithm over 0.1 %), and the trend of 60.
    """
    return ParamSettings(volatility_index=features.index("log_vol_120"), trend_index=features.index("ret_60"),
                         volatility_low=math.log(0.5), volatility_high=0.0)


@dataclass(frozen=True)
class Arm:
    """One value of one parameter in one bucket: how many rewards it has seen and their sum."""

    trades: int = 0
    total: float = 0.0


@dataclass(frozen=True)
class PseudoArm:
    """What a start lets a value begin with: how many trades it counts for, and the sum of their rewards."""

    trades: float = 0.0
    total: float = 0.0


@dataclass(frozen=True)
class _Table:
    """Arms of one (strategy, bucket), all parameters end to end: what a proposal needs, in arrays."""

    mean: NDArray[np.float64]
    sd: NDArray[np.float64]
    segments: tuple[tuple[str, int, tuple[float, ...]], ...]  # parameter, where its arms start, its values


class ParamBandit:
    """Learns and proposes trade parameters. Asking changes nothing.

    grids: by strategy; "default" serves those without. Arms are kept by value, so a changed grid keeps what it knows.
    """

    def __init__(self, seed: int = 0, grids: Mapping[str, ParamGrid] | None = None,
                 settings: ParamSettings | None = None) -> None:
        self.seed = seed
        self.settings = settings or ParamSettings()
        edges = (self.settings.volatility_low, self.settings.volatility_high)
        if not -math.inf < edges[0] < edges[1] < math.inf:
            raise InvalidInput("params.volatility_low", "< volatility_high, both finite", edges)
        self.updates = 0
        self.start = ParamStart()
        self._arms: dict[tuple[str, str, str, float], Arm] = {}  # strategy, bucket, parameter, value
        self._values: dict[str, dict[str, tuple[float, ...]]] = {}
        self._tables: dict[tuple[str, str], _Table] = {}  # a memo of _arms; dropped where they change
        self.reconfigure(grids if grids is not None else {DEFAULT_STRATEGY: ParamGrid()})

    def reconfigure(self, grids: Mapping[str, ParamGrid]) -> None:
        """Take other grids from here on; arms of values that are still, or again, in a grid keep what they learnt."""
        values = {strategy: grid.values for strategy, grid in grids.items()}
        for strategy, grid in values.items():
            for name, options in grid.items():
                if not options or not all(map(math.isfinite, options)):
                    raise InvalidInput(f"per_strategy.{strategy}.{name}", "at least one value, all finite", options)
        self._values = values
        self._tables.clear()

    def begin_from(self, start: ParamStart) -> None:
        """Take this prior instead of the one before; what was learnt from trades stays."""
        self.start = start
        self._tables.clear()

    def limit_offset_pct(self, strategy: str, bucket: str) -> float | None:
        """Distance of the entry limit from the last close that the start gives; None where it gives none."""
        found = self.start.of(strategy, bucket)
        return None if found is None else found.limit_offset_pct

    def bucket(self, features: Sequence[float]) -> str:
        """The market a vector describes: volatility calm, normal or wild by fixed edges, and trend down, flat or up.

        Missing values (NaN) read as normal and flat.
        """
        volatility = features[self.settings.volatility_index]
        trend = features[self.settings.trend_index]
        level = "normal"
        if volatility < self.settings.volatility_low:
            level = "calm"
        elif volatility >= self.settings.volatility_high:
            level = "wild"
        return f"{level}_{'up' if trend > 0 else 'down' if trend < 0 else 'flat'}"

    def propose(self, strategy: str, features: Sequence[float], key: object = None) -> dict[str, float]:
        """{leverage, tp_pct, sl_pct, min_conf}, each of its grid. The same (state, key) gives the same values.

        key: what the proposal is for, such as a decision id; by default the number of updates seen.
        """
        bucket = self.bucket(features)
        table = self._tables.get((strategy, bucket)) or self._build(strategy, bucket)
        rng = generator(self.seed, "params", strategy, bucket, self.updates if key is None else key)
        draws = table.mean + table.sd * rng.standard_normal(len(table.mean))
        return {name: values[int(draws[start:start + len(values)].argmax())] for name, start, values in table.segments}

    def arms(self, strategy: str, features: Sequence[float]) -> dict[str, dict[float, Arm]]:
        """By parameter and value, what is known in the market that the vector describes."""
        bucket = self.bucket(features)
        return {name: {value: self._arms.get((strategy, bucket, name, value), Arm()) for value in values}
                for name, values in self.grid(strategy).items()}

    def learn(self, strategy: str, bucket: str, values: Mapping[str, float], reward: float) -> dict[str, float]:
        """Credit a trade's reward to the arms it was executed with; returns them, for `forget`.

        values: what was executed, by parameter. One that no grid value equals (the shield or the LLM had changed it)
        tells nothing about an arm, so it is left out.
        """
        grid = self.grid(strategy)
        credited = {name: float(values[name]) for name in PARAMETERS if values.get(name) in grid[name]}
        self._credit(strategy, bucket, credited, reward, 1)
        return credited

    def forget(self, strategy: str, bucket: str, credited: Mapping[str, float], reward: float) -> None:
        """Take back a reward: the same arguments, with what `learn` returned."""
        for name, value in credited.items():
            if self._arms.get((strategy, bucket, name, value), Arm()).trades == 0:
                raise InvalidInput(f"credited.{name}", "a value that has learnt", value)
        self._credit(strategy, bucket, credited, reward, -1)

    def update(self, strategy: str, features: Sequence[float], reward: float) -> None:
        """Credit what `propose(strategy, features)` answers now, which is what it last answered if nothing was learnt
        in between. Where trades overlap, or were changed before they were executed, use `learn`.
        """
        self.learn(strategy, self.bucket(features), self.propose(strategy, features), reward)

    def _credit(self, strategy: str, bucket: str, values: Mapping[str, float], reward: float, sign: int) -> None:
        if not math.isfinite(reward):
            raise InvalidInput("reward", "finite", reward)
        for name, value in values.items():
            place = (strategy, bucket, name, value)
            arm = self._arms.get(place, Arm())
            self._arms[place] = Arm(arm.trades + sign, arm.total + sign * reward)
        self._tables.pop((strategy, bucket), None)
        self.updates += 1

    def grid(self, strategy: str) -> dict[str, tuple[float, ...]]:
        """The values of each parameter, ascending."""
        grid = self._values.get(strategy) or self._values.get(DEFAULT_STRATEGY)
        if grid is None:
            raise UnknownEntity("strategy", strategy, sorted(self._values))
        return grid

    def _build(self, strategy: str, bucket: str) -> _Table:
        arms: list[Arm] = []
        pseudo: list[PseudoArm] = []
        segments = []
        for name, values in self.grid(strategy).items():
            segments.append((name, len(arms), values))
            arms += [self._arms.get((strategy, bucket, name, value), Arm()) for value in values]
            pseudo += self._pseudo(strategy, bucket, name, values)
        weight = self.settings.prior_trades + np.array([a.trades + p.trades for a, p in zip(arms, pseudo, strict=True)])
        mean = np.array([a.total + p.total for a, p in zip(arms, pseudo, strict=True)]) / weight
        table = _Table(mean, self.settings.reward_sd / np.sqrt(weight), tuple(segments))
        self._tables[strategy, bucket] = table
        return table

    def _pseudo(self, strategy: str, bucket: str, name: str, values: tuple[float, ...]) -> list[PseudoArm]:
        """What the start says of each value; nothing of leverage and confidence."""
        found = self.start.of(strategy, bucket)
        if found is None or name not in STARTED:
            return [PseudoArm()] * len(values)
        logs = np.abs(np.log(np.array(values) / getattr(found, name)))
        steps = np.abs(np.arange(len(values)) - int(logs.argmin()))
        return [PseudoArm(found.weight, found.weight * found.shrunk_advantage * 0.5 ** int(step)) for step in steps]
