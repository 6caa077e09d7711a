"""Registration on the plain hub: many at once, too large, too slow, and who hangs up."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from candidates import candidate, chunks, refusals, upload
from http_door import assert_problem, bearer, client_of
from plain_hub import PlainHub

from hub.registration import (
    AT_ONCE,
    KEPT_FOR_WEBHOOKS,
    MOST_WAITING,
    RECEIVED_AT_ONCE,
    BodyTooLarge,
    RegistrationBusy,
    UploadTooSlow,
    registrar_of,
)
from policies.bundle import pack_bundle


async def test_an_upload_over_the_limit_is_refused_before_it_is_read_to_its_end(open_hub: Any) -> None:
    hub = open_hub({"server": {"max_bundle_bytes": 50_000}})
    sent = 0

    async def far_too_much() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1_000):
            sent += 16_384
            yield b" " * 16_384

    with pytest.raises(BodyTooLarge, match="50000"):
        await hub.registrar.received(far_too_much(), "ops")
    assert sent <= 50_000 + 16_384
    assert not list(hub.home.run.iterdir())
    assert [(row.body["detail"]["actor"], row.body["detail"]["reason"]) for row in refusals(hub)] == [
        ("ops", "body: must be at most 50000 bytes")]


async def test_an_upload_of_any_chunks_arrives_as_it_was_sent(hub: PlainHub) -> None:
    content = bytes(range(256)) * 20_000
    for size in (1_000, 2**20, 5_000_000):
        received = await hub.registrar.received(chunks(content, size), "ops")
        received.file.seek(0)
        assert received.file.read() == content
        assert received.sha256 == hashlib.sha256(content).hexdigest()
        assert received.begins[:256] == content[:256]


async def test_two_are_checked_at_once_some_wait_and_the_rest_are_told_to_come_again(hub: PlainHub) -> None:
    under_way, most, going_on = 0, 0, asyncio.Event()

    async def counted() -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await going_on.wait()
        under_way -= 1

    hub.intake.before = counted
    async with client_of(hub) as client:
        async def post(number: int) -> httpx.Response:
            packed = pack_bundle(candidate(f"candidate_{number}", 0.1 + number / 100))
            return await client.post("/v1/policies", content=packed, headers=bearer("ops"))

        posts = []
        for number in range(10):
            posts.append(asyncio.create_task(post(number)))
            while hub.registrar._receiving or not (posts[-1].done() or hub.registrar._entered > number):
                await asyncio.sleep(0)
        for _ in range(3):  # decisions go on meanwhile
            assert (await hub.decide_later())["decision_id"]
        going_on.set()
        answers = [answer.status_code for answer in await asyncio.gather(*posts)]
    assert (answers.count(200), answers.count(503), most) == (AT_ONCE + MOST_WAITING, 4, AT_ONCE)


class Endless:
    """A body that never ends; begun when its sender waits."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()

    async def __call__(self) -> AsyncIterator[bytes]:
        yield b"PK"
        self.begun.set()
        await asyncio.Event().wait()


async def test_four_bodies_are_received_at_once_and_one_that_is_slow_is_dropped(hub: PlainHub) -> None:
    slow = [Endless() for _ in range(RECEIVED_AT_ONCE)]
    sending = [asyncio.create_task(hub.registrar.received(body(), "ops")) for body in slow]
    for body in slow:
        await body.begun.wait()
    with pytest.raises(RegistrationBusy, match="received"):
        await upload(hub, pack_bundle(candidate()))
    for task in sending:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert (await upload(hub, pack_bundle(candidate())))["accepted"] == "recorded"
    impatient = registrar_of(hub.home, hub.config, hub.service, hub.intake)
    impatient._upload_timeout_s = 0.01
    head = hub.reader.head()
    with pytest.raises(UploadTooSlow, match=r"0\.01 s"):
        await impatient.received(Endless()(), "ops")
    assert (impatient._receiving, hub.reader.head(), list(hub.home.run.iterdir())) == (0, head, [])


async def test_over_http_a_body_too_slow_is_told_to_come_again(hub: PlainHub) -> None:
    hub.registrar._upload_timeout_s = 0.01
    async with client_of(hub) as client:
        answer = await client.post("/v1/policies", content=Endless()(), headers=bearer("ops"))
    assert assert_problem(answer, 503)["code"] == "upload_too_slow"
    assert hub.registrar._entered == 0


async def test_uploads_leave_a_place_for_webhooks(hub: PlainHub) -> None:
    with contextlib.ExitStack() as places:
        for _ in range(AT_ONCE + MOST_WAITING):
            places.enter_context(hub.registrar.entered())
        with pytest.raises(RegistrationBusy):
            places.enter_context(hub.registrar.entered())
        for _ in range(KEPT_FOR_WEBHOOKS):
            places.enter_context(hub.registrar.entered(webhook=True))
        with pytest.raises(RegistrationBusy):
            places.enter_context(hub.registrar.entered(webhook=True))
    assert hub.registrar._entered == 0


async def test_whoever_hangs_up_keeps_the_place_of_what_goes_on(hub: PlainHub) -> None:
    """Else the uploads that wait to be checked would have no end."""
    begun, going_on = asyncio.Semaphore(0), asyncio.Event()

    async def held() -> None:
        begun.release()
        await going_on.wait()

    hub.intake.before = held
    async with client_of(hub) as client:
        for number in range(AT_ONCE + MOST_WAITING):
            packed = pack_bundle(candidate(f"candidate_{number}", 0.1 + number / 100))
            post = asyncio.create_task(client.post("/v1/policies", content=packed, headers=bearer("ops")))
            while len(hub.registrar._tasks) <= number:
                await asyncio.sleep(0)
            post.cancel()
            with pytest.raises(asyncio.CancelledError):
                await post
        assert hub.registrar._entered == AT_ONCE + MOST_WAITING
        answer = await client.post("/v1/policies", content=pack_bundle(candidate()), headers=bearer("ops"))
        assert assert_problem(answer, 503)["code"] == "registration_busy"
        tasks = list(hub.registrar._tasks)
        going_on.set()
        await asyncio.gather(*tasks)
    assert hub.registrar._entered == 0


def test_a_place_that_is_left_is_free_again(hub: PlainHub) -> None:
    with contextlib.ExitStack() as places:
        for _ in range(AT_ONCE + MOST_WAITING):
            places.enter_context(hub.registrar.entered())
        with pytest.raises(RegistrationBusy):
            places.enter_context(hub.registrar.entered())
    hub.registrar.entered().__enter__()


async def test_a_client_that_hangs_up_does_not_leave_half_a_registration(hub: PlainHub) -> None:
    begun, going_on = asyncio.Event(), asyncio.Event()

    async def held() -> None:
        begun.set()
        await going_on.wait()

    hub.intake.before = held
    task = asyncio.create_task(upload(hub, pack_bundle(candidate())))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    going_on.set()
    for _ in range(1_000):
        if candidate().policy_id in hub.state.heads:
            break
        await asyncio.sleep(0.005)
    assert candidate().policy_id in hub.state.heads
