"""Drift: how far a day's distribution of each feature lies from what the 90 days before it looked like.

Pure functions on counts; `statistics` keeps the counts. A day is a UTC day of event times, so the last minute's bar of
a day, whose event time is midnight, counts to the next one. What is done with a day:

Binning   A value is divided by its feature's fixed `scale` and counted in one of 22 bins: edges at -5, -4.5 ... 5
          scales, each bin closed below, the outer two open-ended. A 23rd place counts what is missing (NaN); it is kept
          apart and takes no part in any share. The edges are the same for every day, symbol and year.
Reference The median of each bin's share over the days with enough rows among the 90 calendar days before, today left
          out, scaled to sum to 1. A median, so one wild day does not make the next one look ordinary.
Doubt     11 rows (half a row a bin) that nobody saw are added to today's and, at the same weight, to the reference's
          shares, so that none is 0. They fall off around the reference's middle bin by a factor of e per bin: a value
          is the less expected the further out it lies. With equal ones KL could not tell a crash from a lively hour,
          both being bins that were empty before.
KL        sum p log(p / q) in nats, p of today and q of the reference.

Two figures of a day, for two questions:

figure        median of KL over the stationary features: has what heads are fed another shape? Features are in units of
              the volatility of the moment, so no market moves it much; a broken or rescaled feed does.
level_figure  greatest KL among the levels that lie above their reference, 0 if none does: is the market more violent
              than heads have seen lately? Calm days differ as much from the reference, but nobody is harmed by them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt, Le
from numpy.typing import NDArray

from feature_repo.features import FeatureList
from policies.errors import InvalidInput

DAY_MS = 86_400_000
EDGES = np.arange(-10, 11) / 2  # in scales
EDGES.setflags(write=False)
BINS = len(EDGES) + 1
PLACES = BINS + 1  # the last one counts what is missing
DOUBT_ROWS = BINS / 2

LEVELS = ("log_vol_120",)

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class DriftSettings:
    """limit, level_limit: nats above which a day is out of line. days_running, level_days_running: how many such days
    in a row make an alarm. reference_days: calendar days looked back. least_reference_days: days of them that a feature
    must be known on. least_rows: of a feature within a day, for the day to be judged or to serve as reference; half a
    day of minutes, so today is judged from noon on.
    """

    limit: Annotated[float, Gt(0), Le(100)] = 0.3
    days_running: Annotated[int, Ge(1), Le(30)] = 2
    level_limit: Annotated[float, Gt(0), Le(100)] = 2.0
    level_days_running: Annotated[int, Ge(1), Le(30)] = 1
    reference_days: Annotated[int, Ge(1), Le(365)] = 90
    least_reference_days: Annotated[int, Ge(1), Le(365)] = 14
    least_rows: Annotated[int, Ge(1), Le(86_400)] = 720


@dataclass(frozen=True)
class DriftFeatures:
    """Which features are looked at. names: in the order of the counts. stationary: those whose median is the figure.
    levels: those whose rise is the level figure."""

    names: tuple[str, ...]
    stationary: tuple[str, ...]
    levels: tuple[str, ...]

    def __post_init__(self) -> None:
        for field in ("stationary", "levels"):
            unknown = set(getattr(self, field)) - set(self.names)
            if unknown:
                raise InvalidInput(f"drift.{field}", "features of the list", sorted(unknown))

    @classmethod
    def of(cls, features: FeatureList) -> DriftFeatures:
        return cls(features.names, stationary_names(features), tuple(n for n in LEVELS if n in features.names))


def stationary_names(features: FeatureList) -> tuple[str, ...]:
    """Features that should be distributed alike on any ordinary day, as the list declares it.

    Never levels (they wander), never the time of day (a day in progress would drift by that alone).
    """
    return tuple(spec.name for spec in features.specs if spec.stationary)


@dataclass(frozen=True)
class DriftReport:
    """A day's drift. day: days since 1970. symbol: None for all symbols pooled.

    figure, level_figure: nats, None with a reason if the day cannot be judged. divergence: {feature: KL} of every
    feature that can be, stationary or not. missing: {feature: share of the day's rows without a value}, where > 0.
    rows: of the day. reference_days: days of reference, of the feature that has most.
    """

    day: int
    symbol: str | None
    figure: float | None
    level_figure: float | None
    divergence: Mapping[str, float]
    missing: Mapping[str, float]
    rows: int
    reference_days: int
    reason: str | None = None

    @property
    def date(self) -> str:
        return date_of(self.day)


def date_of(day: int) -> str:
    """20371 -> "2025-10-10"."""
    return str(np.datetime64(day, "D"))


def day_of(date: str) -> int:
    """"2025-10-10" -> 20371."""
    return int(np.datetime64(date, "D").astype(np.int64))


def count_days(event_time_ms: NDArray[np.int64], values: Floats, scales: Floats) -> tuple[NDArray[np.int64], Counts]:
    """Histograms of the days in the rows: (D,) days since 1970, rising, and (D, F, PLACES) counts.

    event_time_ms: (N,) in any order. values: (N, F), NaN where missing; an infinite value lies in an outer bin.
    """
    days, row_day = np.unique(np.asarray(event_time_ms, np.int64) // DAY_MS, return_inverse=True)
    counts = np.zeros((len(days), values.shape[1], PLACES), np.int64)
    for feature, scale in enumerate(scales):
        column = np.asarray(values[:, feature] / scale)  # contiguous: a strided search is four times slower
        places = np.where(np.isnan(column), BINS, np.searchsorted(EDGES, column, side="right"))
        flat = np.bincount(row_day * PLACES + places, minlength=len(days) * PLACES)
        counts[:, feature] = flat.reshape(len(days), PLACES)
    return days, counts


def shares_of(counts: Counts) -> Floats:
    """(..., BINS) shares of the bins among what is present; NaN where nothing is. counts: (..., PLACES)."""
    present = counts[..., :BINS]
    rows = present.sum(axis=-1, keepdims=True)
    shares: Floats = present / np.where(rows > 0, rows, np.nan)
    return shares


def reference_of(shares: Floats, usable: NDArray[np.bool_]) -> Floats:
    """(F, BINS) per-bin median over the usable days, scaled to sum to 1. shares: (D, F, BINS). usable: (D, F), at least
    one day of each feature. Where no bin was held on most days, as of a level that wandered: the mean."""
    known = usable.sum(axis=0)
    held = np.where(usable[..., None], shares, np.nan)
    ordered = np.sort(held, axis=0)  # NaN sorts behind every number
    middle = [np.take_along_axis(ordered, place[None, :, None], axis=0)[0] for place in ((known - 1) // 2, known // 2)]
    median = (middle[0] + middle[1]) / 2
    total = median.sum(axis=-1, keepdims=True)
    reference: Floats = np.where(total > 0, median / np.where(total > 0, total, 1.0), np.nanmean(held, axis=0))
    return reference


def with_doubt(today: Floats, reference: Floats, rows: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Today's shares and the reference's, (F, BINS) each, with the same DOUBT_ROWS mixed into both.

    rows: (F,) of today, present.
    """
    middle = (reference.cumsum(axis=-1) < 0.5).sum(axis=-1, keepdims=True)
    falling = np.exp(-np.abs(np.arange(BINS) - middle))
    weight = DOUBT_ROWS / (rows[:, None] + DOUBT_ROWS)
    doubt = weight * falling / falling.sum(axis=-1, keepdims=True)
    return (1 - weight) * today + doubt, (1 - weight) * reference + doubt


def divergence_of(shares: Floats, reference: Floats) -> Floats:
    """(...,) KL(shares || reference) in nats over the last axis; both positive and summing to 1."""
    divergence: Floats = (shares * np.log(shares / reference)).sum(axis=-1)
    return divergence


def judge_day(day: int, days: NDArray[np.int64], counts: Counts, features: DriftFeatures, settings: DriftSettings,
              symbol: str | None = None) -> DriftReport:
    """The drift of one day against the days before it. Days after it may be in `days`; they are not looked at.

    days: (D,) rising. counts: (D, F, PLACES) in the order of features.names.
    """
    start, place, stop = np.searchsorted(days, [day - settings.reference_days, day, day + 1])
    if place == stop:
        return _without_figure(day, symbol, 0, 0, "no rows of that day")
    present = counts[start:stop, :, :BINS].sum(axis=-1)
    usable = present >= settings.least_rows
    known_days = usable[:-1].sum(axis=0)
    rows, reference_days = int(counts[place].sum(axis=-1).max()), int(known_days.max(initial=0))
    if not usable[-1].any():
        return _without_figure(day, symbol, rows, reference_days,
                               f"no feature with {settings.least_rows} rows or more")
    judged = usable[-1] & (known_days >= settings.least_reference_days)
    if not judged.any():
        return _without_figure(day, symbol, rows, reference_days,
                               f"fewer than {settings.least_reference_days} days of reference")
    shares = shares_of(counts[start:stop, judged])
    today, reference = with_doubt(shares[-1], reference_of(shares[:-1], usable[:-1, judged]), present[-1, judged])
    names = [name for name, is_judged in zip(features.names, judged, strict=True) if is_judged]
    divergence = dict(zip(names, divergence_of(today, reference).tolist(), strict=True))
    risen = {name for name, up in zip(names, _lies_above(today, reference), strict=True) if up}
    stationary = [divergence[name] for name in features.stationary if name in divergence]
    levels = [divergence[name] if name in risen else 0.0 for name in features.levels if name in divergence]
    return DriftReport(day, symbol, float(np.median(stationary)) if stationary else None, max(levels, default=None),
                       divergence, _missing(counts[place], features.names), rows, reference_days,
                       None if stationary else "no stationary feature could be judged")


def drift_alarms(reports: Iterable[DriftReport], settings: DriftSettings) -> tuple[int, ...]:
    """Days that end a run of `days_running` days with a figure above the limit. A day without a figure ends a run."""
    figures = [(report.day, report.figure) for report in reports]
    return _running(figures, settings.limit, settings.days_running)


def level_alarms(reports: Iterable[DriftReport], settings: DriftSettings) -> tuple[int, ...]:
    """The same of the level figure."""
    figures = [(report.day, report.level_figure) for report in reports]
    return _running(figures, settings.level_limit, settings.level_days_running)


def _running(figures: Sequence[tuple[int, float | None]], limit: float, days_running: int) -> tuple[int, ...]:
    alarms, run, last = [], 0, None
    for day, figure in sorted(figures, key=lambda entry: entry[0]):
        beyond = figure is not None and not figure <= limit
        run = (run + 1 if last == day - 1 else 1) if beyond else 0
        last = day
        if run >= days_running:
            alarms.append(day)
    return tuple(alarms)


def _lies_above(shares: Floats, reference: Floats) -> NDArray[np.bool_]:
    """(F,) whether the mean bin lies higher than the reference's."""
    above: NDArray[np.bool_] = ((shares - reference) * np.arange(BINS)).sum(axis=-1) > 0
    return above


def _missing(counts: Counts, names: Sequence[str]) -> dict[str, float]:
    """counts: (F, PLACES) of one day."""
    rows = np.maximum(counts.sum(axis=-1), 1)
    shares = counts[:, BINS] / rows
    return {name: share for name, share in zip(names, shares.tolist(), strict=True) if share > 0}


def _without_figure(day: int, symbol: str | None, rows: int, reference_days: int, reason: str) -> DriftReport:
    return DriftReport(day, symbol, None, None, {}, {}, rows, reference_days, reason)
