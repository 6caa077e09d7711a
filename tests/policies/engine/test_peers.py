"""The market engine beside two that others wrote, on the same signals: equity at every close equal to 1e-9.

Compared as far as the rules agree. They differ by design, so here it is arranged that the difference cannot show:
- both peers fill a target at the open of a bar that opens beyond it, ours at the target: bars with targets have no gaps
- vectorbt looks at stops and targets only from the bar after the entry, and drops a signal in a bar that stops: where
  levels are set, the price stands still in every bar with an order
- vectorbt has one fee rate and backtesting.py no slippage on exits: maker equals taker, slippage only against vectorbt
- funding, maintenance margin, liquidation, isolated margin, limit orders that are refused, the order book: neither has
  them. `test_account.py` has those rules with sums done by hand.
"""

from __future__ import annotations

import dataclasses
import math
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from bar_makers import gapless_bars, jumpy_bars
from numpy.typing import NDArray

from policies.bars import Bars
from policies.engine.columns import Orders, simulate_accounts
from policies.engine.rules import Costs, Sizing

CASH, FEE = 1_000_000.0, 0.00045
EQUAL = 1e-9


def ours(bars: Bars, amounts: NDArray[np.float64], sizing: Sizing = Sizing.TARGET, stop: float = math.inf,
         target: float = math.inf, slippage: float = 0.0) -> NDArray[np.float64]:
    run = simulate_accounts(bars, Orders(amounts, sizing, leverage=2.0, stop_pct=stop, target_pct=target), CASH,
                            Costs(FEE, FEE, slippage, 0.0))
    assert run.curves is not None
    assert (run.refused == 0).all()
    assert run.parts_count.min() > 20, "enough trades to compare"
    return run.curves


def frame(bars: Bars) -> pd.DataFrame:
    return pd.DataFrame({"Open": bars.open, "High": bars.high, "Low": bars.low, "Close": bars.close},
                        index=pd.to_datetime(bars.open_time_ms, unit="ms"))


def vectorbt_orders(bars: Bars, amounts: NDArray[np.float64], kind: str, slippage: float) -> NDArray[np.float64]:
    from vectorbt import Portfolio

    held = Portfolio.from_orders(_columns(bars.close, amounts, bars), amounts.T, kind, price=bars.open[:, None],
                                 val_price=bars.open[:, None], fees=FEE, slippage=slippage, init_cash=CASH)
    return np.asarray(held.value()).T


def vectorbt_signals(bars: Bars, amounts: NDArray[np.float64], stop: float, target: float,
                     slippage: float) -> NDArray[np.float64]:
    """amounts: NaN for no signal, else 0 or +-3."""
    from vectorbt import Portfolio

    opens = bars.open[:, None]
    held = Portfolio.from_signals(
        _columns(bars.close, amounts, bars), (amounts > 0).T, (amounts == 0).T, (amounts < 0).T, (amounts == 0).T,
        size=3.0, price=opens, open=opens, high=bars.high[:, None], low=bars.low[:, None],
        sl_stop=np.nan if math.isinf(stop) else stop, tp_stop=np.nan if math.isinf(target) else target,
        stop_entry_price="FillPrice", stop_exit_price="StopMarket", upon_opposite_entry="Reverse", fees=FEE,
        slippage=slippage, init_cash=CASH)
    return np.asarray(held.value()).T


def _columns(close: NDArray[np.float64], amounts: NDArray[np.float64], bars: Bars) -> pd.DataFrame:
    return pd.DataFrame(np.repeat(close[:, None], len(amounts), 1), index=pd.to_datetime(bars.open_time_ms, unit="ms"))


def backtesting_py(bars: Bars, amounts: NDArray[np.float64], stop: float = math.inf,
                   target: float = math.inf) -> NDArray[np.float64]:
    """amounts: (T,), whole or NaN. Its strategy sends at a close what fills at the next open, where levels are set."""
    from backtesting import Backtest, Strategy

    class Sent(Strategy):
        def init(self) -> None:
            pass

        def next(self) -> None:
            bar = len(self.data)
            if bar == len(amounts) or math.isnan(amounts[bar]) or amounts[bar] == self.position.size:
                return
            if amounts[bar] == 0:
                self.position.close()
                return
            delta, side = int(amounts[bar] - self.position.size), math.copysign(1, amounts[bar])
            levels: dict[str, Any] = {}
            if not math.isinf(stop):
                levels["sl"] = bars.open[bar] * (1 - side * stop)
            if not math.isinf(target):
                levels["tp"] = bars.open[bar] * (1 + side * target)
            (self.buy if delta > 0 else self.sell)(size=abs(delta), **levels)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that open trades are left out of its statistics
        found = Backtest(frame(bars), Sent, cash=CASH, commission=FEE, margin=0.5).run()
    return found._equity_curve.Equity.to_numpy()


def signals(rng: np.random.Generator, columns: int, bars: int) -> NDArray[np.float64]:
    """Long, short or out in 6 % of the bars; none in the first two, which backtesting.py cannot fill."""
    drawn = np.where(rng.random((columns, bars)) < 0.06, rng.choice([-3.0, 0.0, 3.0], (columns, bars)), np.nan)
    drawn[:, :2] = np.nan
    return drawn


