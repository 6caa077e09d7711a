"""Embedders: bundles that turn windows of bars into a market's embedding. They are no policies and decide nothing.

Which one is in use, the ledger says; `EmbedderFolder` holds those that may be. A head is made for one version.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from policies.bundle import ONNX_FILE, WINDOW_ENCODER, Bundle, Manifest, pack_bundle, read_bundle
from policies.errors import BundleRefused, HubError, InvalidInput, UnknownEntity
from policies.loader import Canary, require_checked, require_still_sound
from policies.onnx_graph import EMBEDDING
from policies.onnx_session import OnnxFunction
from policies.probe_rows import WINDOW_ARRAY
from policies.registry import PolicyFolder
from policies.sound_marks import SoundMarks
from policies.types import NO_EMBEDDING

VERSION_DIGITS = 12  # of an id: few enough that two ids can be made to begin alike, so a second one is refused

Floats = NDArray[np.float32]


class EmbeddingFailed(HubError):
    """An embedder has no usable answer to a window; whoever needs its embedding goes on without."""

    code = "embedding_failed"


def version_of(policy_id: str) -> str:
    """What an embedding is called that this bundle makes."""
    return f"mae-{policy_id[:VERSION_DIGITS]}"


class Embedder:
    """version: of its embeddings. window: how many numbers it takes, the last ones of the array group `window`.
    size: how many numbers an embedding has."""

    def __init__(self, bundle: Bundle) -> None:
        manifest = bundle.manifest
        if manifest.kind != WINDOW_ENCODER:
            raise BundleRefused(f"an embedder is of kind {WINDOW_ENCODER}, this bundle is of kind {manifest.kind}")
        self.version = version_of(bundle.policy_id)
        self.window, self.size = int(manifest.arrays[WINDOW_ARRAY]), int(manifest.parameters["size"])
        self._encode = OnnxFunction(bundle.files[ONNX_FILE], self.window, EMBEDDING, ONNX_FILE)

    def embed(self, windows: Floats) -> Floats:
        """(N, window) -> (N, size), finite. Row by row, so that no batch size can change a bit of an answer.

        InvalidInput for windows of another length; EmbeddingFailed where the graph has no answer.
        """
        if windows.ndim != 2 or windows.shape[1] != self.window:
            raise InvalidInput("windows", f"of shape (N, {self.window})", windows.shape)
        embedded = np.empty((len(windows), self.size), np.float32)
        for place, row in enumerate(windows):
            embedded[place] = self._embedded(np.ascontiguousarray(row, np.float32))
        if not np.isfinite(embedded).all():
            raise EmbeddingFailed(f"{self.version} answered a number that is not finite")
        return embedded

    def _embedded(self, row: Floats) -> Floats:
        try:
            answer = self._encode(row.reshape(1, -1))
        except Exception as error:  # its errors share no base class
            raise EmbeddingFailed(f"{self.version} failed: {error}") from error
        if answer.shape != (1, self.size):
            raise EmbeddingFailed(f"{self.version} answered shape {answer.shape}, not (1, {self.size})")
        return np.asarray(answer[0], np.float32)


def load_embedder(bundle: Bundle) -> Embedder:
    """The embedder of this bundle, tried on one window. Raises BundleRefused if it cannot serve."""
    embedder = Embedder(bundle)
    try:
        embedder.embed(np.zeros((1, embedder.window), np.float32))
    except EmbeddingFailed as error:
        raise BundleRefused(str(error)) from error
    return embedder


class EmbedderFolder:
    """Window encoders on disk, by id, as policies are stored. Any number of processes may share the folder.

    What is opened has passed a canary on this machine. Who has signed is asked when a candidate is taken in and never
    again: who can write in this folder can have an embedder used without a signature.
    """

    def __init__(self, root: Path, canary: Canary | None = None) -> None:
        """canary: instead of a process of its own."""
        self._folder, self._canary = PolicyFolder(root), canary

    @property
    def marks(self) -> SoundMarks:
        """Which of the stored embedders have passed their canary here."""
        return self._folder.marks

    def add(self, source: Path | bytes, check: Callable[[Bundle], object] | None = None) -> str:
        """Keep an embedder that is found sound; its version. check: instead of the canary, with the same consequence.

        BundleRefused, and nothing changes, if it is not sound, or if another one has its version.
        """
        bundle = read_bundle(source)
        if bundle.manifest.kind != WINDOW_ENCODER:
            raise BundleRefused(f"an embedder is of kind {WINDOW_ENCODER}, this bundle is of kind "
                                f"{bundle.manifest.kind}")
        version = version_of(bundle.policy_id)
        others = [other for other in self._ids_of(version) if other != bundle.policy_id]
        if others:
            raise BundleRefused(f"its version {version} is that of the stored embedder {others[0]}; change anything in "
                                f"its manifest and it gets another")
        if check is None:
            require_checked(bundle, (), self.marks, self._canary)
        else:
            check(bundle)
            self.marks.set(bundle.policy_id)
        self._folder.add(pack_bundle(bundle, compressed=False))  # what was checked, whatever lies at a path by now
        return version

    def versions(self) -> dict[str, str]:
        """{version: id of the bundle}."""
        return {version_of(policy_id): policy_id for policy_id in self._folder.ids()}

    def manifest(self, version: str) -> Manifest:
        """Of this version; no other file of it is read. Raises UnknownEntity for one that is not stored."""
        return self._folder.manifest(self._id(version))

    def checked(self, version: str) -> Manifest:
        """As `load`, but nothing is opened in this process, only read and hashed: for whoever serves others."""
        return self._sound(version).manifest

    def load(self, version: str) -> Embedder:
        """Raises UnknownEntity for a version that is not stored, BundleRefused for one that cannot serve.

        Without its mark, as after a change of this code, it waits for a canary: not for a loop that answers others.
        """
        return load_embedder(self._sound(version))

    def _sound(self, version: str) -> Bundle:
        bundle = self._folder.get(self._id(version))
        require_still_sound(bundle, self.marks, self._canary)
        return bundle

    def _id(self, version: str) -> str:
        found = self._ids_of(version)
        if not found:
            raise UnknownEntity("embedding", version, [*self.versions(), NO_EMBEDDING])
        if len(found) > 1:
            raise BundleRefused(f"{version} is the version of several stored embedders: {', '.join(found)}")
        return found[0]

    def _ids_of(self, version: str) -> list[str]:
        return [policy_id for policy_id in self._folder.ids() if version_of(policy_id) == version]
