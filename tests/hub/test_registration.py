"""Registration on the plain hub: one path for uploads and URLs, and what a refusal leaves behind."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from typing import Any

import pytest
from candidates import PICKLE, candidate, damaged, refusals, store_of, upload
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from encoder_bundles import encoder_bundle
from http_door import assert_problem, bearer, client_of
from plain_bundles import momentum_bundle, onnx_bundle
from plain_hub import PlainHub

from hub.state import folded
from policies.bundle import pack_bundle
from policies.embedder import EmbedderFolder, version_of
from policies.errors import BundleRefused, InvalidInput, UnknownEntity
from policies.manifest import MANIFEST
from policies.signing import public_key_of, sign_bundle
from sentry.audit import AuditReader


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


async def test_what_the_audit_keeps_of_a_refusal_is_one_printable_line(hub: PlainHub) -> None:
    with pytest.raises(InvalidInput):
        await hub.registrar.register_url("s3://\x1b[2J\n/latest.json", "ops")
    detail = refusals(hub)[-1].body["detail"]
    assert detail["source"].isprintable()
    assert detail["reason"].isprintable()


async def test_while_the_writer_is_away_nothing_is_told_as_refused_or_registered(hub: PlainHub) -> None:
    async with client_of(hub) as client:
        hub.writer.away = True
        for content in (pack_bundle(candidate()), PICKLE):
            answer = await client.post("/v1/policies", content=content, headers=bearer("ops"))
            assert assert_problem(answer, 503)["code"] == "writer_unavailable"
        hub.writer.away = False
        answer = await client.post("/v1/policies", content=pack_bundle(candidate()), headers=bearer("ops"))
        assert answer.json()["accepted"] == "recorded"
