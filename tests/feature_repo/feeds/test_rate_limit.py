from __future__ import annotations

import random

import pytest
from fake_time import FakeTime

from feature_repo.feeds.pauses import pause_s
from feature_repo.feeds.rate_limit import TokenBucket
from policies.errors import InvalidInput


@pytest.mark.parametrize("seed", range(5))
def test_no_window_ever_sees_more_than_the_limit(seed: int) -> None:
    time, rng = FakeTime(), random.Random(seed)
    bucket = TokenBucket(1_200, 60.0, time.monotonic_s, time.sleep)
    spent: list[tuple[float, float]] = []
    while time.now_s < 400:
        weight = rng.choice([2, 20, 104])
        assert bucket.take(weight, 1e9)
        spent.append((time.now_s, weight))
        if rng.random() < 0.05:
            time.sleep(rng.uniform(0, 50))
    for start_s, _ in spent:
        within = sum(weight for at_s, weight in spent if start_s <= at_s < start_s + 60)
        assert within <= 1_200
    assert sum(weight for _, weight in spent) >= 0.4 * 1_200 * 400 / 60


def test_who_would_wait_too_long_is_told_so_at_once_and_pays_nothing() -> None:
    time = FakeTime()
    bucket = TokenBucket(120, 60.0, time.monotonic_s, time.sleep)
    assert bucket.take(60, 0.0)
    assert not bucket.take(1, 0.5)
    assert time.now_s == 0.0
    assert bucket.take(1, 1.0)
    assert time.now_s == pytest.approx(1.0)


def test_charge_afterwards_makes_the_next_one_wait() -> None:
    time = FakeTime()
    bucket = TokenBucket(120, 60.0, time.monotonic_s, time.sleep)
    bucket.charge(90)
    assert bucket.take(10, 100.0)
    assert time.now_s == pytest.approx(40.0)


def test_nothing_is_given_out_while_the_venue_wants_a_pause() -> None:
    time = FakeTime()
    bucket = TokenBucket(1_200, 60.0, time.monotonic_s, time.sleep)
    bucket.close_for(7.0)
    assert not bucket.take(1, 6.9)
    assert bucket.take(1, 7.0)
    assert time.now_s == pytest.approx(7.0)


@pytest.mark.parametrize(("limit", "window_s"), [(0, 60), (float("nan"), 60), (1, -1), (1, float("nan"))])
def test_limit_that_is_none_is_refused(limit: float, window_s: float) -> None:
    time = FakeTime()
    with pytest.raises(InvalidInput):
        TokenBucket(limit, window_s, time.monotonic_s, time.sleep)


def test_pauses_grow_to_the_longest_and_are_jittered() -> None:
    rng = random.Random(1)
    for tries in (0, 1, 2, 3, 10, 10_000):
        whole = min(8.0, 0.5 * 2.0 ** min(tries, 40))
        drawn = [pause_s(tries, 0.5, 8.0, rng) for _ in range(50)]
        assert whole / 2 <= min(drawn) < max(drawn) <= whole
