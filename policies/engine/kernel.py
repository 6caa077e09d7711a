"""`account.Account` compiled: the same formulas in the same order, to the last bit.

`walk` takes whole columns of bars with their orders. `step_actors` takes one bar of each account, with the orders that
actions of `policies.actor` ask for, and writes what is observed then.

Importing this compiles nothing, but it imports numba: import it where a simulation begins, not above. Everything that
is compiled together stands in this one file, because numba's cache sees changes of one file only; constants of other
files (DUST, SPARE, LEAST_EQUITY, exit reasons, those of `policies.actor`) are compiled in: where one of them changes,
this file must too. An account is a row of numbers, and so are the order and the bar that meet it: the less passes
between functions, the sooner they are compiled. Bars in which nothing can happen to a position never reach `_bar`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from policies.actor import DRAWDOWN_UNIT, FURTHEST, FURTHEST_LEVEL, POSITION_FROM
from policies.engine.account import DUST, SPARE
from policies.engine.prefetch import read_soon
from policies.engine.rules import HORIZON, LIQUIDATION, MANUAL, STOP, TARGET, Sizing
from policies.engine.stepping import LEAST_EQUITY

_QUANTITY, _TARGET_FRACTION = int(Sizing.QUANTITY), int(Sizing.TARGET_FRACTION)

# Places in the numbers of an account: what lasts,
(CASH, HELD, ENTRY, MARGIN, FEES, FUNDING, STOP_PCT, TARGET_PCT, LIFE, BEGAN, AGE, GUARD, GUARD_REASON, TARGET_PRICE,
 CREDIT, FEES_PAID, FUNDING_PAID, REFUSED, PARTS, COLUMN,
 # its costs, in the order in which `walk` is given them,
 TAKER, MAKER, SLIPPAGE, MAINTENANCE, BEYOND_DEPTH,
 # the bar and its order.
 BAR, OPEN, HIGH, LOW, CLOSE, RATE, LAST_CLOSE,
 SIZING, AMOUNT, LIMIT, LEVERAGE, NEW_STOP, NEW_TARGET, NEW_LIFE, STATE) = range(40)

# Columns of a record of a closed part.
RECORD = ("column", "entry_index", "exit_index", "sign", "quantity", "entry_price", "exit_price", "reason", "gross",
          "fees", "funding")

# Columns of the figures of an account.
FIGURES = ("cash", "equity", "fees_paid", "funding_paid", "max_drawdown_fraction", "refused", "parts")


def compiled(function: Callable[..., Any]) -> Any:
    """Compiled on the first call; kept beside this file where that can be written, else for this process only."""
    try:
        return numba.njit(cache=True, error_model="numpy")(function)
    except RuntimeError:  # no folder for the cache
        return numba.njit(error_model="numpy")(function)


def inlined(function: Callable[..., Any]) -> Any:
    """Compiled into each of its callers: a call costs more than most of these do."""
    return numba.njit(error_model="numpy", inline="always")(function)


@inlined
def _ruin_price(entry, sign, cushion, kept):  # type: ignore[no-untyped-def]
    return entry * (1.0 - sign * cushion) / (1.0 - sign * kept)


@inlined
def _refresh(state):  # type: ignore[no-untyped-def]
    """Guard and target anew, after entry, margin or funding have changed."""
    entry, sign = state[ENTRY], (1.0 if state[HELD] > 0.0 else -1.0)
    stop = entry * (1.0 - sign * state[STOP_PCT])
    liquidation = _ruin_price(entry, sign, state[MARGIN] - state[FEES] - state[FUNDING], state[MAINTENANCE])
    state[GUARD] = sign * max(sign * stop, sign * liquidation)
    state[GUARD_REASON] = LIQUIDATION if sign * liquidation > sign * stop else STOP
    state[TARGET_PRICE] = entry * (1.0 + sign * state[TARGET_PCT])


@inlined
def _slippage(state, book, direction, quantity, dearer):  # type: ignore[no-untyped-def]
    """book: (4, levels), bid price, bid size, ask price, ask size; None or no levels if it is not known."""
    fraction = state[SLIPPAGE]
    if book is None or book.shape[1] == 0:
        return fraction
    side = 2 if direction > 0.0 else 0
    mid = 0.5 * (book[0, 0] + book[2, 0])
    left, paid, last = quantity, 0.0, math.nan
    for level in range(book.shape[1]):
        price, size = book[side, level], book[side + 1, level]
        if not (price > 0.0 and size >= 0.0):
            break
        last = price
        taken = min(left, size)
        paid += taken * price
        left -= taken
        if left <= 0.0:
            break
    paid += left * last * (1.0 + direction * state[BEYOND_DEPTH])
    walked = direction * (paid / quantity / mid - 1.0)
    if math.isnan(walked):
        return fraction
    return max(walked, fraction) if dearer else walked


@inlined
def _pay_funding(state, usd):  # type: ignore[no-untyped-def]
    state[CASH] -= usd
    state[FUNDING_PAID] += usd


@inlined
def _close(state, records, quantity, price, reason, fee, funding, bounded):  # type: ignore[no-untyped-def]
    entry, sign = state[ENTRY], (1.0 if state[HELD] > 0.0 else -1.0)
    if bounded:
        bankrupt = _ruin_price(entry, sign, state[MARGIN] - state[FEES] - funding, state[TAKER])
        price = sign * max(sign * price, sign * bankrupt)
    gross, exit_fee, notional = sign * (price / entry - 1.0), fee * (price / entry), quantity * entry
    state[CASH] += notional * (gross - exit_fee)
    state[FEES_PAID] += notional * exit_fee
    place = int(state[PARTS])
    if records is not None and len(records) > 0:
        record = records[place]
        record[0], record[1], record[2], record[3] = state[COLUMN], state[BEGAN], state[BAR], sign
        record[4], record[5], record[6], record[7] = quantity, entry, price, reason
        record[8], record[9], record[10] = gross, state[FEES] + exit_fee, funding
    state[PARTS] = place + 1
    held = abs(state[HELD])
    state[HELD] = 0.0 if quantity >= held else sign * (held - quantity)


@inlined
def _reduce(state, records, quantity, price, fee):  # type: ignore[no-untyped-def]
    """Close up to `quantity` by an order; what of it is left to open."""
    held = abs(state[HELD])
    closed = held if quantity >= held * (1.0 - DUST) else quantity
    if state[CREDIT] < 0.0:
        _pay_funding(state, -state[CREDIT] * closed * state[ENTRY])
    _close(state, records, closed, price, MANUAL, fee, state[FUNDING] - state[CREDIT], True)
    return quantity - held if quantity > held * (1.0 + DUST) else 0.0


@inlined
def _open(state, direction, quantity, price, fee):  # type: ignore[no-untyped-def]
    """Open or add; False, and counted as refused, if the margin is not free."""
    notional, margin = quantity * price, 1.0 / state[LEVERAGE]
    held = abs(state[HELD])
    before = held * state[ENTRY]
    free = state[CASH]
    if held > 0.0:
        free -= before * (state[MARGIN] - state[FEES] - state[FUNDING])
    if not notional * margin <= free * (1.0 + SPARE):
        state[REFUSED] += 1
        return False
    funding = max(0.0, direction * state[RATE] * state[OPEN] / price)
    state[CASH] -= notional * fee
    state[FEES_PAID] += notional * fee
    _pay_funding(state, notional * funding)
    if held == 0.0:
        state[HELD], state[ENTRY], state[MARGIN] = direction * quantity, price, margin
        state[FEES], state[FUNDING], state[BEGAN], state[AGE] = fee, funding, state[BAR], 0.0
    else:
        whole = before + notional
        state[ENTRY] = whole / (held + quantity)
        state[HELD] = direction * (held + quantity)
        state[MARGIN] = (state[MARGIN] * before + margin * notional) / whole
        state[FEES] = (state[FEES] * before + fee * notional) / whole
        state[FUNDING] = (state[FUNDING] * before + funding * notional) / whole
    state[STOP_PCT], state[TARGET_PCT], state[LIFE] = state[NEW_STOP], state[NEW_TARGET], state[NEW_LIFE]
    _refresh(state)
    return True


@inlined
def _delta(state, price):  # type: ignore[no-untyped-def]
    """Signed base units to trade at `price`."""
    if state[SIZING] == _QUANTITY:
        return state[AMOUNT]
    held = state[HELD]
    if state[SIZING] == _TARGET_FRACTION:
        equity = state[CASH] + held * (state[OPEN] - state[ENTRY]) if held != 0.0 else state[CASH]
        return state[AMOUNT] * equity / price - held
    return state[AMOUNT] - held


@inlined
def _trade(state, book, records):  # type: ignore[no-untyped-def]
    """Fill the bar's order if it can be; whether a limit order opened or added."""
    delta, price = _delta(state, state[OPEN]), state[LIMIT]
    if delta == 0.0:
        return False
    direction, limited = (1.0 if delta > 0.0 else -1.0), not math.isnan(price)
    if limited:
        if direction * (price - state[LAST_CLOSE]) > 0.0:
            state[REFUSED] += 1
            return False
        if not (state[LOW] < price if direction > 0.0 else state[HIGH] > price):
            return False
    else:
        price = state[OPEN] * (1.0 + direction * _slippage(state, book, direction, abs(delta), False))
    if state[SIZING] == _TARGET_FRACTION:
        delta = _delta(state, price)
        if direction * delta <= 0.0:
            return False
    fee = state[MAKER] if limited else state[TAKER]
    opening, held = abs(delta), state[HELD]
    if held * direction < 0.0:
        adverse = state[LOW] if held > 0.0 else state[HIGH]
        if limited and -direction * adverse <= -direction * state[GUARD]:
            return False
        opening = _reduce(state, records, opening, price, fee)
    return opening > 0.0 and _open(state, direction, opening, price, fee) and limited


