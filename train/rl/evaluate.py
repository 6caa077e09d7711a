"""What a deterministic actor earns on later bars: bar by bar as it was trained, and in brackets as it is served.

`play` moves one account for each stretch of bars on, every stretch from a flat start; actor, constant action and
whoever else is compared go the same way. `serve` asks at each bar what a flat account would do, and fills it as the
hub does: one bracket trade at a time in the slot of each symbol.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policies.actor import bracket, flat_position, observations
from policies.bars import Bars
from policies.engine.columns import Orders, simulate_accounts
from policies.engine.rules import Sizing, price_rows
from policies.engine.stepping import SteppedAccounts
from train.backtest import BacktestReport
from train.dataset import Brackets
from train.rl.env_settings import EnvSettings
from train.rl.market_rows import MarketRows, TimeRange
from train.signals import Signals, backtest_signals

CASH = 10_000.0  # USD at the start of each stretch

Floats = NDArray[np.float64]
Act = Callable[[NDArray[np.float32]], Floats]  # observations (N, 100) -> actions (N, 3)


def constant(size: float, stop: float, target: float) -> Act:
    """Always the same action, whatever is observed."""
    action = np.array([size, stop, target])
    return lambda seen: np.broadcast_to(action, (len(seen), 3))


@dataclass(frozen=True)
class Stretches:
    """Runs of bars without a gap, each played from a flat start. symbol: place in the rows. first: the bar at whose
    close it begins. start_ms: of that close. All (S,). bars: of each.
    """

    symbol: NDArray[np.int64]
    first: NDArray[np.int64]
    start_ms: NDArray[np.int64]
    bars: int


@dataclass(frozen=True)
class Played:
    """Of S stretches: net return over equity at its start, and the deepest fall from the peak within it, as a fraction.
    Both (S,). parts: positions or parts of them that were closed, all together.
    """

    stretches: Stretches
    net_return: Floats
    drawdown: Floats
    parts: int

    @property
    def by_time(self) -> Floats:
        """(T,) mean net return over the symbols of each time at which stretches begin: one book, shared equally."""
        times, place = np.unique(self.stretches.start_ms, return_inverse=True)
        return np.bincount(place, self.net_return) / np.bincount(place, minlength=len(times))

    def figures(self) -> dict[str, float]:
        book = np.cumsum(self.by_time)
        peak = np.maximum.accumulate(np.concatenate([[0.0], book]))[1:]
        return {"net_return_percent": 100.0 * float(book[-1]), "parts": float(self.parts),
                "max_drawdown_percent": 100.0 * float(max((peak - book).max(), self.drawdown.max())),
                "positive_stretches": float((self.by_time > 0).mean())}


def stretches_in(rows: Sequence[MarketRows], within: TimeRange, bars: int) -> Stretches:
    """As many as fit one after another into the range; a rest that is shorter is left out."""
    found: list[tuple[int, int, int]] = []
    for number, one in enumerate(rows):
        free_from = 0
        for start in one.starts(bars, within).tolist():
            if start >= free_from:
                found.append((number, start, int(one.bars.close_time_ms[start])))
                free_from = start + bars
    table = np.array(found, np.int64).reshape(len(found), 3)
    return Stretches(table[:, 0], table[:, 1], table[:, 2], bars)


def play(act: Act, rows: Sequence[MarketRows], stretches: Stretches, settings: EnvSettings) -> Played:
    """Every stretch at once. An account that is ruined stays where it is."""
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in rows])])[:-1]
    accounts = SteppedAccounts(np.concatenate([price_rows(one.bars).T for one in rows]),
                               np.concatenate([one.features for one in rows]), len(stretches.first),
                               settings.rules(CASH))
    first = stretches.first + offsets[stretches.symbol]
    accounts.begin(first, first + stretches.bars)
    worth, peak, fall = np.full(len(first), CASH), np.full(len(first), CASH), np.zeros(len(first))
    going, parts = np.ones(len(first), bool), np.zeros(len(first), np.int64)
    for _ in range(stretches.bars):
        accounts.step(act(accounts.observations))
        worth, parts = np.where(going, accounts.equity, worth), np.where(going, accounts.parts_closed, parts)
        peak = np.maximum(peak, worth)
        fall = np.maximum(fall, 1.0 - worth / peak)
        ruined = accounts.terminated & going
        if accounts.terminated.any():
            accounts.choose(np.flatnonzero(accounts.terminated), first[accounts.terminated],
                            first[accounts.terminated] + stretches.bars)
        going &= ~ruined
    return Played(stretches, worth / CASH - 1.0, fall, int(parts.sum()))


def serve(act: Act, rows: Sequence[MarketRows], within: TimeRange, settings: EnvSettings,
          brackets: Brackets) -> BacktestReport:
    """Bracket trades of every symbol on rows of the range, as the served head would propose them."""
    parts = [_proposed(act, one, within, settings) for one in rows]
    symbol = np.concatenate([np.full(len(times), one.symbol) for one, (times, _) in zip(rows, parts, strict=True)])
    signals = Signals(*(np.concatenate([getattr(part, name) for _, part in parts]) for name in
                        ("direction", "size_fraction", "leverage", "tp_pct", "sl_pct")))
    return backtest_signals({one.symbol: _before(one, within) for one in rows}, symbol,
                            np.concatenate([times for times, _ in parts]), signals, brackets.horizon_bars,
                            settings.costs)


def held_long(rows: Sequence[MarketRows], stretches: Stretches, settings: EnvSettings) -> Played:
    """Buy and hold: the most that is allowed from each stretch's first bar on, without stop or target."""
    returns, falls = [], []
    for number, first in zip(stretches.symbol.tolist(), stretches.first.tolist(), strict=True):
        amount = np.full(stretches.bars, np.nan)
        amount[0] = settings.limits.most_exposure
        run = simulate_accounts(rows[number].bars.slice(first + 1, first + 1 + stretches.bars),
                                Orders(amount, Sizing.TARGET_FRACTION, leverage=settings.limits.leverage), CASH,
                                settings.costs, curves=False, parts=False)
        returns.append(float(run.equity[0]) / CASH - 1.0)
        falls.append(float(run.max_drawdown_fraction[0]))
    return Played(stretches, np.array(returns), np.array(falls), 0)


def rows_within(one: MarketRows, within: TimeRange) -> NDArray[np.int64]:
    """Bars of the range at whose close there are features."""
    close = one.bars.close_time_ms
    return np.flatnonzero(one.known & (close >= within.start_ms) & (close < within.stop_ms))


def _proposed(act: Act, one: MarketRows, within: TimeRange,
              settings: EnvSettings) -> tuple[NDArray[np.int64], Signals]:
    """Times of the rows of a range, and what a flat account would do at each, in the words of the served head."""
    places, limits = rows_within(one, within), settings.limits
    asked = bracket(act(observations(one.features[places], flat_position())), limits)
    return one.bars.close_time_ms[places], Signals(
        asked.direction, asked.size_fraction, np.full(len(places), limits.leverage), asked.target, asked.stop)


def _before(one: MarketRows, within: TimeRange) -> Bars:
    """The bars that close within the range or before."""
    return one.bars.slice(0, int(np.searchsorted(one.bars.close_time_ms, within.stop_ms, "right")))
