"""Hyperliquid's public info API through its own SDK: candles, funding, books, mids. Reads only; needs no account.

What the API does that a caller would not guess: numbers are strings; the candle that contains startTime is included;
the last candle may still be forming; of a longer range only the newest 5000 candles come, and older ones never; a
page of funding ends where the venue likes (500 rows are documented, more have been seen).

Its documented limits, by address: 1200 of weight a minute; l2Book and allMids weigh 2, the other questions 20, to
which candleSnapshot adds 1 for each 60 candles and fundingHistory 1 for each 20 rows of the answer.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial
from itertools import pairwise
from typing import Annotated, Any, TypeVar

import requests
from annotated_types import Ge, Gt
from hyperliquid.info import Info

from feature_repo.feeds import events
from feature_repo.feeds.events import INTERVALS_MS, Book, Candle, Funding, MalformedMessage, MarketUnavailable, Mid
from feature_repo.feeds.pauses import pause_s
from feature_repo.feeds.rate_limit import TokenBucket
from policies.clock import LiveClock
from policies.errors import InvalidInput, UnknownEntity

PAGE_CANDLES = 5_000  # in one answer, and how far back the API goes
LIGHT, HEAVY = 2, 20  # weights
CANDLES_PER_WEIGHT, FUNDINGS_PER_WEIGHT = 60, 20
Row = TypeVar("Row", Candle, Funding)


@dataclass(frozen=True)
class RestSettings:
    """timeout_s: of one request. retry_for_s: from the first try to the last, pauses included; 0 tries once.

    Pauses grow from first_pause_s to longest_pause_s and are never shorter than the venue's Retry-After.
    weight_per_minute: what this client may spend of the address's 1200. longest_wait_s: for its own rate limit, or
    for a venue that said when to come back.
    """

    timeout_s: Annotated[float, Gt(0)] = 3.0
    retry_for_s: Annotated[float, Ge(0)] = 30.0
    first_pause_s: Annotated[float, Gt(0)] = 0.5
    longest_pause_s: Annotated[float, Gt(0)] = 10.0
    weight_per_minute: Annotated[float, Gt(0)] = 1_200.0
    longest_wait_s: Annotated[float, Ge(0)] = 90.0


@dataclass(frozen=True)
class CandleAnswer:
    """candles: closed, by open time, each once. gaps: [start, stop) of open times that the venue left out between two.

    Nothing is said of what is missing before the first or after the last.
    """

    candles: tuple[Candle, ...]
    gaps: tuple[tuple[int, int], ...]


class _Refused(Exception):
    """An HTTP status of 400 or more. retry_after: the header as sent. The SDK's own errors lose it."""

    def __init__(self, status: int, retry_after: str | None) -> None:
        super().__init__(f"HTTP {status}")
        self.status, self.retry_after = status, retry_after


