"""Rows of one feature group over time, and the point-in-time join of groups into vectors, in plain numpy.

The stores keep frames; `assemble` is what their joins must be equal to, and what a replay feeds from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from feature_repo.features import GROUPS, FeatureList
from policies.errors import InvalidInput


@dataclass(frozen=True)
class GroupFrame:
    """What is known of one group and one symbol.

    event_time_ms: int64 (N,), strictly rising: when each row became known. values: float64 (N, k) in the order of
    GROUPS[group].names; NaN is a value that is missing.
    """

    group: str
    event_time_ms: NDArray[np.int64]
    values: NDArray[np.float64]

    def __post_init__(self) -> None:
        shape = (len(self.event_time_ms), len(GROUPS[self.group].names))
        if self.values.shape != shape:
            raise InvalidInput(f"frame.{self.group}.values", f"of shape {shape}", self.values.shape)
        if not (np.diff(self.event_time_ms) > 0).all():
            raise InvalidInput(f"frame.{self.group}.event_time_ms", "strictly rising", "not so")

    def __len__(self) -> int:
        return len(self.event_time_ms)

    def slice(self, start: int, stop: int) -> GroupFrame:
        return GroupFrame(self.group, self.event_time_ms[start:stop], self.values[start:stop])

    def until(self, now_ms: int) -> int:
        """How many rows were known at now_ms."""
        return int(np.searchsorted(self.event_time_ms, now_ms, "right"))

    def reaching(self, start_ms: int, stop_ms: int) -> GroupFrame:
        """The rows that became known in [start_ms, stop_ms] and those that were still fresh at start_ms."""
        since = int(np.searchsorted(self.event_time_ms, start_ms - GROUPS[self.group].ttl_ms))
        return self.slice(since, self.until(stop_ms))

    def followed_by(self, later: GroupFrame) -> GroupFrame:
        """These rows and those of the later ones that are newer than all of them."""
        since = 0 if not len(self) else later.until(int(self.event_time_ms[-1]))
        return GroupFrame(self.group, np.concatenate([self.event_time_ms, later.event_time_ms[since:]]),
                          np.concatenate([self.values, later.values[since:]]))

    def equals(self, other: GroupFrame | None) -> bool:
        """Whether the other holds the same rows; missing values are equal to each other."""
        return (other is not None and self.group == other.group
                and np.array_equal(self.event_time_ms, other.event_time_ms)
                and np.array_equal(self.values, other.values, equal_nan=True))

    @classmethod
    def empty(cls, group: str) -> GroupFrame:
        return cls(group, np.empty(0, np.int64), np.empty((0, len(GROUPS[group].names))))


def assemble(service: FeatureList, frames: Mapping[str, GroupFrame], time_ms: NDArray[np.int64]) -> NDArray[np.float64]:
    """(T, F) vectors of a service as they were known at each of the times.

    Of each group the newest row at or before the time, if it is not older than the group's ttl; else NaN. A group's
    indicator is 1 where all its features are NaN. A group without a frame is missing throughout.
    """
    values = np.full((len(time_ms), len(service)), np.nan)
    for group, places in service.places.items():
        frame = frames.get(group) or GroupFrame.empty(group)
        latest = np.searchsorted(frame.event_time_ms, time_ms, "right") - 1
        known = latest >= 0
        if len(frame):
            known &= time_ms - frame.event_time_ms[np.maximum(latest, 0)] <= service.ttl_ms[group]
        columns = [GROUPS[group].names.index(name) for name in service.groups[group]]
        values[np.ix_(known, places)] = frame.values[latest[known]][:, columns]
        if group in service.indicators:
            values[:, service.indicators[group]] = np.isnan(values[:, places]).all(axis=1)
    return values
