"""Artefact stores: a folder, and S3 over real HTTP, away for a while and with damaged objects."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from moto.server import ThreadedMotoServer

from policies import objects
from policies.artefacts import ArtefactStore, ArtefactsUnavailable, open_store
from policies.bundle import Bundle, make_bundle, pack_bundle
from policies.errors import BundleRefused, InvalidInput, UnknownEntity
from policies.free_ports import free_port
from policies.manifest import Manifest
from policies.objects import FolderObjects, S3Objects

BUCKET = "artefacts"


def bundle_of(alias: str = "rule_v1", threshold: float = 1.0) -> Bundle:
    return make_bundle(Manifest(kind="momentum_rule", alias=alias, features=("a", "b"), inputs={"momentum": "a"},
                                parameters={"threshold": threshold}), {})


class S3Server:
    """moto's, which can be ended and started again on the same port. What it holds lives in this process."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._server: ThreadedMotoServer | None = None
        self.start()

    def start(self) -> None:
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self._server.start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop()
            self._server = None


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    started = S3Server()
    yield started
    started.stop()


@pytest.fixture
def s3(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of an emptied bucket."""
    import boto3

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    client = boto3.client("s3")
    client.create_bucket(Bucket=BUCKET)
    for found in client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        client.delete_object(Bucket=BUCKET, Key=found["Key"])
    return client


@pytest.fixture
def in_folder(tmp_path: Path) -> ArtefactStore:
    return open_store(str(tmp_path / "artefacts"))


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest) -> ArtefactStore:
    if request.param == "folder":
        return request.getfixturevalue("in_folder")
    request.getfixturevalue("s3")
    return open_store(f"s3://{BUCKET}/hub/policies/")


def test_what_was_published_is_fetched_and_pointed_at(store: ArtefactStore) -> None:
    first, second = bundle_of(), bundle_of("rule_v2", 2.0)
    for bundle in (first, second, second):
        pointer = store.publish(bundle)
        assert store.pointer() == store.pointer(bundle.manifest.alias) == pointer
    assert (store.fetch(first.policy_id), store.fetch(second.policy_id)) == (first, second)
    assert (store.pointer().policy_id, store.pointer("rule_v1").policy_id) == (second.policy_id, first.policy_id)
    for url in (store.url_of(second.policy_id), f"{store.url}/latest.json", f"{store.url}/aliases/rule_v2.json"):
        assert store.content(url) == pack_bundle(second)
    assert store.expected_id(store.url_of(first.policy_id)) == first.policy_id
    assert store.expected_id(f"{store.url}/latest.json") == ""


def test_a_bucket_needs_no_prefix(s3: Any) -> None:
    store = open_store(f"s3://{BUCKET}")
    store.publish(bundle_of())
    assert store.url_of(bundle_of().policy_id) == f"s3://{BUCKET}/bundles/{bundle_of().policy_id}.pt"
    assert store.fetch(bundle_of().policy_id) == bundle_of()


def test_what_is_not_there_is_unknown(store: ArtefactStore) -> None:
    for ask in (lambda: store.fetch("ab" * 32), store.pointer, lambda: store.pointer("rule_v1")):
        with pytest.raises(UnknownEntity):
            ask()


@pytest.mark.parametrize("url", [
    "latest.json", "{store}/latest.json/", "{store}/../latest.json", "{store}/bundles/../latest.json",
    "{store}x/latest.json", "{store}/bundles/ABC.pt",
    "{store}/aliases/../../x.json", "{store}/aliases/.json", "{store}/manifest.json", ""])
def test_a_url_outside_the_store_is_refused(in_folder: ArtefactStore, url: str) -> None:
    for store in (in_folder, open_store("s3://bucket/prefix")):
        with pytest.raises(InvalidInput, match="bundles/<policy_id>"):
            store.content(url.format(store=store.url))


@pytest.mark.parametrize("url", ["s3://", "s3:///", "http://x/y", "file://x/y", "gs://bucket"])
def test_an_address_of_no_store_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput, match="artefacts_url"):
        open_store(url)


def test_a_bundle_is_there_before_anything_points_at_it(store: ArtefactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every step of a publication a reader finds what the pointer names, or no pointer."""
    store.publish(bundle_of())
    put, steps = type(store._objects).put, []

    def observed(self: Any, key: str, content: bytes) -> None:
        put(self, key, content)
        steps.append(key.partition("/")[0])
        for alias in ("", "rule_v1", "rule_v2"):
            try:
                pointer = store.pointer(alias)
            except UnknownEntity:
                continue
            assert store.fetch(pointer.policy_id).policy_id == pointer.policy_id

    monkeypatch.setattr(type(store._objects), "put", observed)
    store.publish(bundle_of("rule_v2", 2.0))
    assert steps == ["bundles", "aliases", "latest.json"]


@pytest.mark.parametrize("stop_after", [0, 1, 2])
def test_a_publication_that_breaks_off_leaves_the_last_one_readable(
        store: ArtefactStore, monkeypatch: pytest.MonkeyPatch, stop_after: int) -> None:
    store.publish(bundle_of())
    put, done = type(store._objects).put, 0

    def breaking(self: Any, key: str, content: bytes) -> None:
        nonlocal done
        if done == stop_after:
            raise OSError("the disk is full")
        put(self, key, content)
        done += 1

    with monkeypatch.context() as patched:
        patched.setattr(type(store._objects), "put", breaking)
        with pytest.raises(ArtefactsUnavailable, match="disk is full"):
            store.publish(bundle_of("rule_v2", 2.0))
    assert store.fetch(store.pointer().policy_id) == bundle_of()
    store.publish(bundle_of("rule_v2", 2.0))
    assert store.fetch(store.pointer().policy_id) == bundle_of("rule_v2", 2.0)


def test_a_truncated_or_changed_bundle_is_refused(store: ArtefactStore) -> None:
    pointer = store.publish(bundle_of())
    packed, key = pack_bundle(bundle_of()), f"bundles/{pointer.policy_id}.pt"
    for content in (packed[:-10], packed[:30], b"", pack_bundle(bundle_of("rule_v2"))):
        store._objects.put(key, content)
        with pytest.raises(BundleRefused, match="SHA-256"):
            store.content(f"{store.url}/latest.json")
        with pytest.raises(BundleRefused):
            store.fetch(pointer.policy_id)
    store.publish(bundle_of())
    assert store.fetch(pointer.policy_id) == bundle_of()


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b"x" * 5_000, b"[" * 4_000, json.dumps(
    {"policy_id": "../../etc", "alias": "a", "sha256": "ab" * 32, "size_bytes": 1}).encode()])
