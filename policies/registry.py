"""Bundles on disk, each in a folder named by its policy's id. What is registered, the ledger says; this only stores."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

from policies.bundle import SIGNATURE, Bundle, read_bundle, write_bundle
from policies.errors import BundleRefused, UnknownEntity
from policies.sound_marks import SoundMarks

_POLICY_ID = re.compile(r"[0-9a-f]{64}")


class PolicyFolder:
    """Content-addressed storage under `root`, made on the first `add`. Any number of processes may share it."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def marks(self) -> SoundMarks:
        """Which of the stored bundles have passed their canary here."""
        return SoundMarks(self._root / ".sound")

    def add(self, source: Path | bytes) -> Bundle:
        """Check a bundle and keep it; nothing changes if it is kept already. It is on disk on return, or not at all."""
        bundle = read_bundle(source)
        target = self._root / bundle.policy_id
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        if target.exists():
            try:
                return self._signed_as(self.get(bundle.policy_id), bundle)
            except BundleRefused:  # damaged on disk; what was just read has the content that the name promises
                shutil.rmtree(target)
        beside = Path(tempfile.mkdtemp(dir=self._root, prefix=".new-"))
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
        folder = self._root / policy_id
        if not _POLICY_ID.fullmatch(policy_id) or not folder.is_dir():
            raise UnknownEntity("policy", policy_id, self.ids())
        bundle = read_bundle(folder)
        if bundle.policy_id != policy_id:
            raise BundleRefused(f"the bundle stored as {policy_id} hashes to {bundle.policy_id}")
        return bundle

    def _signed_as(self, stored: Bundle, given: Bundle) -> Bundle:
        """The stored bundle with the given one's signature, if that has another: it is no part of the policy."""
        if given.signature is None or given.signature == stored.signature:
            return stored
        beside = Path(tempfile.mkdtemp(dir=self._root, prefix=".new-"))
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


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
