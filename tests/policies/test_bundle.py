"""Bundles: what goes in comes out under one id, and everything hostile or broken is refused with its reason."""

from __future__ import annotations

import io
import json
import os
import pickle
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from onnx import ModelProto, TensorProto, helper

from policies import bundle as bundles
from policies.bundle import Bundle, Manifest, make_bundle, pack_bundle, read_bundle, write_bundle
from policies.errors import BundleRefused

Build = Callable[..., Bundle]


def members(bundle: Bundle) -> dict[str, bytes]:
    return {**bundle.files, "manifest.json": bundle.manifest.canonical_json()}


def zipped(contents: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def with_manifest(bundle: Bundle, **changes: object) -> bytes:
    values = {**json.loads(bundle.manifest.canonical_json()), **changes}
    return zipped({**bundle.files, "manifest.json": json.dumps(values).encode()})


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
    hostile = zipped({**members(onnx_bundle()), "archive/data.pkl": pickle.dumps(Bomb())})
    with pytest.raises(BundleRefused, match=r"pickled archive.*make retrain_sup"):
        read_bundle(hostile)


def test_something_else_is_refused_and_names_the_command() -> None:
    for raw in (b"", b"hello", pickle.dumps([1], protocol=0), b"PK\x03\x04 but no more"):
        with pytest.raises(BundleRefused, match="make retrain_sup"):
            read_bundle(raw)


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/b", "..", ".hidden", "C:\\evil", "a b"])
def test_a_name_that_leaves_the_folder_is_refused(onnx_bundle: Build, name: str) -> None:
    with pytest.raises(BundleRefused):
        read_bundle(zipped({**members(onnx_bundle()), name: b"x"}))


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
    right = members(onnx_bundle())
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
            read_bundle(zipped({**members(onnx_bundle()), **{f"f{i}": b"" for i in range(count)}}))


def test_a_zip_bomb_is_refused_by_its_declared_size() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", b"{}")
        archive.writestr("model.onnx", bytes(bundles.MAX_BYTES + 1))
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
        file.truncate(bundles.MAX_BYTES + bundles.MAX_MANIFEST_BYTES + 1)
    with pytest.raises(BundleRefused, match="larger"):
        read_bundle(tmp_path / "policy.pt")


@pytest.mark.parametrize(("changes", "reason"), [
    ({"leverge": 5}, "unknown key"), ({"featurs": []}, "did you mean 'features'"), ({"kind": "pickle"}, "kind"),
    ({"kind": {}}, "kind"), ({"alias": "a/b"}, "alias"), ({"alias": None}, "alias"),
    ({"features": []}, "order of the feature vector"), ({"features": ["a", "a"]}, "different names"),
    ({"features": "abc"}, "different names"), ({"feature_service": "decision_v9"}, "feature_service"),
    ({"optional_features": ["nope"]}, "not in its list"), ({"inputs": {"momentum": "nope"}}, "not in its list"),
    ({"inputs": {"momentum": {}}}, "not in its list"), ({"parameters": {"leverage": float("nan")}}, "finite"),
    ({"parameters": {"leverage": float("inf")}}, "finite"), ({"parameters": {"leverage": 10**400}}, "finite"),
    ({"parameters": {"leverage": True}}, "finite"), ({"parameters": {"leverage": "5"}}, "finite"),
    ({"trained_on": {"loss": float("nan")}}, "plain JSON"), ({"trained_on": []}, "object"),
    ({"files": {"../x": "0" * 64}}, "without folders"), ({"files": {"model.onnx": "abc"}}, "SHA-256"),
    ({"files": {}}, "names"),
])
def test_a_senseless_manifest_is_refused(onnx_bundle: Build, changes: dict[str, object], reason: str) -> None:
    with pytest.raises(BundleRefused, match=reason):
        read_bundle(with_manifest(onnx_bundle(), **changes))


@pytest.mark.parametrize("raw", [b"", b"[]", b"\xff", b"[" * 100_000, b'{"kind":"a","kind":"b"}', b'{"kind":"a"}'])
def test_a_manifest_that_is_no_manifest_is_refused(raw: bytes) -> None:
    with pytest.raises(BundleRefused, match="manifest"):
        Manifest.from_json(raw)


def test_another_feature_order_is_refused(onnx_bundle: Build) -> None:
    manifest = onnx_bundle().manifest
    manifest.require_feature_order(manifest.features)
    with pytest.raises(BundleRefused, match="first difference at 0"):
        manifest.require_feature_order(manifest.features[::-1])
    with pytest.raises(BundleRefused, match="first difference at 3"):
        manifest.require_feature_order(manifest.features[:3])


def external(model: ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"


def external_in_attribute(model: ModelProto) -> None:
    tensor = helper.make_tensor("t", TensorProto.FLOAT, [1], [0.0])
    tensor.data_location = TensorProto.EXTERNAL
    model.graph.node.append(helper.make_node("Constant", [], ["unused"], value=tensor))


def foreign_operator(model: ModelProto) -> None:
    model.graph.node[0].domain = "com.evil"


def foreign_import(model: ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.evil", 1))


def loop(model: ModelProto) -> None:
    body = helper.make_graph([], "body", [], [])
    model.graph.node.append(helper.make_node("Loop", ["", ""], ["unused"], body=body))


def other_width(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 5


def no_probabilities(model: ModelProto) -> None:
    model.graph.output[0].name = model.graph.node[2].output[0] = "something"


def broken(model: ModelProto) -> None:
    model.graph.node[1].input[0] = "nowhere"


@pytest.mark.parametrize(("change", "reason"), [
    (external, "outside its file"), (external_in_attribute, "outside its file"), (foreign_operator, "com.evil"),
    (foreign_import, "com.evil"), (loop, "loops"), (other_width, "promises float32 rows x 4"),
    (no_probabilities, "probabilities"), (broken, "not valid")])
def test_an_open_or_odd_onnx_graph_is_refused(onnx_bundle: Build, onnx_model: ModelProto,
                                              change: Callable[[ModelProto], None], reason: str) -> None:
    change(onnx_model)
    with pytest.raises(BundleRefused, match=reason):
        onnx_bundle(onnx_model)


def test_bytes_that_are_no_graph_are_refused() -> None:
    manifest = Manifest("onnx_classifier", "junk", ("a",))
    with pytest.raises(BundleRefused, match="ONNX"):
        make_bundle(manifest, {"model.onnx": b"\xff" * 100})
