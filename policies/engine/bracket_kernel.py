"""`policies.fills.BracketTrade` from many entries at once, compiled: bit for bit what stepping each would say.

Importing this compiles nothing, but it imports numba: import it where a simulation begins, not above.
"""

from __future__ import annotations

import math

import numpy as np

from policies.engine.kernel import compiled
from policies.engine.rules import HORIZON, LIQUIDATION, STOP, TARGET, UNFINISHED

# Rows of the sums that `walk` writes.
SUMS = ("entry_price", "exit_price", "gross", "fees", "funding", "net_return_on_margin")


@compiled
def _at(given, row, place):  # type: ignore[no-untyped-def]
    return given[row if given.shape[0] > 1 else 0, place if given.shape[1] > 1 else 0]


@compiled
def walk(prices, entries, sign, leverage, tp_pct, sl_pct, horizon, costs, exit_index, reason, sums):  # type: ignore[no-untyped-def]
    """Every parameter set's trade from every entry.

    prices: (5, T), open, high, low, close, funding rate. entries: (N,), 0..T. sign ... horizon: each P or 1 rows and N
    or 1 columns. costs: taker, maker, slippage, maintenance. Written: exit_index, reason (P, N), sums (SUMS, P, N).
    """
    for row in range(exit_index.shape[0]):
        for place in range(exit_index.shape[1]):
            first, side = entries[place], _at(sign, row, place)
            trade = _ended(prices, first, first, _market_price(prices, first, side, costs), costs[0], side,
                           _at(leverage, row, place), _at(tp_pct, row, place), _at(sl_pct, row, place),
                           _at(horizon, row, place), costs)
            exit_index[row, place], reason[row, place] = trade[0], trade[1]
            for number in range(len(trade[2])):
                sums[number, row, place] = trade[2][number]


# Columns of a record that `walk_slots` makes.
TAKEN = ("row", "place", "exit_index", "reason", *SUMS)


@compiled
def walk_slots(prices, entries, times, exits_ms, sign, leverage, tp_pct, sl_pct, offset, horizon, costs):  # type: ignore[no-untyped-def]
    """One slot for each row of sign: of its trades in order, those that find it free; records (M, TAKEN).

    times: (N,), rising, when a trade is decided. exits_ms: (T,), when a bar's exit is known. sign: (P, N), 0 for none.
    offset: of the entry limit from the close before, 0 for an entry at market. One that is not filled holds its slot
    for its bar.
    """
    records, count = np.empty((1024, len(TAKEN))), 0
    for row in range(sign.shape[0]):
        free_ms = times[0] if len(times) > 0 else 0
        for place in range(sign.shape[1]):
            side = float(sign[row, place])
            if side == 0.0 or times[place] < free_ms:
                continue
            first, away = entries[place], _at(offset, row, place)
            entry, fee, target_from = _market_price(prices, first, side, costs), costs[0], first
            if away > 0.0 and first < prices.shape[1]:
                entry, fee, target_from = prices[3, first - 1] * (1.0 - side * away), costs[1], first + 1
                if not (prices[2, first] < entry if side > 0.0 else prices[1, first] > entry):
                    free_ms = exits_ms[first]
                    continue
            trade = _ended(prices, first, target_from, entry, fee, side, _at(leverage, row, place),
                           _at(tp_pct, row, place), _at(sl_pct, row, place), _at(horizon, row, place), costs)
            if trade[1] == UNFINISHED:
                break
            free_ms = exits_ms[trade[0]]
            if count == len(records):
                wider = np.empty((2 * count, records.shape[1]))
                wider[:count] = records
                records = wider
            record = records[count]
            record[0], record[1], record[2], record[3] = row, place, trade[0], trade[1]
            for number in range(len(trade[2])):
                record[4 + number] = trade[2][number]
            count += 1
    return records[:count]


@compiled
def _market_price(prices, first, sign, costs):  # type: ignore[no-untyped-def]
    """NaN after the last bar."""
    return (prices[0, first] if first < prices.shape[1] else math.nan) * (1.0 + sign * costs[2])


@compiled
def _ended(prices, first, target_from, entry, entry_fee, sign, leverage, tp_pct, sl_pct, horizon, costs):  # type: ignore[no-untyped-def]
    """(exit index, reason, sums) of one trade that is filled in bar `first`.

    target_from: the first bar in which it may reach its target.
    """
    opens, highs, lows, closes, rates = prices[0], prices[1], prices[2], prices[3], prices[4]
    taker, maker, slippage, maintenance = costs[0], costs[1], costs[2], costs[3]
    nan = math.nan
    target, stop, funding = entry * (1.0 + sign * tp_pct), entry * (1.0 - sign * sl_pct), 0.0
    margin, last = 1.0 / leverage - entry_fee, first + horizon - 1
    cushion = margin - funding
    liquidation = entry * (1.0 - sign * cushion) / (1.0 - sign * maintenance)
    guard = sign * max(sign * stop, sign * liquidation)
    for bar in range(first, min(last + 1, len(opens))):
        if rates[bar] != 0.0:
            due = sign * rates[bar] * opens[bar] / entry
            funding += due if bar > first else max(0.0, due)
            cushion = margin - funding
            liquidation = entry * (1.0 - sign * cushion) / (1.0 - sign * maintenance)
            guard = sign * max(sign * stop, sign * liquidation)
        adverse, favourable = (lows[bar], highs[bar]) if sign > 0.0 else (highs[bar], lows[bar])
        if sign * adverse <= sign * guard:
            why = LIQUIDATION if sign * liquidation > sign * stop else STOP
            touched, fee = sign * min(sign * opens[bar], sign * guard), taker
        elif sign * favourable > sign * target and bar >= target_from:
            why, touched, fee = TARGET, target, maker
        elif bar == last:
            why, touched, fee = HORIZON, closes[bar], taker
        else:
            continue
        price = touched
        if why != TARGET:
            bankrupt = entry * (1.0 - sign * cushion) / (1.0 - sign * taker)
            price = sign * max(sign * (touched * (1.0 - sign * slippage)), sign * bankrupt)
        gross, fees = sign * (price / entry - 1.0), entry_fee + fee * (price / entry)
        return bar, why, (entry, price, gross, fees, funding, max(-1.0, (gross - fees - funding) * leverage))
    return -1, UNFINISHED, (entry, nan, nan, nan, nan, nan)


def rectangle(given: np.ndarray, leading: tuple[int, ...], entries: int) -> np.ndarray:
    """(P or 1, N or 1) of what broadcasts to (*leading, N), P the product of leading; no copy larger than it needs."""
    shaped = np.asarray(given).reshape((1,) * (len(leading) + 1 - np.ndim(given)) + np.shape(given))
    own = shaped.shape[-1]
    if any(size != 1 for size in shaped.shape[:-1]):
        shaped = np.broadcast_to(shaped, (*leading, own))
    return np.require(shaped.reshape(-1, own), requirements=["C", "W"])
