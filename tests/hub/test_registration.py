"""Registration on the plain hub: one path for uploads and URLs, and what a refusal leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import socket
import sys
import zipfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from encoder_bundles import encoder_bundle
from moto.server import ThreadedMotoServer
from plain_hub import PlainHub, momentum_bundle, onnx_bundle
from test_api import assert_problem, bearer, client_of

from hub.intake import Asked, Taken, alias_in
from hub.registration import (
    AT_ONCE,
    KEPT_FOR_WEBHOOKS,
    MOST_WAITING,
    RECEIVED_AT_ONCE,
    BodyTooLarge,
    ChildIntake,
    RegistrationBusy,
    UploadTooSlow,
    registrar_of,
)
from hub.state import folded
from policies.artefacts import ArtefactStore, ArtefactsUnavailable, open_store
from policies.bundle import Bundle, pack_bundle
from policies.embedder import EmbedderFolder, version_of
from policies.errors import BundleRefused, InvalidInput, UnknownEntity
from policies.manifest import MANIFEST
from policies.registry import PolicyFolder
from policies.rows import Row
from policies.signing import public_key_of, sign_bundle
from sentry.audit import AuditReader

PICKLE = b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94"


def candidate(alias: str = "candidate_v1", threshold: float = 0.9) -> Bundle:
    return momentum_bundle(alias, threshold)


async def chunks(content: bytes, size: int = 1_000) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start:start + size]


async def upload(hub: PlainHub, content: bytes) -> dict[str, Any]:
    return await hub.registrar.register_upload(await hub.registrar.received(chunks(content), "ops"), "ops")


def store_of(hub: PlainHub) -> ArtefactStore:
    return open_store(str(hub.home.root / "artefacts"))


def refusals(hub: PlainHub) -> list[Row]:
    return [row for row in hub.reader.rows(kinds={"observation"}) if row.body["what"] == "registration_refused"]


def damaged(packed: bytes) -> bytes:
    """Of a kind that there is not, in an archive that is whole."""
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    values = json.loads(members[MANIFEST])
    values["kind"] = "pickled_forest"
    members[MANIFEST] = json.dumps(values).encode()
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return made.getvalue()


# -- what is registered ------------------------------------------------------------------------------------------------


async def test_an_upload_is_stored_recorded_and_asked_by_the_next_decision(hub: PlainHub) -> None:
    bundle = candidate()
    answer = await upload(hub, pack_bundle(bundle))
    assert (answer["accepted"], answer["policy_id"], answer["alias"]) == ("recorded", bundle.policy_id, "candidate_v1")
    row = hub.reader.get("policy", bundle.policy_id)
    assert row is not None
    assert (row.position, row.body["actor"]) == (answer["position"], "ops")
    assert hub.folder.get(bundle.policy_id) == bundle
    assert bundle.policy_id in (await hub.decide_later())["proposals"]


async def test_the_same_upload_again_is_told_so_and_changes_nothing(hub: PlainHub) -> None:
    first = await upload(hub, pack_bundle(candidate()))
    head = hub.reader.head()
    again = await upload(hub, pack_bundle(candidate()))
    assert again == {**first, "accepted": "duplicate"}
    assert hub.reader.head() == head


@pytest.mark.parametrize("pointer", ["bundle", "latest", "alias"])
async def test_a_bundle_is_registered_by_its_url_and_by_a_pointer_to_it(hub: PlainHub, pointer: str) -> None:
    bundle, store = candidate(), store_of(hub)
    store.publish(bundle)
    url = {"bundle": store.url_of(bundle.policy_id), "latest": f"{store.url}/latest.json",
           "alias": f"{store.url}/aliases/candidate_v1.json"}[pointer]
    async with client_of(hub) as client:
        answer = await client.post("/v1/policies", json={"url": url}, headers=bearer("ops"))
    assert answer.status_code == 200, answer.text
    assert answer.json()["policy_id"] == bundle.policy_id
    assert bundle.policy_id in hub.state.heads


async def test_an_embedder_is_stored_for_an_operator_to_choose_and_is_no_policy(hub: PlainHub) -> None:
    bundle, heads, head = encoder_bundle(), set(hub.state.heads), hub.reader.head()
    answer = await upload(hub, pack_bundle(bundle))
    assert await upload(hub, pack_bundle(bundle, compressed=False)) == answer, "it is there already"
    assert (answer["accepted"], answer["embedding_version"]) == ("stored", version_of(bundle.policy_id))
    assert EmbedderFolder(hub.home.root / "embedders").versions() == {answer["embedding_version"]: bundle.policy_id}
    assert (set(hub.state.heads), bundle.policy_id in hub.folder.ids()) == (heads, False)
    assert (hub.reader.head(), answer["position"]) == (head + 1, head + 1)
    audit = await hub.writer.audit(1)
    version, sha256 = version_of(bundle.policy_id), hashlib.sha256(pack_bundle(bundle)).hexdigest()
    assert (audit["rows"][0]["actor"], audit["rows"][0]["rule"], audit["verified"]) == ("ops", "embedder", True)
    assert audit["rows"][0]["summary"] == f"stored embedder {version} (encoder_0, SHA-256 {sha256[:12]})"
    assert next(iter(hub.reader.rows(after=head))).body["detail"] == {
        "actor": "ops", "alias": "encoder_0", "version": version, "id": bundle.policy_id, "sha256": sha256,
        "source": "upload"}
    unsound = pack_bundle(encoder_bundle(most=-1e30))
    with pytest.raises(BundleRefused):
        await upload(hub, unsound)
    assert len(refusals(hub)) == 1


async def test_with_trusted_keys_only_what_one_of_them_signed_becomes_a_policy(open_hub: Any) -> None:
    key, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    hub = open_hub({"registration": {"trusted_keys": [public_key_of(key)]}})
    for bundle in (candidate(), sign_bundle(candidate(), other)):
        with pytest.raises(BundleRefused, match=r"signed|not trusted"):
            await upload(hub, pack_bundle(bundle))
    assert not hub.state.heads
    assert (await upload(hub, pack_bundle(sign_bundle(candidate(), key))))["accepted"] == "recorded"


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("content", "alias", "reason"), [
    (PICKLE, "", "make retrain_sup"), (b"", "", "neither a folder nor a zip"), (b"PK\x03\x04rubbish", "", "damaged"),
    (damaged(pack_bundle(candidate())), "candidate_v1", "pickled_forest"),
    (pack_bundle(momentum_bundle("other_features", features=("ret_15", "ret_1"), optional_features=())),
     "other_features", "made for other features"),
    (pack_bundle(onnx_bundle("nan_v1", most_ret_1=0.0)), "nan_v1", "not sound"),
], ids=["pickle", "empty", "rubbish", "unknown kind", "other features", "unsound"])
async def test_a_refused_upload_leaves_one_audit_row_and_nothing_else(
        hub: PlainHub, content: bytes, alias: str, reason: str) -> None:
    before, stored = hub.state, hub.folder.ids()
    known, roles, head = set(before.heads), dict(before.epoch.roles.shares), hub.reader.head()
    with pytest.raises(BundleRefused, match=reason):
        await upload(hub, content)
    assert hub.reader.head() == head + 1
    assert (set(hub.state.heads), hub.state.epoch.roles.shares, hub.folder.ids()) == (known, roles, stored)
    audit = (await hub.writer.audit(1))["rows"][0]
    assert (audit["kind"], audit["rule"], audit["actor"]) == ("observation", "registration_refused", "ops")
    detail = refusals(hub)[-1].body["detail"]
    assert (detail["alias"], detail["sha256"]) == (alias, hashlib.sha256(content).hexdigest())
    assert reason in detail["reason"]
    assert (await hub.writer.audit(100))["verified"]
    assert folded(hub.reader).epoch == hub.state.epoch


async def test_the_audit_holds_a_refusal_bounded_whatever_was_sent(hub: PlainHub) -> None:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("x" * 60_000 + "\ud7ff", b"")
        archive.writestr(MANIFEST, json.dumps({"alias": "a" * 100, "kind": "k" * 50_000, "features": ["f"]}))
    with pytest.raises(BundleRefused):
        await upload(hub, made.getvalue())
    assert len(json.dumps(refusals(hub)[-1].body)) < 2_000
    reader = AuditReader(hub.home.audit)
    assert len(reader.tail(1)[0].summary) < 1_000
    reader.close()


async def test_what_a_head_process_cannot_load_is_refused_and_not_kept(
        hub: PlainHub, monkeypatch: pytest.MonkeyPatch) -> None:
    async def load(policy_id: str) -> None:
        raise BundleRefused("the head's process says no")

    monkeypatch.setattr(hub.heads, "load", load)
    stored = hub.folder.ids()
    with pytest.raises(BundleRefused, match="says no"):
        await upload(hub, pack_bundle(candidate()))
    assert (hub.folder.ids(), len(refusals(hub))) == (stored, 1)
    with pytest.raises(BundleRefused):  # one that is registered already stays
        await upload(hub, pack_bundle(momentum_bundle()))
    assert hub.folder.ids() == stored


async def test_a_bundle_that_is_not_the_announced_one_is_refused(hub: PlainHub) -> None:
    bundle, store = candidate(), store_of(hub)
    store.publish(bundle)
    url = f"{store.url}/latest.json"
    for policy_id, sha256 in (("ab" * 32, ""), ("", "cd" * 32)):
        with pytest.raises(BundleRefused, match="announced"):
            await hub.registrar.register_url(url, "ops", policy_id, sha256)
    assert bundle.policy_id not in hub.state.heads
    assert [row.body["detail"]["source"] for row in refusals(hub)] == [url, url]


async def test_an_absent_artefact_is_not_found_and_leaves_no_row(hub: PlainHub) -> None:
    head = hub.reader.head()
    with pytest.raises(UnknownEntity):
        await hub.registrar.register_url(f"{store_of(hub).url}/latest.json", "ops")
    assert hub.reader.head() == head


async def test_a_url_outside_the_store_is_refused_with_one_audit_row(hub: PlainHub) -> None:
    head = hub.reader.head()
    with pytest.raises(InvalidInput, match="bundles/<policy_id>"):
        await hub.registrar.register_url("file:///etc/passwd", "ops")
    assert hub.reader.head() == head + 1
    detail = refusals(hub)[-1].body["detail"]
    assert (detail["actor"], detail["source"], detail["sha256"]) == ("ops", "file:///etc/passwd", "")
    assert "bundles/<policy_id>" in detail["reason"]


async def test_while_the_writer_is_away_nothing_is_told_as_refused_or_registered(hub: PlainHub) -> None:
    async with client_of(hub) as client:
        hub.writer.away = True
        for content in (pack_bundle(candidate()), PICKLE):
            answer = await client.post("/v1/policies", content=content, headers=bearer("ops"))
            assert assert_problem(answer, 503)["code"] == "writer_unavailable"
        hub.writer.away = False
        answer = await client.post("/v1/policies", content=pack_bundle(candidate()), headers=bearer("ops"))
        assert answer.json()["accepted"] == "recorded"


# -- many, large, slow -------------------------------------------------------------------------------------------------


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


# -- in a process of its own -------------------------------------------------------------------------------------------


async def test_the_child_that_checks_says_what_the_plain_function_says(hub: PlainHub, tmp_path: Path) -> None:
    asked = Asked(str(tmp_path / "policies"), str(tmp_path / "embedders"))
    intake = ChildIntake()
    for content in (pack_bundle(candidate()), PICKLE, damaged(pack_bundle(candidate()))):
        received = await hub.registrar.received(chunks(content), "ops")
        with received.file:
            taken = await intake.take_in(asked, received.file)
            assert taken == await hub.intake.take_in(asked, received.file)
    assert PolicyFolder(tmp_path / "policies").ids() == [candidate().policy_id]


async def test_the_child_reads_a_store_of_s3_with_the_credentials_of_the_hub(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "testing")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        url = f"http://{host}:{port}"
        boto3.session.Session().client("s3", endpoint_url=url).create_bucket(Bucket="bucket")
        store = open_store("s3://bucket/hub", url)
        store.publish(candidate())
        asked = Asked(str(tmp_path / "policies"), str(tmp_path / "embedders"), store_url=store.url,
                      s3_endpoint_url=url, url=f"{store.url}/latest.json")
        assert (await ChildIntake().take_in(asked, None)).policy_id == candidate().policy_id
    finally:
        server.stop()
    assert PolicyFolder(tmp_path / "policies").ids() == [candidate().policy_id]


async def test_a_child_that_does_not_end_is_ended_and_the_candidate_refused(hub: PlainHub, tmp_path: Path) -> None:
    taken = await ChildIntake(timeout_s=0.001).take_in(Asked(str(tmp_path), str(tmp_path)), None)
    assert (taken.code, taken.refused) == ("bundle_refused", "checking it took more than 0.001 s")


async def test_by_url_a_child_without_a_result_has_judged_nothing(
        hub: PlainHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_of(hub)
    asked = Asked(str(tmp_path), str(tmp_path), url=store.url_of(candidate().policy_id), store_url=store.url)
    late = await ChildIntake(timeout_s=0.001).take_in(asked, None)
    assert (late.code, late.refused) == ("artefacts_unavailable", "reading and checking it took more than 0.001 s")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    crashed = await ChildIntake().take_in(asked, None)
    assert (crashed.code, crashed.refused) == ("artefacts_unavailable", "reading and checking it ended with 1")
    assert (await ChildIntake().take_in(replace(asked, url=""), None)).code == "bundle_refused"

    async def never(*_: Any) -> Taken:
        return late

    monkeypatch.setattr(hub.intake, "take_in", never)
    head = hub.reader.head()
    with pytest.raises(ArtefactsUnavailable, match=r"0\.001 s"):
        await hub.registrar.register_url(asked.url, "ops")
    assert hub.reader.head() == head, "nothing is recorded: it can come again"


async def test_a_store_that_never_answers_is_unavailable_and_the_candidate_is_not_refused(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel takes connections; nobody reads
        asked = Asked(str(tmp_path), str(tmp_path), url="s3://b/latest.json", store_url="s3://b",
                      s3_endpoint_url=f"http://127.0.0.1:{silent.getsockname()[1]}")
        taken = await ChildIntake(timeout_s=3.0).take_in(asked, None)
    assert taken.code == "artefacts_unavailable"


@pytest.mark.parametrize("content", [b"", PICKLE, b"PK\x03\x04", b"PK" * 1_000, b"\0" * 100])
def test_an_alias_that_cannot_be_read_is_none(content: bytes) -> None:
    assert alias_in(content) == ""
    assert alias_in(pack_bundle(candidate())) == "candidate_v1"
