"""Who computes: every job once, in whatever order they end; the first that raises ends all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pool_jobs
import pytest
from pool_jobs import asks_another, fails, marks, squared
from waiting import eventually

from train.cluster import ray_cluster
from train.pool import HerePool, Job, Pool, RayPool


@pytest.fixture(scope="module")
def _ray() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", str(Path(pool_jobs.__file__).parent))  # workers look there for their jobs
        with ray_cluster(2) as cores:
            assert cores == 2
            yield


@pytest.fixture(params=["here", "ray"])
def pool(request: pytest.FixtureRequest) -> Pool:
    if request.param == "ray":
        request.getfixturevalue("_ray")
        return RayPool()
    return HerePool()


def test_every_job_is_done_once_and_answers_under_its_name(pool: Pool) -> None:
    jobs: dict[str, Job] = {f"job_{number}": (squared, (number,)) for number in range(5)}
    found = list(pool.each(jobs))
    assert sorted(found) == sorted((f"job_{number}", number**2) for number in range(5))


def test_nothing_to_do_is_done_at_once(pool: Pool) -> None:
    assert list(pool.each({})) == []


def test_an_error_of_a_job_comes_out_and_what_was_done_before_is_there(pool: Pool) -> None:
    found = []
    with pytest.raises(ValueError, match="broken"):
        for name, _ in pool.each({"a": (squared, (1,)), "b": (fails, ("broken",))}):
            found.append(name)
    assert set(found) <= {"a"}


def test_what_comes_after_an_error_is_not_begun_or_is_ended(_ray: None, tmp_path: Path) -> None:
    jobs: dict[str, Job] = {"first": (fails, ("broken",)), **{
        f"waits_{number}": (marks, (tmp_path, number)) for number in range(3)}}
    with pytest.raises(ValueError, match="broken"):
        list(RayPool().each(jobs))
    for begun in tmp_path.glob("begun_*"):
        pid = int(begun.read_text())
        eventually(lambda pid=pid: not Path(f"/proc/{pid}").exists(), f"process {pid} ends", 30)  # type: ignore[misc]
    assert not list(tmp_path.glob("ended_*"))


def test_jobs_that_only_wait_leave_the_places_to_those_they_start(_ray: None) -> None:
    """More of them than places: if they took one each, none would ever end."""
    jobs: dict[str, Job] = {f"job_{number}": (asks_another, (number,)) for number in range(3)}
    assert dict(RayPool().each(jobs, waits=True)) == {f"job_{number}": number**2 for number in range(3)}


def test_a_cluster_uses_one_thread_a_fit_and_is_gone_with_its_block(_ray: None) -> None:
    import ray

    assert os.environ["OMP_NUM_THREADS"] == "1"
    assert ray.is_initialized()
    assert {node["NodeManagerAddress"] for node in ray.nodes()} == {"127.0.0.1"}
