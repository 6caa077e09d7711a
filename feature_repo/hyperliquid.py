"""One-minute bars of the public Hyperliquid API with their funding, asked for when they are needed.

What the API does is told in `feeds/hyperliquid_rest.py`; `feeds/hyperliquid_live.py` follows it without asking.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from feature_repo.features import MINUTE_MS
from feature_repo.feeds.events import Candle, Funding, MarketUnavailable
from feature_repo.feeds.hyperliquid_rest import PAGE_CANDLES, HyperliquidRest, RestSettings
from policies.bars import Bars
from policies.clock import LiveClock
from policies.errors import HubError, InvalidInput, UnknownEntity

__all__ = ["PAGE_BARS", "HyperliquidMarket", "MarketUnavailable", "bars_of"]

PAGE_BARS = PAGE_CANDLES  # candles in one answer, and how far back the API goes
HOUR_MS = 3_600_000
ASK_AGAIN_MS = 15_000  # between two questions for a settlement that is due, or that could not be had
SETTLED_MS = 5_000  # after its close a candle is taken to be final
REPEAT_MS = 2_000  # between two questions for candles that are not
MOST_KEPT = 2 * PAGE_BARS
OVERLAP_MS = 3 * MINUTE_MS  # asked for again with each new minute: an exchange may correct its latest candles


@dataclass(frozen=True)
class _KnownCandles:
    """candles: those with open time in [from_ms, until_ms), as they were when asked for last, at asked_ms."""

    from_ms: int
    until_ms: int
    asked_ms: int
    candles: tuple[Candle, ...]

    def serve(self, until_ms: int, now_ms: int) -> bool:
        """Whether they need not be asked for again yet."""
        complete = bool(self.candles) and self.candles[-1].close_time_ms == until_ms
        settled = complete and self.asked_ms >= until_ms + SETTLED_MS
        return self.until_ms == until_ms and (settled or 0 <= now_ms - self.asked_ms < REPEAT_MS)


@dataclass(frozen=True)
class _KnownFunding:
    """rows: all settlements from from_ms to the last one that the venue had. asked_ms: when it was asked last.

    answered: whether that question was answered, so that no settlement is unknown.
    """

    from_ms: int
    rows: tuple[Funding, ...]
    asked_ms: int
    answered: bool


class HyperliquidMarket:
    """One-minute bars of perpetuals. now_ms: the clock that says which candle is still forming.

    timeout_s: of one request; what fails is not tried again. Without a start, bars() reaches back as far as the API
    does. Who polls the latest bars may do so as often as he likes: the venue is asked a few times a minute.
    """

    name = origin = "hyperliquid"
    folder = None

    def __init__(self, symbols: Sequence[str], base_url: str | None = None, timeout_s: float = 3.0,
                 now_ms: Callable[[], int] | None = None) -> None:
        self.symbols = tuple(symbols)
        self._now_ms = now_ms or LiveClock().now_ms
        self._rest = HyperliquidRest(self.symbols, base_url, RestSettings(timeout_s=timeout_s, retry_for_s=0.0),
                                     now_ms=self._now_ms)
        self._known_candles: dict[str, _KnownCandles] = {}
        self._known_funding: dict[str, _KnownFunding] = {}
        self._locks = {symbol: threading.Lock() for symbol in self.symbols}

    def bars(self, symbol: str, start_ms: int | None = None, stop_ms: int | None = None) -> Bars:
        """Closed bars with open time in [start_ms, stop_ms). Their funding is None while it cannot be had."""
        if symbol not in self.symbols:
            raise UnknownEntity("symbol", symbol, list(self.symbols))
        now_ms = self._now_ms()
        closed_until_ms = now_ms // MINUTE_MS * MINUTE_MS  # the first open time whose candle is still forming
        start = closed_until_ms - PAGE_BARS * MINUTE_MS if start_ms is None else start_ms
        if stop_ms is None or stop_ms >= closed_until_ms:
            candles = self._latest_candles(symbol, start, closed_until_ms, now_ms)
        else:
            candles = self._rest.candles(symbol, "1m", start, stop_ms).candles
        return bars_of(symbol, candles, self._funding(symbol, candles[0].open_time_ms) if candles else ())

    def probe(self, timeout_s: float) -> None:
        """MarketUnavailable unless the API answers within timeout_s and trades all symbols.

        Asked in a thread: neither a slow name lookup nor a trickling answer falls under a request's own timeout.
        """
        found: list[set[str] | HubError] = []

        def ask() -> None:
            try:
                found.append(self._rest.perpetuals())
            except HubError as error:
                found.append(error)

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
        return f"live one-minute bars of {', '.join(self.symbols)} from {self._rest.base_url}"

    def _latest_candles(self, symbol: str, start_ms: int, until_ms: int, now_ms: int) -> tuple[Candle, ...]:
        """With open time in [start_ms, until_ms); only what is new, or may have changed, is asked for."""
        with self._locks[symbol]:
            known = self._known_candles.get(symbol)
            if known is None or not known.from_ms <= start_ms <= known.until_ms <= until_ms:
                known = _KnownCandles(start_ms, start_ms, 0, ())
            candles = known.candles
            if start_ms < until_ms and not known.serve(until_ms, now_ms):
                first_ms = max(known.from_ms, known.until_ms - OVERLAP_MS)
                kept = (candle for candle in candles if candle.open_time_ms < first_ms)
                candles = (*kept, *self._rest.candles(symbol, "1m", first_ms, until_ms).candles)
                from_ms = known.from_ms if len(candles) <= MOST_KEPT else candles[-MOST_KEPT].open_time_ms
                self._known_candles[symbol] = _KnownCandles(from_ms, until_ms, now_ms, candles[-MOST_KEPT:])
        return tuple(candle for candle in candles if candle.open_time_ms >= start_ms)

    def _funding(self, symbol: str, from_ms: int) -> tuple[Funding, ...] | None:
        """The settlements from from_ms on, asked for anew only when an hour has begun that has none yet."""
        with self._locks[symbol]:
            known = self._known_funding.get(symbol)
            if known is None or known.from_ms > from_ms:
                known = _KnownFunding(from_ms, (), 0, False)
            if self._is_due(known):
                known = self._known_funding[symbol] = self._asked(symbol, known)
        return known.rows if known.answered else None

    def _is_due(self, known: _KnownFunding) -> bool:
        now_ms = self._now_ms()
        current = bool(known.rows) and known.rows[-1].time_ms >= now_ms // HOUR_MS * HOUR_MS
        return not current and now_ms - known.asked_ms >= ASK_AGAIN_MS

    def _asked(self, symbol: str, known: _KnownFunding) -> _KnownFunding:
        now_ms = self._now_ms()
        next_ms = known.rows[-1].time_ms + 1 if known.rows else known.from_ms
        try:
            rows = known.rows + self._rest.funding(symbol, next_ms, now_ms + 1)
        except MarketUnavailable:
            return _KnownFunding(known.from_ms, known.rows, now_ms, False)
        return _KnownFunding(known.from_ms, rows, now_ms, True)


def bars_of(symbol: str, candles: Sequence[Candle], funding: Sequence[Funding] | None) -> Bars:
    """Candles of one minute, sorted, as Bars. funding: all settlements of their time; None if they are not known."""
    times = np.array([candle.open_time_ms for candle in candles], np.int64)
    opening, high, low, close, volume = (np.array([getattr(candle, name) for candle in candles], np.float64)
                                         for name in ("open", "high", "low", "close", "volume"))
    return Bars(symbol, MINUTE_MS, times, opening, high, low, close, volume, _settled_within(times, funding)).check()


def _settled_within(times: NDArray[np.int64], funding: Sequence[Funding] | None) -> NDArray[np.float64] | None:
    """(N,) the rate of the settlement within each minute, 0 where there was none."""
    if funding is None:
        return None
    rates = np.zeros(len(times))
    place_by_time = {int(time_ms): place for place, time_ms in enumerate(times)}
    for row in funding:
        place = place_by_time.get(row.time_ms // MINUTE_MS * MINUTE_MS)
        if place is not None:
            rates[place] = row.rate
    return rates