def test_what_is_no_pointer_is_refused(in_folder: ArtefactStore, raw: bytes) -> None:
    in_folder._objects.put("latest.json", raw)
    with pytest.raises(BundleRefused, match="no pointer"):
        in_folder.pointer()


def test_a_link_in_the_folder_is_not_followed(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "artefacts"))
    pointer = store.publish(bundle_of())
    target = tmp_path / "artefacts" / "bundles" / f"{pointer.policy_id}.pt"
    target.rename(tmp_path / "elsewhere.pt")
    target.symlink_to(tmp_path / "elsewhere.pt")
    with pytest.raises(ArtefactsUnavailable):
        store.fetch(pointer.policy_id)


def test_an_s3_that_is_away_is_named_and_serves_again_when_it_is_back(
        server: S3Server, s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "ATTEMPTS", 1)
    store = open_store(f"s3://{BUCKET}/away")
    pointer = store.publish(bundle_of())
    server.stop()
    for ask in (store.pointer, lambda: store.fetch(pointer.policy_id), lambda: store.publish(bundle_of("rule_v2"))):
        with pytest.raises(ArtefactsUnavailable, match=r"s3://artefacts/away cannot be (read|written)"):
            ask()
    server.start()
    assert store.pointer() == pointer
    assert store.fetch(pointer.policy_id) == bundle_of()


def test_a_bucket_that_is_not_there_and_a_server_without_credentials_are_unavailable(
        s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ArtefactsUnavailable, match="NoSuchBucket"):
        open_store("s3://nowhere").pointer()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    with pytest.raises(ArtefactsUnavailable, match="credentials"):
        open_store(f"s3://{BUCKET}").pointer()


