"""What the numbers of a reinforcement-learning policy mean: what it observes, and what its action asks for.

The one place of these formulas, for the environment it learns in, the head it is served by, and whoever judges it.

An observation is float32 (100,): 60 features, standardised, then 8 numbers of the position, then zeros, which are room
of the documented size. An action is (size, stop, target), each in [-1, 1]. Notional over equity is called exposure, its
sign is the side. Everything here takes single numbers or arrays alike, in the order of operations that is written: the
compiled environment repeats it to the last bit.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields
from typing import Annotated, NamedTuple

import numpy as np
from annotated_types import Ge, Gt, Le
from numpy.typing import ArrayLike, NDArray

from policies.errors import InvalidInput
from policies.types import require_finite

OBSERVATION, ACTION = 100, 3
FEATURES = slice(0, 60)
POSITION_FROM = 60
POSITION = ("side", "exposure", "unrealised", "age", "to_stop", "to_target", "drawdown", "free")
FURTHEST = 5.0  # standard deviations at which a feature is cut; also of the unrealised gain in trade risks
FURTHEST_LEVEL = 2.0  # distances of stop or target
DRAWDOWN_UNIT = 0.04  # the fall from the peak at which a head is halted

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ActorLimits:
    """What an action can ask for.

    risk_per_trade: loss at the stop over equity at |size| = 1. leverage: of every order. stops and targets: fractions
    of the entry price at an action of -1 and +1. dead_zone: |size| below it is flat. band: while the side stays, a
    change of exposure smaller than this share of the most allowed is no order. horizon_bars: at which age counts 1.
    """

    risk_per_trade: Annotated[float, Ge(1e-6), Le(0.005)] = 0.002
    leverage: Annotated[float, Ge(1), Le(50)] = 5.0
    least_stop_pct: Annotated[float, Ge(1e-4), Le(0.5)] = 0.004
    most_stop_pct: Annotated[float, Ge(1e-4), Le(0.5)] = 0.05
    least_target_pct: Annotated[float, Ge(1e-4), Le(0.5)] = 0.004
    most_target_pct: Annotated[float, Ge(1e-4), Le(0.5)] = 0.15
    dead_zone: Annotated[float, Gt(0), Le(0.9)] = 0.1
    band: Annotated[float, Ge(0), Le(1)] = 0.25
    horizon_bars: Annotated[float, Ge(1), Le(1_000_000)] = 15.0

    def __post_init__(self) -> None:
        for name, (low, high) in LIMIT_RANGES.items():
            require_finite(f"limits.{name}", getattr(self, name), low, high)
        for what in ("stop", "target"):
            least, most = getattr(self, f"least_{what}_pct"), getattr(self, f"most_{what}_pct")
            if not least <= most:
                raise InvalidInput(f"limits.least_{what}_pct", f"<= most_{what}_pct, {most:g}", least)

    @property
    def most_exposure(self) -> float:
        """The most that is allowed: |size| = 1 at the narrowest stop, and no more than the leverage."""
        return min(self.leverage, self.risk_per_trade / self.least_stop_pct)

    def row(self) -> Floats:
        """(10,): the fields in their order, then most_exposure, for the compiled walks."""
        return np.array([*astuple(self), self.most_exposure], dtype=np.float64)


LIMIT_RANGES: dict[str, tuple[float, float]] = {
    "risk_per_trade": (1e-6, 0.005), "leverage": (1.0, 50.0), "least_stop_pct": (1e-4, 0.5),
    "most_stop_pct": (1e-4, 0.5), "least_target_pct": (1e-4, 0.5), "most_target_pct": (1e-4, 0.5),
    "dead_zone": (1e-3, 0.9), "band": (0.0, 1.0), "horizon_bars": (1.0, 1_000_000.0)}
assert tuple(LIMIT_RANGES) == tuple(one.name for one in fields(ActorLimits))


class Wanted(NamedTuple):
    """What actions ask for, float64 (...,). exposure: signed, 0 for flat. stop, target: distances, as fractions."""

    exposure: Floats
    stop: Floats
    target: Floats


class Bracket(NamedTuple):
    """What served actions propose, (...,). direction: +1, -1, or 0 for flat. size_fraction: margin over equity, at the
    leverage of the limits. stop, target: distances, as fractions.
    """

    direction: NDArray[np.int64]
    size_fraction: Floats
    stop: Floats
    target: Floats


def standardised(values: ArrayLike, mean: ArrayLike, scale: ArrayLike) -> NDArray[np.float32]:
    """z = (x - mean) / scale of float32 numbers, computed in float64, cut to +-FURTHEST; 0 where x is missing (NaN).

    values: (..., 60). mean, scale: (60,), scale > 0.
    """
    given, centre, spread = (np.asarray(part, dtype=np.float32).astype(np.float64) for part in (values, mean, scale))
    z = np.clip((given - centre) / spread, -FURTHEST, FURTHEST)
    return np.where(np.isnan(z), 0.0, z).astype(np.float32)


def wanted(actions: ArrayLike, limits: ActorLimits) -> Wanted:
    """What actions (..., 3) ask for. They are cut to [-1, 1] first; InvalidInput if one of them is not finite."""
    given = np.asarray(actions, dtype=np.float64)
    if given.shape[-1:] != (ACTION,) or not np.isfinite(given).all():
        raise InvalidInput("action", "finite, (..., 3): size, stop, target", actions)
    size, stop_place, target_place = np.moveaxis(np.clip(given, -1.0, 1.0), -1, 0)
    stop = _between(stop_place, limits.least_stop_pct, limits.most_stop_pct)
    target = _between(target_place, limits.least_target_pct, limits.most_target_pct)
    most = np.minimum(np.abs(size) * limits.risk_per_trade / stop, limits.most_exposure)
    exposure = np.where(np.abs(size) < limits.dead_zone, 0.0, np.sign(size) * most)
    return Wanted(exposure, stop, target)


def bracket(actions: ArrayLike, limits: ActorLimits) -> Bracket:
    """What actions (..., 3) of an account that is flat come to, as a head proposes it. InvalidInput as of `wanted`."""
    asked = wanted(actions, limits)
    return Bracket(np.sign(asked.exposure).astype(np.int64),
                   np.minimum(1.0, np.abs(asked.exposure) / limits.leverage), asked.stop, asked.target)


def order_amounts(exposure: ArrayLike, held: ArrayLike, limits: ActorLimits) -> Floats:
    """Amounts of orders (Sizing.TARGET_FRACTION) that lead to `exposure` from `held`, both signed; NaN is no order.

    held: signed notional at the last close over equity. No order inside the band, and none from flat to flat.
    """
    to, now = np.asarray(exposure, dtype=np.float64), np.asarray(held, dtype=np.float64)
    same_side = np.sign(to) == np.sign(now)
    inside = np.abs(to - now) < limits.band * limits.most_exposure
    return np.where(same_side & (inside | (to == 0.0)), np.nan, to)


def flat_position() -> NDArray[np.float32]:
    """(8,) of an account that holds nothing and has lost nothing: how a served head always sees itself."""
    return np.array([0, 0, 0, 0, 0, 0, 0, 1], dtype=np.float32)


def position_numbers(sign: ArrayLike, quantity: ArrayLike, entry: ArrayLike, stop_pct: ArrayLike,
                     target_pct: ArrayLike, bars_held: ArrayLike, last_close: ArrayLike, equity: ArrayLike,
                     peak: ArrayLike, free_cash: ArrayLike, limits: ActorLimits) -> NDArray[np.float32]:
    """(..., 8) in the order of POSITION.

    sign: +1, -1, or 0 for none; then quantity, entry, stop_pct, target_pct and bars_held do not matter, as long as they
    are finite. entry: the average price. equity: USD at the last close, > 0. peak: its highest in the episode.

    exposure = notional at the last close / equity / the most allowed. unrealised = gain / equity / risk_per_trade.
    age = bars held / horizon. to_stop, to_target = how far the last close is from each, in the distance from the entry
    to it. drawdown = fall from the peak / 0.04. free = free cash / equity.
    """
    side, size, price, stop, target, age, close, worth, top, free = (
        np.asarray(one, dtype=np.float64) for one in (sign, quantity, entry, stop_pct, target_pct, bars_held,
                                                      last_close, equity, peak, free_cash))
    held = side != 0.0
    price = np.where(held, price, 1.0)
    stop, target = np.where(held, stop, 1.0), np.where(held, target, 1.0)
    moved = side * (close / price - 1.0)
    numbers = (side, size * close / worth / limits.most_exposure,
               np.clip(size * price * moved / worth / limits.risk_per_trade, -FURTHEST, FURTHEST),
               np.minimum(age / limits.horizon_bars, 1.0),
               np.clip((stop + moved) / stop, 0.0, FURTHEST_LEVEL),
               np.clip((target - moved) / target, 0.0, FURTHEST_LEVEL))
    alone = (np.minimum((1.0 - worth / top) / DRAWDOWN_UNIT, FURTHEST), free / worth)
    shape = np.broadcast_shapes(*(one.shape for one in (*numbers, *alone)))
    columns = [np.where(held, one, 0.0) for one in numbers] + list(alone)
    return np.stack([np.broadcast_to(one, shape) for one in columns], axis=-1).astype(np.float32)


def observations(features: NDArray[np.float32], position: NDArray[np.float32]) -> NDArray[np.float32]:
    """(..., 100) of standardised features (..., 60) and position numbers, (8,) or (..., 8)."""
    whole = np.zeros((*features.shape[:-1], OBSERVATION), dtype=np.float32)
    whole[..., FEATURES] = features
    whole[..., POSITION_FROM:POSITION_FROM + len(POSITION)] = position
    return whole


def _between(place: Floats, low: float, high: float) -> Floats:
    """low at -1, high at +1."""
    return low + (place + 1.0) / 2.0 * (high - low)
