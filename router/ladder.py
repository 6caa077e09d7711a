"""The ladder: what a head must show, live, before it may have more than a challenger's share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Protocol

from annotated_types import Ge, Gt, Le

from policies.track_record import TrackRecord


@dataclass(frozen=True)
class LadderSettings:
    """The rungs, all needed at once; keep_profit_factor is under which a green light goes out by itself."""

    min_trades: Annotated[int, Ge(1)] = 150
    min_profit_factor: Annotated[float, Gt(0)] = 2.0
    max_drawdown_percent: Annotated[float, Gt(0), Le(100)] = 3.0
    keep_profit_factor: Annotated[float, Gt(0)] = 1.5


class Belief(Protocol):
    """What the ladder asks of `router.evidence.Evidence`."""

    @property
    def believed(self) -> bool: ...

    @property
    def e_value(self) -> float: ...


@dataclass(frozen=True)
class LadderReport:
    """green_lit: all rungs are climbed. missing: for each rung that is not, a phrase with what it has and needs."""

    green_lit: bool
    missing: tuple[str, ...]


DEFAULTS = LadderSettings()


def climbed(record: TrackRecord, evidence: Belief, settings: LadderSettings = DEFAULTS) -> LadderReport:
    """Whether the trades since the record's last reset, and the evidence of all its life, earn a green light now."""
    missing = []
    if not record.trades >= settings.min_trades:
        missing.append(f"trades {record.trades} of {settings.min_trades}")
    if not record.profit_factor >= settings.min_profit_factor:  # NaN, no trades yet, fails
        missing.append(f"profit factor {record.profit_factor:.2f} of {settings.min_profit_factor:g}")
    if not record.max_drawdown_percent <= settings.max_drawdown_percent:
        missing.append(f"drawdown {record.max_drawdown_percent:.2f} %, at most {settings.max_drawdown_percent:g} %")
    if not evidence.believed:
        missing.append(f"evidence of an edge, e-value {evidence.e_value:.3g}")
    return LadderReport(not missing, tuple(missing))


def is_green_lit(record: TrackRecord, evidence: Belief, was_green_lit: bool, another_green_lit: bool,
                 settings: LadderSettings = DEFAULTS) -> bool:
    """Whether a head is green-lit now: it has climbed, or had and keeps its role for want of a better one.

    another_green_lit: another head has climbed by itself (`climbed(...).green_lit`); heads that merely keep their
    light do not put out each other's. A reset record has no profit factor, so a throttle puts the light out.
    """
    if climbed(record, evidence, settings).green_lit:
        return True
    return was_green_lit and not another_green_lit and record.profit_factor >= settings.keep_profit_factor