class HyperliquidRest:
    """Perpetuals by name. Raises MarketUnavailable where the venue gives no good answer in time.

    Time-outs, cut connections, 429 and 5xx are asked again; another 4xx is not. now_ms: the clock that says which
    candle is closed. monotonic_s, sleep: for pauses. rng: for their jitter. May be shared by threads.
    """

    def __init__(self, symbols: Sequence[str], base_url: str | None = None, settings: RestSettings | None = None, *,
                 now_ms: Callable[[], int] | None = None, monotonic_s: Callable[[], float] = time.monotonic,
                 sleep: Callable[[float], None] = time.sleep, rng: random.Random | None = None) -> None:
        self.symbols, self.settings = tuple(symbols), settings or RestSettings()
        self._now_ms = now_ms or LiveClock().now_ms
        self._monotonic_s, self._sleep, self._rng = monotonic_s, sleep, rng or random.Random(0)
        self._bucket = TokenBucket(self.settings.weight_per_minute, 60.0, monotonic_s, sleep)
        # Given both metas, the SDK asks for nothing when it is built; it only needs to know the names it may be asked.
        universe = [{"name": symbol, "szDecimals": 0} for symbol in self.symbols]
        self._api = Info(base_url, skip_ws=True, meta={"universe": universe}, spot_meta={"universe": [], "tokens": []},
                         timeout=self.settings.timeout_s)
        self._api.session.hooks["response"].append(_refuse_errors)

    @property
    def base_url(self) -> str:
        return str(self._api.base_url)

    def candles(self, symbol: str, interval: str, start_ms: int, stop_ms: int) -> CandleAnswer:
        """Closed candles with open time in [start_ms, stop_ms), as far back as the venue has them."""
        self._check(symbol)
        if interval not in INTERVALS_MS:
            raise InvalidInput("interval", f"one of {', '.join(INTERVALS_MS)}", interval)
        step_ms = INTERVALS_MS[interval]
        start = -(-start_ms // step_ms) * step_ms
        stop = min(stop_ms, self._now_ms() // step_ms * step_ms)
        rows: dict[int, Candle] = {}
        for first in range(start, stop, PAGE_CANDLES * step_ms):
            last = min(stop, first + PAGE_CANDLES * step_ms) - 1
            question = partial(self._api.candles_snapshot, symbol, interval, first, last)
            page = self._ask(question, HEAVY, (last + 1 - first) / step_ms / CANDLES_PER_WEIGHT)
            _gather(rows, (_of(symbol, events.candle(row), step_ms) for row in _listed(page)), first, last)
        candles = tuple(rows[key] for key in sorted(rows))
        gaps = tuple((before.close_time_ms, after.open_time_ms) for before, after in pairwise(candles)
                     if before.close_time_ms != after.open_time_ms)
        return CandleAnswer(candles, gaps)

    def funding(self, symbol: str, start_ms: int, stop_ms: int) -> tuple[Funding, ...]:
        """Settlements with time in [start_ms, stop_ms), by time; paged on from the last one until nothing new comes."""
        self._check(symbol)
        rows: dict[int, Funding] = {}
        while start_ms < stop_ms:
            page = _listed(self._ask(partial(self._api.funding_history, symbol, start_ms, stop_ms - 1), HEAVY))
            self._bucket.charge(len(page) / FUNDINGS_PER_WEIGHT)
            known = len(rows)
            _gather(rows, (_of(symbol, events.funding(row)) for row in page), start_ms, stop_ms - 1)
            if len(rows) == known:
                break
            start_ms = max(rows) + 1
        return tuple(rows[key] for key in sorted(rows))

    def book(self, symbol: str) -> Book:
        self._check(symbol)
        answer = self._ask(partial(self._api.l2_snapshot, symbol), LIGHT)
        return _readable(lambda: _of(symbol, events.book(answer, self._now_ms())))

    def mids(self) -> dict[str, Mid]:
        """By symbol, of those this client was made for that the venue has a mid of."""
        answer = self._ask(self._api.all_mids, LIGHT)
        found = _readable(lambda: events.mids(answer, self._now_ms()))
        return {symbol: found[symbol] for symbol in self.symbols if symbol in found}

    def perpetuals(self) -> set[str]:
        """The names of all perpetuals that the venue trades."""
        answer = self._ask(self._api.meta, HEAVY)
        try:
            return {str(asset["name"]) for asset in answer["universe"]}
        except (KeyError, TypeError) as error:
            raise MarketUnavailable("Hyperliquid's list of perpetuals has another shape than it used to") from error

    def _check(self, symbol: str) -> None:
        if symbol not in self.symbols:
            raise UnknownEntity("symbol", symbol, list(self.symbols))

    def _ask(self, question: Callable[[], Any], weight: float, extra: float = 0.0) -> Any:
        """The answer as JSON; asked again, with growing pauses, while that can help and retry_for_s last."""
        first_s, tries = self._monotonic_s(), 0
        while True:
            if not self._bucket.take(weight + extra, self.settings.longest_wait_s):
                raise MarketUnavailable("Hyperliquid: this address has used up what it may ask for now")
            try:
                answer = question()
                if isinstance(answer, dict) and "error" in answer:  # the SDK's word for a body that is not JSON
                    raise requests.exceptions.InvalidJSONError("not JSON")
                return answer
            except (requests.RequestException, _Refused) as error:
                wait_s = self._wait_s(error, tries)
                spent_s = self._monotonic_s() - first_s
                if wait_s is None or spent_s + wait_s > self.settings.retry_for_s:
                    raise MarketUnavailable(f"Hyperliquid: {_named(error)}, after {tries + 1} tries") from error
            self._sleep(wait_s)
            tries += 1

    def _wait_s(self, error: Exception, tries: int) -> float | None:
        """How long to wait before asking again; None if asking again cannot help."""
        status = error.status if isinstance(error, _Refused) else None
        if status is not None and status != 429 and status < 500:
            return None
        wait_s = pause_s(tries, self.settings.first_pause_s, self.settings.longest_pause_s, self._rng)
        if isinstance(error, _Refused) and error.retry_after is not None:
            wait_s = max(wait_s, _retry_after_s(error.retry_after, self._now_ms()))
        if status == 429:
            self._bucket.close_for(wait_s)  # other threads, and the next question, wait too
        return wait_s


def _refuse_errors(response: requests.Response, *_: Any, **__: Any) -> None:
    if response.status_code >= 400:
        response.close()
        raise _Refused(response.status_code, response.headers.get("Retry-After"))


def _retry_after_s(header: str, now_ms: int) -> float:
    """Seconds of a Retry-After, which is a number of seconds or a date; 0 of one that is neither."""
    try:
        if header.strip().isdigit():
            return float(header)
        return max(0.0, parsedate_to_datetime(header).timestamp() - now_ms / 1_000)
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _named(error: Exception) -> str:
    return str(error) if isinstance(error, _Refused) else type(error).__name__


def _listed(answer: Any) -> list[Any]:
    if not isinstance(answer, list):
        raise MarketUnavailable(f"Hyperliquid answered {answer!r:.100} where a list of rows is promised")
    return answer


def _readable(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except MalformedMessage as error:
        raise MarketUnavailable(str(error)) from error


def _of(symbol: str, row: Any, interval_ms: int | None = None) -> Any:
    if row.symbol != symbol or (interval_ms is not None and row.interval_ms != interval_ms):
        raise MalformedMessage(f"asked for {symbol}, Hyperliquid answered with {row!r:.200}")
    return row


def _gather(rows: dict[int, Row], page: Iterable[Row], first_ms: int, last_ms: int) -> None:
    """Add the rows within [first_ms, last_ms] by their time; MarketUnavailable if two of one time differ."""

    def add() -> None:
        for row in page:
            time_ms = row.open_time_ms if isinstance(row, Candle) else row.time_ms
            if first_ms <= time_ms <= last_ms and rows.setdefault(time_ms, row) != row:
                raise MalformedMessage(f"two rows of one time differ: {rows[time_ms]!r:.200} and {row!r:.200}")

    _readable(add)
