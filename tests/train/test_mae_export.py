"""The exported encoder: what is served is what was trained, byte for byte the same from the same training."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest

from feature_repo.generated import GeneratedMarket
from feature_repo.windows import windows
from policies.bundle import Bundle, pack_bundle, read_bundle
from policies.embedder import load_embedder
from policies.errors import BundleRefused, InvalidInput
from policies.heads import load_head
from train.mae_export import embed, export_encoder
from train.mae_settings import MaeSettings
from train.mae_training import Pretrained, fit_mae, pretrain
from train.mae_windows import WindowSet

SETTINGS = MaeSettings(seq_len=60, d_model=32, nhead=4, encoder_layers=1, decoder_layers=1, epochs=2, embedding=16,
                       windows_per_epoch=512, batch=64, learning_rate=2e-3, threads=1)
MARKET = GeneratedMarket(seed=3, symbols=("BTC", "ETH"), bars=1_300)
BARS = {symbol: MARKET.bars(symbol) for symbol in MARKET.symbols}
UNTIL = int(BARS["BTC"].open_time_ms[900])


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Pretrained:
    return pretrain(BARS, UNTIL, SETTINGS, tmp_path_factory.mktemp("mae"))


@pytest.fixture(scope="module")
def bundle(pretrained: Pretrained) -> Bundle:
    return export_encoder(pretrained)


def test_served_embeddings_are_the_trained_ones(pretrained: Pretrained, bundle: Bundle) -> None:
    rows = np.ascontiguousarray(windows(BARS["BTC"], 60)[:1_000])
    embedder = load_embedder(read_bundle(pack_bundle(bundle)))
    served = embedder.embed(rows)
    assert served.shape == (1_000, 16)
    assert np.abs(served - embed(pretrained, rows)).max() < 1e-4
    assert served.std(axis=0).min() > 0.1  # no direction is dead


def test_degenerate_windows_are_served_as_trained_and_finite(pretrained: Pretrained, bundle: Bundle) -> None:
    rows = np.stack([np.zeros(300), np.full(300, 1e-12), np.tile([0, 0.5, -0.9, 0.1, 30], 60),
                     np.tile([0, 0, 0, 0, 2], 60)]).astype(np.float32)
    served = load_embedder(bundle).embed(rows)
    assert np.abs(served - embed(pretrained, rows)).max() < 1e-4


def test_the_same_training_gives_the_same_policy(pretrained: Pretrained, bundle: Bundle, tmp_path: Path) -> None:
    again = export_encoder(pretrain(BARS, UNTIL, SETTINGS, tmp_path / "elsewhere"))
    assert again.policy_id == bundle.policy_id
    assert pack_bundle(again) == pack_bundle(bundle)


def test_the_graph_is_closed_and_tells_nothing_of_this_machine(bundle: Bundle) -> None:
    graph = onnx.load_model_from_string(bundle.files["model.onnx"])
    assert not graph.functions
    assert {entry.domain for entry in [*graph.opset_import, *graph.graph.node]} <= {"", "ai.onnx"}
    assert not any(attribute.HasField("g") for node in graph.graph.node for attribute in node.attribute)
    for word in (b"/", b".py", b"torch"):
        assert word not in b"".join(node.SerializeToString() for node in graph.graph.node if node.op_type != "Constant")


def test_the_manifest_says_what_the_encoder_takes(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert (manifest.kind, manifest.features, dict(manifest.arrays)) == ("window_encoder", (), {"window": 300})
    assert manifest.parameters == {"size": 16}
    assert manifest.trained_on["until_ms"] == UNTIL


def test_an_encoder_is_no_policy(bundle: Bundle) -> None:
    with pytest.raises(BundleRefused):
        load_head(bundle)


def test_an_encoder_of_books_is_not_exported_as_one_of_windows(tmp_path: Path) -> None:
    rows = WindowSet.of(np.random.default_rng(0).normal(size=(64, 60 * 80)).astype(np.float32))
    settings = dataclasses.replace(SETTINGS, channels=80, scaling="each", epochs=1)
    with pytest.raises(InvalidInput, match="scaling"):
        export_encoder(fit_mae(rows, rows, settings, tmp_path))