@inlined
def _settle(state):  # type: ignore[no-untyped-def]
    sign = 1.0 if state[HELD] > 0.0 else -1.0
    due = sign * state[RATE] * state[OPEN] / state[ENTRY]
    state[FUNDING] += due
    _pay_funding(state, due * (abs(state[HELD]) * state[ENTRY]))
    state[CREDIT] = min(due, 0.0)
    _refresh(state)


@compiled
def _bar(state, book, records):  # type: ignore[no-untyped-def]
    """The bar and its order meet the account. book, records: None where none are known or kept."""
    state[CREDIT] = 0.0
    gapped = limited = False
    if state[HELD] != 0.0:
        if state[RATE] != 0.0:
            _settle(state)
        sign = 1.0 if state[HELD] > 0.0 else -1.0
        gapped = sign * state[OPEN] <= sign * state[GUARD]
    if not gapped and not math.isnan(state[AMOUNT]):
        limited = _trade(state, book, records)
    if state[HELD] == 0.0:
        return
    state[AGE] += 1.0
    sign = 1.0 if state[HELD] > 0.0 else -1.0
    adverse, favourable = (state[LOW], state[HIGH]) if sign > 0.0 else (state[HIGH], state[LOW])
    if sign * adverse <= sign * state[GUARD]:
        price, reason = sign * min(sign * state[OPEN], sign * state[GUARD]), state[GUARD_REASON]
    elif not limited and sign * favourable > sign * state[TARGET_PRICE]:
        _close(state, records, abs(state[HELD]), state[TARGET_PRICE], TARGET, state[MAKER], state[FUNDING], False)
        return
    elif state[LIFE] > 0.0 and state[AGE] >= state[LIFE]:
        price, reason = state[CLOSE], float(HORIZON)
    else:
        return
    quantity = abs(state[HELD])
    slippage = _slippage(state, book, -sign, quantity, True)
    _close(state, records, quantity, price * (1.0 - sign * slippage), reason, state[TAKER], state[FUNDING], True)


