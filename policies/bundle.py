"""A policy as inert files: a manifest and, by its kind, weights in a format that cannot run code when it is loaded.

A bundle is a folder, or one zip file (usually named `.pt`) with the same members: `manifest.json`, the files that it
names with their SHA-256, and perhaps `signature.json`. The policy's id is the SHA-256 of the manifest's canonical JSON,
so it covers every byte but the signature, which is made over the id. Whatever is not exactly that is refused with the
reason. Weights are not looked into here: that is for `policies.heads`, in a process that may fail.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

from policies.archive import EXPORT_HINT, MAX_BYTES, read_members
from policies.errors import BundleRefused
from policies.manifest import (
    ENSEMBLE,
    FILES_BY_KIND,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    MEMBER_FILES,
    ONNX_FILE,
    WINDOW_ENCODER,
    Manifest,
    json_object,
)

__all__ = ["MANIFEST", "MAX_BYTES", "MAX_MANIFEST_BYTES", "ONNX_FILE", "WINDOW_ENCODER", "Bundle", "Manifest",
           "Signature", "make_bundle", "pack_bundle", "read_bundle", "write_bundle"]

SIGNATURE = "signature.json"

_HEX = {"key": re.compile(r"[0-9a-f]{64}"), "signature": re.compile(r"[0-9a-f]{128}")}
_EPOCH_OF_ZIP = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Signature:
    """Who vouches for a policy: an Ed25519 public key and what it signed of the policy's id, both in hex."""

    key: str
    signature: str

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, raw: bytes) -> Signature:
        if len(raw) > 1_000:
            raise BundleRefused(f"{SIGNATURE} has {len(raw)} bytes; a key and a signature have less than 1000")
        values = json_object(raw, SIGNATURE)
        if values.keys() != _HEX.keys() or not all(isinstance(values[name], str) and form.fullmatch(values[name])
                                                   for name, form in _HEX.items()):
            raise BundleRefused(f"{SIGNATURE} must hold `key` and `signature`, 32 and 64 bytes in hex")
        return cls(**values)


@dataclass(frozen=True)
class Bundle:
    """A checked bundle in memory. files: content by name, manifest and signature left out.

    signature: as found, not verified; see `policies.signing`. It is no part of the policy.
    """

    manifest: Manifest
    files: Mapping[str, bytes]
    signature: Signature | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        _check_files(self.manifest, self.files)

    @cached_property
    def policy_id(self) -> str:
        return _sha256(self.manifest.canonical_json())

    def members(self) -> dict[str, bytes]:
        """Everything that is stored, by file name."""
        signed = {} if self.signature is None else {SIGNATURE: self.signature.to_json()}
        return {**self.files, MANIFEST: self.manifest.canonical_json(), **signed}


def make_bundle(manifest: Manifest, files: Mapping[str, bytes]) -> Bundle:
    """The manifest completed by the hashes of its files, with them."""
    return Bundle(replace(manifest, files={name: _sha256(content) for name, content in files.items()}), dict(files))


def write_bundle(folder: Path, manifest: Manifest, files: Mapping[str, bytes],
                 signature: Signature | None = None) -> Bundle:
    """Make a bundle and store it as a folder of its own, which must not exist yet. Every file is on disk on return."""
    bundle = replace(make_bundle(manifest, files), signature=signature)
    folder.mkdir(parents=True, mode=0o700)
    for name, content in bundle.members().items():
        with (folder / name).open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    return bundle


def pack_bundle(bundle: Bundle, compressed: bool = True) -> bytes:
    """The bundle as one zip file; the same bytes for the same bundle."""
    packing = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", packing) as archive:
        for name, content in sorted(bundle.members().items()):
            archive.writestr(zipfile.ZipInfo(name, _EPOCH_OF_ZIP), content, packing, 6)
    return buffer.getvalue()


def read_bundle(source: Path | bytes) -> Bundle:
    """The bundle in a folder, a file or a file's bytes. Raises BundleRefused with the reason."""
    contents = read_members(source)
    if MANIFEST not in contents:
        raise BundleRefused(f"no {MANIFEST} among {sorted(contents)}; {EXPORT_HINT}")
    manifest = Manifest.from_json(contents.pop(MANIFEST))
    signature = contents.pop(SIGNATURE, None)
    return Bundle(manifest, contents, None if signature is None else Signature.from_json(signature))


def _check_files(manifest: Manifest, files: Mapping[str, bytes]) -> None:
    for names, against in ((files.keys(), "holds"), (manifest.files.keys(), "names")):
        expected = _expected_files(manifest.kind, len(names))
        if names != expected:
            raise BundleRefused(f"a bundle of kind {manifest.kind} has the files {sorted(expected)}; "
                                f"this one {against} {sorted(names)}")
    for name, content in files.items():
        if _sha256(content) != manifest.files.get(name):
            raise BundleRefused(f"{name} has SHA-256 {_sha256(content)}, the manifest says {manifest.files.get(name)}")


def _expected_files(kind: str, count: int) -> frozenset[str]:
    """An ensemble has as many members as files, at least one; every other kind has its fixed files."""
    return frozenset(MEMBER_FILES[:max(count, 1)]) if kind == ENSEMBLE else FILES_BY_KIND[kind]


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
