"""Bundles by URL: where training publishes what it has made and the hub fetches it from, a folder or an S3 bucket.

Below the URL lie `bundles/<policy_id>.pt`, each packed as one file, and pointers to them: `latest.json` and, by alias,
`aliases/<alias>.json`. A pointer is written after the bundle that it names, so whoever follows one finds it.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from policies.archive import MAX_BYTES
from policies.bundle import Bundle, pack_bundle, read_bundle
from policies.errors import BundleRefused, HubError, InvalidInput, UnknownEntity
from policies.manifest import MAX_MANIFEST_BYTES
from policies.objects import FolderObjects, S3Objects

LATEST = "latest.json"
MOST_BYTES = MAX_BYTES + MAX_MANIFEST_BYTES
MOST_POINTER_BYTES = 4_096

_BUNDLE_KEY = re.compile(r"bundles/([0-9a-f]{64})\.pt")
_POINTER_KEY = re.compile(r"latest\.json|aliases/[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}\.json")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class ArtefactsUnavailable(HubError):
    """The store cannot be reached, answers too late, or refuses who asks. Nothing was judged; trying again is right."""

    code = "artefacts_unavailable"


class Objects(Protocol):
    """Named contents below one URL. Every method raises OSError when the store is away."""

    def put(self, key: str, content: bytes) -> None:
        """Replace the content of a key; it is there as a whole, or not at all."""
        ...

    def get(self, key: str, most_bytes: int) -> bytes | None:
        """The content, cut after most_bytes + 1 bytes; None if there is no such key."""
        ...


@dataclass(frozen=True)
class Pointer:
    """What a pointer names. sha256: of the packed file, in hex; size_bytes: its length."""

    policy_id: str
    alias: str
    sha256: str
    size_bytes: int


class ArtefactStore:
    """url: without a trailing slash, `file:///...` or `s3://bucket/prefix`."""

    def __init__(self, url: str, objects: Objects) -> None:
        self.url, self._objects = url, objects

    def publish(self, bundle: Bundle) -> Pointer:
        """Store a bundle, then point at it by its alias and as the latest. Again, and nothing changes."""
        packed = pack_bundle(bundle)
        alias = bundle.manifest.alias
        pointer = Pointer(bundle.policy_id, alias, hashlib.sha256(packed).hexdigest(), len(packed))
        named = json.dumps(asdict(pointer), sort_keys=True).encode()
        self._put(_bundle_key(bundle.policy_id), packed)
        for key in (f"aliases/{alias}.json", LATEST):  # after the bundle, always
            self._put(key, named)
        return pointer

    def fetch(self, policy_id: str) -> Bundle:
        """The bundle of this id, hashed again. UnknownEntity; BundleRefused if it is not what its name promises."""
        bundle = read_bundle(self.content(self.url_of(policy_id)))
        if bundle.policy_id != policy_id:
            raise BundleRefused(f"the bundle stored as {policy_id} hashes to {bundle.policy_id}")
        return bundle

    def pointer(self, alias: str = "") -> Pointer:
        """What was published last, of all or of this alias."""
        return self._pointer(f"aliases/{alias}.json" if alias else LATEST)

    def content(self, url: str) -> bytes:
        """The packed bundle at the URL of a bundle, or of a pointer to one, of this store; not opened yet.

        What a pointer leads to has the SHA-256 that the pointer names, or is refused.
        """
        key = self._key_of(url)
        pointer = None if _BUNDLE_KEY.fullmatch(key) else self._pointer(key)
        packed = self._get(key if pointer is None else _bundle_key(pointer.policy_id), MOST_BYTES)
        if len(packed) > MOST_BYTES:
            raise BundleRefused(f"{url} is larger than the {MOST_BYTES} bytes that a packed bundle may have")
        if pointer is not None and hashlib.sha256(packed).hexdigest() != pointer.sha256:
            raise BundleRefused(f"{url} names {pointer.size_bytes} bytes with SHA-256 {pointer.sha256}; the store "
                                f"holds {len(packed)} others: it is damaged, or was being replaced")
        return packed

    def expected_id(self, url: str) -> str:
        """The id that the URL of a bundle promises; "" for the URL of a pointer."""
        found = _BUNDLE_KEY.fullmatch(self._key_of(url))
        return found.group(1) if found else ""

    def url_of(self, policy_id: str) -> str:
        return f"{self.url}/{_bundle_key(policy_id)}"

    def _key_of(self, url: str) -> str:
        key = url.removeprefix(f"{self.url}/")
        if key == url or not (_BUNDLE_KEY.fullmatch(key) or _POINTER_KEY.fullmatch(key)):
            raise InvalidInput("url", f"{self.url}/ and then bundles/<policy_id>.pt, aliases/<alias>.json or {LATEST}",
                               url)
        return key

    def _pointer(self, key: str) -> Pointer:
        raw = self._get(key, MOST_POINTER_BYTES)
        try:
            found = Pointer(**json.loads(raw))
            sound = _SHA256.fullmatch(found.policy_id) and _SHA256.fullmatch(found.sha256)
        except (ValueError, TypeError, RecursionError):
            sound = None
        if not sound:
            raise BundleRefused(f"{self.url}/{key} is no pointer to a bundle")
        return found

    def _get(self, key: str, most_bytes: int) -> bytes:
        try:
            content = self._objects.get(key, most_bytes)
        except OSError as error:
            raise ArtefactsUnavailable(f"{self.url} cannot be read: {error}") from error
        if content is None:
            raise UnknownEntity("artefact", f"{self.url}/{key}")
        return content

    def _put(self, key: str, content: bytes) -> None:
        try:
            self._objects.put(key, content)
        except OSError as error:
            raise ArtefactsUnavailable(f"{self.url} cannot be written: {error}") from error


def open_store(url: str, s3_endpoint_url: str = "") -> ArtefactStore:
    """The store at a URL: `s3://bucket/prefix`, `file:///folder`, or a folder's path. Nothing is read or made yet.

    s3_endpoint_url: of an S3 other than Amazon's; by default AWS_ENDPOINT_URL. Credentials are those of the
    environment, as with every AWS tool.
    """
    if url.startswith("s3://"):
        bucket, _, prefix = url.removeprefix("s3://").strip("/").partition("/")
        if not bucket:
            raise InvalidInput("artefacts_url", "s3://bucket or s3://bucket/prefix", url)
        return ArtefactStore(f"s3://{bucket}/{prefix}".rstrip("/"), S3Objects(bucket, prefix, s3_endpoint_url))
    if "://" in url and not url.startswith("file:///"):
        raise InvalidInput("artefacts_url", "a folder, file:///folder or s3://bucket/prefix", url)
    folder = Path(url.removeprefix("file://")).absolute()
    return ArtefactStore(f"file://{folder}", FolderObjects(folder))


def _bundle_key(policy_id: str) -> str:
    if not _SHA256.fullmatch(policy_id):
        raise InvalidInput("policy_id", "64 hex digits", policy_id)
    return f"bundles/{policy_id}.pt"
