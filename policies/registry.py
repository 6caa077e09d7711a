"""Bundles on disk, each in a folder named by its policy's id. What is registered, the ledger says; this only stores."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from policies.archive import read_plain_file
from policies.bundle import SIGNATURE, Bundle, read_bundle, write_bundle
from policies.errors import BundleRefused, UnknownEntity
from policies.manifest import MANIFEST, MAX_MANIFEST_BYTES, Manifest
from policies.sound_marks import SoundMarks

UNFINISHED = ".new-"  # how the name of a folder begins in which a bundle is being written
LEFT_AFTER_S = 3_600.0  # by then whoever was writing it has ended

_POLICY_ID = re.compile(r"[0-9a-f]{64}")


class PolicyFolder:
    """Content-addressed storage under `root`, made on the first `add`. Any number of processes may share it.

    wall_s: the time by the clock that stamps files.
    """

    def __init__(self, root: Path, wall_s: Callable[[], float] = time.time) -> None:
        self._root, self._wall_s = root, wall_s

    @property
    def marks(self) -> SoundMarks:
        """Which of the stored bundles have passed their canary here."""
        return SoundMarks(self._root / ".sound")

    def add(self, source: Path | bytes) -> Bundle:
        """Check a bundle and keep it; nothing changes if it is kept already. It is on disk on return, or not at all."""
        bundle = read_bundle(source)
        target = self._root / bundle.policy_id
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._sweep()
        if target.exists():
            try:
                return self._signed_as(self.get(bundle.policy_id), bundle)
            except BundleRefused:  # damaged on disk; what was just read has the content that the name promises
                shutil.rmtree(target)
        beside = Path(tempfile.mkdtemp(dir=self._root, prefix=UNFINISHED))
        try:
            write_bundle(beside / "bundle", bundle.manifest, bundle.files, bundle.signature)
            _sync_folder(beside / "bundle")
            (beside / "bundle").rename(target)
            _sync_folder(self._root)
        except OSError:
            if not target.exists():  # else another process was first, with the same content
                raise
        finally:
            shutil.rmtree(beside)
        return self.get(bundle.policy_id)

    def get(self, policy_id: str) -> Bundle:
        """The bundle, read and hashed again. Raises UnknownEntity, or BundleRefused if it was changed on disk."""
        bundle = read_bundle(self._folder_of(policy_id))
        _require_id(bundle.policy_id, policy_id)
        return bundle

    def manifest(self, policy_id: str) -> Manifest:
        """As `get`, but the manifest alone, which the id covers; the files beside it are not read."""
        manifest = Manifest.from_json(read_plain_file(self._folder_of(policy_id) / MANIFEST, MAX_MANIFEST_BYTES))
        _require_id(hashlib.sha256(manifest.canonical_json()).hexdigest(), policy_id)
        return manifest

    def _folder_of(self, policy_id: str) -> Path:
        folder = self._root / policy_id
        if not _POLICY_ID.fullmatch(policy_id) or not folder.is_dir():
            raise UnknownEntity("policy", policy_id, self.ids())
        return folder

    def _sweep(self) -> None:
        """Remove what was left by a process that was killed while it wrote."""
        for left in self._root.glob(f"{UNFINISHED}*"):
            try:
                old = self._wall_s() - left.stat().st_mtime > LEFT_AFTER_S
            except OSError:  # it has just been finished
                continue
            if old:
                shutil.rmtree(left, ignore_errors=True)

    def _signed_as(self, stored: Bundle, given: Bundle) -> Bundle:
        """The stored bundle with the given one's signature, if that has another: it is no part of the policy."""
        if given.signature is None or given.signature == stored.signature:
            return stored
        beside = Path(tempfile.mkdtemp(dir=self._root, prefix=UNFINISHED))
        try:
            (beside / SIGNATURE).write_bytes(given.signature.to_json())
            (beside / SIGNATURE).replace(self._root / stored.policy_id / SIGNATURE)
        finally:
            shutil.rmtree(beside)
        return self.get(stored.policy_id)

    def ids(self) -> list[str]:
        """Ids of the stored policies, sorted."""
        if not self._root.is_dir():
            return []
        return sorted(entry.name for entry in self._root.iterdir() if _POLICY_ID.fullmatch(entry.name))


def _require_id(found: str, policy_id: str) -> None:
    if found != policy_id:
        raise BundleRefused(f"the bundle stored as {policy_id} hashes to {found}")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
