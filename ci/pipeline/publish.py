"""Step: the best candidate that passed goes into the outbox, and from there to the artefact store, pointer last.

While the store is away the bundle waits in HOME/outbox, and this step, run again, sends it. A candidate that takes
embeddings takes its embedder along, before itself.
"""

from __future__ import annotations

import time
from pathlib import Path

from ci.forward_test import kept_embedder
from ci.pipeline.forward import TESTED
from ci.pipeline.outbox import Entry, Outbox
from ci.pipeline.settings import PipelineSettings
from ci.pipeline.step import FAILED, NOT_PASSED, Away, Say, Stopped, again, command, notes_folder, read_note
from policies.artefacts import ArtefactStore, ArtefactsUnavailable, open_store
from policies.bundle import Bundle, read_bundle
from train.forward import needed_embedding


def outbox_of(settings: PipelineSettings) -> Outbox:
    return Outbox(settings.home / "outbox")


def store_of(settings: PipelineSettings) -> ArtefactStore:
    return open_store(settings.artefacts_url, settings.s3_endpoint_url)


def run(settings: PipelineSettings, say: Say) -> str:
    outbox = outbox_of(settings)
    kept = [outbox.put(bundle, time.time_ns() // 1_000_000) for bundle in chosen(settings)]
    waiting = len(outbox.entries()) - len(kept)
    if waiting:
        say(f"{waiting} earlier bundles wait in the outbox and go first")
    store = store_of(settings)
    try:
        urls = [again(lambda entry=entry: sent(outbox, entry, store), settings.patience_s, say)  # type: ignore[misc]
                for entry in outbox.each(lambda entry: not entry.published_url)]
    except Away as error:
        raise Away(f"{error}; {len(outbox.entries())} bundles are kept in {settings.home / 'outbox'} for the next "
                   f"run") from error
    return f"published {', '.join(urls)}" if urls else "everything in the outbox was published already"


def chosen(settings: PipelineSettings) -> list[Bundle]:
    """The first candidate that passed, after its embedder if it needs one; nothing if there was no test, so that a
    publication alone sends what waits."""
    if not (notes_folder(settings.home) / f"{TESTED}.json").exists():
        return []
    passed = [one for one in read_note(settings.home, TESTED, "forward") if one["passed"]]
    if not passed:
        raise Stopped(NOT_PASSED, "no candidate passed the forward test: nothing is published")
    best = read_bundle(Path(passed[0]["path"]))
    if best.policy_id != passed[0]["policy_id"]:
        raise Stopped(FAILED, f"{passed[0]['path']} is not the candidate that was tested")
    if not needed_embedding(best):
        return [best]
    embedder = kept_embedder(settings.home, needed_embedding(best))
    if embedder is None:
        raise Stopped(FAILED, f"{best.manifest.alias} needs the embedder {needed_embedding(best)}, which is gone")
    return [embedder, best]


def sent(outbox: Outbox, entry: Entry, store: ArtefactStore) -> str:
    """The URL under which the store holds it now. Away if the store is."""
    try:
        store.publish(outbox.bundle(entry))
    except ArtefactsUnavailable as error:
        raise Away(str(error)) from error
    return outbox.published(entry, store.url_of(entry.policy_id)).published_url


main = command(run, "Publish the best candidate that passed.")

if __name__ == "__main__":
    main()
