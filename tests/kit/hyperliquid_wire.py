"""Rows of Hyperliquid in its own wire shape: made ones, and what is seen of a candle while it forms."""

from __future__ import annotations

from typing import Any

import numpy as np

STEP_MS = {"1m": 60_000, "5m": 300_000, "1h": 3_600_000, "1d": 86_400_000}
Wire = dict[str, Any]


def made_candles(symbol: str, interval: str, first_ms: int, count: int, seed: int = 0) -> list[Wire]:
    """A random walk in the wire shape."""
    rng = np.random.default_rng(seed)
    close = np.round(100 * np.exp(np.cumsum(rng.normal(0, 0.002, count))), 3)
    opening = np.r_[100.0, close[:-1]]
    rows = zip(opening, np.maximum(opening, close) + 0.05, np.minimum(opening, close) - 0.05, close,
               np.round(rng.exponential(10, count), 3), strict=True)
    return [candle_row(symbol, interval, first_ms + place * STEP_MS[interval], *map(float, row))
            for place, row in enumerate(rows)]


def candle_row(symbol: str, interval: str, open_ms: int, opening: float, high: float, low: float, close: float,
               volume: float) -> Wire:
    """A candle without volume holds no trade: then nothing of it comes over the websocket."""
    return {"t": open_ms, "T": open_ms + STEP_MS[interval] - 1, "s": symbol, "i": interval, "o": str(opening),
            "c": str(close), "h": str(high), "l": str(low), "v": str(volume), "n": 3 if volume > 0 else 0}


def funding_rows(symbol: str, first_ms: int, count: int, seed: int = 0) -> list[Wire]:
    """Hourly, up to 400 ms late."""
    rng = np.random.default_rng(seed)
    first = -(-first_ms // STEP_MS["1h"]) * STEP_MS["1h"]
    return [{"coin": symbol, "fundingRate": f"{rng.normal(0, 1e-4):.10f}", "premium": "0.0",
             "time": first + place * STEP_MS["1h"] + int(rng.integers(0, 400))} for place in range(count)]


def trade_rows(symbol: str, first_ms: int, count: int, seed: int = 0, every_ms: int = 700) -> list[Wire]:
    rng = np.random.default_rng(seed)
    return [{"coin": symbol, "side": "AB"[int(rng.integers(2))], "px": f"{100 + rng.normal():.3f}", "sz": "0.5",
             "time": first_ms + place * every_ms, "hash": "0x0", "tid": int(rng.integers(2**49))}
            for place in range(count)]


def level(price: float, size: float) -> Wire:
    return {"px": str(price), "sz": str(size), "n": 1}


def states(row: Wire) -> list[tuple[int, Wire]]:
    """What the websocket says of a candle, and when: after its first trade, half of it, all of it."""
    third = (row["T"] + 1 - row["t"]) // 3
    return [(at_ms, state_at(row, at_ms)) for at_ms in (row["t"] + 1, row["t"] + third, row["T"])]


def state_at(row: Wire, now_ms: int) -> Wire:
    third = (row["T"] + 1 - row["t"]) // 3
    if now_ms >= row["T"] or row["n"] == 0:
        return row
    part = {**row, "h": str(max(float(row["o"]), float(row["c"])))} if now_ms >= row["t"] + third else {
        **row, "h": row["o"], "l": row["o"], "c": row["o"]}
    seen = 2 if now_ms >= row["t"] + third else 1
    return {**part, "v": str(float(row["v"]) * seen / 4), "n": seen}