@compiled
def _column(state, books, records, prices, amount, limit, leverage, stop_pct, target_pct, life, curve):  # type: ignore[no-untyped-def]
    """One account through all bars; the records, the largest drawdown, the last equity. Fields: T or 1 numbers each."""
    opens, highs, lows, closes, rates = prices[0], prices[1], prices[2], prices[3], prices[4]
    # A field of one number is read at place 0 in every bar.
    a, b, c = int(len(amount) > 1), int(len(limit) > 1), int(len(leverage) > 1)
    d, e, f = int(len(stop_pct) > 1), int(len(target_pct) > 1), int(len(life) > 1)
    equity = peak = floor = cash = state[CASH]
    drawdown, held, entry, bottom, top, left, last_close = 0.0, 0.0, 0.0, 0.0, 0.0, 0, math.nan
    kept, keeps_parts, unknown = len(curve) > 0, len(records) > 0, np.empty((4, 0))
    for bar in range(len(opens)):
        close, wanted = closes[bar], amount[a * bar]
        if held == 0.0 and wanted != wanted:  # NaN: no order
            if kept:
                curve[bar] = equity
            last_close = close
            continue
        left -= 1
        if wanted == wanted or lows[bar] <= bottom or highs[bar] >= top or rates[bar] != 0.0 or left == 0:
            state[BAR], state[OPEN], state[HIGH], state[LOW] = bar, opens[bar], highs[bar], lows[bar]
            state[CLOSE], state[RATE], state[LAST_CLOSE] = close, rates[bar], last_close
            state[AMOUNT], state[LIMIT], state[LEVERAGE] = wanted, limit[b * bar], leverage[c * bar]
            state[NEW_STOP], state[NEW_TARGET], state[NEW_LIFE] = stop_pct[d * bar], target_pct[e * bar], life[f * bar]
            state[AGE] = bar - state[BEGAN]
            _bar(state, books[bar] if len(books) > 0 else unknown, records)
            cash, held, entry = state[CASH], state[HELD], state[ENTRY]
            guard, target = state[GUARD], state[TARGET_PRICE]
            bottom, top = (guard, target) if held > 0.0 else (target, guard)
            left = int(state[LIFE] - state[AGE]) if state[LIFE] > 0.0 else 0
            if keeps_parts and len(records) <= state[PARTS] + 2:
                records = _grown(records, int(state[PARTS]))
        last_close = close
        equity = cash + held * (close - entry) if held != 0.0 else cash
        if kept:
            curve[bar] = equity
        if equity > peak:
            peak = equity
            floor = peak * (1.0 - drawdown)
        elif equity < floor:
            drawdown, floor = 1.0 - equity / peak, equity
    return records, drawdown, equity


