"""Signed webhooks: what is believed, once; what is not leaves no row."""

from __future__ import annotations

import asyncio
import json
import os
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from http_door import assert_problem, client_of
from plain_bundles import momentum_bundle
from plain_hub import WEBHOOK_SECRET, PlainHub
from standardwebhooks import Webhook

from hub.intake import Asked, Taken
from hub.webhook import TOLERANCE_S, NotSigned, secret_file, verify, webhook_secret
from policies.artefacts import ArtefactsUnavailable, open_store
from policies.bundle import Bundle
from policies.errors import BundleRefused, ContentConflict, InvalidInput, UnknownEntity, WriterUnavailable

PATH = "/v1/webhooks/policy"
NOW_S = 1_800_000_000.0


def candidate(alias: str = "published_v1", threshold: float = 0.9) -> Bundle:
    return momentum_bundle(alias, threshold)


def signed(body: bytes, message_id: str = "msg_1", at_s: float = NOW_S, secret: str = WEBHOOK_SECRET) -> dict[str, str]:
    at = datetime.fromtimestamp(at_s, UTC)
    return {"webhook-id": message_id, "webhook-timestamp": str(int(at_s)),
            "webhook-signature": Webhook(secret).sign(message_id, at, body.decode())}


def published(hub: PlainHub, bundle: Bundle, **changes: Any) -> bytes:
    """The message of a bundle that lies in the hub's artefact store."""
    store = open_store(str(hub.home.root / "artefacts"))
    store.publish(bundle)
    data = {"url": store.url_of(bundle.policy_id), "policy_id": bundle.policy_id, **changes}
    return json.dumps({"type": "policy.published", "data": data}).encode()


async def receive(hub: PlainHub, body: bytes, message_id: str = "msg_1", **more: Any) -> dict[str, Any]:
    return await hub.webhook.receive(signed(body, message_id, **more), body)


def policy_rows(hub: PlainHub) -> list[str]:
    return [row.key for row in hub.reader.rows(kinds={"policy"})]


async def test_a_signed_message_registers_what_it_announces(hub: PlainHub) -> None:
    answer = await receive(hub, published(hub, candidate()))
    assert answer["policy_id"] == candidate().policy_id
    row = hub.reader.get("policy", candidate().policy_id)
    assert row is not None
    assert (row.position, row.body["actor"]) == (answer["position"], "webhook")
    assert candidate().policy_id in (await hub.decide_later())["proposals"]


async def test_a_repeated_message_gets_the_same_answer_and_changes_nothing(open_hub: Any) -> None:
    hub = open_hub()
    body = published(hub, candidate())
    first, head = await receive(hub, body), hub.reader.head()
    hub.wall_s += 200.0
    assert await receive(hub, body, at_s=NOW_S + 200.0) == first  # sent again by who missed the answer
    assert hub.reader.head() == head
    await hub.close()
    again = open_hub()
    assert await receive(again, body) == first
    assert len(again.intake.taken) == 0


async def test_a_thousand_replays_at_once_have_one_effect(hub: PlainHub) -> None:
    body = published(hub, candidate())
    before = policy_rows(hub)
    answers = await asyncio.gather(*(receive(hub, body) for _ in range(1_000)))
    assert all(answer == answers[0] for answer in answers)
    assert (policy_rows(hub), len(hub.intake.taken)) == ([*before, candidate().policy_id], 1)
    assert len(hub.reader.keys("observation", "webhook/")) == 1
    assert not hub.webhook._under_way


async def test_one_id_with_another_body_is_refused_and_the_first_stands(hub: PlainHub) -> None:
    first = await receive(hub, published(hub, candidate()))
    head = hub.reader.head()
    with pytest.raises(ContentConflict, match="body"):
        await receive(hub, published(hub, candidate("published_v2", 0.8)))
    assert hub.reader.head() == head
    assert await receive(hub, published(hub, candidate())) == first


async def test_ten_thousand_forged_messages_leave_no_row(hub: PlainHub) -> None:
    body = published(hub, candidate())
    head, draw = hub.reader.head(), random.Random(1)
    for number in range(10_000):
        headers = signed(body, f"msg_{number}", secret="whsec_" + "Zm9yZ2Vk" * 4)
        if number % 3 == 1:  # made of a true one, for another message
            headers = {**signed(body, f"true_{number}"), "webhook-id": f"msg_{number}"}
        if number % 3 == 2:
            headers["webhook-signature"] = f"v1,{draw.randbytes(32).hex()}"
        with pytest.raises(NotSigned):
            await hub.webhook.receive(headers, body)
    assert (hub.reader.head(), hub.intake.taken) == (head, [])


