"""Every feature with what it means, by group, and the two services that select from them. Knows no framework:
`definitions` tells Feast about it.

A group is what comes from one source, is written as one row and goes stale as one: Feast's view. A service is a
named, ordered selection of features. `decision_v1` is what heads see: scale-free numbers, so that one policy serves
every symbol and a drift gauge does not fire because a price went up. `episode_v1` is what an episode remembers for
people and the LLM: prices, sentiment, book, account and strategy weights in their own units. A service never changes
once policies were trained on it; another selection is another version.

An array group has one stored feature, an array of float32, and belongs to no service: a head that wants it names it in
its manifest, and takes the last numbers of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from feature_repo.windows import CHANNELS, WINDOW_BARS, WINDOW_NUMBERS
from policies.types import STRATEGIES

SECOND_MS = 1_000
MINUTE_MS = 60 * SECOND_MS
HOUR_MS = 60 * MINUTE_MS
WINDOWS = (5, 15, 30, 60, 120)  # bars

BARS, PRICE, FUNDING = "bars", "price", "funding"
QUOTE, DEPTH, FLOW, MID = "quote", "depth", "flow", "mid"
FEAR_GREED, REDDIT, TWITTER, POLYMARKET = "fear_greed", "reddit", "twitter", "polymarket"
PORTFOLIO, WEIGHTS = "portfolio", "weights"
SCORED_SOURCES = (REDDIT, TWITTER, POLYMARKET)  # sentiment that the bot pushes, per symbol
WINDOW, MARKET_EMBEDDING = "window", "market_embedding"  # array groups
MISSING = "missing"  # not a group that is stored: 1 where another group is absent or stale

DEVIATIONS = "standard deviations"
VERSION_FEATURE = "embedding_version"
MOST_EMBEDDING = 256  # numbers of a market's embedding


@dataclass(frozen=True)
class FeatureSpec:
    """One number.

    scale: a typical magnitude, fixed once, by which similarity searches divide before they clip to +-5; it is not
    learnt, so old episodes stay comparable. window: how far back the value looks: bars, seconds of trades, or 1 for
    the last row of its source.
    stationary: whether its distribution should be the same on any quiet day, so that drift means something.
    """

    name: str
    group: str
    scale: float
    unit: str
    window: int
    formula: str
    source: str
    stationary: bool = True


@dataclass(frozen=True)
class FeatureGroup:
    """ttl_ms: age up to which its row is fresh. online: written to the online store; else it comes with a request."""

    name: str
    ttl_ms: int
    specs: tuple[FeatureSpec, ...]
    description: str
    online: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(spec.name for spec in self.specs)


@dataclass(frozen=True)
class ArrayGroup:
    """A group whose one stored feature, `feature`, is an array of at most `most` float32.

    step: what is taken of it is a whole multiple of this. versioned: its rows say which version of an embedder made
    them, in the stored text VERSION_FEATURE.
    """

    name: str
    feature: str
    ttl_ms: int
    most: int
    step: int
    description: str
    versioned: bool = False

    def admits(self, count: int) -> bool:
        """Whether a head may take the last `count` numbers."""
        return 0 < count <= self.most and count % self.step == 0


@dataclass(frozen=True)
class FeatureList:
    """A feature service: a named, ordered selection.

    No decision may be made from a vector of which a group of `required_groups` is absent or older than its ttl; a
    group of `optional_groups` may be, and its features are then NaN. A spec of the pseudo-group MISSING says which.
    """

    name: str
    specs: tuple[FeatureSpec, ...]
    required_groups: tuple[str, ...]
    optional_groups: tuple[str, ...]
    ttl_ms: MappingProxyType[str, int]

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(spec.name for spec in self.specs)

    @cached_property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """{group: names of its features in order}; required groups first."""
        order = self.required_groups + self.optional_groups
        return {group: tuple(s.name for s in self.specs if s.group == group) for group in order}

    @cached_property
    def stored(self) -> tuple[FeatureSpec, ...]:
        """The specs that are read from a store: all but the indicators of what is missing."""
        return tuple(spec for spec in self.specs if spec.group != MISSING)

    @cached_property
    def places(self) -> dict[str, NDArray[np.int64]]:
        """{group: places of its features in the vector}."""
        return {group: np.array([self.names.index(name) for name in names]) for group, names in self.groups.items()}

    @cached_property
    def indicators(self) -> dict[str, int]:
        """{group: place of the number that is 1 if the group is missing}."""
        return {group: self.names.index(name) for group in self.optional_groups
                if (name := f"{group}_missing") in self.names}

    @cached_property
    def may_be_missing(self) -> tuple[str, ...]:
        """Names of the features that may be NaN, in the order of the vector."""
        return tuple(spec.name for spec in self.specs if spec.group in self.optional_groups)

    @cached_property
    def scales(self) -> NDArray[np.float64]:
        """(F,) typical magnitudes, read-only."""
        scales = np.array([spec.scale for spec in self.specs])
        scales.setflags(write=False)
        return scales

    def __len__(self) -> int:
        return len(self.specs)


def _window_specs(w: int) -> list[FeatureSpec]:
    """v_w is the realised volatility of w bars: sqrt(mean r^2), r the log return of one bar's close on the last."""
    volatility = (
        _bar("log_vol_120", 0.7, "log", w + 1, "log(v120 / 0.001), the level of volatility", stationary=False)
        if w == 120 else _bar(f"vol_ratio_{w}", 0.5, "log", 121, f"log(v{w} / v120)"))
    volume = [] if w == 120 else [
        _bar(f"volume_ratio_{w}", 0.5, "log", 120, f"log(mean volume of {w} / mean volume of 120)")]
    return [
        _bar(f"ret_{w}", 1.0, DEVIATIONS, 121, f"log(c / c[-{w}]) / (v120 sqrt({w}))"),
        volatility,
        _bar(f"range_{w}", 2.0, DEVIATIONS, 121, f"log(max high / min low of {w}) / (v120 sqrt({w})), at most 20"),
        _bar(f"position_{w}", 0.6, "-1..1", w, f"2 (c - low) / (high - low) - 1 over {w}; 0 if flat"),
        *volume,
        _bar(f"up_share_{w}", 0.3, "-1..1", w + 1, f"2 (share of bars closing higher) - 1 over {w}"),
        _bar(f"autocorrelation_{w}", 0.3, "-1..1", w + 2,
             f"sum r r[-1] / sqrt(sum r^2 sum r[-1]^2) over {w}; 0 if flat"),
    ]


