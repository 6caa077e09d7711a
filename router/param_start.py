"""What the parameter learners start from: levels that a search over recorded bars found, per strategy and bucket.

A document of plain JSON values, named by the SHA-256 of its canonical form, so the same findings are the same start.
`made` says where it comes from, for people; nothing is computed from it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar

from policies.errors import InvalidInput
from policies.types import STRATEGIES, require_finite

KIND, VERSION = "param_start", 1
BUCKETS = tuple(f"{level}_{trend}" for level in ("calm", "normal", "wild") for trend in ("down", "flat", "up"))
MOST_WEIGHT = 10.0  # trades that a start may count for, however many it was found with
TRADES_PER_WEIGHT = 10.0  # of a search that count for one real trade: it has seen them all and picked the best
PRIOR_ADVANTAGE_SD = 0.1  # in risk units: what a choice of levels is believed to be worth before it is measured


@dataclass(frozen=True)
class FoundLevels:
    """What was found for one strategy in one bucket, on the bars that were searched.

    tp_pct, sl_pct: fractions of the entry price, > 0. limit_offset_pct: distance of the entry limit from the last
    close, 0 is a market order. trades: how many. mean_reward, sd: of one trade, in risk units. advantage: mean reward
    over that of the start of the search, and advantage_se its standard error.
    """

    tp_pct: float
    sl_pct: float
    limit_offset_pct: float
    trades: int
    mean_reward: float
    sd: float
    advantage: float
    advantage_se: float

    RANGES: ClassVar[Mapping[str, tuple[float, float]]] = {
        "tp_pct": (1e-4, 0.5), "sl_pct": (1e-4, 0.5), "limit_offset_pct": (0.0, 0.05), "trades": (0, 1e9),
        "mean_reward": (-1e3, 1e3), "sd": (0.0, 1e3), "advantage": (-1e3, 1e3), "advantage_se": (0.0, 1e3)}

    @property
    def weight(self) -> float:
        """Trades that it counts for, 0..MOST_WEIGHT."""
        return min(MOST_WEIGHT, self.trades / TRADES_PER_WEIGHT)

    @property
    def shrunk_advantage(self) -> float:
        """Its advantage, >= 0, as a Normal prior of mean 0 and PRIOR_ADVANTAGE_SD leaves it (risk units)."""
        kept = PRIOR_ADVANTAGE_SD**2 / (PRIOR_ADVANTAGE_SD**2 + self.advantage_se**2)
        return max(0.0, kept * self.advantage)


@dataclass(frozen=True)
class ParamStart:
    """levels: by strategy and bucket. made: where it comes from."""

    levels: Mapping[str, Mapping[str, FoundLevels]] = field(default_factory=dict)
    made: Mapping[str, Any] = field(default_factory=dict)

    def of(self, strategy: str, bucket: str) -> FoundLevels | None:
        return self.levels.get(strategy, {}).get(bucket)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": KIND, "version": VERSION, "made": dict(self.made),
                "levels": {strategy: {bucket: asdict(found) for bucket, found in by_bucket.items()}
                           for strategy, by_bucket in self.levels.items()}}

    def canonical_json(self) -> bytes:
        """The file's content."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

    @property
    def start_id(self) -> str:
        """64 hex digits."""
        return hashlib.sha256(self.canonical_json()).hexdigest()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ParamStart:
        """InvalidInput names the first field that is missing, unknown or out of its range."""
        _require_keys("", values, {"kind", "version", "made", "levels"})
        if values["kind"] != KIND or type(values["version"]) is not int or values["version"] != VERSION:
            raise InvalidInput("kind, version", f"{KIND}, {VERSION}", (values["kind"], values["version"]))
        for name in ("made", "levels"):
            if not isinstance(values[name], Mapping):
                raise InvalidInput(name, "an object", values[name])
        _require_known("levels", values["levels"], STRATEGIES)
        levels = {}
        for strategy, by_bucket in values["levels"].items():
            if not isinstance(by_bucket, Mapping):
                raise InvalidInput(f"levels.{strategy}", "an object", by_bucket)
            _require_known(f"levels.{strategy}", by_bucket, BUCKETS)
            levels[strategy] = {bucket: _found(f"levels.{strategy}.{bucket}", found)
                                for bucket, found in by_bucket.items()}
        try:
            json.dumps(values["made"], allow_nan=False)
        except ValueError:
            raise InvalidInput("made", "JSON without NaN and infinity", values["made"]) from None
        return cls(levels, dict(values["made"]))


def _found(path: str, values: Any) -> FoundLevels:
    if not isinstance(values, Mapping):
        raise InvalidInput(path, "an object", values)
    _require_keys(path, values, {one.name for one in fields(FoundLevels)})
    for name, (low, high) in FoundLevels.RANGES.items():
        value = values[name]
        kinds = int if name == "trades" else int | float
        if isinstance(value, bool) or not isinstance(value, kinds) or math.isnan(value):
            raise InvalidInput(f"{path}.{name}", "a whole number" if name == "trades" else "a number", value)
        require_finite(f"{path}.{name}", value, low, high)
    numbers: dict[str, Any] = {name: values[name] if name == "trades" else float(values[name]) for name in values}
    return FoundLevels(**numbers)


def _require_keys(path: str, values: Mapping[str, Any], wanted: set[str]) -> None:
    if set(values) != wanted:
        raise InvalidInput(path or "param start", f"an object of {', '.join(sorted(wanted))}", sorted(values))


def _require_known(path: str, values: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for name in values:
        if name not in known:
            raise InvalidInput(f"{path}.{name}", f"one of {', '.join(known)}", name)