@compiled
def _grown(records, used):  # type: ignore[no-untyped-def]
    wider = np.empty((2 * len(records), records.shape[1]))
    wider[:used] = records[:used]
    return wider


@compiled
def walk(prices, markets, cash, amount, sizing, limit, leverage, stop_pct, target_pct, life, costs, books, curves,  # type: ignore[no-untyped-def]
         records, figures):
    """Every column through all bars; the records, grown as needed.

    prices: (markets, 5, T), open, high, low, close, funding rate. markets: (C,). cash: (C,). Of an order's fields each
    has C or 1 rows and T or 1 columns. costs: (5,). books: (markets, T or 0, 4, levels). curves: (C, T), or (C, 0) for
    none. records: (n > 2, RECORD), or (0, ...) for none. figures: (C, FIGURES), written.
    """
    state, parts = np.zeros(STATE), 0.0
    for column in range(len(markets)):
        market = markets[column]
        state[:] = 0.0
        state[CASH], state[PARTS], state[COLUMN], state[SIZING] = cash[column], parts, column, sizing
        state[TAKER:BEYOND_DEPTH + 1] = costs
        records, drawdown, equity = _column(
            state, books[market], records, prices[market], amount[column % len(amount)], limit[column % len(limit)],
            leverage[column % len(leverage)], stop_pct[column % len(stop_pct)], target_pct[column % len(target_pct)],
            life[column % len(life)], curves[column])
        row = figures[column]
        row[0], row[1], row[2], row[3] = state[CASH], equity, state[FEES_PAID], state[FUNDING_PAID]
        row[4], row[5], row[6] = drawdown, state[REFUSED], state[PARTS] - parts
        parts = state[PARTS]
    return records


# What `step_actors` is told besides: what `ActorLimits.row` says, then these, then four costs.
(RISK, MOST_LEVERAGE, LEAST_STOP, MOST_STOP, LEAST_TARGET, MOST_TARGET, DEAD_ZONE, BAND, HORIZON_BARS, MOST_EXPOSURE,
 START_CASH, DRAWDOWN_PENALTY, REWARD_CLIP, RUIN, COSTS) = range(15)

