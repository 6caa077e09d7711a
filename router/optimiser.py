"""Bayesian optimisation of target and stop, online: a small Gaussian process per strategy and market bucket.

Over log tp and log sl, each scaled to 0..1 within its grid's range. The mean reward of a point is a constant plus a
smooth deviation: k(x, x') = level_sd^2 + deviation_sd^2 exp(-|x - x'|^2 / (2 length^2)); one reward is that mean with
Normal noise reward_sd. Points are the grid's values and the geometric middle of each two neighbours, so rewards of the
same point are known by their number and sum, and whatever the number of trades the process has at most some 80 points
(Rasmussen and Williams 2006, equations 2.25 and 2.26, noise divided by the number of trades).

A suggestion is a draw from the posterior over all points and the largest one of it (Thompson sampling), keyed like
every draw. A start (`router.param_start`) is the prior mean: its advantage at the levels found, falling off with the
kernel's own length. Until a bucket has seen `min_samples` trades, and for leverage and confidence always, the bandit
proposes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt
from numpy.typing import NDArray

from policies.errors import InvalidInput
from policies.keyed_random import generator
from router.param_start import FoundLevels, ParamStart
from router.params import Arm, ParamBandit, ParamGrid

Place = tuple[float, float]  # tp_pct, sl_pct
Floats = NDArray[np.float64]
ROUNDED = 9  # digits of a draw that are compared: no summation order may decide
LIFT = 1e-6  # added to variances: a draw moves by a thousandth, and its root does not hang on what rounding left


@dataclass(frozen=True)
class OptimiserSettings:
    """min_samples: trades of a bucket before it suggests. update_cadence_s: of the ledger's time, for which a bucket's
    posterior stands before later trades enter it. The others are the prior's, see above, in risk units; length is in
    units of the grid's range.
    """

    min_samples: Annotated[int, Ge(1)] = 100
    update_cadence_s: Annotated[int, Ge(1)] = 180
    reward_sd: Annotated[float, Gt(0)] = 1.0
    level_sd: Annotated[float, Gt(0)] = 1.0
    deviation_sd: Annotated[float, Gt(0)] = 0.3
    length: Annotated[float, Gt(0)] = 0.5


@dataclass(frozen=True)
class Posterior:
    """Over the points of a bucket. points: (N, 2) tp_pct, sl_pct. mean: (N,). root: (N, N), root @ root.T is the
    covariance."""

    points: Floats
    mean: Floats
    root: Floats

    @property
    def sd(self) -> Floats:
        return np.sqrt((self.root**2).sum(axis=1))


@dataclass
class _Bucket:
    """seen: by point, all trades. fitted: as they were at fitted_ms, which is what suggestions are made from."""

    seen: dict[Place, Arm]
    fitted: dict[Place, Arm]
    fitted_ms: int


class BayesianOptimiser:
    """Learns and suggests target and stop. Asking changes nothing.

    bandit: whose grids, buckets, seed and start it shares, and which answers where this one has too little to say.
    """

    def __init__(self, bandit: ParamBandit, settings: OptimiserSettings | None = None) -> None:
        self.settings = settings or OptimiserSettings()
        self.bandit = bandit
        self._buckets: dict[tuple[str, str], _Bucket] = {}
        self._tables: dict[tuple[str, str], Posterior] = {}  # a memo; dropped where what it was made from changes

    def reconfigure(self, grids: Mapping[str, ParamGrid], settings: OptimiserSettings) -> None:
        """Take other grids, the bandit too, and other settings from here on; trades at points that are still, or
        again, there keep what they taught.
        """
        self.bandit.reconfigure(grids)
        self.settings = settings
        self._tables.clear()

    def begin_from(self, start: ParamStart) -> None:
        """Take this prior instead of the one before, the bandit too; what was learnt from trades stays."""
        self.bandit.begin_from(start)
        self._tables.clear()

    def suggest(self, strategy: str, features: Sequence[float], key: object = None) -> dict[str, float]:
        """{leverage, tp_pct, sl_pct, min_conf}, within the ranges of its grids; the same (state, key) gives the same.

        key: what it is for, such as a decision id; by default the number of updates that the bandit has seen.
        """
        proposed = self.bandit.propose(strategy, features, key)
        bucket = self.bandit.bucket(features)
        if not self.suggests(strategy, bucket):
            return proposed
        posterior = self.posterior(strategy, bucket)
        rng = generator(self.bandit.seed, "optimiser", strategy, bucket, self.bandit.updates if key is None else key)
        draws = posterior.mean + posterior.root @ rng.standard_normal(len(posterior.mean))
        tp_pct, sl_pct = posterior.points[int(np.round(draws, ROUNDED).argmax())].tolist()
        return {**proposed, "tp_pct": tp_pct, "sl_pct": sl_pct}

    def suggests(self, strategy: str, bucket: str) -> bool:
        """Whether it has seen enough of this bucket, at points of today's grid, to say more than the bandit."""
        known = self._buckets.get((strategy, bucket))
        if known is None:
            return False
        tp_axis, sl_axis = (set(axis.tolist()) for axis in self._axes(strategy))
        return sum(arm.trades for (tp_pct, sl_pct), arm in known.fitted.items()
                   if tp_pct in tp_axis and sl_pct in sl_axis) >= self.settings.min_samples

    def update(self, strategy: str, features: Sequence[float], reward: float, now_ms: int = 0) -> None:
        """Credit what `suggest(strategy, features)` answers now, to the bandit as well. Where trades overlap, or were
        changed before they were executed, use `learn` of both.
        """
        bucket, values = self.bandit.bucket(features), self.suggest(strategy, features)
        self.learn(strategy, bucket, values, reward, now_ms)
        self.bandit.learn(strategy, bucket, values, reward)

    def learn(self, strategy: str, bucket: str, values: Mapping[str, float], reward: float,
              now_ms: int) -> Place | None:
        """Credit a trade's reward to the point nearest to what was executed; returns that, for `forget`.

        None, and nothing is learnt, where target or stop lies beyond its grid's range. now_ms: the ledger's time.
        """
        if not math.isfinite(reward):
            raise InvalidInput("reward", "finite", reward)
        place = self._nearest(strategy, values)
        if place is None:
            return None
        known = self._buckets.setdefault((strategy, bucket), _Bucket({}, {}, now_ms))
        arm = known.seen.get(place, Arm())
        known.seen[place] = Arm(arm.trades + 1, arm.total + reward)
        if now_ms - known.fitted_ms >= 1_000 * self.settings.update_cadence_s or not known.fitted:
            known.fitted, known.fitted_ms = dict(known.seen), now_ms
            self._tables.pop((strategy, bucket), None)
        return place

    def forget(self, strategy: str, bucket: str, place: Place | None, reward: float) -> None:
        """Take back a reward: the same arguments, with what `learn` returned. Suggestions follow at the next fit."""
        if place is None:
            return
        known = self._buckets.get((strategy, bucket))
        arm = Arm() if known is None else known.seen.get(place, Arm())
        if known is None or arm.trades == 0:
            raise InvalidInput("place", "a point that has learnt", place)
        known.seen[place] = Arm(arm.trades - 1, arm.total - reward)

    def posterior(self, strategy: str, bucket: str) -> Posterior:
        """Of the mean reward at each point, as it was last fitted."""
        found = self._tables.get((strategy, bucket))
        if found is None:
            known = self._buckets.get((strategy, bucket))
            seen = {} if known is None else known.fitted
            found = self._fit(strategy, seen, self.bandit.start.of(strategy, bucket))
            self._tables[strategy, bucket] = found
        return found

    def _fit(self, strategy: str, arms: Mapping[Place, Arm], start: FoundLevels | None) -> Posterior:
        settings, axes = self.settings, self._axes(strategy)
        points = np.array([(tp, sl) for tp in axes[0] for sl in axes[1]])
        places = _scaled(points, axes)
        prior = self._prior_mean(places, axes, start)
        inside = set(map(tuple, points.tolist()))
        seen = sorted((place, arm) for place, arm in arms.items() if arm.trades > 0 and place in inside)
        if not seen:
            return Posterior(points, prior, _root(self._kernel(places, places)))
        at = _scaled(np.array([place for place, _ in seen]), axes)
        trades = np.array([arm.trades for _, arm in seen], dtype=float)
        gap = np.array([arm.total for _, arm in seen]) / trades - self._prior_mean(at, axes, start)
        lower = np.linalg.cholesky(self._kernel(at, at) + np.diag(settings.reward_sd**2 / trades))
        cross = np.linalg.solve(lower, self._kernel(at, places))
        mean = prior + cross.T @ np.linalg.solve(lower, gap)
        return Posterior(points, mean, _root(self._kernel(places, places) - cross.T @ cross))

    def _kernel(self, one: Floats, other: Floats) -> Floats:
        squared = ((one[:, None, :] - other[None, :, :])**2).sum(axis=2)
        settings = self.settings
        return settings.level_sd**2 + settings.deviation_sd**2 * np.exp(-squared / (2 * settings.length**2))

    def _prior_mean(self, places: Floats, axes: tuple[Floats, Floats], start: FoundLevels | None) -> Floats:
        if start is None:
            return np.zeros(len(places))
        found = _scaled(np.array([[start.tp_pct, start.sl_pct]]), axes)
        squared = ((places - found)**2).sum(axis=1)
        kept: Floats = start.shrunk_advantage * np.exp(-squared / (2 * self.settings.length**2))
        return kept

    def _axes(self, strategy: str) -> tuple[Floats, Floats]:
        """Values of tp_pct and of sl_pct, ascending."""
        grid = self.bandit.grid(strategy)
        return _with_middles(grid["tp_pct"]), _with_middles(grid["sl_pct"])

    def _nearest(self, strategy: str, values: Mapping[str, float]) -> Place | None:
        place = []
        for name, axis in zip(("tp_pct", "sl_pct"), self._axes(strategy), strict=True):
            value = values.get(name, math.nan)
            if not axis[0] <= value <= axis[-1]:
                return None
            place.append(float(axis[int(np.abs(np.log(axis / value)).argmin())]))
        return place[0], place[1]


def _with_middles(values: Sequence[float]) -> Floats:
    """The values and the geometric middle of each two neighbours."""
    own = np.array(values)
    whole: Floats = np.sort(np.concatenate([own, np.sqrt(own[:-1] * own[1:])]))
    return whole


def _scaled(points: Floats, axes: tuple[Floats, Floats]) -> Floats:
    """(N, 2): logarithms, 0 at the least value of an axis and 1 at its greatest; 0 where it has one value only."""
    low = np.log([axis[0] for axis in axes])
    width = np.log([axis[-1] for axis in axes]) - low
    scaled: Floats = (np.log(points) - low) / np.where(width > 0, width, 1.0)
    return scaled


def _root(covariance: Floats) -> Floats:
    """Lower triangular."""
    return np.asarray(np.linalg.cholesky(covariance + LIFT * np.eye(len(covariance))), dtype=np.float64)