def _bar(name: str, scale: float, unit: str, window: int, formula: str, stationary: bool = True,
         group: str = BARS) -> FeatureSpec:
    return FeatureSpec(name, group, scale, unit, window, formula, "1-minute candles", stationary)


def _bar_specs() -> tuple[FeatureSpec, ...]:
    return (
        _bar("ret_1", 1.0, DEVIATIONS, 121, "log(c / c[-1]) / v120"),
        _bar("volume_z_1", 1.0, DEVIATIONS, 120,
             "(volume - mean) / deviation over 120; the deviation is at least 0.001 of the mean"),
        *(spec for w in WINDOWS for spec in _window_specs(w)),
        _bar("day_sin", 0.7, "-1..1", 1, "sin(2 pi time of day) at the bar's close, UTC", stationary=False),
        _bar("day_cos", 0.7, "-1..1", 1, "cos(2 pi time of day) at the bar's close, UTC", stationary=False),
    )


def _level(name: str, group: str, scale: float, unit: str, window: int, formula: str, source: str) -> FeatureSpec:
    return FeatureSpec(name, group, scale, unit, window, formula, source, stationary=False)


def _groups() -> tuple[FeatureGroup, ...]:
    bbo, book, trades = "best bid and offer", "20-level book", "trades"
    depth = [_level(f"{side}_depth_{k}", DEPTH, 1e6, "USD", 1, f"sum of price * size over the best {k} {side}s", book)
             for k in (5, 20) for side in ("bid", "ask")]
    return (
        FeatureGroup(BARS, 3 * MINUTE_MS, _bar_specs(), "scale-free technical features of the last 122 minutes"),
        FeatureGroup(PRICE, 3 * MINUTE_MS, (
            _bar("median_price", 1e4, "USD", 5, "median of the last 5 closes", stationary=False, group=PRICE),
            _bar("change_1m", 1e-3, "fraction", 2, "c / c[-1] - 1", stationary=False, group=PRICE),
            _bar("volatility_60", 1e-3, "fraction per minute", 61, "v60", stationary=False, group=PRICE),
        ), "price, its last change and its volatility, in their own units"),
        FeatureGroup(FUNDING, 2 * HOUR_MS, (
            _level("funding_rate", FUNDING, 1e-4, "fraction per settlement, paid by longs if > 0", 1,
                   "the rate settled last", "funding history"),
        ), "funding of the perpetual"),
        FeatureGroup(QUOTE, 15 * SECOND_MS, (
            _level("best_bid", QUOTE, 1e4, "USD", 1, "best bid price", bbo),
            _level("best_ask", QUOTE, 1e4, "USD", 1, "best ask price", bbo),
            _level("bid_size", QUOTE, 10.0, "base units", 1, "size at the best bid", bbo),
            _level("ask_size", QUOTE, 10.0, "base units", 1, "size at the best ask", bbo),
            FeatureSpec("spread_bps", QUOTE, 1.0, "0.0001 of mid", 1, "1e4 (ask - bid) / mid", bbo),
            FeatureSpec("imbalance_1", QUOTE, 0.6, "-1..1", 1, "(bid size - ask size) / (bid size + ask size)", bbo),
            FeatureSpec("microprice_bps", QUOTE, 0.3, "0.0001 of mid", 1,
                        "1e4 ((bid * ask size + ask * bid size) / (bid size + ask size) / mid - 1)", bbo),
        ), "top of the book; what needs both sides is NaN where one is absent or they are crossed"),
        FeatureGroup(DEPTH, 15 * SECOND_MS, (
            *depth,
            *(FeatureSpec(f"imbalance_{k}", DEPTH, 0.5, "-1..1", 1, f"(b - a) / (b + a), b = bid_depth_{k}, "
                          f"a = ask_depth_{k}", book) for k in (5, 20)),
        ), "what stands in the book; a side with fewer levels is summed as far as it goes, an absent one is NaN"),
        FeatureGroup(FLOW, MINUTE_MS, (
            FeatureSpec("flow_imbalance_60", FLOW, 0.6, "-1..1", 60,
                        "(bought - sold) / (bought + sold), USD of aggressors, received in the last 60 s", trades),
            _level("traded_60", FLOW, 1e6, "USD", 60, "price * size received in the last 60 s", trades),
        ), "who has crossed the spread lately"),
        FeatureGroup(MID, 15 * SECOND_MS, (_level("mid_price", MID, 1e4, "USD", 1, "mid price", "all mids"),),
                     "mid price as the exchange publishes it"),
        FeatureGroup(FEAR_GREED, 50 * HOUR_MS, (
            _level("fear_greed", FEAR_GREED, 0.3, "0..1, 0 is extreme fear", 1,
                   "index / 100, known when its day is over", "Crypto Fear & Greed index"),
        ), "mood of the whole market, once a day"),
        *(FeatureGroup(source, 6 * HOUR_MS, (
            _level(f"{source}_score", source, 0.5, "-1..1, > 0 is bullish", 1, "the last score pushed", source),
            _level(f"{source}_confidence", source, 0.5, "0..1", 1, "the confidence that came with it", source),
        ), f"sentiment on {source}, pushed by the bot") for source in SCORED_SOURCES),
        FeatureGroup(PORTFOLIO, MINUTE_MS, (
            _level("current_leverage", PORTFOLIO, 5.0, "notional over equity", 1, "as the request says", "request"),
            _level("unrealised_pnl_pct", PORTFOLIO, 0.01, "fraction of equity", 1, "unrealised PnL / equity",
                   "request"),
        ), "the account at the decision", online=False),
        FeatureGroup(WEIGHTS, MINUTE_MS, tuple(
            _level(f"weight_{strategy}", WEIGHTS, 0.2, "0..1, they sum to 1", 1, f"capital share of {strategy}", "hub")
            for strategy in STRATEGIES), "strategy weights of the moment", online=False),
    )


