"""What is asked of a candidate in a forward test, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le

from policies.bundle import Bundle
from policies.errors import InvalidInput
from policies.fills import Costs
from train.backtest import BacktestReport
from train.dataset import Brackets
from train.forward_figures import ForwardFigures
from train.judgement import JudgementSettings

STRICT_PROFIT_FACTOR = 1.5  # under which the hub's gates throttle


@dataclass(frozen=True)
class ForwardSettings:
    """symbols: that are played. most_bars: of each symbol, the first ones after training. least_profit_factor: 0
    demands none. most_drawdown: of allotted capital, as a fraction. strict: the profit factor and the judgement of the
    manifest must be good as well. least_trades: by which something was tested at all; 0 demands none.

    A head that earns nothing pays its costs on every trade, so over a long enough stretch it reaches any fall. The
    default is two days, in which a head of two symbols makes the hundred trades or so after which the hub's own gates
    judge it.
    """

    symbols: tuple[str, ...]
    most_bars: Annotated[int, Ge(1), Le(1_000_000)] = 2_880
    least_profit_factor: Annotated[float, Ge(0), Le(1_000)] = 0.0
    most_drawdown: Annotated[float, Gt(0), Le(1)] = 0.04
    strict: bool = False
    least_trades: Annotated[int, Ge(0), Le(1_000_000)] = 1
    horizon_bars: Annotated[int, Ge(1), Le(10_000)] = Brackets.horizon_bars
    strategy: str = "momentum"
    costs: Costs = field(default_factory=Costs)

    def __post_init__(self) -> None:
        if not self.symbols or len(set(self.symbols)) != len(self.symbols) or not all(self.symbols):
            raise InvalidInput("COINS", "different symbols, at least one", self.symbols)
        for name, value, low, high in (("LOOKBACK", self.most_bars, 1, 1_000_000), ("max-dd", self.most_drawdown, 0, 1),
                                       ("min-pf", self.least_profit_factor, 0, 1_000),
                                       ("min-trades", self.least_trades, 0, 1_000_000)):
            if not low <= value <= high or (name == "max-dd" and value == 0):
                raise InvalidInput(name, f"{low} to {high}" + (", above 0" if name == "max-dd" else ""), value)


@dataclass(frozen=True)
class Demand:
    """What is asked of a candidate, and what was found, in words. figure, limit: None where there is no number."""

    name: str
    met: bool
    said: str
    figure: float | None = None
    limit: float | None = None


@dataclass(frozen=True)
class Played:
    """from_ms, until_ms: first row and end of the last bar. rows: that the head was asked about; unanswered: of them
    without an answer, as when a required feature is missing. changed: of those asked again, answered otherwise.
    """

    from_ms: int
    until_ms: int
    rows: int
    unanswered: int
    changed: int
    report: BacktestReport
    figures: ForwardFigures


@dataclass(frozen=True)
class ForwardResult:
    """trained_until_ms: None if the manifest does not say. played: None if there was nothing to play, or nobody."""

    policy_id: str
    alias: str
    kind: str
    trained_until_ms: int | None
    played: Played | None
    demands: tuple[Demand, ...]

    @property
    def passed(self) -> bool:
        return all(demand.met for demand in self.demands)

    @property
    def missed(self) -> tuple[str, ...]:
        return tuple(demand.said for demand in self.demands if not demand.met)


def demands_of(played: Played | None, until_ms: int | None, bundle: Bundle,
               settings: ForwardSettings) -> list[Demand]:
    """Everything that is asked of a sound candidate; written so that NaN misses a demand."""
    since = "the last quarter of the bars, as its manifest does not say what it was made from" if until_ms is None \
        else "later than its training"
    if played is None:
        return [Demand("later bars", False, f"no bar with features is there that is {since}", 0.0, 1.0)]
    fall, factor = played.figures.max_drawdown_percent, played.figures.profit_factor
    most_fall = 100.0 * settings.most_drawdown
    demands = [
        Demand("later bars", until_ms is not None or not settings.strict,
               f"{played.rows} rows of {since}", float(played.rows), 1.0),
        Demand("answers", played.unanswered < played.rows, f"{played.unanswered} of {played.rows} rows without an "
               f"answer", float(played.rows - played.unanswered), 1.0),
        Demand("deterministic", played.changed == 0, f"{played.changed} rows were answered otherwise when they came "
               f"again", float(played.changed), 0.0),
        Demand("drawdown", fall <= most_fall, f"drawdown {fall:.2f} % of allotted capital, at most {most_fall:g} % is "
               f"allowed", fall, most_fall)]
    if settings.least_trades > 0:
        demands.append(_traded(played.figures.trades, settings.least_trades))
    least = max(settings.least_profit_factor, STRICT_PROFIT_FACTOR if settings.strict else 0.0)
    if least > 0:
        demands.append(Demand("profit factor", factor >= least, f"profit factor {factor:.2f} over "
                              f"{played.figures.trades} trades, at least {least:g} is asked for", factor, least))
    if settings.strict:
        demands.append(_judged(bundle))
    return demands


def _traded(trades: int, least: int) -> Demand:
    said = f"{trades} trades, at least {least} asked for" if trades else "it never traded: nothing was tested"
    return Demand("trades", trades >= least, said, float(trades), float(least))


def _judged(bundle: Bundle) -> Demand:
    """The judgement that its training has left in the manifest."""
    told: Any = bundle.manifest.trained_on.get("judgement")
    value = told.get("deflated_sharpe") if isinstance(told, Mapping) else None
    confidence = float(value) if isinstance(value, int | float) else math.nan
    least = JudgementSettings.least_deflated_sharpe
    return Demand("deflated Sharpe", confidence >= least, f"deflated Sharpe {confidence:.3f} in the judgement of its "
                  f"training, at least {least:g} is asked for", confidence, least)
