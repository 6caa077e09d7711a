"""Which embedding is in use is a row of the ledger: what is asked after it obeys, and the feeder follows."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import apsw
import pytest
from array_heads import array_bundle
from encoder_bundles import encoder_bundle
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_bundles import momentum_bundle
from plain_hub import PlainHub, rows_of
from waiting import eventually
from whole_state import learnt

from feature_repo.features import MARKET_EMBEDDING
from hub import embedding_use
from hub.embedding_use import EMBEDDING, REVERT, USE, EmbeddingFollower, EmbeddingUse, LedgerEmbedding, embedders_of
from hub.home import Home
from hub.replay import replay_ledger
from hub.state import folded
from hub.status import status
from policies.bundle import Bundle, pack_bundle
from policies.embedder import Embedder, EmbedderFolder, load_embedder, version_of
from policies.errors import BundleRefused, ContentConflict, InvalidInput, UnknownEntity
from policies.rows import Row
from policies.types import NO_EMBEDDING

V1, V2 = (version_of(encoder_bundle(seed).policy_id) for seed in (1, 2))


def head_for(version: str) -> Bundle:
    return array_bundle(f"for_{version}", {MARKET_EMBEDDING: 4}, version)


@pytest.fixture
async def hub(open_hub: Any) -> PlainHub:
    """With two embedders at hand, and a head for each beside the momentum rule."""
    started: PlainHub = open_hub()
    for seed in (1, 2):
        embedders_of(started.home).add(pack_bundle(encoder_bundle(seed)), load_embedder)
    for bundle in (momentum_bundle(), head_for(V1), head_for(V2)):
        await started.register(bundle)
    return started


async def asked_in(hub: PlainHub) -> tuple[set[str], dict[str, str]]:
    """(aliases that were asked, reasons by part) of the next decision."""
    answer = await hub.decide_later()
    return ({proposal["alias"] for proposal in answer["proposals"].values()},
            {entry["part"]: entry["reason"] for entry in answer["degraded"]})


async def test_only_heads_of_the_embedding_in_use_are_asked_and_the_others_say_why(hub: PlainHub) -> None:
    hub.features.embedding_version = V1  # what the store holds, whatever is said
    asked, reasons = await asked_in(hub)
    assert asked == {"momentum_v1"}
    assert reasons[f"head for_{V1}"] == f"is made for embedding {V1}; in use is none"
    await hub.service.embeddings.use(V1, "try it")
    asked, reasons = await asked_in(hub)
    assert asked == {"momentum_v1", f"for_{V1}"}
    assert reasons == {f"head for_{V2}": f"is made for embedding {V2}; in use is {V1}"}
    body = rows_of(hub, "decision")[-1].body["features"]
    assert (set(body["arrays"]), body["embedding_version"]) == ({MARKET_EMBEDDING}, V1)


async def test_until_the_store_holds_the_version_in_use_its_heads_are_not_asked(hub: PlainHub) -> None:
    hub.features.embedding_version = V1
    await hub.service.embeddings.use(V2, "newer")
    asked, reasons = await asked_in(hub)
    assert asked == {"momentum_v1"}
    assert reasons[f"head for_{V2}"] == f"is made for embedding {V2}; the store holds {V1} so far"
    assert "arrays" not in rows_of(hub, "decision")[-1].body["features"]
    hub.features.embedding_version = V2
    assert (await asked_in(hub))[0] == {"momentum_v1", f"for_{V2}"}


async def test_a_revert_is_obeyed_by_the_very_next_decision(hub: PlainHub) -> None:
    for version in (V1, V2):
        await hub.service.embeddings.use(version, "")
    hub.features.embedding_version = V2
    assert f"for_{V2}" in (await asked_in(hub))[0]
    answer = await hub.service.embeddings.revert("it drifts")
    assert (answer["version"], answer["earlier"]) == (V1, NO_EMBEDDING)
    asked, reasons = await asked_in(hub)
    assert asked == {"momentum_v1"}, "the store still holds the version that was reverted"
    assert reasons[f"head for_{V2}"].endswith(f"in use is {V1}")
    hub.features.embedding_version = V1
    assert f"for_{V1}" in (await asked_in(hub))[0]


async def test_a_decision_under_way_when_the_embedding_changes_is_made_again(hub: PlainHub) -> None:
    await hub.service.embeddings.use(V1, "")
    hub.features.embedding_version = V1
    for interrupted in ("during", "before_commit"):
        place = hub.heads if interrupted == "during" else hub.writer
        setattr(place, interrupted, lambda: hub.service.embeddings.use(NO_EMBEDDING, "away with it", force=True))
        asked, reasons = await asked_in(hub)
        assert asked == {"momentum_v1"}
        assert reasons[f"head for_{V1}"] == f"is made for embedding {V1}; in use is none"
        await hub.service.embeddings.use(V1, "again")
    assert hub.service.seen.conflicts == 2


async def test_reverts_go_back_step_by_step_and_end_at_none(hub: PlainHub) -> None:
    for version in (V1, V2, V2, NO_EMBEDDING):
        await hub.service.embeddings.use(version, "")
    versions = [(await hub.service.embeddings.revert(""))["version"] for _ in range(3)]
    assert versions == [V2, V1, NO_EMBEDDING]
    with pytest.raises(InvalidInput, match="in use before"):
        await hub.service.embeddings.revert("")
    assert hub.service.embeddings.shown() == {"version": NO_EMBEDDING, "earlier": None,
                                       "known": [*sorted((V1, V2)), NO_EMBEDDING]}


async def test_a_version_that_is_not_stored_or_was_changed_on_disk_is_refused_and_nothing_is_written(
        hub: PlainHub) -> None:
    head = hub.reader.head()
    with pytest.raises(UnknownEntity, match="mae-0123"):
        await hub.service.embeddings.use("mae-0123", "")
    model = hub.home.root / "embedders" / encoder_bundle(2).policy_id / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleRefused):
        await hub.service.embeddings.use(V2, "")
    assert hub.reader.head() == head
    assert hub.state.embedding.version == NO_EMBEDDING


@pytest.mark.parametrize(("shape", "group"), [({"bars": 121}, "window"), ({"size": 257}, "market_embedding")])
async def test_an_embedder_of_more_than_is_stored_is_refused(hub: PlainHub, shape: dict[str, int], group: str) -> None:
    version = embedders_of(hub.home).add(pack_bundle(encoder_bundle(**shape)), load_embedder)
    with pytest.raises(InvalidInput, match=group):
        await hub.service.embeddings.use(version, "")


async def test_the_same_command_again_is_recorded_once(hub: PlainHub) -> None:
    for accepted in ("recorded", "duplicate"):
        assert (await hub.service.embeddings.use(V1, "", "c1"))["accepted"] == accepted
    await hub.service.embeddings.use(V2, "", "c2")
    for accepted in ("recorded", "duplicate"):
        assert (await hub.service.embeddings.revert("", "c3"))["accepted"] == accepted
    assert hub.state.embedding.version == V1
    with pytest.raises(ContentConflict):
        await hub.service.embeddings.use(V2, "", "c1")


async def test_the_embedding_in_use_survives_a_restart_and_a_replay_finds_every_decision_equal(
        hub: PlainHub, open_hub: Any) -> None:
    hub.features.embedding_version = V1
    for step in (lambda: hub.service.embeddings.use(V1, ""), lambda: hub.service.embeddings.use(V2, "", force=True),
                 lambda: hub.service.embeddings.revert(""), lambda: hub.service.embeddings.revert("")):
        await hub.decide_later()
        await step()
        await hub.decide_later()
    await hub.service.embeddings.use(V2, "", force=True)
    report = replay_ledger(hub.home.ledger, hub.home.policies)
    assert report.equal, list(report.lines(5))
    assert (report.decisions, report.proposals) == (8, 8 + 4), "the head of V1 was asked while V1 was in use"
    assert learnt(folded(hub.reader)) == learnt(hub.state)
    assert learnt(hub.writers_state, memory=False) == learnt(hub.state, memory=False)
    await hub.close()
    assert open_hub().state.embedding.version == V2


async def test_status_tells_the_version_in_use(hub: PlainHub) -> None:
    await hub.service.embeddings.use(V1, "")
    told = status(hub.service, "", await hub.service.feature_ages())["embedding"]
    assert (told["version"], told["earlier"]) == (V1, NO_EMBEDDING)


# -- the fold and who follows it --------------------------------------------------------------------------------------


def row(position: int, command: str, version: str) -> Row:
    return Row(position, "observation", str(position), 0, {
        "what": EMBEDDING, "policy_id": None, "figure": None,
        "detail": {"command": command, "version": version, "actor": "ops", "reason": ""}})


@settings(derandomize=True, database=None, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(["none", "a", "b", "c"]), st.none()), max_size=30))
def test_a_revert_leads_to_the_last_one_in_use_that_was_not_reverted(said: list[str | None]) -> None:
    """None stands for a revert, which is recorded with the version to which it leads."""
    use, stack = EmbeddingUse(), ["none"]
    for position, version in enumerate(said, 1):
        if version is not None:
            stack += [version] if version != stack[-1] else []
            use.apply(row(position, USE, version))
        elif use.earlier is not None:
            stack.pop()
            use.apply(row(position, REVERT, use.earlier))
        assert (use.version, use.earlier) == (stack[-1], stack[-2] if len(stack) > 1 else None)


def test_the_same_revert_from_two_replicas_goes_back_once() -> None:
    use = EmbeddingUse()
    for position, (command, version) in enumerate([(USE, "a"), (USE, "b"), (REVERT, "a"), (REVERT, "a")], 1):
        use.apply(row(position, command, version))
    assert (use.version, use.earlier) == ("a", "none")


async def test_a_follower_has_the_feeder_use_what_the_ledger_says(hub: PlainHub) -> None:
    used: list[str] = []

    def use(embedder: Embedder | None) -> None:
        used.append(embedder.version if embedder else NO_EMBEDDING)

    time_s = [0.0]
    follower = EmbeddingFollower(hub.home, use, lambda: time_s[0])
    follower.follow()
    assert used == []
    await hub.service.embeddings.use(V1, "")
    follower.follow()
    follower.follow()
    assert used == [NO_EMBEDDING, V1], "loaded once"
    await hub.service.embeddings.use(V2, "")
    await hub.service.embeddings.revert("")
    follower.follow()
    assert (used[2:], follower.problem) == ([], ""), "between two looks it went back to where it was"
    await hub.service.embeddings.use(V2, "")
    model = hub.home.root / "embedders" / encoder_bundle(2).policy_id / "model.onnx"
    content = model.read_bytes()
    model.write_bytes(b"")
    follower.follow()
    assert used[2:] == [NO_EMBEDDING]
    assert "model.onnx" in follower.problem
    model.write_bytes(content)
    follower.follow()
    assert used[2:] == [NO_EMBEDDING], "not tried at every look"
    time_s[0] += 1.0
    follower.follow()
    assert (used[-1], follower.problem) == (V2, "")
    assert LedgerEmbedding(hub.home.ledger).catch_up() == V2


async def test_whatever_loading_or_using_an_embedder_raises_it_is_tried_again_more_and_more_rarely(
        hub: PlainHub, monkeypatch: pytest.MonkeyPatch) -> None:
    tries, time_s = [0], [0.0]

    def crash(self: EmbedderFolder, version: str) -> Embedder:
        tries[0] += 1
        raise [MemoryError(), OSError("no disk"), RuntimeError("odd")][tries[0] % 3]

    follower = EmbeddingFollower(hub.home, lambda embedder: None, lambda: time_s[0])
    await hub.service.embeddings.use(V1, "")
    monkeypatch.setattr(EmbedderFolder, "load", crash)
    counted = []
    for time_s[0] in (0.0, 0.5, 1.0, 2.0, 3.0, 6.0, 7.0, 1e3, 1.001e3, 1.01e3):
        follower.follow()
        counted.append(tries[0])
    assert counted == [1, 1, 2, 2, 3, 3, 4, 5, 5, 5]
    assert follower.problem == "RuntimeError: odd"
    monkeypatch.undo()
    await hub.service.embeddings.use(NO_EMBEDDING, "")
    follower.follow()
    assert follower.problem == ""


async def test_a_slow_embedder_is_not_waited_for_and_used_when_it_is_there(
        hub: PlainHub, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[Any] = []
    go_on, load = threading.Event(), EmbedderFolder.load

    def slow(self: EmbedderFolder, version: str) -> Embedder:
        go_on.wait(10)
        return load(self, version)

    follower = EmbeddingFollower(hub.home, used.append)
    await hub.service.embeddings.use(V1, "")
    monkeypatch.setattr(EmbedderFolder, "load", slow)
    monkeypatch.setattr(embedding_use, "PATIENCE_S", 0.01)
    follower.follow()
    assert used == [None]
    go_on.set()

    def is_used() -> bool:
        follower.follow()
        return len(used) == 2

    eventually(is_used, "the embedder is used")
    assert used[1].version == V1


async def test_a_ledger_that_cannot_be_read_leaves_the_embedding_as_it_is(
        hub: PlainHub, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[Embedder | None] = []
    follower = EmbeddingFollower(hub.home, used.append)
    await hub.service.embeddings.use(V1, "")
    follower.follow()

    def torn(self: LedgerEmbedding) -> str:
        raise apsw.BusyError("the disk is away")

    with monkeypatch.context() as patched:
        patched.setattr(LedgerEmbedding, "catch_up", torn)
        follower.follow()
    assert "the disk is away" in follower.problem
    follower.follow()
    assert follower.problem == ""
    assert [embedder and embedder.version for embedder in used] == [None, V1]


def test_before_there_is_a_ledger_no_embedding_is_in_use(tmp_path: Path) -> None:
    assert LedgerEmbedding(Home(tmp_path).ledger).catch_up() == NO_EMBEDDING
