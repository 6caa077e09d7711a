"""What a candidate must pass before the hub knows it, in a process of its own with a lower priority.

`python -m hub.intake REQUEST` takes an `Asked` as JSON, reads an upload from its standard input, and answers with two
lines: the SHA-256 of what was read, as soon as it is, and a `Taken` as JSON. So whatever a candidate is, the process
that answers decisions never opens it, and neither its interpreter nor its memory is held up by one.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import resource
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

from policies.archive import MAX_FILES
from policies.artefacts import MOST_BYTES, open_store
from policies.bundle import Bundle, read_bundle
from policies.embedder import EmbedderFolder
from policies.errors import BundleRefused, HubError
from policies.loader import CanaryLimits, require_checked, run_canary
from policies.manifest import MANIFEST, MAX_MANIFEST_BYTES, WINDOW_ENCODER
from policies.registry import PolicyFolder

NICENESS = 10
MOST_MEMORY_BYTES = 6 * 2**30
LIMITS = CanaryLimits(timeout_s=20.0, cpu_s=15)  # within the 30 s that Serve gives a request
MOST_SAID = 2_000  # characters of a refusal; a hostile candidate is quoted in it
CENTRAL_RECORD = b"PK\x01\x02"  # of each member that an archive lists

_ALIAS = re.compile(r'"alias"\s*:\s*"([A-Za-z0-9_.-]{1,100})"')


@dataclass(frozen=True)
class Asked:
    """What to take in, and the folders to keep it in. url: of an artefact store's object; "" for an upload.

    policy_id, sha256: what the candidate must have, sha256 of its packed file; "" for any. trusted_keys: public keys
    in hex of which one must have signed; none: signatures are optional.
    """

    policies: str
    embedders: str
    trusted_keys: tuple[str, ...] = ()
    url: str = ""
    store_url: str = ""
    s3_endpoint_url: str = ""
    policy_id: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class Taken:
    """A candidate that is stored, or (refused is not "") why it is not.

    sha256: of what was sent, "" if nothing could be read. alias: as far as it could be read. code: of the error.
    """

    sha256: str = ""
    alias: str = ""
    policy_id: str = ""
    manifest: Mapping[str, Any] = field(default_factory=dict)
    refused: str = ""
    code: str = ""


def take_in(asked: Asked, upload: IO[bytes], told: Callable[[str], object] = str) -> Taken:
    """Read, have a canary load it, then store. Stored as a whole or not at all.

    told: called with the SHA-256 of what was read, before it is looked into.
    """
    content, promised = b"", asked.policy_id
    try:
        if asked.url:
            store = open_store(asked.store_url, asked.s3_endpoint_url)
            promised = promised or store.expected_id(asked.url)
            content = store.content(asked.url)
        else:
            content = upload.read(MOST_BYTES + 1)
        told(hashlib.sha256(content).hexdigest())
        bundle = _read(content, promised, asked)
        _store(bundle, content, asked)
    except HubError as error:
        sha256 = hashlib.sha256(content).hexdigest() if content or not asked.url else ""
        return Taken(sha256, alias_in(content), refused=str(error)[:MOST_SAID], code=error.code)
    manifest = json.loads(bundle.manifest.canonical_json())
    return Taken(hashlib.sha256(content).hexdigest(), bundle.manifest.alias, bundle.policy_id, manifest)


def alias_in(content: bytes) -> str:
    """The alias that a candidate gives itself, for the record of its refusal; "" if none can be read."""
    if content.count(CENTRAL_RECORD) > 4 * MAX_FILES:
        return ""  # zipfile would make an object of each, a million in an archive of 58 MiB
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive, archive.open(MANIFEST) as file:
            found = _ALIAS.search(file.read(MAX_MANIFEST_BYTES).decode("utf-8", "replace"))
    except Exception:  # whatever a hostile archive makes zipfile raise, it has no readable alias
        return ""
    return found.group(1) if found else ""


def _store(bundle: Bundle, content: bytes, asked: Asked) -> None:
    """Signature, canary, disk, in this order."""
    canary = partial(run_canary, limits=LIMITS)
    if bundle.manifest.kind == WINDOW_ENCODER:
        embedders = EmbedderFolder(Path(asked.embedders))
        embedders.add(content, lambda read: require_checked(read, asked.trusted_keys, embedders.marks, canary))
        return
    folder = PolicyFolder(Path(asked.policies))
    require_checked(bundle, asked.trusted_keys, folder.marks, canary)
    folder.add(content)


def _read(content: bytes, promised_id: str, asked: Asked) -> Bundle:
    if len(content) > MOST_BYTES:
        raise BundleRefused(f"larger than the {MOST_BYTES} bytes that a packed bundle may have")
    if asked.sha256 and hashlib.sha256(content).hexdigest() != asked.sha256:
        raise BundleRefused(f"what was read has another SHA-256 than the announced {asked.sha256}")
    bundle = read_bundle(content)
    if promised_id and bundle.policy_id != promised_id:
        raise BundleRefused(f"what was read is the policy {bundle.policy_id}, not the announced {promised_id}")
    return bundle


def main() -> None:
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY_BYTES, MOST_MEMORY_BYTES))
    taken = take_in(Asked(**json.loads(sys.argv[1])), sys.stdin.buffer, partial(print, flush=True))
    print(json.dumps(asdict(taken)))


if __name__ == "__main__":
    main()
