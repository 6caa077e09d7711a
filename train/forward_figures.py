"""The figures of a forward test, with how sure they are, and what people see of them: a table, a page with plots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from reports.report import Plot, write_report
from train.backtest import BacktestReport, BacktestTrade
from train.intervals import (
    BlockGrid,
    BootstrapSettings,
    Interval,
    drawdown_interval,
    drawn_blocks,
    expectancy_interval,
    profit_factor_interval,
    times_drawn,
    track_of,
)

if TYPE_CHECKING:
    from train.forward_result import ForwardResult

BLOCK_BARS = 240  # as in the judgement of a search
LEAST_BLOCKS = 8  # from fewer, no interval is told
REPORT = "forward_test"


@dataclass(frozen=True)
class ForwardFigures:
    """profit_factor: infinite with gains and no loss, NaN with neither. expectancy: mean net return of a trade over
    equity. Intervals are None where the time is too short to tell one; that of the drawdown is what to expect of the
    next stretch of this length.
    """

    trades: int
    profit_factor: float
    profit_factor_interval: Interval | None
    expectancy: float
    expectancy_interval: Interval | None
    max_drawdown_percent: float
    drawdown_interval: Interval | None
    net_return_percent: float


def figures_of(report: BacktestReport, from_ms: int, until_ms: int, interval_ms: int,
               rng: np.random.Generator) -> ForwardFigures:
    """Of trades that were entered in [from_ms, until_ms]."""
    returns = np.array([trade.net_return for trade in report.trades])
    intervals: tuple[Interval | None, ...] = (None, None, None)
    if len(returns) and until_ms - from_ms >= LEAST_BLOCKS * BLOCK_BARS * interval_ms:
        grid = BlockGrid(from_ms, until_ms + 1, BLOCK_BARS * interval_ms)
        track = track_of(grid, np.array([trade.entry_time_ms for trade in report.trades], np.int64), returns)
        settings = BootstrapSettings()
        places = drawn_blocks(len(grid), settings, rng)
        drawn = times_drawn(places)
        intervals = (profit_factor_interval(track, drawn, settings.level),
                     expectancy_interval(track, drawn, settings.level),
                     drawdown_interval(track, places, settings.level))
    factor, expected, fall = intervals
    return ForwardFigures(len(returns), report.record.profit_factor, factor,
                          float(returns.mean()) if len(returns) else float("nan"), expected,
                          report.record.max_drawdown_percent, fall, 100.0 * float(returns.sum()))


def table_of(result: ForwardResult) -> Table:
    """For a terminal: every demand."""
    shown = Table("demand", "met", "found", title=f"forward test of {result.alias} ({result.kind})")
    for demand in result.demands:
        shown.add_row(demand.name, "yes" if demand.met else "NO", demand.said)
    return shown


def sentence_of(result: ForwardResult) -> str:
    """What it earned, in one line."""
    if result.played is None:
        return "nothing was played"
    figures, days = result.played.figures, (result.played.until_ms - result.played.from_ms) / 86_400_000
    return (f"{result.played.rows} rows over {days:.1f} days: {figures.trades} trades, profit factor "
            f"{figures.profit_factor:.2f}{_within(figures.profit_factor_interval)}, expectancy "
            f"{1e4 * figures.expectancy:+.2f} bp{_within(figures.expectancy_interval, 1e4)}, drawdown "
            f"{figures.max_drawdown_percent:.2f} %{_within(figures.drawdown_interval)}, net "
            f"{figures.net_return_percent:+.2f} %")


def as_json(result: ForwardResult) -> dict[str, Any]:
    """Plain JSON; figures that are none are null."""
    played = result.played
    return {
        "policy_id": result.policy_id, "alias": result.alias, "kind": result.kind, "passed": result.passed,
        "missed": list(result.missed), "trained_until_ms": result.trained_until_ms,
        "demands": [_cleaned(asdict(demand)) for demand in result.demands],
        "played": None if played is None else {
            "from_ms": played.from_ms, "until_ms": played.until_ms, "rows": played.rows,
            "unanswered": played.unanswered, "changed": played.changed, **_cleaned(asdict(played.figures))},
        "by_symbol": [] if played is None else _by_symbol(played.report)}


def write_page(folder: Path, result: ForwardResult, notes: Mapping[str, Any], name: str = REPORT) -> Path:
    """NAME.json and its page. notes: what else the report holds."""
    plots = [] if result.played is None else _plots(result.played.report)
    return write_report(folder, name, {**as_json(result), **notes}, plots)


def _plots(report: BacktestReport) -> list[Plot]:
    whole = {"all": report.trades, **{symbol: [trade for trade in report.trades if trade.symbol == symbol]
                                      for symbol in sorted({trade.symbol for trade in report.trades})}}
    sums = {name: _sums(list(trades)) for name, trades in whole.items() if trades}
    falls = {name: _falls(sums[name]) for name in sums if name == "all"}
    return [Plot("Net return over equity, costs in", "hour", "percent", sums),
            Plot("Fall from the peak", "hour", "percent", falls)]


def _falls(line: list[tuple[float, float]]) -> list[tuple[float, float]]:
    values = np.array([value for _, value in line])
    below = values - np.maximum.accumulate(values.clip(min=0.0))
    return [(hour, float(fall)) for (hour, _), fall in zip(line, below, strict=True)]


def _sums(trades: list[BacktestTrade]) -> list[tuple[float, float]]:
    total = np.cumsum([100.0 * trade.net_return for trade in trades])
    return [(trade.exit_time_ms / 3_600_000, float(value)) for trade, value in zip(trades, total, strict=True)]


def _by_symbol(report: BacktestReport) -> list[dict[str, Any]]:
    found = []
    for symbol in sorted({trade.symbol for trade in report.trades}):
        own = np.array([trade.net_return for trade in report.trades if trade.symbol == symbol])
        gain, loss = float(own[own > 0].sum()), float(-own[own <= 0].sum())
        found.append({"symbol": symbol, "trades": len(own), "profit_factor": gain / loss if loss > 0 else None,
                      "net_return_percent": 100.0 * float(own.sum())})
    return found


def _within(interval: Interval | None, scale: float = 1.0) -> str:
    return "" if interval is None else f" ({scale * interval.low:.2f} to {scale * interval.high:.2f})"


def _cleaned(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _cleaned(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value
