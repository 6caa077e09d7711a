"""Bars of the public Hyperliquid API, through the exchange's own SDK. Reads only; needs no account.

What the API does that a caller would not guess: numbers are strings; the candle that contains startTime is included;
the last candle may still be forming; of a longer range only the newest 5000 candles come.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import requests
from hyperliquid.info import Info
from hyperliquid.utils.error import Error as HyperliquidError

from feature_repo.features import MINUTE_MS
from policies.bars import Bars
from policies.clock import LiveClock
from policies.errors import HubError, InvalidInput, UnknownEntity

PAGE_BARS = 5_000  # candles in one answer, and how far back the API goes


class MarketUnavailable(HubError):
    """The market's API did not answer in time, or not with what it promises."""

    code = "market_unavailable"


class HyperliquidMarket:
    """One-minute bars of perpetuals. now_ms: the clock that says which candle is still forming.

    timeout_s: of one request. Without a start, bars() reaches back as far as the API does.
    """

    name = "hyperliquid"

    def __init__(self, symbols: Sequence[str], base_url: str | None = None, timeout_s: float = 3.0,
                 now_ms: Callable[[], int] | None = None) -> None:
        self.symbols = tuple(symbols)
        self._now_ms = now_ms or LiveClock().now_ms
        # Given both metas, the SDK asks for nothing when it is built; it only needs to know the names it may be asked.
        universe = [{"name": symbol, "szDecimals": 0} for symbol in self.symbols]
        self._api = Info(base_url, skip_ws=True, meta={"universe": universe}, spot_meta={"universe": [], "tokens": []},
                         timeout=timeout_s)

    def bars(self, symbol: str, start_ms: int | None = None, stop_ms: int | None = None) -> Bars:
        if symbol not in self.symbols:
            raise UnknownEntity("symbol", symbol, list(self.symbols))
        now_ms = self._now_ms()
        closed_until_ms = now_ms // MINUTE_MS * MINUTE_MS  # the first open time whose candle is still forming
        stop = closed_until_ms if stop_ms is None else min(stop_ms, closed_until_ms)
        start = closed_until_ms - PAGE_BARS * MINUTE_MS if start_ms is None else start_ms
        candles: dict[int, dict[str, Any]] = {}
        while start < stop:
            page_stop = min(stop, start + PAGE_BARS * MINUTE_MS)
            page = self._ask(partial(self._api.candles_snapshot, symbol, "1m", start, page_stop - 1))
            candles.update((_time_of(candle), candle) for candle in page)
            start = page_stop
        wanted = sorted(t for t in candles if (start_ms is None or t >= start_ms) and t < stop)
        return _bars(symbol, [candles[t] for t in wanted])

    def probe(self, timeout_s: float) -> None:
        """MarketUnavailable unless the API answers within timeout_s and trades all symbols.

        Asked in a thread: neither a slow name lookup nor a trickling answer falls under a request's own timeout.
        """
        found: list[set[str] | HubError] = []

        def ask() -> None:
            try:
                found.append({asset["name"] for asset in self._ask(self._api.meta)["universe"]})
            except HubError as error:
                found.append(error)
            except (KeyError, TypeError):
                found.append(MarketUnavailable("Hyperliquid's list of perpetuals has another shape than it used to"))

        thread = threading.Thread(target=ask, name="hyperliquid-probe", daemon=True)
        thread.start()
        thread.join(timeout_s)
        answer = found[0] if found else MarketUnavailable(f"no answer from Hyperliquid within {timeout_s:g} s")
        if isinstance(answer, HubError):
            raise answer
        unknown = sorted(set(self.symbols) - answer)
        if unknown:
            raise InvalidInput("market.symbols", "perpetuals of Hyperliquid", unknown)

    def describe(self) -> str:
        return f"live one-minute bars of {', '.join(self.symbols)} from {self._api.base_url}"

    def _ask(self, request: Callable[[], Any]) -> Any:
        try:
            answer = request()
        except (requests.RequestException, HyperliquidError) as error:
            raise MarketUnavailable(f"Hyperliquid: {type(error).__name__}") from error
        if isinstance(answer, dict) and "error" in answer:  # the SDK's word for a body that is not JSON
            raise MarketUnavailable("Hyperliquid did not answer in JSON")
        return answer


def _time_of(candle: Any) -> int:
    try:
        return int(candle["t"])
    except (KeyError, TypeError, ValueError) as error:
        raise MarketUnavailable(f"a candle of Hyperliquid without an open time: {candle!r:.100}") from error


def _bars(symbol: str, candles: list[dict[str, Any]]) -> Bars:
    try:
        columns = [np.array([float(candle[key]) for candle in candles]) for key in "ohlcv"]
    except (KeyError, TypeError, ValueError) as error:
        raise MarketUnavailable(f"a candle of Hyperliquid without o, h, l, c, v as numbers: {error}") from error
    times = np.array([candle["t"] for candle in candles], np.int64)
    return Bars(symbol, MINUTE_MS, times, *columns).check()
