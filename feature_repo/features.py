"""The list of features, in order, with what each one means. Knows no framework: `definitions` tells Feast about it.

A vector is 40 numbers in the order of `DECISION_V1.names`. All are scale-free (a price or a volume level says nothing
about tomorrow), so that one policy serves every symbol and a drift gauge does not fire because a price went up. The one
level is `log_vol_120`: how violent the market is decides whether a target can be reached at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

MINUTE_MS = 60_000
WINDOWS = (5, 15, 30, 60, 120)  # bars
BARS, FUNDING = "bars", "funding"


@dataclass(frozen=True)
class FeatureSpec:
    """One number of the vector.

    group: the feature view that holds it, and so what it goes stale with. scale: a typical magnitude, fixed once, by
    which similarity searches divide before they clip to +-5; it is not learnt, so old episodes stay comparable.
    window_bars: how many of the last bars the value looks at. source: where the raw numbers come from.
    """

    name: str
    group: str
    scale: float
    unit: str
    window_bars: int
    formula: str
    source: str = "1-minute bars"


@dataclass(frozen=True)
class FeatureList:
    """A named, ordered selection of features: what a policy is trained on and served with.

    A group of `required_groups` that is older than its ttl means that no decision may be made from the vector; a group
    of `optional_groups` may be missing (NaN). ttl_ms: age in ms up to which a group's values are fresh.
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
    def scales(self) -> NDArray[np.float64]:
        """(40,) typical magnitudes, read-only."""
        scales = np.array([spec.scale for spec in self.specs])
        scales.setflags(write=False)
        return scales

    def __len__(self) -> int:
        return len(self.specs)


def _window_specs(w: int) -> list[FeatureSpec]:
    volatility = (
        FeatureSpec("log_vol_120", BARS, 0.7, "log", w + 1, "log(v120 / 0.001), the level of volatility") if w == 120
        else FeatureSpec(f"vol_ratio_{w}", BARS, 0.5, "log", 121, f"log(v{w} / v120)"))
    volume = [] if w == 120 else [
        FeatureSpec(f"volume_ratio_{w}", BARS, 0.5, "log", 120, f"log(mean volume of {w} / mean volume of 120)")]
    return [
        FeatureSpec(f"ret_{w}", BARS, 1.0, "standard deviations", 121, f"log(c / c[-{w}]) / (v120 sqrt({w}))"),
        volatility,
        FeatureSpec(f"range_{w}", BARS, 2.0, "standard deviations", 121,
                    f"log(max high / min low of {w}) / (v120 sqrt({w})), at most 20"),
        FeatureSpec(f"position_{w}", BARS, 0.6, "-1..1", w, f"2 (c - low) / (high - low) - 1 over {w}; 0 if flat"),
        *volume,
        FeatureSpec(f"up_share_{w}", BARS, 0.3, "-1..1", w + 1, f"2 (share of bars closing higher) - 1 over {w}"),
        FeatureSpec(f"autocorrelation_{w}", BARS, 0.3, "-1..1", w + 2,
                    f"sum r r[-1] / sqrt(sum r^2 sum r[-1]^2) over {w}; 0 if flat"),
    ]


def _decision_v1() -> FeatureList:
    specs = [
        FeatureSpec("ret_1", BARS, 1.0, "standard deviations", 121, "log(c / c[-1]) / v120"),
        FeatureSpec("volume_z_1", BARS, 1.0, "standard deviations", 120,
                    "(volume - mean) / deviation over 120; the deviation is at least 0.001 of the mean"),
        *(spec for w in WINDOWS for spec in _window_specs(w)),
        FeatureSpec("day_sin", BARS, 0.7, "-1..1", 1, "sin(2 pi time of day) at the bar's close, UTC"),
        FeatureSpec("day_cos", BARS, 0.7, "-1..1", 1, "cos(2 pi time of day) at the bar's close, UTC"),
        FeatureSpec("funding_missing", BARS, 1.0, "0 or 1", 120, "1 if no funding was settled in the last 120 bars",
                    "funding history"),
        FeatureSpec("funding_rate", FUNDING, 1e-4, "fraction per settlement, paid by longs if > 0", 120,
                    "the last rate settled within 120 bars; NaN if there was none", "funding history"),
    ]
    ttl_ms = MappingProxyType({BARS: 3 * MINUTE_MS, FUNDING: 120 * MINUTE_MS})
    return FeatureList("decision_v1", tuple(specs), (BARS,), (FUNDING,), ttl_ms)


# v_w below is the realised volatility of w bars: sqrt(mean r^2), r the log return of one bar's close on the last.
DECISION_V1 = _decision_v1()