@pytest.mark.parametrize("changed", [
    {"webhook-id": ""}, {"webhook-id": "a b"}, {"webhook-id": "x" * 81}, {"webhook-timestamp": ""},
    {"webhook-timestamp": "nan"}, {"webhook-timestamp": "1e9"}, {"webhook-timestamp": "-1"},
    {"webhook-timestamp": str(int(NOW_S) + 1)}, {"webhook-signature": ""}, {"webhook-signature": "v1,"},
    {"webhook-signature": "v1"}, {"webhook-signature": "v2,AAAA"}, {"webhook-signature": "v1,\xe7"},
    {"webhook-signature": " ".join(["v1,AAAA"] * 1_000)}])
def test_headers_that_do_not_fit_the_message_are_not_believed(changed: dict[str, str]) -> None:
    with pytest.raises(NotSigned):
        verify(WEBHOOK_SECRET, {**signed(b"{}"), **changed}, b"{}", NOW_S)
    assert verify(WEBHOOK_SECRET, signed(b"{}"), b"{}", NOW_S) == "msg_1"


def test_a_body_that_was_changed_by_one_byte_is_not_believed() -> None:
    body = b'{"type": "policy.published"}'
    headers = signed(body)
    for place in range(len(body)):
        other = body[:place] + bytes([body[place] ^ 1]) + body[place + 1:]
        with pytest.raises(NotSigned):
            verify(WEBHOOK_SECRET, headers, other, NOW_S)
    with pytest.raises(NotSigned):
        verify(WEBHOOK_SECRET, headers, b"\xff", NOW_S)


@pytest.mark.parametrize(("away_s", "believed"), [
    (0, True), (TOLERANCE_S, True), (-TOLERANCE_S, True), (TOLERANCE_S + 1, False), (-TOLERANCE_S - 1, False)])
def test_a_message_is_believed_for_five_minutes_by_the_wall_clock(away_s: float, believed: bool) -> None:
    headers = signed(b"{}", at_s=NOW_S)
    if believed:
        assert verify(WEBHOOK_SECRET, headers, b"{}", NOW_S + away_s) == "msg_1"
    else:
        with pytest.raises(NotSigned, match="300 s"):
            verify(WEBHOOK_SECRET, headers, b"{}", NOW_S + away_s)


def test_of_two_signatures_one_is_enough_while_a_secret_is_replaced() -> None:
    headers = signed(b"{}")
    headers["webhook-signature"] = "v1,AAAA v1a,BBBB " + headers["webhook-signature"]
    assert verify(WEBHOOK_SECRET, headers, b"{}", NOW_S) == "msg_1"


@pytest.mark.parametrize("body", [
    b"", b"[]", b"{", b'{"type": "policy.published"}',
    b'{"type": "policy.deleted", "data": {"url": "x", "sha256": ""}}',
    b'{"type": "policy.published", "data": {"url": "file:///etc/passwd"}}',
    b'{"type": "policy.published", "data": {"url": "x", "policy_id": "A"}}'])
async def test_a_signed_message_that_makes_no_sense_is_refused_and_not_recorded(hub: PlainHub, body: bytes) -> None:
    head = hub.reader.head()
    with pytest.raises(InvalidInput):
        await receive(hub, body)
    assert hub.reader.head() == head


async def test_a_broken_candidate_is_refused_the_same_way_each_time_with_one_audit_row(hub: PlainHub) -> None:
    known = policy_rows(hub)
    body = published(hub, candidate(), sha256="ab" * 32)
    for _ in range(3):
        with pytest.raises(BundleRefused, match="announced"):
            await receive(hub, body)
    assert (policy_rows(hub), len(hub.intake.taken)) == (known, 1)
    audit = (await hub.writer.audit(100))["rows"]
    assert [row["actor"] for row in audit if row["rule"] == "registration_refused"] == ["webhook"]


async def test_a_message_with_a_url_outside_the_store_is_refused_the_same_way_each_time(hub: PlainHub) -> None:
    body = published(hub, candidate(), url="file:///etc/passwd")
    for _ in range(3):
        with pytest.raises(BundleRefused, match="bundles/<policy_id>"):
            await receive(hub, body)
    audit = (await hub.writer.audit(100))["rows"]
    assert [row["actor"] for row in audit if row["rule"] == "registration_refused"] == ["webhook"]


