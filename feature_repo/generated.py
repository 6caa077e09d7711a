"""A market that is made, with an edge that is known: what demos and tests trade when nothing else is at hand.

Every bar has a standard normal shock e, shared in part between the symbols. Its log return is

    r = v e - v^2 / 2 + signal * DRIFT * v * (sum of the marks of the last 10 bars)

- v, the volatility of the bar: a calm and a burst regime (a Markov chain) times a slow log-normal wave.
- Volume follows v. A bar with |e| > 1 is, with probability TAG_SHARE, *tagged*: its volume is TAG_VOLUME times larger.
- The mark of a tagged bar is minus the sign of e, of any other bar 0: a large move on high volume is given back over
  the next ten bars. Both sides of that rule are seen in the bars, so it can be learnt from `volume_z_1` and `ret_1`.

At signal 0 prices are a martingale with the same volatility and volume, so nobody has an edge and every trader pays the
costs. Each series is drawn from a generator of its own, in time order: a longer run begins with the shorter one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from feature_repo.features import DECISION_V1, MINUTE_MS
from feature_repo.transforms import compute_features
from policies.bars import Bars
from policies.errors import InvalidInput, UnknownEntity
from policies.keyed_random import generator

SYMBOLS = ("BTC", "ETH", "SOL", "HYPE")
START_MS = 1_735_689_600_000  # 2025-01-01T00:00Z
FIRST_PRICE = {"BTC": 95_000.0, "ETH": 3_300.0, "SOL": 190.0, "HYPE": 25.0}
MINUTE_TURNOVER = 1_000_000.0  # USD, of an ordinary calm bar

CALM_VOLATILITY = 0.0011  # standard deviation of a calm minute's log return
BURST_FACTOR = 1.8
REGIME_REDRAWN = 1 / 240  # chance per bar that the regime is drawn anew
BURST_SHARE = 0.25
WAVE_MEMORY, WAVE_DEVIATION = 0.99, 0.2  # AR(1) of log volatility
COMMON_SHARE = 0.15  # of the shocks' variance: the correlation of two symbols

DRIFT = 0.245  # of a bar's volatility, for each of the HORIZON bars after a tagged one
HORIZON = 10
TAG_SHARE, TAG_VOLUME, VOLUME_NOISE = 0.65, 4.0, 0.2
FUNDING_EVERY_BARS, FUNDING_MEAN, FUNDING_DEVIATION = 60, 1.25e-5, 1e-5

Floats = NDArray[np.float64]


class GeneratedMarket:
    """Bars of `count` minutes per symbol from start_ms, a function of the seed, the symbol and the signal alone.

    signal: strength of the planted edge; 1 gives the oracle a profit factor of 3 to 4 after costs, 0 gives none.
    """

    name = "generated"
    folder = None

    def __init__(self, seed: int = 0, signal: float = 1.0, symbols: Sequence[str] = SYMBOLS, bars: int = 43_200,
                 start_ms: int = START_MS) -> None:
        if not (0 <= signal <= 2):
            raise InvalidInput("market.signal", "between 0 and 2", signal)
        if bars < 1 or start_ms % MINUTE_MS:
            raise InvalidInput("market.bars, market.start_ms", "bars >= 1, start at a full minute", (bars, start_ms))
        self.seed, self.signal, self.symbols = seed, signal, tuple(symbols)
        self.origin = f"generated_seed_{seed}_signal_{signal:g}"
        self._count, self._start_ms = bars, start_ms
        self._made: dict[str, Bars] = {}

    def bars(self, symbol: str, start_ms: int | None = None, stop_ms: int | None = None) -> Bars:
        if symbol not in self.symbols:
            raise UnknownEntity("symbol", symbol, list(self.symbols))
        if symbol not in self._made:
            self._made[symbol] = self._make(symbol)
        made = self._made[symbol]
        first, end = self._start_ms, self._start_ms + self._count * MINUTE_MS
        return made.between(first if start_ms is None else start_ms, end if stop_ms is None else stop_ms)

    def describe(self) -> str:
        return (f"generated market (seed {self.seed}, signal {self.signal:g}): {', '.join(self.symbols)}, "
                f"{self._count} one-minute bars; not real prices")

    def _make(self, symbol: str) -> Bars:
        from scipy.signal import lfilter  # half of the time that every process of a hub needs to come up

        count = self._count
        shock = (np.sqrt(1 - COMMON_SHARE) * self._normal(symbol, "shock")
                 + np.sqrt(COMMON_SHARE) * self._normal("", "common shock"))
        volatility = self._volatility(symbol)
        tagged = (np.abs(shock) > 1) & (self._uniform(symbol, "tag") < TAG_SHARE)
        marks = np.where(tagged, -np.sign(shock), 0.0)
        drift = self.signal * DRIFT * volatility * lfilter(np.r_[0.0, np.ones(HORIZON)], [1.0], marks)
        returns = volatility * shock - volatility**2 / 2 + drift
        log_close = np.log(FIRST_PRICE.get(symbol, 100.0)) + np.cumsum(returns)
        log_open = log_close - returns
        close, opening = np.exp(log_close), np.exp(log_open)
        above = self._reach(symbol, "high", returns, volatility)
        below = self._reach(symbol, "low", -returns, volatility)
        high = np.maximum(np.exp(log_open + above), np.maximum(opening, close))  # rounding may end below the close
        low = np.minimum(np.exp(log_open - below), np.minimum(opening, close))
        volume = (MINUTE_TURNOVER / FIRST_PRICE.get(symbol, 100.0) * volatility / CALM_VOLATILITY
                  * np.exp(VOLUME_NOISE * self._normal(symbol, "volume")) * np.where(tagged, TAG_VOLUME, 1.0))
        open_time_ms = self._start_ms + MINUTE_MS * np.arange(count, dtype=np.int64)
        return Bars(symbol, MINUTE_MS, open_time_ms, opening, high, low, close, volume, self._funding(symbol)).check()

    def _volatility(self, symbol: str) -> Floats:
        """(N,) standard deviation of each bar's shock."""
        from scipy.signal import lfilter

        redrawn = self._uniform(symbol, "regime redrawn") < REGIME_REDRAWN
        redrawn[0] = True
        burst_if_redrawn = self._uniform(symbol, "regime") < BURST_SHARE
        last_redrawn = np.maximum.accumulate(np.where(redrawn, np.arange(self._count), 0))
        steps = self._normal(symbol, "wave") * WAVE_DEVIATION * np.sqrt(1 - WAVE_MEMORY**2)
        wave = lfilter([1.0], [1.0, -WAVE_MEMORY], steps)
        return CALM_VOLATILITY * np.where(burst_if_redrawn[last_redrawn], BURST_FACTOR, 1.0) * np.exp(wave)

    def _reach(self, symbol: str, what: str, returns: Floats, volatility: Floats) -> Floats:
        """(N,) highest log price over the open: the maximum of a Brownian bridge that ends at `returns`."""
        chance = 1 - self._uniform(symbol, what)  # in (0, 1]: the logarithm is finite
        return (returns + np.sqrt(returns**2 - 2 * volatility**2 * np.log(chance))) / 2

    def _funding(self, symbol: str) -> Floats:
        """(N,) rate settled in the bar; 0 but for the first bar of every hour."""
        rates = FUNDING_MEAN + FUNDING_DEVIATION * self._normal(symbol, "funding")
        place = self._start_ms // MINUTE_MS + np.arange(self._count)
        return np.where(place % FUNDING_EVERY_BARS == 0, rates, 0.0)

    def _normal(self, symbol: str, what: str) -> Floats:
        return generator(self.seed, "generated market", symbol, what).standard_normal(self._count)

    def _uniform(self, symbol: str, what: str) -> Floats:
        return generator(self.seed, "generated market", symbol, what).random(self._count)


def oracle_direction(bars: Bars) -> NDArray[np.int64]:
    """(N,) what one does after each bar who knows the rule: +1 long, -1 short, 0 nothing. Sees closed bars only.

    A bar counts as tagged if its volume stands out and its move is a large one; the trade is against the move and is
    meant to be held for HORIZON bars from the next open. Zero for bars that have no features yet.
    """
    direction = np.zeros(len(bars), np.int64)
    frame = compute_features(bars)
    move = frame.values[:, DECISION_V1.names.index("ret_1")]
    volume_z = frame.values[:, DECISION_V1.names.index("volume_z_1")]
    tagged = (volume_z > 1.0) & (np.abs(move) > 0.5)
    rows = np.searchsorted(bars.close_time_ms, frame.event_time_ms)
    direction[rows] = np.where(tagged, -np.sign(move), 0).astype(np.int64)
    return direction
