"""Who computes the pieces of a search: workers of a Ray cluster, or this process. Jobs are functions with arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

Job = tuple[Callable[..., Any], tuple[Any, ...]]


class Pool(Protocol):
    """Runs jobs side by side."""

    def each(self, jobs: Mapping[str, Job], waits: bool = False) -> Iterator[tuple[str, Any]]:
        """(name, result) of each, in the order in which they end; of one that raised, what it raised.

        waits: the jobs only wait for others that they start themselves, and take no place.
        """
        ...


class RayPool:
    """On the cluster that this process is connected to; one CPU a job."""

    def each(self, jobs: Mapping[str, Job], waits: bool = False) -> Iterator[tuple[str, Any]]:
        import ray

        started = {ray.remote(num_cpus=0 if waits else 1, max_retries=1)(function).remote(*arguments): name
                   for name, (function, arguments) in jobs.items()}
        try:
            while started:
                (done,), _ = ray.wait(list(started), num_returns=1)
                yield started.pop(done), _result_of(done)
        finally:
            for job in started:
                ray.cancel(job, force=True)


class HerePool:
    """One after another in this process: for tests and for looking at a failure."""

    def each(self, jobs: Mapping[str, Job], waits: bool = False) -> Iterator[tuple[str, Any]]:
        for name, (function, arguments) in jobs.items():
            try:
                result = function(*arguments)
            except Exception as error:
                result = error
            yield name, result


def _result_of(job: Any) -> Any:
    """What a finished job gave, or the error that ended it: its own, or that its worker died, as for want of memory."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        return ray.get(job)
    except RayTaskError as error:
        return error.cause if isinstance(error.cause, Exception) else error
    except RayError as error:
        return error
