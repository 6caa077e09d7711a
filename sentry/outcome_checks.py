"""What a reported outcome must be, before it becomes a row: complete, possible, and in agreement with its decision.

Every check is written so that NaN fails, and raises InvalidInput with the field, its legal range and the value.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from policies.clock import LIVE_TOLERANCE_MS
from policies.errors import InvalidInput
from policies.rows import LLM_ONLY
from policies.types import STRATEGIES, Direction, Outcome

OWN_TRADE = ("symbol", "strategy", "direction")  # what an outcome of the bot's own trade says besides the Outcome

# What the amounts of an outcome must be.
AMOUNTS: dict[str, tuple[str, Callable[[float], bool]]] = {
    "entry_price": ("> 0 and finite", lambda price: 0 < price < math.inf),
    "exit_price": ("> 0 and finite", lambda price: 0 < price < math.inf),
    "size": ("> 0 and finite", lambda size: 0 < size < math.inf),
    "pnl": ("finite", math.isfinite),
    "fees": (">= 0 and finite", lambda fees: 0 <= fees < math.inf),
    "funding": ("finite", math.isfinite),
    "drawdown_proxy": ("between 0 and 1", lambda fraction: 0 <= fraction <= 1),
    "equity": (">= 0 and finite, or null", lambda equity: 0 <= equity < math.inf),
}


def checked_outcome(fields: Mapping[str, Any]) -> Outcome:
    """An Outcome whose every field makes sense by itself; InvalidInput names the first that does not."""
    known = {field.name: field.default is dataclasses.MISSING for field in dataclasses.fields(Outcome)}
    for name in fields:
        if name not in known:
            raise InvalidInput(name, f"one of {', '.join(known)}", fields[name])
    for name, needed in known.items():
        if needed and name not in fields:
            raise InvalidInput(name, "given", None)
    require_text(fields, "decision_id")
    for name in ("part", "revision", "entry_time_ms", "exit_time_ms"):
        require_whole(fields, name, 0, 2**53)
    one = Outcome(**fields)
    for name, (legal, fits) in AMOUNTS.items():
        amount = getattr(one, name)
        if isinstance(amount, bool) or not isinstance(amount, int | float) or not fits(amount):
            if name == "equity" and amount is None:
                continue
            raise InvalidInput(name, legal, amount)
    if one.exit_reason not in Outcome.EXIT_REASONS:
        raise InvalidInput("exit_reason", f"one of {', '.join(Outcome.EXIT_REASONS)}", one.exit_reason)
    if not isinstance(one.final, bool):
        raise InvalidInput("final", "true or false", one.final)
    return one


def own_trade_of(one: Outcome, own: dict[str, Any]) -> dict[str, Any]:
    """An own trade as a decision would have described it, with the equity before it."""
    if not isinstance(own["symbol"], str) or not own["symbol"]:
        raise InvalidInput("symbol", "given for the bot's own trade", own["symbol"])
    if own["strategy"] not in STRATEGIES:
        raise InvalidInput("strategy", f"one of {', '.join(STRATEGIES)}", own["strategy"])
    if own["direction"] not in ("long", "short"):
        raise InvalidInput("direction", "long or short", own["direction"])
    equity_before = math.nan if one.equity is None else one.equity - one.net_pnl
    if not 0 < equity_before < math.inf:
        raise InvalidInput("equity", "given for the bot's own trade, and above its net PnL", one.equity)
    return {**own, "policy_id": LLM_ONLY, "acts": False, "decided_ms": one.entry_time_ms, "equity": equity_before,
            "leverage": None, "bucket": "", "executed": {}, "features": None}


def require_times(one: Outcome, trade: Mapping[str, Any], now_ms: int) -> None:
    """InvalidInput unless decision <= entry <= exit <= now."""
    if one.entry_time_ms < trade["decided_ms"] - LIVE_TOLERANCE_MS:
        raise InvalidInput("entry_time_ms", f"not before its decision at {trade['decided_ms']}", one.entry_time_ms)
    if one.exit_time_ms < one.entry_time_ms:
        raise InvalidInput("exit_time_ms", f"not before the entry at {one.entry_time_ms}", one.exit_time_ms)
    if one.exit_time_ms > now_ms + LIVE_TOLERANCE_MS:
        raise InvalidInput("exit_time_ms", f"not after the hub's clock at {now_ms}", one.exit_time_ms)


def require_pnl(one: Outcome, trade: Mapping[str, Any]) -> None:
    """pnl = (exit - entry) * size * direction within 1e-6, and 1e-9 of the notional for what rounding leaves.

    Where the hub did not act and said flat, only the bot knows the direction, and either is accepted.
    """
    direction = Direction(trade["direction"])
    signs = (1, -1) if direction is Direction.FLAT and not trade["acts"] else (direction.sign,)
    rounding = 1e-9 * one.entry_price * one.size
    for sign in (0,) if one.exit_reason == "not_filled" else signs:
        expected = (one.exit_price - one.entry_price) * one.size * sign
        if math.isclose(one.pnl, expected, rel_tol=1e-6, abs_tol=rounding):
            return
    raise InvalidInput("pnl", f"(exit_price - entry_price) * size * direction, which is {expected:.10g}", one.pnl)


def differing_fields(recorded: Mapping[str, Any], body: Mapping[str, Any]) -> list[str]:
    """The fields of an outcome's report that are not as recorded."""
    differing = [name for name, value in body["outcome"].items() if recorded["outcome"].get(name) != value]
    if recorded["origin"] != body["origin"]:
        return [*differing, "origin"]
    if body["origin"] == "bot":
        differing += [name for name in OWN_TRADE if recorded["trade"][name] != body["trade"][name]]
    return differing


def require_text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not value:
        raise InvalidInput(name, "a text that is not empty", value)
    return value


def require_whole(body: Mapping[str, Any], name: str, low: int, high: int) -> int:
    value = body.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidInput(name, f"a whole number between {low} and {high}", value)
    return value
