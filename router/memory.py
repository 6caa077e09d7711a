"""What happened the last times the market looked like this: episodes, and the nearest of them by exact cosine.

`EpisodeMemory` is the fold that a decision asks: unit vectors in one float32 matrix. `EpisodeStore` is the front for
who wants whole episodes kept in a table. `learning_memory` makes of neighbours what the LLM's prompt holds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from policies.errors import InvalidInput

SIMILARITY_DIGITS = 6
SCALED_LIMIT = 5.0  # a feature weighs at most this many of its typical magnitudes
FIRST_ROWS = 1024
GROUP_SIZE = 64


@dataclass(frozen=True)
class EpisodeSummary:
    """What a neighbour says in a prompt. net_return: over equity at entry, signed. timestamp_ms: of its outcome."""

    symbol: str
    strategy: str
    direction: str
    net_return: float
    exit_reason: str
    timestamp_ms: int


def normalise(features: ArrayLike, scales: ArrayLike) -> NDArray[np.float32]:
    """features / scales, clipped to +-5, a missing value (NaN) 0, then of length 1; all zeros stay zeros.

    features, scales: (dimension,); scales are typical magnitudes, > 0, in the features' units.
    """
    scaled = np.asarray(features, dtype=np.float64) / np.asarray(scales, dtype=np.float64)
    return _unit(np.clip(np.where(np.isnan(scaled), 0.0, scaled), -SCALED_LIMIT, SCALED_LIMIT))


class EpisodeMemory:
    """The last `capacity` episodes by their vectors.

    Vectors are made unit length and kept as float32; the similarity of two is the dot product of what is kept, so the
    same ledger always gives the same similarities. Slots are a ring: a new episode takes the slot of the oldest.
    """

    def __init__(self, dimension: int, capacity: int = 50_000) -> None:
        if not (dimension >= 1 and capacity >= 1):
            raise InvalidInput("memory", "dimension >= 1 and capacity >= 1", (dimension, capacity))
        self.dimension, self.capacity = dimension, capacity
        self._vectors = np.zeros((min(FIRST_ROWS, capacity), dimension), dtype=np.float32)
        self._ids: list[str] = []  # by slot
        self._summaries: list[EpisodeSummary | None] = []
        self._slot: dict[str, int] = {}
        self._added = 0  # new episodes ever

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, episode_id: str, vector: ArrayLike, summary: EpisodeSummary | None = None) -> None:
        """Remember an episode, or replace the one of that id in its place (a revision does not make it younger).

        vector: (dimension,), finite, of any length. InvalidInput otherwise, and nothing changes.
        """
        self._place(episode_id, self._checked(vector), summary)

    def knn(self, vector: ArrayLike, k: int) -> list[tuple[str, float]]:
        """The k most similar episodes, most similar first: (episode_id, cosine rounded to 6 digits), ties by id.

        A zero vector has similarity 0 to all. float32 products only choose who is looked at again: their last bits
        depend on the matrix's size. Those within the rounding error of the k-th are ranked by float64 products, row
        by row, so the answer is that of a full float64 search.
        """
        query, count = self._checked(vector), len(self._ids)
        if k < 1 or count == 0:
            return []
        rough = self._vectors[:count] @ query
        error = (self.dimension + 2) * 2.0**-23 + 10.0**-SIMILARITY_DIGITS
        near = np.flatnonzero(rough >= _at_most_kth_largest(rough, k) - error) if k < count else np.arange(count)
        products = self._vectors[near].astype(np.float64) * query.astype(np.float64)
        exact = np.round(products.sum(axis=1), SIMILARITY_DIGITS) + 0.0  # no minus zero
        ranked = sorted(zip((-exact).tolist(), (self._ids[slot] for slot in near), strict=True))
        return [(episode_id, 0.0 - negated) for negated, episode_id in ranked[:k]]

    def summary(self, episode_id: str) -> EpisodeSummary | None:
        """What was remembered with the episode; KeyError if it is not, or no longer, remembered."""
        return self._summaries[self._slot[episode_id]]

    def resized(self, capacity: int) -> EpisodeMemory:
        """The newest `capacity` of these episodes, vectors as they are, in a memory of that capacity.

        The ring's slots follow from the capacity, so it cannot change in place. Of the same capacity: this memory.
        """
        if capacity == self.capacity:
            return self
        other = EpisodeMemory(self.dimension, capacity)
        count = len(self._ids)
        oldest = self._added % self.capacity if count == self.capacity else 0
        for age in range(max(0, count - capacity), count):
            slot = (oldest + age) % count
            other._place(self._ids[slot], self._vectors[slot], self._summaries[slot])
        return other

    def _place(self, episode_id: str, unit: NDArray[np.float32], summary: EpisodeSummary | None) -> None:
        slot = self._slot.get(episode_id)
        if slot is None:
            slot = self._added % self.capacity
            self._added += 1
            if slot < len(self._ids):
                del self._slot[self._ids[slot]]
            else:
                self._grow(slot)
            self._slot[episode_id] = slot
        self._vectors[slot], self._ids[slot], self._summaries[slot] = unit, episode_id, summary

    def _grow(self, slot: int) -> None:
        self._ids.append("")
        self._summaries.append(None)
        if slot == len(self._vectors):
            larger = np.zeros((min(2 * slot, self.capacity), self.dimension), dtype=np.float32)
            larger[:slot] = self._vectors
            self._vectors = larger

    def _checked(self, vector: ArrayLike) -> NDArray[np.float32]:
        values = np.asarray(vector, dtype=np.float64)
        if values.shape != (self.dimension,) or not np.isfinite(values).all():
            raise InvalidInput("vector", f"{self.dimension} finite numbers", np.asarray(vector).tolist())
        return _unit(values)


@dataclass(frozen=True)
class Episode:
    """Context, decision and outcome of one trade, as JSON objects.

    features: by name, in the order of the feature service. Of the others `summary_of` reads decision["action"]
    ["direction"], outcome["net_return"] and outcome["exit_reason"]. id: if empty, `EpisodeStore` derives it from the
    content. timestamp_ms: of the outcome.
    """

    features: Mapping[str, float]
    decision: Mapping[str, Any]
    outcome: Mapping[str, Any]
    id: str = ""
    timestamp_ms: int = 0
    strategy: str = ""
    symbol: str = ""


class EpisodeTable(Protocol):
    """Where whole episodes are kept. Both `record_` calls replace what they recorded under the same id before."""

    def record_episode(self, episode: Episode) -> None: ...

    def record_embedding(self, episode_id: str, vector: bytes) -> None:
        """vector: float32 (dimension,), native bytes."""
        ...

    def query_episodes(self, limit: int) -> list[Episode]:
        """The last ones by timestamp, newest first, ties by id."""
        ...

    def episode(self, episode_id: str) -> Episode: ...

    def embeddings(self) -> Iterable[tuple[str, bytes]]:
        """All of them, oldest first."""
        ...


class EpisodeStore:
    """Episodes in a table, with a memory over their vectors that is rebuilt from the table at start.

    scales: (dimension,) typical magnitudes of the features, in their order.
    """

    def __init__(self, table: EpisodeTable, scales: ArrayLike, capacity: int = 50_000) -> None:
        self.table = table
        self._scales = np.asarray(scales, dtype=np.float64)
        self._memory = EpisodeMemory(len(self._scales), capacity)
        for episode_id, vector in table.embeddings():
            self._memory.add(episode_id, np.frombuffer(vector, dtype=np.float32))

    def add_episode(self, episode: Episode) -> str:
        """Record an episode and its vector; returns its id. The same id again replaces it."""
        vector = self._vector(list(episode.features.values()))
        episode_id = self.record_episode(episode)
        self.record_embedding(episode_id, vector)
        return episode_id

    def query_recent(self, limit: int) -> list[Episode]:
        """The last `limit` episodes, newest first."""
        return self.table.query_episodes(limit)

    def knn(self, features: Mapping[str, float] | Sequence[float], k: int) -> list[tuple[Episode, float]]:
        """The k most similar episodes with their similarity. features: by name or as a vector, in the same order."""
        values = list(features.values()) if isinstance(features, Mapping) else features
        return [(self.table.episode(episode_id), similarity)
                for episode_id, similarity in self.get_knn(self._vector(values), k)]

    def record_episode(self, episode: Episode) -> str:
        """The episode alone, without a vector: it can be listed, but has no neighbours until it is embedded."""
        episode = _with_id(episode)
        self.table.record_episode(episode)
        return episode.id

    def query_episodes(self, limit: int) -> list[Episode]:
        return self.query_recent(limit)

    def record_embedding(self, episode_id: str, vector: ArrayLike) -> None:
        """vector: (dimension,), finite. It is checked before it is recorded."""
        self._memory.add(episode_id, vector)
        self.table.record_embedding(episode_id, np.asarray(vector, dtype=np.float32).tobytes())

    def get_knn(self, vector: ArrayLike, k: int) -> list[tuple[str, float]]:
        return self._memory.knn(vector, k)

    def _vector(self, values: Sequence[float]) -> NDArray[np.float32]:
        if len(values) != len(self._scales):
            raise InvalidInput("features", f"{len(self._scales)} values", len(values))
        return normalise(values, self._scales)


def summary_of(episode: Episode) -> EpisodeSummary:
    return EpisodeSummary(episode.symbol, episode.strategy, episode.decision["action"]["direction"],
                          episode.outcome["net_return"], episode.outcome["exit_reason"], episode.timestamp_ms)


def learning_memory(neighbours: Iterable[tuple[EpisodeSummary, float]], now_ms: int) -> list[dict[str, Any]]:
    """Neighbours and their similarities as plain dicts for the LLM's prompt, in the order given; age_s in seconds."""
    return [{"symbol": summary.symbol, "strategy": summary.strategy, "direction": summary.direction,
             "net_return": summary.net_return, "exit_reason": summary.exit_reason, "similarity": similarity,
             "age_s": (now_ms - summary.timestamp_ms) // 1000}
            for summary, similarity in neighbours]


def _at_most_kth_largest(values: NDArray[np.float32], k: int) -> np.float32:
    """A lower bound of the k-th largest value, close to it: the k-th largest of the maxima of equal groups.

    k groups reach it, so at least k values do. Maxima of whole rows are many times faster than partitioning all values;
    where there are too few groups for that, all are partitioned and the bound is exact.
    """
    groups = len(values) // GROUP_SIZE
    if groups <= 4 * k:
        groups, maxima = len(values), values
    else:
        maxima = values[:groups * GROUP_SIZE].reshape(GROUP_SIZE, groups).max(axis=0)
    return np.partition(maxima, groups - k)[groups - k]


def _unit(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """values over their length, which is taken after scaling by the largest, so that squares cannot overflow."""
    largest = float(np.abs(values).max(initial=0.0))
    if largest == 0.0:
        return np.zeros(len(values), dtype=np.float32)
    scaled = values / largest
    return (scaled / np.sqrt((scaled * scaled).sum())).astype(np.float32)


def _with_id(episode: Episode) -> Episode:
    if episode.id:
        return episode
    content = json.dumps([dict(episode.features), dict(episode.decision), dict(episode.outcome), episode.timestamp_ms,
                          episode.strategy, episode.symbol], sort_keys=True)
    named = "e" + hashlib.sha256(content.encode()).hexdigest()[:31]
    return Episode(episode.features, episode.decision, episode.outcome, named, episode.timestamp_ms, episode.strategy,
                   episode.symbol)
