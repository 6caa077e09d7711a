"""Storage of bundles: content-addressed, complete or absent, checked on every read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from policies import registry
from policies.bundle import Bundle, Signature, pack_bundle
from policies.errors import BundleRefused, UnknownEntity
from policies.registry import PolicyFolder

Build = Callable[..., Bundle]


def test_what_is_added_is_found_under_its_id(tmp_path: Path, onnx_bundle: Build, momentum_bundle: Build) -> None:
    folder = PolicyFolder(tmp_path / "policies")
    added = [folder.add(pack_bundle(build())) for build in (onnx_bundle, momentum_bundle)]
    assert folder.ids() == sorted(b.policy_id for b in added)
    assert folder.get(added[0].policy_id) == added[0] == onnx_bundle()


def test_adding_again_changes_nothing(tmp_path: Path, onnx_bundle: Build) -> None:
    folder = PolicyFolder(tmp_path)
    first = folder.add(pack_bundle(onnx_bundle()))
    stamp = (tmp_path / first.policy_id).stat().st_ino
    assert folder.add(tmp_path / first.policy_id).policy_id == first.policy_id
    assert (tmp_path / first.policy_id).stat().st_ino == stamp


@pytest.mark.parametrize("policy_id", ["0" * 64, "..", "", "../../etc", "A" * 64])
def test_an_unknown_id_is_refused(tmp_path: Path, policy_id: str) -> None:
    with pytest.raises(UnknownEntity):
        PolicyFolder(tmp_path).get(policy_id)


def test_a_bundle_changed_on_disk_is_refused_and_healed_by_adding_it_again(tmp_path: Path, onnx_bundle: Build) -> None:
    folder, packed = PolicyFolder(tmp_path), pack_bundle(onnx_bundle())
    policy_id = folder.add(packed).policy_id
    (tmp_path / policy_id / "model.onnx").write_bytes(b"other")
    with pytest.raises(BundleRefused, match="SHA-256"):
        folder.get(policy_id)
    folder.add(packed)
    assert folder.get(policy_id) == onnx_bundle()


def test_another_bundle_under_an_id_is_refused(tmp_path: Path, onnx_bundle: Build, momentum_bundle: Build) -> None:
    folder = PolicyFolder(tmp_path)
    one, two = (folder.add(pack_bundle(build())).policy_id for build in (onnx_bundle, momentum_bundle))
    (tmp_path / one).rename(tmp_path / "aside")
    (tmp_path / two).rename(tmp_path / one)
    with pytest.raises(BundleRefused, match="hashes to"):
        folder.get(one)


def test_a_failed_write_leaves_nothing(tmp_path: Path, onnx_bundle: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    def disk_full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(registry, "write_bundle", disk_full)
    with pytest.raises(OSError, match="No space"):
        PolicyFolder(tmp_path).add(pack_bundle(onnx_bundle()))
    assert list(tmp_path.iterdir()) == []


def test_a_signature_that_comes_later_is_kept_beside_the_same_policy(tmp_path: Path, onnx_bundle: Build) -> None:
    folder, plain = PolicyFolder(tmp_path), onnx_bundle()
    folder.add(pack_bundle(plain))
    for digit in "12":
        signed = replace(plain, signature=Signature("0" * 64, digit * 128))
        assert folder.add(pack_bundle(signed)).signature == signed.signature
        assert folder.add(pack_bundle(plain)).signature == signed.signature
    assert folder.ids() == [plain.policy_id]
    assert folder.get(plain.policy_id) == plain


def test_marks_lie_beside_the_policies_and_are_no_policies(tmp_path: Path, onnx_bundle: Build) -> None:
    folder = PolicyFolder(tmp_path)
    policy_id = folder.add(pack_bundle(onnx_bundle())).policy_id
    folder.marks.set(policy_id)
    assert folder.marks.holds(policy_id)
    assert folder.ids() == [policy_id]


def test_what_a_killed_process_left_is_swept_when_it_is_old(tmp_path: Path, onnx_bundle: Build,
                                                            momentum_bundle: Build) -> None:
    left = tmp_path / ".new-left"
    (left / "bundle").mkdir(parents=True)
    (left / "bundle" / "model.onnx").write_bytes(b"half of it")
    made_s = left.stat().st_mtime
    PolicyFolder(tmp_path, lambda: made_s + 3_600).add(pack_bundle(onnx_bundle()))
    assert left.exists(), "perhaps it is being written"
    PolicyFolder(tmp_path, lambda: made_s + 3_601).add(pack_bundle(momentum_bundle()))
    assert not left.exists()
    assert len(PolicyFolder(tmp_path).ids()) == 2


def test_a_manifest_alone_is_found_under_its_id(tmp_path: Path, onnx_bundle: Build) -> None:
    folder = PolicyFolder(tmp_path)
    policy_id = folder.add(pack_bundle(onnx_bundle())).policy_id
    assert folder.manifest(policy_id) == onnx_bundle().manifest
    with pytest.raises(UnknownEntity):
        folder.manifest("..")
