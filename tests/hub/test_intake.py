"""What a candidate must pass, asked of the plain function: bounded work on hostile ones, and what is kept of whom."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
from encoder_bundles import encoder_bundle
from plain_bundles import momentum_bundle

from hub import intake
from hub.intake import MOST_SAID, Asked, alias_in, take_in
from policies import embedder
from policies.bundle import pack_bundle
from policies.embedder import EmbedderFolder, load_embedder
from policies.errors import BundleRefused
from policies.manifest import MANIFEST
from policies.registry import PolicyFolder


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    return Asked(str(tmp_path / "policies"), str(tmp_path / "embedders"), store_url=str(tmp_path / "artefacts"))


def archive_of(count: int) -> bytes:
    """An archive of a manifest with an alias, and so many empty files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(MANIFEST, '{"alias": "many_v1"}')
        for number in range(count):
            archive.writestr(str(number), b"")
    return buffer.getvalue()


def test_an_archive_refused_by_its_count_is_not_listed_for_its_alias(
        asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    assert alias_in(archive_of(20)) == "many_v1"
    content = archive_of(2_000)
    monkeypatch.setattr(intake.zipfile, "ZipFile", lambda *_: pytest.fail("it was listed"))
    taken = take_in(asked, io.BytesIO(content))
    assert (taken.alias, taken.code) == ("", "bundle_refused")
    assert "lists more than" in taken.refused


def test_a_refusal_is_of_bounded_length(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise BundleRefused("x" * 10**6)

    monkeypatch.setattr(intake, "read_bundle", refuse)
    assert take_in(asked, io.BytesIO(b"PK")).refused == "x" * MOST_SAID


def test_policies_and_embedders_are_kept_apart_and_marked(asked: Asked) -> None:
    for bundle, kept, other in ((momentum_bundle(), asked.policies, asked.embedders),
                                (encoder_bundle(), asked.embedders, asked.policies)):
        assert take_in(asked, io.BytesIO(pack_bundle(bundle))).policy_id == bundle.policy_id
        assert PolicyFolder(Path(kept)).marks.holds(bundle.policy_id)
        assert bundle.policy_id not in PolicyFolder(Path(other)).ids()


def test_an_embedder_whose_version_another_one_has_is_refused(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedder, "version_of", lambda policy_id: "mae-the-same")
    embedders = EmbedderFolder(Path(asked.embedders))
    embedders.add(pack_bundle(encoder_bundle()), load_embedder)
    taken = take_in(asked, io.BytesIO(pack_bundle(encoder_bundle(1))))
    assert (taken.policy_id, taken.code) == ("", "bundle_refused")
    assert "mae-the-same" in taken.refused
    assert embedders.versions() == {"mae-the-same": encoder_bundle().policy_id}


def test_an_unsigned_embedder_is_refused_where_signatures_are_asked_for(asked: Asked) -> None:
    wary = Asked(asked.policies, asked.embedders, ("ab" * 32,), store_url=asked.store_url)
    taken = take_in(wary, io.BytesIO(pack_bundle(encoder_bundle())))
    assert "only signed" in taken.refused
    assert EmbedderFolder(Path(asked.embedders)).versions() == {}
