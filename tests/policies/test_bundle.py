"""Bundles: what goes in comes out under one id, and everything hostile or broken is refused with its reason."""

from __future__ import annotations

import io
import os
import pickle
import stat
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from onnx import ModelProto

from policies.bundle import (
    MAX_BYTES,
    MAX_MANIFEST_BYTES,
    Bundle,
    Manifest,
    Signature,
    make_bundle,
    pack_bundle,
    read_bundle,
    write_bundle,
)
from policies.errors import BundleRefused

Build = Callable[..., Bundle]


def zipped(contents: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def test_a_bundle_is_the_same_as_a_folder_a_file_and_bytes(tmp_path: Path, onnx_bundle: Build) -> None:
    bundle = onnx_bundle(parameters={"leverage": 5.0}, trained_on={"symbols": ["BTC"], "seed": 1})
    written = write_bundle(tmp_path / "folder", bundle.manifest, bundle.files)
    (tmp_path / "policy.pt").write_bytes(pack_bundle(bundle))
    found = [read_bundle(tmp_path / "folder"), read_bundle(tmp_path / "policy.pt"), read_bundle(pack_bundle(bundle))]
    assert {b.policy_id for b in [written, *found]} == {bundle.policy_id}
    assert all(b.files == bundle.files for b in found)


def test_packing_is_deterministic(onnx_bundle: Build) -> None:
    assert pack_bundle(onnx_bundle()) == pack_bundle(read_bundle(pack_bundle(onnx_bundle())))


def test_the_id_covers_manifest_and_weights(onnx_bundle: Build, onnx_model: ModelProto) -> None:
    onnx_model.doc_string = "one byte more"
    ids = {onnx_bundle().policy_id, onnx_bundle(alias="other").policy_id, onnx_bundle(onnx_model).policy_id,
           onnx_bundle(parameters={"leverage": 6.0}).policy_id}
    assert len(ids) == 4


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("pickle-was-loaded",)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickled_pt_is_refused_unloaded_and_names_the_command(tmp_path: Path, protocol: int,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "policy.pt").write_bytes(pickle.dumps(Bomb(), protocol))
    with pytest.raises(BundleRefused, match=r"pickle.*make retrain_sup"):
        read_bundle(tmp_path / "policy.pt")
    assert not (tmp_path / "pickle-was-loaded").exists()


def test_a_torch_archive_is_refused_and_names_the_command(onnx_bundle: Build) -> None:
    hostile = zipped({**onnx_bundle().members(), "archive/data.pkl": pickle.dumps(Bomb())})
    with pytest.raises(BundleRefused, match=r"pickled archive.*make retrain_sup"):
        read_bundle(hostile)


def test_something_else_is_refused_and_names_the_command() -> None:
    for raw in (b"", b"hello", pickle.dumps([1], protocol=0), b"PK\x03\x04 but no more"):
        with pytest.raises(BundleRefused, match="make retrain_sup"):
            read_bundle(raw)


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/b", "..", ".hidden", "C:\\evil", "a b"])
def test_a_name_that_leaves_the_folder_is_refused(onnx_bundle: Build, name: str) -> None:
    with pytest.raises(BundleRefused):
        read_bundle(zipped({**onnx_bundle().members(), name: b"x"}))


def test_a_link_in_an_archive_is_refused(onnx_bundle: Build) -> None:
    bundle = onnx_bundle()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("manifest.json", bundle.manifest.canonical_json())
        link = zipfile.ZipInfo("model.onnx")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(BundleRefused, match="link"):
        read_bundle(buffer.getvalue())


def test_links_folders_and_pipes_in_a_folder_are_refused(tmp_path: Path, onnx_bundle: Build) -> None:
    bundle = onnx_bundle()
    for number, plant in enumerate((lambda p: p.symlink_to("/etc/passwd"), lambda p: p.mkdir(), os.mkfifo)):
        folder = tmp_path / str(number)
        write_bundle(folder, bundle.manifest, bundle.files)
        (folder / "model.onnx").unlink()
        plant(folder / "model.onnx")
        with pytest.raises(BundleRefused, match="plain file"):
            read_bundle(folder)


def test_wrong_hash_missing_file_and_extra_file_are_refused(onnx_bundle: Build) -> None:
    right = onnx_bundle().members()
    cases = {"SHA-256": {**right, "model.onnx": right["model.onnx"] + b"\0"},
             "has the files": {"manifest.json": right["manifest.json"]},
             r"holds \['extra', 'model.onnx'\]": {**right, "extra": b""},
             "no manifest.json": {"model.onnx": right["model.onnx"]}}
    for reason, contents in cases.items():
        with pytest.raises(BundleRefused, match=reason):
            read_bundle(zipped(contents))


def test_too_many_files_are_refused(onnx_bundle: Build) -> None:
    for count in (16, 5_000):
        with pytest.raises(BundleRefused, match=r"at most 16|more than 16"):
            read_bundle(zipped({**onnx_bundle().members(), **{f"f{i}": b"" for i in range(count)}}))


def test_a_zip_bomb_is_refused_by_its_declared_size() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", b"{}")
        archive.writestr("model.onnx", bytes(MAX_BYTES + 1))
    assert len(buffer.getvalue()) < 2**20
    with pytest.raises(BundleRefused, match="unpacks to"):
        read_bundle(buffer.getvalue())


def test_a_zip_bomb_that_lies_about_its_size_is_not_inflated() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", bytes(2**24))
    raw = bytearray(buffer.getvalue())
    for place in (raw.find(b"PK\x03\x04") + 22, raw.find(b"PK\x01\x02") + 24):
        struct.pack_into("<I", raw, place, 10)
    with pytest.raises(BundleRefused, match=r"damaged|not as long"):
        read_bundle(bytes(raw))


def test_an_oversized_file_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "policy.pt").open("wb") as file:
        file.truncate(MAX_BYTES + MAX_MANIFEST_BYTES + 1)
    with pytest.raises(BundleRefused, match="larger"):
        read_bundle(tmp_path / "policy.pt")


