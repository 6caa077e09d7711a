import math

import numpy as np
import pytest

from policies.errors import InvalidInput
from router.memory import (
    Episode,
    EpisodeMemory,
    EpisodeStore,
    EpisodeSummary,
    learning_memory,
    normalise,
    summary_of,
)


def brute_force(vectors: dict[str, np.ndarray], query: np.ndarray, k: int) -> list[tuple[str, float]]:
    """Cosines of the float32 unit vectors in float64, one by one, then a full sort."""
    def unit(vector):
        length = np.linalg.norm(vector)
        return (vector / length if length else vector).astype(np.float32).astype(np.float64)

    scored = [(episode_id, round(float(unit(vector) @ unit(query)), 6) + 0.0) for episode_id, vector in vectors.items()]
    return sorted(scored, key=lambda pair: (-pair[1], pair[0]))[:k]


@pytest.mark.parametrize(("dimension", "count"), [(3, 900), (40, 2_500), (384, 1_100)])
def test_neighbours_are_those_of_a_full_search_also_after_growth(dimension, count):
    rng = np.random.default_rng(dimension)
    memory, vectors = EpisodeMemory(dimension), {}
    for number in range(count):
        vectors[f"e{number}"] = rng.standard_normal(dimension)
        memory.add(f"e{number}", vectors[f"e{number}"])
        if number in (0, 5, 1_023, 1_024, count - 1):
            for k in (1, 8, 50):
                query = rng.standard_normal(dimension)
                assert memory.knn(query, k) == brute_force(vectors, query, k)


def test_similarity_is_the_cosine_of_the_given_vectors_within_rounding():
    rng = np.random.default_rng(1)
    memory = EpisodeMemory(20)
    vectors = {f"e{number}": rng.standard_normal(20) * 10.0 ** rng.integers(-30, 30) for number in range(200)}
    for episode_id, vector in vectors.items():
        memory.add(episode_id, vector)
    query = rng.standard_normal(20)
    for episode_id, similarity in memory.knn(query, 200):
        vector = vectors[episode_id]
        cosine = vector @ query / np.linalg.norm(vector) / np.linalg.norm(query)
        assert similarity == pytest.approx(cosine, abs=1e-6)


def test_equal_similarities_are_ordered_by_id_wherever_they_lie():
    memory = EpisodeMemory(2)
    for number in np.random.default_rng(2).permutation(300):
        memory.add(f"e{number:03d}", [1.0 + number, 0.0])  # all of one direction
    assert memory.knn([5.0, 0.0], 4) == [("e000", 1.0), ("e001", 1.0), ("e002", 1.0), ("e003", 1.0)]


def test_zero_vectors_are_similar_to_nothing():
    memory = EpisodeMemory(2)
    for episode_id, vector in (("b", [0, 0]), ("a", [0, 0]), ("c", [1, 0]), ("d", [-1, 0])):
        memory.add(episode_id, vector)
    assert memory.knn([1, 0], 4) == [("c", 1.0), ("a", 0.0), ("b", 0.0), ("d", -1.0)]
    assert memory.knn([0, 0], 2) == [("a", 0.0), ("b", 0.0)]
    assert all(math.copysign(1, similarity) == 1 for _, similarity in memory.knn([0, 0], 4))


@pytest.mark.parametrize("added", [3, 5, 8, 13])
@pytest.mark.parametrize("capacity", [1, 4, 5, 7])
def test_resized_memory_holds_the_newest_and_goes_on_as_if_it_had_always_had_that_capacity(added, capacity):
    """The larger one can only keep what the smaller one still held."""
    rng = np.random.default_rng(added)
    vectors = {f"e{number}": rng.standard_normal(3) for number in range(30)}
    memory = EpisodeMemory(3, 5)
    ids = list(vectors)
    for episode_id in ids[:added]:
        memory.add(episode_id, vectors[episode_id], EpisodeSummary("BTC", "momentum", "long", 0.1, "stop", 1))
    resized = memory.resized(capacity)
    kept = ids[max(0, added - min(5, capacity)):added]
    query = rng.standard_normal(3)
    assert resized.knn(query, 30) == brute_force({name: vectors[name] for name in kept}, query, 30)
    assert all(resized.summary(name) == memory.summary(name) for name in kept)
    for place in range(added, 30):
        resized.add(ids[place], vectors[ids[place]])
        expected = (kept + ids[added:place + 1])[-capacity:]
        assert resized.knn(query, 30) == brute_force({name: vectors[name] for name in expected}, query, 30)


def test_resizing_leaves_the_memory_itself_as_it_was():
    memory = EpisodeMemory(2, 3)
    for number in range(4):
        memory.add(f"e{number}", [1.0, number])
    before = memory.knn([1.0, 0.0], 3)
    assert memory.resized(3) is memory
    memory.resized(1).add("other", [1.0, 0.0])
    assert memory.knn([1.0, 0.0], 3) == before
    with pytest.raises(InvalidInput):
        memory.resized(0)


