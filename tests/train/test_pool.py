"""Who computes: every job once, in whatever order they end; the first that raises ends all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pool_jobs
import pytest
from pool_jobs import asks_another, dies, fails, marks, squared
from ray.exceptions import RayError
from waiting import eventually

from train.cluster import ray_cluster
from train.pool import HerePool, Job, Pool, RayPool


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", str(Path(pool_jobs.__file__).parent))  # workers look there for their jobs
        with ray_cluster(2) as cores:
            assert cores == 2
            yield


@pytest.fixture(params=["here", "ray"])
def pool(request: pytest.FixtureRequest) -> Pool:
    if request.param == "ray":
        request.getfixturevalue("ray_here")
        return RayPool()
    return HerePool()


def test_every_job_is_done_once_and_answers_under_its_name(pool: Pool) -> None:
    jobs: dict[str, Job] = {f"job_{number}": (squared, (number,)) for number in range(5)}
    found = list(pool.each(jobs))
    assert sorted(found) == sorted((f"job_{number}", number**2) for number in range(5))


def test_nothing_to_do_is_done_at_once(pool: Pool) -> None:
    assert list(pool.each({})) == []


def test_what_a_job_raised_is_its_answer_and_ends_no_other(pool: Pool) -> None:
    found = dict(pool.each({"a": (squared, (1,)), "b": (fails, ("broken",)), "c": (squared, (3,))}))
    assert (found["a"], found["c"]) == (1, 9)
    assert isinstance(found["b"], ValueError)
    assert str(found["b"]) == "broken"


@pytest.mark.usefixtures("ray_here")
def test_a_job_whose_worker_dies_ends_no_other() -> None:
    found = dict(RayPool().each({"a": (squared, (1,)), "b": (dies, ()), "c": (squared, (3,))}))
    assert (found["a"], found["c"]) == (1, 9)
    assert isinstance(found["b"], RayError)


@pytest.mark.usefixtures("ray_here")
def test_whoever_stops_listening_ends_what_is_on_its_way(tmp_path: Path) -> None:
    jobs: dict[str, Job] = {f"waits_{number}": (marks, (tmp_path, number)) for number in range(2)}
    listening = RayPool().each({"quick": (squared, (2,)), **jobs})
    assert next(listening) == ("quick", 4)
    eventually(lambda: bool(list(tmp_path.glob("begun_*"))), "one of them begins", 30)
    listening.close()  # type: ignore[attr-defined]
    for begun in tmp_path.glob("begun_*"):
        pid = int(begun.read_text())
        eventually(lambda pid=pid: not Path(f"/proc/{pid}").exists(), f"process {pid} ends", 30)  # type: ignore[misc]
    assert not list(tmp_path.glob("ended_*"))


@pytest.mark.usefixtures("ray_here")
def test_jobs_that_only_wait_leave_the_places_to_those_they_start() -> None:
    """More of them than places: if they took one each, none would ever end."""
    jobs: dict[str, Job] = {f"job_{number}": (asks_another, (number,)) for number in range(3)}
    assert dict(RayPool().each(jobs, waits=True)) == {f"job_{number}": number**2 for number in range(3)}


@pytest.mark.usefixtures("ray_here")
def test_a_fit_on_a_cluster_has_one_thread() -> None:
    assert dict(RayPool().each({"threads": (os.getenv, ("OMP_NUM_THREADS",))})) == {"threads": "1"}