async def test_a_refusal_whose_message_could_not_be_recorded_stands_when_it_is_sent_again(
        hub: PlainHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that measures words the same refusal otherwise each time."""
    body, observe, figures = published(hub, candidate()), hub.writer.observe, iter((61.3, 58.9))
    failing = True

    async def slow(asked: Asked, _: Any) -> Taken:
        return Taken("ab" * 32, "published_v1", refused=f"answers within {next(figures)} ms", code="bundle_refused")

    async def flaky(observation: dict[str, Any], now_ms: int) -> dict[str, Any]:
        if failing and observation.get("key") == "webhook/msg_1":
            raise WriterUnavailable("late")
        return await observe(observation, now_ms)

    monkeypatch.setattr(hub.intake, "take_in", slow)
    monkeypatch.setattr(hub.writer, "observe", flaky)
    with pytest.raises(WriterUnavailable):
        await receive(hub, body)
    other = published(hub, candidate("published_v2", 0.8))
    with pytest.raises(ContentConflict):  # the id is taken, though its message is not recorded yet
        await receive(hub, other)
    failing = False
    for _ in range(3):
        with pytest.raises(BundleRefused, match=r"61\.3 ms"):
            await receive(hub, body)
    assert len(hub.reader.keys("observation", "refused/webhook/")) == 1
    with pytest.raises(ContentConflict, match="body"):
        await receive(hub, other)


async def test_a_sender_that_hangs_up_and_comes_again_has_one_effect(hub: PlainHub) -> None:
    begun, going_on = asyncio.Event(), asyncio.Event()

    async def held() -> None:
        begun.set()
        await going_on.wait()

    hub.intake.before = held
    body = published(hub, candidate())
    first = asyncio.create_task(receive(hub, body))
    await begun.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert hub.registrar._entered == 1
    again = asyncio.create_task(receive(hub, body))
    going_on.set()
    assert (await again)["policy_id"] == candidate().policy_id
    assert (len(hub.intake.taken), hub.registrar._entered) == (1, 0)


async def test_a_message_whose_artefact_is_not_there_yet_can_come_again(
        hub: PlainHub, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(hub.home.root / "artefacts"))
    body = json.dumps({"type": "policy.published", "data": {
        "url": store.url_of(candidate().policy_id), "policy_id": candidate().policy_id}}).encode()
    head = hub.reader.head()
    with pytest.raises(UnknownEntity):
        await receive(hub, body)
    store.publish(candidate())
    bundles = hub.home.root / "artefacts" / "bundles"
    bundles.rename(bundles.with_name("elsewhere"))
    bundles.write_text("a file where the folder was")
    with pytest.raises(ArtefactsUnavailable):
        await receive(hub, body)
    assert hub.reader.head() == head
    bundles.unlink()
    bundles.with_name("elsewhere").rename(bundles)
    assert (await receive(hub, body))["policy_id"] == candidate().policy_id


async def test_over_http_a_forged_message_is_401_a_conflict_422_and_fifty_replays_one_effect(hub: PlainHub) -> None:
    body, other = published(hub, candidate()), published(hub, candidate("published_v2", 0.8))
    before = policy_rows(hub)
    async with client_of(hub) as client:
        async def post(content: bytes, headers: dict[str, str]) -> httpx.Response:
            return await client.post(PATH, content=content, headers=headers)

        assert assert_problem(await post(body, {}), 401)["code"] == "not_signed"
        assert_problem(await post(other, signed(body)), 401)
        assert policy_rows(hub) == before
        answers = await asyncio.gather(*(post(body, signed(body)) for _ in range(50)))
        assert {answer.text for answer in answers} == {answers[0].text}
        assert answers[0].status_code == 200
        assert assert_problem(await post(other, signed(other)), 422)["code"] == "content_conflict"
        assert_problem(await post(b" " * 70_000, signed(body)), 413)
    assert policy_rows(hub) == [*before, candidate().policy_id]


def test_the_secret_is_made_once_and_is_its_owners_alone(tmp_path: Path) -> None:
    secret = webhook_secret(tmp_path)
    assert webhook_secret(tmp_path) == secret != webhook_secret_of_another(tmp_path)
    assert os.stat(secret_file(tmp_path)).st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["webhook_secret"]
    assert verify(secret, signed(b"{}", secret=secret), b"{}", NOW_S) == "msg_1"


def webhook_secret_of_another(tmp_path: Path) -> str:
    (tmp_path / "another").mkdir()
    return webhook_secret(tmp_path / "another")
