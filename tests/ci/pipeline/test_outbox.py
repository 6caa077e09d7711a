"""The outbox: nothing that was put in is lost, nothing is sent twice under two names."""

from __future__ import annotations

from pathlib import Path

import pytest
from plain_bundles import momentum_bundle, onnx_bundle

from ci.pipeline import outbox as module
from ci.pipeline.outbox import Outbox


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    return Outbox(tmp_path / "outbox")


def test_what_was_put_in_is_there_for_the_next_process_oldest_first(outbox: Outbox, tmp_path: Path) -> None:
    first, second = onnx_bundle(), momentum_bundle()
    made = [outbox.put(first, 5), outbox.put(second, 5)]  # in the same millisecond
    again = Outbox(tmp_path / "outbox")
    assert again.entries() == made
    assert [again.bundle(entry) for entry in again.entries()] == [first, second]


def test_a_bundle_that_waits_keeps_its_message_and_one_that_comes_later_gets_another(outbox: Outbox) -> None:
    entry = outbox.put(momentum_bundle(), 5)
    assert outbox.put(momentum_bundle(), 9) == entry
    outbox.done(entry)
    assert outbox.entries() == []
    assert outbox.put(momentum_bundle(), 9).message_id != entry.message_id


def test_how_far_it_has_come_is_remembered(outbox: Outbox) -> None:
    entry = outbox.put(momentum_bundle(), 5)
    assert outbox.each(lambda one: not one.published_url) == [entry]
    published = outbox.published(entry, "s3://bucket/x")
    assert outbox.entries() == [published]
    assert outbox.published(published, "").published_url == ""


def test_an_interrupted_put_leaves_no_entry_and_a_repeated_one_completes_it(
        outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    def dying(path: Path, content: bytes) -> None:
        if path.suffix == ".json":
            raise KeyboardInterrupt
        write(path, content)
        written.append(path.name)

    write = module.write_whole
    with monkeypatch.context() as patched:
        patched.setattr(module, "write_whole", dying)
        with pytest.raises(KeyboardInterrupt):
            outbox.put(momentum_bundle(), 5)
    assert len(written) == 1
    assert outbox.entries() == []
    assert outbox.bundle(outbox.put(momentum_bundle(), 6)) == momentum_bundle()


def test_a_refused_bundle_waits_no_more_and_is_kept_with_the_reason(outbox: Outbox) -> None:
    entry = outbox.put(momentum_bundle(), 5)
    kept = outbox.refused(entry, "not sound")
    assert outbox.entries() == []
    assert kept.read_bytes()
    assert kept.with_suffix(".txt").read_text() == "not sound\n"
