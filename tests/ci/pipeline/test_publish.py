"""Publication: only what passed, through the outbox, over a store that may be away; S3 is a server of its own."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from array_heads import array_bundle
from encoder_bundles import encoder_bundle
from plain_bundles import momentum_bundle

from ci.pipeline import publish
from ci.pipeline.local_s3 import BUCKET, CREDENTIALS, local_s3
from ci.pipeline.publish import outbox_of, store_of
from ci.pipeline.settings import PipelineSettings
from ci.pipeline.step import AWAY, NOT_PASSED, Stopped, ended, leave_note
from policies import objects
from policies.bundle import Bundle, make_bundle, pack_bundle
from policies.embedder import EmbedderFolder, version_of
from policies.free_ports import free_port


def tested(settings: PipelineSettings, *candidates: tuple[Bundle, bool]) -> None:
    """As the forward test leaves them."""
    told: list[dict[str, Any]] = []
    for bundle, passed in candidates:
        path = settings.home / "models" / f"candidate_{bundle.manifest.alias}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pack_bundle(bundle))
        told.append({"path": str(path), "policy_id": bundle.policy_id, "passed": passed})
    leave_note(settings.home, "forward", told)


def run(settings: PipelineSettings) -> tuple[int, str]:
    return ended(publish.run, settings, lambda text: None)


@pytest.fixture
def settings(tmp_path: Path) -> PipelineSettings:
    return PipelineSettings(tmp_path, patience_s=0.0)


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(objects, "ATTEMPTS", 1)


def test_the_first_that_passed_is_published_and_pointed_at(settings: PipelineSettings) -> None:
    tested(settings, (momentum_bundle("failed"), False), (momentum_bundle("second"), True),
           (momentum_bundle("third"), True))
    code, said = run(settings)
    assert code == 0, said
    assert store_of(settings).pointer().policy_id == momentum_bundle("second").policy_id
    [entry] = outbox_of(settings).entries()  # until the hub has answered
    assert entry.published_url == store_of(settings).url_of(entry.policy_id)
    assert run(settings) == (0, "everything in the outbox was published already")


def test_without_a_passed_candidate_nothing_is_published(settings: PipelineSettings) -> None:
    tested(settings, (momentum_bundle("failed"), False))
    assert run(settings)[0] == NOT_PASSED
    assert outbox_of(settings).entries() == []
    assert not (settings.home / "artefacts").exists()


def test_a_file_that_is_not_the_tested_candidate_is_not_published(settings: PipelineSettings) -> None:
    tested(settings, (momentum_bundle("second"), True))
    (settings.home / "models" / "candidate_second.pt").write_bytes(pack_bundle(momentum_bundle("another")))
    with pytest.raises(Stopped, match="not the candidate that was tested"):
        publish.run(settings, print)


def test_an_embedder_goes_before_the_head_that_needs_it(settings: PipelineSettings) -> None:
    encoder = encoder_bundle()
    head = array_bundle("embedded", {"market_embedding": 4}, version_of(encoder.policy_id))
    tested(settings, (head, True))
    with pytest.raises(Stopped, match="which is gone"):
        publish.run(settings, print)
    EmbedderFolder(settings.home / "embedders", canary=lambda bundle: None).add(pack_bundle(encoder))
    assert run(settings)[0] == 0
    assert [entry.policy_id for entry in outbox_of(settings).entries()] == [encoder.policy_id, head.policy_id]
    assert store_of(settings).pointer().policy_id == head.policy_id
    other = make_bundle(replace(head.manifest, alias="lost", embedding_version="mae-000000000000"), head.files)
    tested(settings, (other, True))
    assert run(settings)[0] == 1


@pytest.mark.usefixtures("credentials")
def test_an_s3_that_is_away_loses_nothing_and_the_next_run_sends_all_in_their_order(
        settings: PipelineSettings) -> None:
    port = free_port()
    settings = replace(settings, artefacts=f"s3://{BUCKET}", s3_endpoint_url=f"http://127.0.0.1:{port}")
    made = [momentum_bundle(alias) for alias in ("first", "second")]
    for bundle in made:
        tested(settings, (bundle, True))
        code, said = run(settings)
        assert code == AWAY
        assert "are kept in" in said
    assert [entry.policy_id for entry in outbox_of(settings).entries()] == [bundle.policy_id for bundle in made]
    with ExitStack() as stack:
        assert stack.enter_context(local_s3(settings.home, port)) == settings.s3_endpoint_url
        assert run(settings)[0] == 0
        store = store_of(settings)
        assert store.pointer().policy_id == made[1].policy_id
        assert [store.fetch(bundle.policy_id) for bundle in made] == made
        assert all(entry.published_url for entry in outbox_of(settings).entries())
    tested(settings, (momentum_bundle("third"), True))
    assert run(settings)[0] == AWAY  # the server has ended with its block
    assert len(outbox_of(settings).entries()) == 3