# Places in the numbers of an episode: the bar last seen, the last one, whether the next step begins it; then, at the
# close of the bar last seen, equity, its peak, and the fall from it.
PLACE, LAST, FRESH, EQUITY, PEAK, DRAWDOWN, EPISODE = range(7)

CACHE_LINE = 64  # bytes
NOT_FINITE, NO_EPISODE = 1, 2  # why a step was refused


@inlined
def _asked(settings, size, stop_place, target_place, held):  # type: ignore[no-untyped-def]
    """`policies.actor.wanted` and `order_amounts`: amount, stop, target. held: signed notional over equity."""
    size = min(max(size, -1.0), 1.0)
    stop = settings[LEAST_STOP] + (min(max(stop_place, -1.0), 1.0) + 1.0) / 2.0 * (
        settings[MOST_STOP] - settings[LEAST_STOP])
    target = settings[LEAST_TARGET] + (min(max(target_place, -1.0), 1.0) + 1.0) / 2.0 * (
        settings[MOST_TARGET] - settings[LEAST_TARGET])
    exposure = 0.0
    if not abs(size) < settings[DEAD_ZONE]:
        most = min(abs(size) * settings[RISK] / stop, settings[MOST_EXPOSURE])
        exposure = most if size > 0.0 else -most
    inside = abs(exposure - held) < settings[BAND] * settings[MOST_EXPOSURE]
    if (exposure == 0.0 and held == 0.0) or (exposure * held > 0.0 and inside):
        exposure = math.nan
    return exposure, stop, target


@inlined
def _rewarded(before, worth, fall, risk, penalty, clip):  # type: ignore[no-untyped-def]
    """`train.rl.reward.step_reward`. fall: what the drawdown has risen by."""
    reward = (worth / before - 1.0) / risk - penalty * max(fall, 0.0) / DRAWDOWN_UNIT
    return min(max(reward, -clip), clip)


@inlined
def _placed(held, entry, stop, target, age, close, worth, risk, most_exposure, horizon_bars):  # type: ignore[no-untyped-def]
    """The first six of `policies.actor.position_numbers` of a position. worth: equity at the last close."""
    side, size = (1.0 if held > 0.0 else -1.0), abs(held)
    moved = side * (close / entry - 1.0)
    gain = size * entry * moved / worth / risk
    return (side, size * close / worth / most_exposure, min(max(gain, -FURTHEST), FURTHEST),
            min(age / horizon_bars, 1.0), min(max((stop + moved) / stop, 0.0), FURTHEST_LEVEL),
            min(max((target - moved) / target, 0.0), FURTHEST_LEVEL))


@inlined
def _idle(held, guard, target, high, low, rate):  # type: ignore[no-untyped-def]
    """Whether the bar leaves an account without an order as it is."""
    bottom, top = (guard, target) if held > 0.0 else (target, guard)
    return held == 0.0 or (low > bottom and high < top and rate == 0.0)


@compiled
def _begin(state, episode, settings):  # type: ignore[no-untyped-def]
    """A flat account with an order of what it will always order."""
    state[:] = 0.0
    state[CASH] = episode[EQUITY] = episode[PEAK] = settings[START_CASH]
    state[TAKER:BEYOND_DEPTH] = settings[COSTS:]
    state[SIZING], state[LEVERAGE] = _TARGET_FRACTION, settings[MOST_LEVERAGE]
    state[AMOUNT] = state[LIMIT] = math.nan
    episode[DRAWDOWN] = episode[FRESH] = 0.0


