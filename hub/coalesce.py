"""Turns many concurrent calls of one into few calls of many.

A hop to an actor or a deployment costs over a millisecond whatever it carries. While one batch is under way the next
one gathers, so a single caller waits for nothing and sixteen callers share a hop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Coalescer(Generic[Item, Result]):
    """call: takes a list of items, returns as many results in order; a result that is an exception is raised to its
    caller alone. An exception of the call itself is raised to every caller of that batch.
    """

    def __init__(self, call: Callable[[list[Item]], Awaitable[Sequence[Result | BaseException]]], most: int = 64,
                 under_way: int = 2) -> None:
        self._call, self._most, self._free = call, most, under_way
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def submit(self, item: Item) -> Result:
        if self._free and not self._waiting:
            return await self._alone(item)
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        self._start()
        return await future

    async def _alone(self, item: Item) -> Result:
        """With nobody to share a hop with, a task and a future would only cost time."""
        self._free -= 1
        try:
            result = _counted(await self._call([item]), 1)[0]
        finally:
            self._free += 1
            self._start()
        if isinstance(result, BaseException):
            raise result
        return result

    def _start(self) -> None:
        while self._waiting and self._free:
            batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
            self._free -= 1
            # The loop keeps only weak references to tasks; a caller that gives up must not end its neighbours' call.
            task = asyncio.create_task(self._run(batch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(self, batch: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        try:
            results = _counted(await self._call([item for item, _ in batch]), len(batch))
        except Exception as error:
            results = [error] * len(batch)
        finally:
            self._free += 1
        for (_, future), result in zip(batch, results, strict=True):
            if future.done():
                continue
            if isinstance(result, BaseException):
                future.set_exception(result)
            else:
                future.set_result(result)
        self._start()


def _counted(results: Sequence[Result | BaseException], sent: int) -> Sequence[Result | BaseException]:
    """The results, if there are as many as items: else nobody could tell whose is whose."""
    if len(results) != sent:
        raise RuntimeError(f"{sent} items were sent and {len(results)} results came back")
    return results
