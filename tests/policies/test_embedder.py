from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from encoder_bundles import BARS, SIZE, encoder_bundle
from plain_bundles import momentum_bundle

from policies import embedder
from policies.bundle import Bundle, pack_bundle
from policies.embedder import EmbedderFolder, EmbeddingFailed, load_embedder, version_of
from policies.errors import BundleRefused, InvalidInput, UnknownEntity
from policies.registry import PolicyFolder


def windows(count: int, bars: int = BARS) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, bars * 5)).astype(np.float32)


def test_a_window_has_one_embedding_however_many_are_embedded_with_it() -> None:
    encoder, rows = load_embedder(encoder_bundle()), windows(40)
    together = encoder.embed(rows)
    assert together.shape == (40, SIZE)
    assert together.dtype == np.float32
    one_by_one = np.concatenate([encoder.embed(rows[place:place + 1]) for place in range(40)])
    assert together.tobytes() == one_by_one.tobytes()
    assert together.tobytes() == encoder.embed(rows[::-1])[::-1].tobytes()
    assert encoder.embed(rows[:0]).shape == (0, SIZE)


def test_a_view_of_a_longer_history_is_embedded_like_a_copy() -> None:
    encoder, history = load_embedder(encoder_bundle()), windows(30, BARS + 7)
    view = history[:, 35:]
    assert encoder.embed(view).tobytes() == encoder.embed(view.copy()).tobytes()


def test_windows_of_another_length_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"\(N, 300\)"):
        load_embedder(encoder_bundle()).embed(windows(2, BARS + 1))


def test_an_embedding_that_is_not_finite_is_no_embedding() -> None:
    encoder, rows = load_embedder(encoder_bundle(most=5.0)), windows(3)
    rows[1, -1] = 6.0
    with pytest.raises(EmbeddingFailed, match="not finite"):
        encoder.embed(rows)
    assert np.isfinite(encoder.embed(rows[:1])).all()


def test_only_window_encoders_are_embedders() -> None:
    with pytest.raises(BundleRefused, match="momentum_rule"):
        load_embedder(momentum_bundle())


def test_the_folder_knows_its_embedders_by_version(tmp_path: Path) -> None:
    folder = EmbedderFolder(tmp_path / "embedders")
    assert folder.versions() == {}
    first, second = encoder_bundle(), encoder_bundle(1)
    assert folder.add(pack_bundle(first)) == version_of(first.policy_id) == f"mae-{first.policy_id[:12]}"
    folder.add(pack_bundle(second))
    assert folder.versions() == {version_of(one.policy_id): one.policy_id for one in (first, second)}
    assert folder.load(version_of(second.policy_id)).version == version_of(second.policy_id)
    with pytest.raises(UnknownEntity, match="mae-0123"):
        folder.load("mae-0123")


def test_what_is_no_embedder_is_not_kept(tmp_path: Path) -> None:
    folder = EmbedderFolder(tmp_path / "embedders")
    for wrong in (momentum_bundle(), encoder_bundle(most=-1.0)):
        with pytest.raises(BundleRefused):
            folder.add(pack_bundle(wrong))
    assert folder.versions() == {}


def test_what_is_kept_is_what_was_checked_though_another_lies_at_its_path_by_then(tmp_path: Path) -> None:
    folder, path = EmbedderFolder(tmp_path / "embedders"), tmp_path / "encoder.pt"
    checked, other = encoder_bundle(), encoder_bundle(1)
    path.write_bytes(pack_bundle(checked))
    folder.add(path, lambda _: path.write_bytes(pack_bundle(other)))
    assert folder.versions() == {version_of(checked.policy_id): checked.policy_id}


class Canary:
    """Counts whom it examined, and refuses all while `reason` is set."""

    def __init__(self) -> None:
        self.reason = ""
        self.examined: list[str] = []

    def __call__(self, bundle: Bundle) -> None:
        self.examined.append(bundle.policy_id)
        if self.reason:
            raise BundleRefused(self.reason)


def test_what_has_no_mark_is_examined_before_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    canary, bundle = Canary(), encoder_bundle()
    folder, version = EmbedderFolder(tmp_path, canary), version_of(bundle.policy_id)
    PolicyFolder(tmp_path).add(pack_bundle(bundle))  # as somebody might who can write there
    canary.reason = "crashes its process"
    monkeypatch.setattr(embedder, "load_embedder", lambda bundle: pytest.fail("opened here"))
    for ask in (folder.load, folder.checked):
        with pytest.raises(BundleRefused, match="crashes"):
            ask(version)
    canary.reason = ""
    assert folder.checked(version) == bundle.manifest
    monkeypatch.undo()
    for _ in range(2):
        assert folder.load(version).version == version
    assert len(canary.examined) == 3, "once it has passed, its mark will do"


def test_what_was_added_has_its_mark(tmp_path: Path) -> None:
    canary = Canary()
    folder = EmbedderFolder(tmp_path, canary)
    folder.load(folder.add(pack_bundle(encoder_bundle())))
    folder.load(folder.add(pack_bundle(encoder_bundle(1)), load_embedder))
    assert canary.examined == [encoder_bundle().policy_id]


def test_the_manifest_is_read_without_the_weights_and_is_the_one_that_the_version_names(tmp_path: Path) -> None:
    folder, bundle = EmbedderFolder(tmp_path, Canary()), encoder_bundle()
    version = folder.add(pack_bundle(bundle))
    (tmp_path / bundle.policy_id / "model.onnx").unlink()
    assert folder.manifest(version) == bundle.manifest
    with pytest.raises(BundleRefused):
        folder.checked(version)
    (tmp_path / bundle.policy_id / "manifest.json").write_bytes(encoder_bundle(1).manifest.canonical_json())
    with pytest.raises(BundleRefused, match="hashes to"):
        folder.manifest(version)
    for ask in (folder.manifest, folder.checked, folder.load):
        with pytest.raises(UnknownEntity):
            ask("mae-0123")


def test_a_version_belongs_to_the_first_that_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedder, "version_of", lambda policy_id: "mae-the-same")
    folder = EmbedderFolder(tmp_path, Canary())
    folder.add(pack_bundle(encoder_bundle()))
    folder.add(pack_bundle(encoder_bundle()))
    with pytest.raises(BundleRefused, match=f"that of the stored embedder {encoder_bundle().policy_id}"):
        folder.add(pack_bundle(encoder_bundle(1)))
    assert PolicyFolder(tmp_path).ids() == [encoder_bundle().policy_id]
    PolicyFolder(tmp_path).add(pack_bundle(encoder_bundle(1)))
    with pytest.raises(BundleRefused, match="several stored embedders"):
        folder.load("mae-the-same")