@compiled
def step_actors(states, episodes, prices, features, settings, actions, observations, rewards, terminated, truncated):  # type: ignore[no-untyped-def]
    """Every actor's action, decided at the close of its bar, meets the next one; or a fresh episode begins.

    states: (N, STATE). episodes: (N, EPISODE). prices: (B, 5), a row a bar in the order of `walk`. features: float32
    (B, 60). settings: (COSTS + 4,). actions: (N, 3). observations: float32 (N, >= 68), rewards: (N,), terminated,
    truncated: bool (N,), written. 0, or why it was refused with nothing done. Numbers are reached by two indices, not
    through rows: numba counts the references of a row that has a name, which would take most of the time here.
    """
    for actor in range(len(actions)):
        if episodes[actor, FRESH] == 0.0 and not episodes[actor, PLACE] < episodes[actor, LAST]:
            return NO_EPISODE
        for number in range(3):
            if not math.isfinite(actions[actor, number]):
                return NOT_FINITE
    least, ruin = LEAST_EQUITY * settings[START_CASH], settings[RUIN] * settings[START_CASH]
    risk, most_exposure, horizon_bars = settings[RISK], settings[MOST_EXPOSURE], settings[HORIZON_BARS]
    for actor in range(len(actions)):
        bar, reward, over, cut = int(episodes[actor, PLACE]), 0.0, False, False
        if episodes[actor, FRESH] != 0.0:
            _begin(states[actor], episodes[actor], settings)
            close, held = prices[bar, 3], 0.0
            equity = worth = states[actor, CASH]
        else:
            bar += 1
            before, drawdown = max(episodes[actor, EQUITY], least), episodes[actor, DRAWDOWN]
            held, last_close, close = states[actor, HELD], states[actor, CLOSE], prices[bar, 3]
            amount, stop, target = _asked(settings, actions[actor, 0], actions[actor, 1], actions[actor, 2],
                                          held * last_close / before)
            states[actor, AMOUNT], states[actor, NEW_STOP], states[actor, NEW_TARGET] = amount, stop, target
            if amount != amount and _idle(held, states[actor, GUARD], states[actor, TARGET_PRICE], prices[bar, 1],
                                          prices[bar, 2], prices[bar, 4]):  # NaN: no order
                states[actor, AGE] += 1.0
            else:
                state = states[actor]
                state[BAR], state[OPEN], state[HIGH], state[LOW] = bar, prices[bar, 0], prices[bar, 1], prices[bar, 2]
                state[CLOSE], state[RATE], state[LAST_CLOSE] = close, prices[bar, 4], last_close
                _bar(state, None, None)
                held = state[HELD]
            equity = states[actor, CASH]
            if held != 0.0:
                equity += held * (close - states[actor, ENTRY])
            worth = max(equity, least)
            peak = max(episodes[actor, PEAK], worth)
            episodes[actor, PEAK], episodes[actor, DRAWDOWN] = peak, 1.0 - worth / peak
            reward = _rewarded(before, worth, episodes[actor, DRAWDOWN] - drawdown, risk, settings[DRAWDOWN_PENALTY],
                               settings[REWARD_CLIP])
            over = equity < ruin
            cut = bar >= episodes[actor, LAST] and not over
            if over:
                episodes[actor, LAST] = bar
        states[actor, CLOSE], episodes[actor, PLACE], episodes[actor, EQUITY] = close, bar, equity
        rewards[actor], terminated[actor], truncated[actor] = reward, over, cut
        for number in range(POSITION_FROM):
            observations[actor, number] = features[bar, number]
        if bar + 1 < len(prices):
            for number in range(0, POSITION_FROM, CACHE_LINE // 4):
                read_soon(features, bar + 1, number)
            read_soon(features, bar + 1, POSITION_FROM - 1)
            read_soon(prices, bar + 1, 0)
            read_soon(prices, bar + 1, 4)
        free = states[actor, CASH]
        numbers = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
        if held != 0.0:
            entry = states[actor, ENTRY]
            numbers = _placed(held, entry, states[actor, STOP_PCT], states[actor, TARGET_PCT], states[actor, AGE],
                              close, worth, risk, most_exposure, horizon_bars)
            free -= abs(held) * entry * (states[actor, MARGIN] - states[actor, FEES] - states[actor, FUNDING])
        for number in range(len(numbers)):
            observations[actor, POSITION_FROM + number] = numbers[number]
        observations[actor, POSITION_FROM + 6] = min(episodes[actor, DRAWDOWN] / DRAWDOWN_UNIT, FURTHEST)
        observations[actor, POSITION_FROM + 7] = free / worth
    return 0