def test_an_answer_that_breaks_off_is_asked_for_again_and_then_unavailable(
        monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that promises 1,000 bytes and hangs up after 100; the third time it keeps its word."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    served: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65_536)
                    served.append(b"x" * (1_000 if whole_after and len(served) + 1 >= whole_after else 100))
                    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nConnection: close\r\n\r\n"
                    connection.sendall(head + served[-1])

        whole_after = 3
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        assert S3Objects(BUCKET, "", url).get("x", 5_000) == b"x" * 1_000
        assert len(served) == 3
        whole_after = 0
        with pytest.raises(OSError, match="broke off after 100 of 1000 bytes"):
            S3Objects(BUCKET, "", url).get("x", 5_000)
        listening.shutdown(socket.SHUT_RDWR)
    thread.join(5.0)


class Held:
    """A server of connections: each is given to `serve`, which may hold it."""

    def __init__(self, serve: Callable[[socket.socket, int], None]) -> None:
        self._listening, self._serve = socket.create_server(("127.0.0.1", 0)), serve
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self.connections: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            self.connections.append(connection)
            self._serve(connection, len(self.connections))

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(5.0)
        for connection in self.connections:
            connection.close()


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Held]]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    opened: list[Held] = []

    def start(serve: Callable[[socket.socket, int], None]) -> Held:
        opened.append(Held(serve))
        return opened[-1]

    yield start
    for server in opened:
        server.close()


def test_a_store_that_takes_connections_and_never_answers_is_given_up_after_one_layer_of_attempts(
        held: Callable[..., Held], monkeypatch: pytest.MonkeyPatch) -> None:
    assert objects.AGAIN_WITHIN_S + objects.PAUSE_S + objects.CONNECT_TIMEOUT_S + objects.READ_TIMEOUT_S < 20
    assert objects.ANSWER_WITHIN_S + objects.READ_TIMEOUT_S < 20
    for waited_s, attempts in ((objects.READ_TIMEOUT_S, 2), (objects.CONNECT_TIMEOUT_S, 3), (20.0, 1)):
        silent = held(lambda connection, number: None)
        told = SimpleNamespace(monotonic=lambda at=silent, s=waited_s: s * len(at.connections), sleep=lambda _: None)
        with monkeypatch.context() as patched:
            patched.setattr(objects, "READ_TIMEOUT_S", 0.2)
            patched.setattr(objects, "time", told)
            with pytest.raises(OSError, match="timeout"):
                S3Objects(BUCKET, "", silent.url).get("x", 5_000)
        assert len(silent.connections) == attempts


def test_an_answer_that_trickles_is_given_up(held: Callable[..., Held], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "ANSWER_WITHIN_S", 0.0)
    monkeypatch.setattr(objects, "PAUSE_S", 0.0)

    def serve(connection: socket.socket, number: int) -> None:
        connection.recv(65_536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nx")

    with pytest.raises(OSError, match="broke off after 0 of 1000 bytes"):
        S3Objects(BUCKET, "", held(serve).url).get("x", 5_000)


def test_a_server_that_is_overloaded_is_asked_again_and_one_that_refuses_is_not(held: Callable[..., Held]) -> None:
    def serve(connection: socket.socket, number: int) -> None:
        connection.recv(65_536)
        status, body = ((b"503 Slow Down", b"") if number < 3 else (b"200 OK", b"whole")) if busy else (
            b"403 Forbidden", b"")
        connection.sendall(b"HTTP/1.1 %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (
            status, len(body), body))
        connection.close()

    busy, overloaded = True, held(serve)
    assert S3Objects(BUCKET, "", overloaded.url).get("x", 5_000) == b"whole"
    busy, refusing = False, held(serve)
    with pytest.raises(OSError, match="403"):
        S3Objects(BUCKET, "", refusing.url).get("x", 5_000)
    assert (len(overloaded.connections), len(refusing.connections)) == (3, 1)


def test_no_more_than_asked_for_is_read(store: ArtefactStore) -> None:
    store._objects.put("latest.json", b"x" * 3_000_000)
    assert len(store._objects.get("latest.json", 10) or b"") == 11
    assert len(store._objects.get("latest.json", 2_000_000) or b"") == 2_000_001


def test_a_folder_is_made_by_the_first_put_only(tmp_path: Path) -> None:
    folder = FolderObjects(tmp_path / "artefacts")
    assert folder.get("latest.json", 10) is None
    assert not (tmp_path / "artefacts").exists()
    folder.put("latest.json", b"{}")
    assert [path.name for path in (tmp_path / "artefacts").iterdir()] == ["latest.json"]
