"""One slot, many choices: which bracket trades a slot takes, and what they earn, for many parameter sets at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from policies.bars import Bars
from policies.engine.rules import BASE_TIER, Costs, check_brackets, price_rows
from policies.errors import InvalidInput
from policies.fills import BracketFills

MOST_OFFSET = 0.5  # as `policies.fills.BracketTrade` has it


@dataclass(frozen=True)
class SlotTrades:
    """The finished trades of P slots, by slot and then in the order of time.

    slot, place: int64 (M,), which parameter set and which decision. fills: of shape (M,), all finished.
    """

    slot: NDArray[np.int64]
    place: NDArray[np.int64]
    fills: BracketFills


def simulate_slots(bars: Bars, decision_time_ms: ArrayLike, direction: ArrayLike, leverage: ArrayLike,
                   tp_pct: ArrayLike, sl_pct: ArrayLike, horizon_bars: ArrayLike,
                   costs: Costs = BASE_TIER, limit_offset_pct: ArrayLike = 0.0) -> SlotTrades:
    """What P slots earn that hold one trade each: a decision passes unseen while the slot's trade is open.

    decision_time_ms: int64 (N,), rising; an entry fills at the open of the first bar that opens then or later. A
    decision from before the first bar is passed over. direction: (N,) or (P, N): +1 long, -1 short, 0 no trade. The
    others as in `simulate_brackets`: one value, (N,), (P, 1) or (P, N). A trade that the bars do not see to its end is
    left out, and its slot takes no other. limit_offset_pct: distance of the entry limit from the close before, on the
    passive side; 0 is an entry at market. One that is not filled within its bar is no trade. Each trade is bit for bit
    that of `policies.fills.BracketTrade`.
    """
    from policies.engine import bracket_kernel as kernel  # imports numba, which who steps one trade does without

    prices = price_rows(bars)
    times = np.require(decision_time_ms, np.int64, ["C", "W"])
    if times.ndim != 1 or not (np.diff(times) >= 0).all():
        raise InvalidInput("decision_time_ms", "a list of rising times", decision_time_ms)
    entries = np.searchsorted(bars.open_time_ms, times)
    sign = np.atleast_2d(np.asarray(direction))
    if sign.shape[1:] != times.shape or not np.isin(sign, (-1, 0, 1)).all():
        raise InvalidInput("direction", f"+1, -1 or 0, of shape ({len(times)},) or (P, {len(times)})", sign.shape)
    check_brackets(leverage, tp_pct, sl_pct, horizon_bars)
    offset = np.asarray(limit_offset_pct)
    if not ((offset >= 0) & (offset <= MOST_OFFSET)).all():
        raise InvalidInput("limit_offset_pct", f"between 0 and {MOST_OFFSET:g}", limit_offset_pct)
    sign = np.where(entries > 0, sign, 0).astype(np.int8)
    levels = [_rectangle(name, value, sign.shape, kind) for name, value, kind in (
        ("leverage", leverage, np.float64), ("tp_pct", tp_pct, np.float64), ("sl_pct", sl_pct, np.float64),
        ("limit_offset_pct", limit_offset_pct, np.float64), ("horizon_bars", horizon_bars, np.int64))]
    records = kernel.walk_slots(prices, entries, times, bars.close_time_ms, sign, *levels, costs.row())
    slot, place, exit_index = (records[:, column].astype(np.int64) for column in range(3))
    sums = dict(zip(kernel.SUMS, records[:, 4:].T.copy(), strict=True))
    return SlotTrades(slot, place, BracketFills(exit_index, reason=records[:, 3].astype(np.int8), **sums))


def _rectangle(name: str, given: ArrayLike, shape: tuple[int, ...], kind: type) -> NDArray[np.generic]:
    """(P or 1, N or 1), contiguous."""
    rectangle = np.require(np.atleast_2d(given), kind, ["C", "W"])
    if rectangle.ndim != 2 or any(own not in (1, full) for own, full in zip(rectangle.shape, shape, strict=True)):
        raise InvalidInput(name, f"of a shape that broadcasts to {shape}", np.shape(given))
    return rectangle