def _array_groups() -> tuple[ArrayGroup, ...]:
    return (
        ArrayGroup(WINDOW, "bars_before", 3 * MINUTE_MS, WINDOW_NUMBERS, len(CHANNELS),
                   f"the last {WINDOW_BARS} one-minute bars, oldest first, {len(CHANNELS)} numbers each "
                   f"({', '.join(CHANNELS)}, see `feature_repo/windows.py`); where `bars` has a row"),
        ArrayGroup(MARKET_EMBEDDING, "embedding", 3 * MINUTE_MS, MOST_EMBEDDING, 1,
                   "what the embedder in use makes of the window, with its version", versioned=True),
    )


GROUPS = MappingProxyType({group.name: group for group in _groups()})
ARRAYS = MappingProxyType({group.name: group for group in _array_groups()})
SPECS = MappingProxyType({spec.name: spec for group in GROUPS.values() for spec in group.specs})


def missing_spec(group: str) -> FeatureSpec:
    """The indicator of an optional group, derived when a vector is put together.

    Its scale keeps what is not there from making all episodes look alike.
    """
    return FeatureSpec(f"{group}_missing", MISSING, 5.0, "0 or 1", 1,
                       f"1 if {group} is absent or older than {GROUPS[group].ttl_ms / SECOND_MS:g} s", group, False)


def _service(name: str, specs: tuple[FeatureSpec, ...], required: tuple[str, ...]) -> FeatureList:
    groups = tuple(dict.fromkeys(spec.group for spec in specs if spec.group != MISSING))
    optional = tuple(group for group in groups if group not in required)
    return FeatureList(name, specs, required, optional, MappingProxyType({g: GROUPS[g].ttl_ms for g in groups}))


def _decision_v1() -> FeatureList:
    optional = ("spread_bps", "imbalance_1", "microprice_bps", "imbalance_5", "imbalance_20", "flow_imbalance_60",
                "fear_greed", *(f"{source}_{what}" for source in SCORED_SOURCES for what in ("score", "confidence")))
    groups = (QUOTE, DEPTH, FLOW, FEAR_GREED, *SCORED_SOURCES)
    specs = (*GROUPS[BARS].specs, missing_spec(FUNDING), SPECS["funding_rate"], *(SPECS[name] for name in optional),
             *(missing_spec(group) for group in groups))
    return _service("decision_v1", specs, (BARS,))


def _episode_v1() -> FeatureList:
    groups = (PRICE, FUNDING, QUOTE, DEPTH, FLOW, MID, FEAR_GREED, *SCORED_SOURCES, PORTFOLIO, WEIGHTS)
    return _service("episode_v1", tuple(spec for group in groups for spec in GROUPS[group].specs), (PRICE,))


DECISION_V1 = _decision_v1()
EPISODE_V1 = _episode_v1()
SERVICES = (DECISION_V1, EPISODE_V1)