@pytest.mark.parametrize("slippage", [0.0, 0.0007])
def test_market_orders_equal_vectorbt_on_bars_with_gaps(slippage: float) -> None:
    rng, bars = np.random.default_rng(1), dataclasses.replace(jumpy_bars(1, 1_500), funding_rate=None)
    amounts = np.where(rng.random((4, 1_500)) < 0.1, rng.choice([-4.0, -1.0, 0.0, 1.0, 2.5, 4.0], (4, 1_500)), np.nan)
    np.testing.assert_allclose(ours(bars, amounts, slippage=slippage),
                               vectorbt_orders(bars, amounts, "targetamount", slippage), rtol=EQUAL)
    traded = amounts / 10
    np.testing.assert_allclose(ours(bars, traded, Sizing.QUANTITY, slippage=slippage),
                               vectorbt_orders(bars, traded, "amount", slippage), rtol=EQUAL)


def test_shares_of_equity_equal_vectorbt() -> None:
    rng, bars = np.random.default_rng(2), gapless_bars(2, np.zeros(1_500, dtype=bool))
    shares = np.where(rng.random((4, 1_500)) < 0.1, rng.choice([-0.5, 0.0, 0.25, 0.5], (4, 1_500)), np.nan)
    np.testing.assert_allclose(ours(bars, shares, Sizing.TARGET_FRACTION),
                               vectorbt_orders(bars, shares, "targetpercent", 0.0), rtol=EQUAL)


@pytest.mark.parametrize(("stop", "target", "slippage"), [
    (math.inf, math.inf, 0.0007), (0.003, math.inf, 0.0007), (math.inf, 0.004, 0.0), (0.003, 0.004, 0.0)])
def test_signals_with_stops_and_targets_equal_vectorbt(stop: float, target: float, slippage: float) -> None:
    amounts = signals(np.random.default_rng(3), 4, 3_000)
    for column in amounts:  # the quiet bars are those of the column's own orders
        bars = gapless_bars(4, ~np.isnan(column))
        np.testing.assert_allclose(ours(bars, column[None], stop=stop, target=target, slippage=slippage),
                                   vectorbt_signals(bars, column[None], stop, target, slippage), rtol=EQUAL)


@pytest.mark.parametrize(("stop", "target"), [(math.inf, math.inf), (0.003, math.inf), (math.inf, 0.004),
                                              (0.003, 0.004)])
def test_signals_with_stops_and_targets_equal_backtesting_py(stop: float, target: float) -> None:
    (amounts,) = signals(np.random.default_rng(5), 1, 3_000)
    bars = gapless_bars(6, ~np.isnan(amounts))
    np.testing.assert_allclose(ours(bars, amounts, stop=stop, target=target)[0],
                               backtesting_py(bars, amounts, stop, target), rtol=EQUAL)


def test_stops_that_gap_equal_both() -> None:
    """From one entry to its stop there is no other order, and entries meet bars in which the price stands still."""
    n = 3_000
    amounts = np.full(n, np.nan)
    amounts[10::60] = np.random.default_rng(7).choice([-3.0, 3.0], len(amounts[10::60]))
    quiet = ~np.isnan(amounts)
    smooth, rng = gapless_bars(8, quiet), np.random.default_rng(8)
    level = np.exp(np.cumsum(np.where((rng.random(n) < 0.1) & ~quiet, rng.normal(0, 0.006, n), 0.0)))
    bars = Bars("X", smooth.interval_ms, smooth.open_time_ms, smooth.open * level, smooth.high * level,
                smooth.low * level, smooth.close * level, smooth.volume)
    mine = ours(bars, amounts, stop=0.005)
    np.testing.assert_allclose(mine[0], vectorbt_signals(bars, amounts[None], 0.005, math.inf, 0.0)[0], rtol=EQUAL)
    np.testing.assert_allclose(mine[0], backtesting_py(bars, amounts, 0.005), rtol=EQUAL)


@pytest.mark.parametrize("symbol", ["BTC", "ETH", "SOL", "HYPE"])
def test_recorded_minutes_equal_both(symbol: str) -> None:
    if not (folder := os.environ.get("HUB_DATA_DIR")):
        pytest.skip("the recorded market: HUB_DATA_DIR is not set")
    (path,) = Path(folder).glob(f"hyperliquid/{symbol}_1m_*.parquet")
    recorded = pd.read_parquet(path)
    opens, high, low, close, volume = (recorded[name].to_numpy() for name in ("open", "high", "low", "close", "volume"))
    bars = Bars(symbol, 60_000, recorded["timestamp"].astype("int64").to_numpy(), opens, high, low, close, volume)
    amounts = signals(np.random.default_rng(9), 3, len(bars)) / 3 * int(min(900, 20_000 // opens[0]) or 1)
    np.testing.assert_allclose(ours(bars, amounts, slippage=0.0003),
                               vectorbt_orders(bars, amounts, "targetamount", 0.0003), rtol=EQUAL)
    np.testing.assert_allclose(ours(bars, amounts)[0], backtesting_py(bars, amounts[0]), rtol=EQUAL)
