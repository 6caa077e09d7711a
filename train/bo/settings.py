"""What the optimisation may be told, with the ranges; the words are those of its command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge, Gt, Le, Lt

from policies.errors import InvalidInput
from policies.fills import Costs
from router.params import ParamGrid
from train.bo.rules import RULES

RANGES = {"LOOKBACK": ("lookback_bars", 3_000, 1_000_000), "TRIALS": ("trials", 1, 1_000)}


@dataclass(frozen=True)
class BoSettings:
    """symbols: whose bars. trials: of each strategy's search, each of some dozen points a bucket. judged_share: of the
    time, at its end, on which what was chosen is judged. horizon_bars, costs: of a trade. leverage: at which margins
    are set aside; it moves no reward while stops lie before liquidation. least_trades: on the searched bars, for levels
    to be chosen. block_bars: of time, for intervals.
    """

    symbols: tuple[str, ...]
    lookback_bars: Annotated[int, Ge(3_000), Le(1_000_000)] = 25_200
    trials: Annotated[int, Ge(1), Le(1_000)] = 16
    seed: int = 7
    strategies: tuple[str, ...] = tuple(RULES)
    judged_share: Annotated[float, Gt(0), Lt(1)] = 0.3
    horizon_bars: Annotated[int, Ge(1), Le(10_000)] = 15
    leverage: Annotated[float, Ge(1), Le(50)] = 5.0
    least_trades: Annotated[int, Ge(2)] = 40
    block_bars: Annotated[int, Ge(1)] = 240
    grid: ParamGrid = field(default_factory=ParamGrid)
    costs: Costs = field(default_factory=Costs)

    def __post_init__(self) -> None:
        if not self.symbols or len(set(self.symbols)) != len(self.symbols) or not all(self.symbols):
            raise InvalidInput("COINS", "different symbols, at least one", self.symbols)
        if not self.strategies or not set(self.strategies) <= set(RULES):
            raise InvalidInput("STRATEGIES", f"of {', '.join(RULES)}", self.strategies)
        for word, (name, low, high) in RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise InvalidInput(word, f"{low} to {high}", value)

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """{tp_pct, sl_pct: (least, greatest)} of the grid."""
        return {name: (min(values), max(values)) for name, values in self.grid.values.items()
                if name in ("tp_pct", "sl_pct")}

    @property
    def middle(self) -> dict[str, float]:
        """The middle values of the grid: where a search starts, and what it is held against."""
        return {name: self.grid.values[name][len(self.grid.values[name]) // 2] for name in ("tp_pct", "sl_pct")}