def test_revision_replaces_in_place_and_does_not_make_younger():
    memory = EpisodeMemory(2, capacity=2)
    memory.add("a", [1, 0])
    memory.add("b", [0, 1])
    memory.add("a", [0, -1])
    assert dict(memory.knn([0, 1], 2)) == {"a": -1.0, "b": 1.0}
    memory.add("c", [1, 1])
    assert {episode_id for episode_id, _ in memory.knn([1, 1], 5)} == {"b", "c"}


def test_oldest_is_evicted_beyond_capacity():
    rng = np.random.default_rng(3)
    memory, vectors = EpisodeMemory(4, capacity=1_500), {}
    for number in range(4_000):
        vectors[f"e{number:04d}"] = rng.standard_normal(4)
        memory.add(f"e{number:04d}", vectors[f"e{number:04d}"])
    kept = dict(list(vectors.items())[-1_500:])
    assert len(memory) == 1_500
    assert memory.knn([1, 2, 3, 4], 20) == brute_force(kept, np.array([1.0, 2, 3, 4]), 20)
    with pytest.raises(KeyError):
        memory.summary("e0000")


@pytest.mark.parametrize("vector", [[math.nan, 0], [math.inf, 0], [1], [[1, 2]], []])
def test_vector_that_is_no_vector_is_refused_and_changes_nothing(vector):
    memory = EpisodeMemory(2)
    with pytest.raises(InvalidInput):
        memory.add("a", vector)
    with pytest.raises(InvalidInput):
        memory.knn(vector, 1)
    assert len(memory) == 0


def test_no_neighbours_of_nobody_or_for_nothing():
    memory = EpisodeMemory(1)
    assert memory.knn([1], 3) == []
    memory.add("a", [1])
    assert memory.knn([1], 0) == []


def test_normalise_scales_clips_fills_and_has_length_one():
    unit = normalise([10.0, -1e9, math.nan, math.inf], [5.0, 1.0, 1.0, 1.0])
    expected = np.array([2.0, -5.0, 0.0, 5.0])
    np.testing.assert_allclose(unit, expected / np.linalg.norm(expected), rtol=1e-6)
    assert unit.dtype == np.float32
    assert not normalise([math.nan, 0.0], [1.0, 1.0]).any()


class Table:
    """Episodes in dicts, in the order of recording."""

    def __init__(self):
        self.episodes, self.vectors = {}, {}

    def record_episode(self, episode):
        self.episodes[episode.id] = episode

    def record_embedding(self, episode_id, vector):
        self.vectors[episode_id] = vector

    def query_episodes(self, limit):
        return sorted(self.episodes.values(), key=lambda one: (-one.timestamp_ms, one.id))[:limit]

    def episode(self, episode_id):
        return self.episodes[episode_id]

    def embeddings(self):
        return list(self.vectors.items())


def episode(number: int, **features: float) -> Episode:
    return Episode(features, {"action": {"direction": "long"}}, {"net_return": 0.001 * number, "exit_reason": "target"},
                   timestamp_ms=1_000 * number, strategy="momentum", symbol="BTC")


def test_store_finds_whole_episodes_and_finds_them_again_after_a_restart():
    table = Table()
    store = EpisodeStore(table, scales=[1.0, 1.0])
    near, far = episode(1, x=1.0, y=0.1), episode(2, x=-1.0, y=0.0)
    ids = [store.add_episode(near), store.add_episode(far)]
    assert store.add_episode(near) == ids[0]
    for instance in (store, EpisodeStore(table, scales=[1.0, 1.0])):
        found = instance.knn({"x": 1.0, "y": 0.0}, 2)
        assert [(one.outcome, similarity > 0) for one, similarity in found] == [(near.outcome, True),
                                                                               (far.outcome, False)]
        assert [one.timestamp_ms for one in instance.query_recent(2)] == [2_000, 1_000]
        assert instance.query_episodes(1) == instance.query_recent(1)


def test_store_refuses_a_vector_of_another_length_before_it_writes():
    table = Table()
    store = EpisodeStore(table, scales=[1.0, 1.0])
    with pytest.raises(InvalidInput, match="2 values"):
        store.add_episode(episode(1, x=1.0))
    with pytest.raises(InvalidInput):
        store.record_embedding("e", [1.0])
    assert (table.episodes, table.vectors) == ({}, {})


def test_storage_names_work_one_by_one():
    store = EpisodeStore(Table(), scales=[1.0, 1.0])
    episode_id = store.record_episode(episode(1, x=1.0, y=0.0))
    assert store.get_knn([1.0, 0.0], 1) == []
    store.record_embedding(episode_id, [1.0, 0.0])
    assert store.get_knn([1.0, 0.0], 1) == [(episode_id, 1.0)]


def test_learning_memory_says_what_happened_and_how_long_ago():
    summary = summary_of(episode(4, x=1.0))
    assert summary == EpisodeSummary("BTC", "momentum", "long", 0.004, "target", 4_000)
    assert learning_memory([(summary, 0.9)], now_ms=64_500) == [
        {"symbol": "BTC", "strategy": "momentum", "direction": "long", "net_return": 0.004, "exit_reason": "target",
         "similarity": 0.9, "age_s": 60}]
