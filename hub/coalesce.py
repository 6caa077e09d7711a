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
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        self._start()
        return await future

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
            results = await self._call([item for item, _ in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"{len(batch)} items were sent and {len(results)} results came back")
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
