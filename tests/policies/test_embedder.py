from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from encoder_bundles import BARS, SIZE, encoder_bundle
from plain_hub import momentum_bundle

from policies.bundle import pack_bundle
from policies.embedder import EmbedderFolder, EmbeddingFailed, load_embedder, version_of
from policies.errors import BundleRefused, InvalidInput, UnknownEntity


def windows(count: int, bars: int = BARS) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, bars * 5)).astype(np.float32)


def test_a_window_has_one_embedding_however_many_are_embedded_with_it() -> None:
    embedder, rows = load_embedder(encoder_bundle()), windows(40)
    together = embedder.embed(rows)
    assert together.shape == (40, SIZE)
    assert together.dtype == np.float32
    one_by_one = np.concatenate([embedder.embed(rows[place:place + 1]) for place in range(40)])
    assert together.tobytes() == one_by_one.tobytes()
    assert together.tobytes() == embedder.embed(rows[::-1])[::-1].tobytes()
    assert embedder.embed(rows[:0]).shape == (0, SIZE)


def test_a_view_of_a_longer_history_is_embedded_like_a_copy() -> None:
    embedder, history = load_embedder(encoder_bundle()), windows(30, BARS + 7)
    view = history[:, 35:]
    assert embedder.embed(view).tobytes() == embedder.embed(view.copy()).tobytes()


def test_windows_of_another_length_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"\(N, 300\)"):
        load_embedder(encoder_bundle()).embed(windows(2, BARS + 1))


def test_an_embedding_that_is_not_finite_is_no_embedding() -> None:
    embedder, rows = load_embedder(encoder_bundle(most=5.0)), windows(3)
    rows[1, -1] = 6.0
    with pytest.raises(EmbeddingFailed, match="not finite"):
        embedder.embed(rows)
    assert np.isfinite(embedder.embed(rows[:1])).all()


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
