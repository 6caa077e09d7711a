"""The process of its own in which a candidate is opened."""

from __future__ import annotations

import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest
from candidates import PICKLE, candidate, chunks, damaged, refusals, store_of
from moto.server import ThreadedMotoServer
from plain_hub import PlainHub

from hub.intake import Asked, Taken, alias_in
from hub.registration import (
    ChildIntake,
)
from policies.artefacts import ArtefactsUnavailable, open_store
from policies.bundle import pack_bundle
from policies.errors import BundleRefused
from policies.registry import PolicyFolder


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


async def test_by_url_a_child_that_has_not_read_it_has_judged_nothing(
        hub: PlainHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_of(hub)
    asked = Asked(str(tmp_path), str(tmp_path), url=store.url_of(candidate().policy_id), store_url=store.url)
    late = await ChildIntake(timeout_s=0.001).take_in(asked, None)
    assert (late.code, late.refused) == ("artefacts_unavailable", "reading it took more than 0.001 s")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    crashed = await ChildIntake().take_in(asked, None)
    assert (crashed.code, crashed.refused) == ("artefacts_unavailable", "reading it ended with 1")
    assert (await ChildIntake().take_in(replace(asked, url=""), None)).code == "bundle_refused"

    async def never(*_: Any) -> Taken:
        return late

    monkeypatch.setattr(hub.intake, "take_in", never)
    head = hub.reader.head()
    with pytest.raises(ArtefactsUnavailable, match=r"0\.001 s"):
        await hub.registrar.register_url(asked.url, "ops")
    assert hub.reader.head() == head, "nothing is recorded: it can come again"


@pytest.mark.parametrize(("ending", "refused"), [("sleep 60", "checking it took more than 3 s"),
                                                 ("kill -SEGV $$", "checking it ended with -11")])
async def test_by_url_too_a_check_without_a_result_refuses_what_was_read(
        hub: PlainHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, refused: str) -> None:
    store, sha256 = store_of(hub), "ab" * 32
    url = store.url_of(candidate().policy_id)
    child = tmp_path / "child"
    child.write_text(f"#!/bin/sh\necho {sha256}\nexec 2>&-\n{ending.replace('sleep', 'exec sleep')}\n")
    child.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(child))
    monkeypatch.setattr(hub.intake, "take_in", ChildIntake(timeout_s=3.0).take_in)
    with pytest.raises(BundleRefused, match=refused):
        await hub.registrar.register_url(url, "ops")
    detail = refusals(hub)[-1].body["detail"]
    assert (detail["sha256"], detail["source"], detail["reason"]) == (sha256, url, refused)


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
