"""When a server that fails is left alone, on a clock of its own."""

from __future__ import annotations

from policies.breaker import Backoff, Breaker


def test_open_breaker_lets_one_probe_through_per_period() -> None:
    now = [0.0]
    breaker = Breaker(2, 1.0, lambda: now[0])
    breaker.failed()
    breaker.succeeded()
    breaker.failed()
    assert breaker.allows()
    breaker.failed()
    assert not breaker.allows()
    now[0] = 1.0
    assert [breaker.allows() for _ in range(3)] == [True, False, False]
    breaker.succeeded()
    assert [breaker.allows() for _ in range(3)] == [True, True, True]


def test_backoff_doubles_up_to_its_limit_and_forgets_on_success() -> None:
    now = [0.0]
    backoff = Backoff(1.0, 5.0, lambda: now[0])
    waits = []
    for _ in range(5):
        backoff.failed()
        waits.append(backoff.wait_s())
    assert waits == [1.0, 2.0, 4.0, 5.0, 5.0]
    backoff.succeeded()
    assert backoff.over()
