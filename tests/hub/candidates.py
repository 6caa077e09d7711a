"""Candidates as they are handed to a plain hub, whole and damaged."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import AsyncIterator
from typing import Any

from plain_bundles import momentum_bundle
from plain_hub import PlainHub

from policies.artefacts import ArtefactStore, open_store
from policies.bundle import Bundle
from policies.manifest import MANIFEST
from policies.rows import Row

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
