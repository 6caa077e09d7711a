"""Every labelled row of a search, once, with everything that any head may see; heads pick their columns and rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from feature_repo.windows import CHANNELS
from policies.bars import Bars
from policies.embedder import Embedder
from policies.errors import InvalidInput
from policies.fills import Costs
from policies.keyed_random import generator
from train.dataset import Brackets, Dataset, FeatureRows, build_dataset
from train.learners import Labelled, Layout
from train.training_set import window_rows

EMBEDDED_AT_ONCE = 2_048


@dataclass(frozen=True)
class Examples:
    """Rows in the order of (time, symbol).

    symbol: (N,) names. event_time_ms, known_ms: int64 (N,), when a row and when its label was known.
    values: float32 (N, F + E + 5 W), features, then the embedding, then the raw window, oldest bar first.
    classes: int64 (N,), places in policies.heads.CLASSES. returns: float64 (N, 2), net return on margin of a long and
    of a short. features, optional: names. embedding: E. window_bars: W.
    """

    symbol: NDArray[np.str_]
    event_time_ms: NDArray[np.int64]
    known_ms: NDArray[np.int64]
    values: NDArray[np.float32]
    classes: NDArray[np.int64]
    returns: NDArray[np.float64]
    features: tuple[str, ...]
    optional: tuple[str, ...]
    embedding: int
    window_bars: int

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def windows(self) -> NDArray[np.float32]:
        """(N, 5 W)."""
        return self.values[:, len(self.features) + self.embedding:]

    def layout(self, embedding: bool, window: bool) -> Layout:
        """What a head sees that wants these beside the features."""
        return Layout(self.features, self.optional, self.embedding if embedding else 0,
                      self.window_bars if window else 0)

    def seen(self, places: NDArray[np.int64], layout: Layout) -> NDArray[np.float32]:
        """(P, layout.width): the columns of a layout that `layout` made, of these rows."""
        features, embedding = len(self.features), self.embedding
        columns = [np.arange(features)]
        if layout.embedding:
            columns.append(features + np.arange(embedding))
        if layout.window_bars:
            columns.append(features + embedding + np.arange(self.windows.shape[1]))
        return self.values[np.ix_(places, np.concatenate(columns))]

    def labelled(self, places: NDArray[np.int64], layout: Layout) -> Labelled:
        return Labelled(self.seen(places, layout), self.classes[places], self.returns[places])

    def labels(self) -> Dataset:
        """Times and labels, without values: what the feature store keeps of them."""
        return Dataset(self.symbol, self.event_time_ms, np.empty((len(self), 0)), self.known_ms,
                       self.classes.astype(np.int8), self.returns[:, 0], self.returns[:, 1])

    def with_embedding(self, embedder: Embedder) -> Examples:
        """The same with what an embedder makes of each window; it must take the whole window."""
        if embedder.window != self.windows.shape[1] or self.embedding:
            raise InvalidInput("embedder.window", f"{self.windows.shape[1]} numbers, for rows without an embedding",
                               embedder.window)
        parts = [embedder.embed(np.ascontiguousarray(self.windows[start:start + EMBEDDED_AT_ONCE]))
                 for start in range(0, len(self), EMBEDDED_AT_ONCE)]
        features = len(self.features)
        values = np.concatenate([self.values[:, :features], np.concatenate(parts), self.windows], axis=1)
        return replace(self, values=values.astype(np.float32), embedding=embedder.size)


def build_examples(bars: Mapping[str, Bars], rows: Mapping[str, FeatureRows], features: Sequence[str],
                   optional: Sequence[str], window_bars: int, brackets: Brackets, costs: Costs) -> Examples:
    """Rows that can be labelled, have every required feature and a whole window; without embedding yet."""
    required = np.array([name not in set(optional) for name in features])
    dataset = build_dataset(bars, rows, required, brackets, costs)
    whole = np.ones(len(dataset), dtype=bool)
    for symbol, run in bars.items():
        own = dataset.symbol == symbol
        whole[own] = np.searchsorted(run.close_time_ms, dataset.event_time_ms[own]) >= window_bars
    dataset = dataset.take(whole)
    values = np.empty((len(dataset), len(features) + window_bars * len(CHANNELS)), np.float32)
    values[:, :len(features)] = dataset.values
    for symbol, run in bars.items():
        own = np.flatnonzero(dataset.symbol == symbol)
        values[own, len(features):] = window_rows(run, dataset.event_time_ms[own], window_bars)
    return Examples(dataset.symbol, dataset.event_time_ms, dataset.known_ms, values, dataset.classes.astype(np.int64),
                    np.column_stack([dataset.long_return, dataset.short_return]), tuple(features), tuple(optional), 0,
                    window_bars)


def every(places: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most `most` of these places, evenly spread: neighbouring rows have nearly the same features and label.

    One drawn from each of as many stretches, always the same ones. A fixed step would not do: rows of all symbols stand
    side by side, and every second one of two symbols' rows is of the same symbol.
    """
    if len(places) <= most:
        return places
    edges = np.arange(most + 1) * len(places) // most
    drawn = generator(len(places), "rows evenly spread", most).random(most)
    return places[edges[:-1] + (drawn * np.diff(edges)).astype(np.int64)]


def spread(places: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Exactly `count` of these places, evenly spaced; all of them if they are fewer."""
    return places[np.linspace(0, len(places) - 1, min(count, len(places))).astype(np.int64)]