def test_a_bundle_of_a_kind_with_weights_has_exactly_its_files() -> None:
    names = {"catboost_classifier": "model.cbm", "linear_softmax": "weights.safetensors", "ensemble": "member_0.pt",
             "onnx_classifier": "model.onnx"}
    for kind, name in names.items():
        make_bundle(Manifest(kind, "any", ("a",)), {name: b"weights"})
        for wrong in ({}, {name: b"", "more": b""}, {"other": b""}, {"member_1.pt": b""}):
            with pytest.raises(BundleRefused, match="has the files"):
                make_bundle(Manifest(kind, "any", ("a",)), wrong)


def test_an_ensemble_has_its_members_without_a_gap_and_not_more_than_eight() -> None:
    manifest = Manifest("ensemble", "any", ("a",))
    make_bundle(manifest, {f"member_{i}.pt": b"x" for i in range(8)})
    for places in ((0, 2), (1,), range(9)):
        with pytest.raises(BundleRefused, match="has the files"):
            make_bundle(manifest, {f"member_{i}.pt": b"x" for i in places})


def test_reading_a_bundle_does_not_look_into_its_weights() -> None:
    read_bundle(pack_bundle(make_bundle(Manifest("onnx_classifier", "junk", ("a",)), {"model.onnx": b"junk"})))


@pytest.mark.parametrize(("raw", "reason"), [
    (b"no", "not JSON"), (b"[]", "object"), (b"{}", "must hold"), (b'{"key":1,"signature":2}', "must hold"),
    (b'{"key":"' + b"0" * 64 + b'","signature":"' + b"0" * 127 + b'"}', "must hold"), (b" " * 2_000, "2000 bytes")])
def test_a_signature_that_is_none_is_refused(onnx_bundle: Build, raw: bytes, reason: str) -> None:
    with pytest.raises(BundleRefused, match=rf"signature\.json.*{reason}"):
        read_bundle(zipped({**onnx_bundle().members(), "signature.json": raw}))


def test_a_signature_is_kept_and_no_part_of_the_id(tmp_path: Path, onnx_bundle: Build) -> None:
    plain = onnx_bundle()
    signed = replace(plain, signature=Signature("0" * 64, "1" * 128))
    write_bundle(tmp_path / "folder", signed.manifest, signed.files, signed.signature)
    for found in (read_bundle(pack_bundle(signed)), read_bundle(tmp_path / "folder")):
        assert found.signature == signed.signature
        assert found.policy_id == plain.policy_id
