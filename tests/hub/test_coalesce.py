"""Many calls of one become few calls of many, and nobody can tell but by the time it took."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from hub.coalesce import Coalescer


class Doubling:
    """Doubles numbers, in the batches that it is called with; an item of 13 fails alone, one of 99 fails its batch.

    Calls wait at `gate` until it is opened.
    """

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = asyncio.Event()
        self.at_once = self.most_at_once = 0

    async def __call__(self, items: list[int]) -> Sequence[int | BaseException]:
        self.batches.append(items)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.gate.wait()
        finally:
            self.at_once -= 1
        if 99 in items:
            raise ConnectionError("the whole batch")
        return [ValueError(item) if item == 13 else 2 * item for item in items]


@pytest.fixture
async def doubling() -> Doubling:
    return Doubling()


async def submitted(coalescer: Coalescer[int, int], *items: int) -> list[asyncio.Task[int]]:
    """Tasks that have come as far as they can without an answer."""
    tasks = [asyncio.create_task(coalescer.submit(item)) for item in items]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return tasks


async def answers_of(*tasks: asyncio.Task[int]) -> list[int | BaseException]:
    """What each was told; a caller that is never told anything fails the test and does not hang it."""
    return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)


async def test_one_caller_is_called_for_at_once(doubling: Doubling) -> None:
    doubling.gate.set()
    assert await Coalescer(doubling).submit(4) == 8
    assert doubling.batches == [[4]]


async def test_what_comes_while_calls_are_under_way_shares_the_next_one_in_order(doubling: Doubling) -> None:
    tasks = await submitted(Coalescer(doubling), *range(10))
    assert doubling.batches == [[0], [1]]
    doubling.gate.set()
    assert await answers_of(*tasks) == [2 * item for item in range(10)]
    assert doubling.batches == [[0], [1], list(range(2, 10))]


async def test_a_call_carries_no_more_than_its_most(doubling: Doubling) -> None:
    tasks = await submitted(Coalescer(doubling, most=3, under_way=1), *range(8))
    doubling.gate.set()
    assert await answers_of(*tasks) == [2 * item for item in range(8)]
    assert doubling.batches == [[0], [1, 2, 3], [4, 5, 6], [7]]


@pytest.mark.parametrize("under_way", [1, 2, 5])
async def test_no_more_calls_are_under_way_than_allowed(doubling: Doubling, under_way: int) -> None:
    tasks = await submitted(Coalescer(doubling, most=1, under_way=under_way), *range(20, 40))
    assert len(doubling.batches) == under_way
    doubling.gate.set()
    await answers_of(*tasks)
    assert doubling.most_at_once == under_way
    assert len(doubling.batches) == 20


async def test_an_item_that_fails_fails_alone(doubling: Doubling) -> None:
    tasks = await submitted(Coalescer(doubling, under_way=1), 0, 12, 13, 14)
    doubling.gate.set()
    answers = await answers_of(*tasks)
    assert answers[:2] + answers[3:] == [0, 24, 28]
    assert isinstance(answers[2], ValueError)


async def test_a_call_that_fails_fails_for_all_of_its_batch_and_not_for_the_next(doubling: Doubling) -> None:
    coalescer = Coalescer(doubling, most=2, under_way=1)
    tasks = await submitted(coalescer, 0, 99, 1, 2, 3)
    doubling.gate.set()
    answers = await answers_of(*tasks)
    assert [type(answer) for answer in answers] == [int, ConnectionError, ConnectionError, int, int]
    assert await coalescer.submit(7) == 14


async def test_a_call_that_answers_too_few_is_a_failure_of_all_and_not_a_mix_up() -> None:
    async def short(items: list[int]) -> list[int]:
        return items[1:]

    with pytest.raises(RuntimeError, match="1 items were sent and 0 results"):
        await Coalescer(short).submit(1)


async def test_a_caller_that_gives_up_harms_nobody(doubling: Doubling) -> None:
    coalescer = Coalescer(doubling, under_way=1)
    first, gone, waiting, other = await submitted(coalescer, 1, 2, 3, 4)
    gone.cancel()
    first.cancel()
    await asyncio.sleep(0)
    doubling.gate.set()
    assert await answers_of(waiting, other) == [6, 8]
    assert first.cancelled()
    assert gone.cancelled()
    assert await coalescer.submit(5) == 10
