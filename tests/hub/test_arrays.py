"""Heads that take windows and embeddings: what they are given, what is recorded of it, and when they are not asked."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import apsw
import numpy as np
import orjson
import pytest
from array_heads import array_bundle
from encoder_bundles import encoder_bundle
from plain_bundles import momentum_bundle
from plain_hub import PlainHub, llm_view, rows_of
from whole_state import learnt

from feature_repo.features import ARRAYS, DECISION_V1, MARKET_EMBEDDING, MINUTE_MS, WINDOW
from hub.decide import Features
from hub.embedding_use import embedders_of
from hub.head_rack import HeadRack
from hub.replay import replay_ledger
from hub.state import folded
from hub.status import feature_ages
from policies.bundle import Bundle, pack_bundle
from policies.embedder import load_embedder
from policies.errors import BundleRefused
from policies.registry import PolicyFolder
from policies.types import NO_EMBEDDING, Context, Portfolio

STALE_MS = ARRAYS[WINDOW].ttl_ms + MINUTE_MS


def features_of(hub: PlainHub) -> dict[str, Any]:
    body = rows_of(hub, "decision")[-1].body["features"]
    assert isinstance(body, dict)
    return body


def reason_of(answer: dict[str, Any], part: str) -> str:
    return "; ".join(entry["reason"] for entry in answer["degraded"] if entry["part"] == part)


def floats(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<f4")


async def opened(open_hub: Any, *bundles: Bundle) -> PlainHub:
    hub: PlainHub = open_hub()
    for bundle in (momentum_bundle(), *bundles):
        await hub.register(bundle)
    return hub


async def test_a_hub_without_such_heads_reads_and_records_no_array(hub: PlainHub) -> None:
    await hub.decide_later()
    assert hub.features.read_arrays == [()]
    assert set(features_of(hub)) == {"service", "values", "event_time_ms", "episode"}


async def test_a_head_is_given_the_last_numbers_of_the_window_and_just_these_are_recorded(open_hub: Any) -> None:
    short, long = array_bundle("short", {WINDOW: 300}), array_bundle("long", {WINDOW: 600})
    hub = await opened(open_hub, short)
    answer = await hub.decide_later()
    assert hub.features.read_arrays[-1] == (WINDOW,)
    stored = (await hub.features.read("BTC", hub.time_ms, (WINDOW,))).arrays[WINDOW]
    recorded = floats(features_of(hub)["arrays"][WINDOW])
    assert recorded.tobytes() == stored[-300:].tobytes()
    head = HeadRack(hub.folder).load(short.policy_id)
    row = np.r_[np.array([np.nan if value is None else value for value in features_of(hub)["values"]]), stored[-300:]]
    confidences = head.predict(row)
    confidence = max(confidences[0], confidences[2]) / (confidences[0] + confidences[2])
    assert answer["proposals"][short.policy_id]["confidence"] == pytest.approx(confidence, abs=1e-12)
    await hub.register(long)
    answer = await hub.decide_later()
    assert {short.policy_id, long.policy_id} <= set(answer["proposals"])
    assert len(floats(features_of(hub)["arrays"][WINDOW])) == 600, "the most that one of them takes"


@pytest.mark.parametrize(("age_ms", "reason"), [
    (STALE_MS, "stale: older than 180 s"), (-1, "event time lies 1 ms in the future")])
async def test_while_the_window_may_not_be_used_its_heads_are_not_asked_and_others_go_on(
        open_hub: Any, age_ms: int, reason: str) -> None:
    windowed = array_bundle("windowed", {WINDOW: 300})
    hub = await opened(open_hub, windowed)
    hub.features.event_time_ms = {WINDOW: hub.time_ms + MINUTE_MS - age_ms}
    answer = await hub.decide_later(llm=llm_view())
    assert set(answer["proposals"]) == {momentum_bundle().policy_id}
    assert reason_of(answer, "head windowed") == f"needs features window, which are {reason}"
    assert reason_of(answer, "features window") == reason
    assert "arrays" not in features_of(hub)
    assert hub.state.degraded == {"features window of BTC": reason}
    hub.features.event_time_ms = {}
    assert windowed.policy_id in (await hub.decide_later())["proposals"]
    assert hub.state.degraded == {}


async def test_a_window_that_was_never_written_is_named_by_the_head_that_needs_it(open_hub: Any) -> None:
    hub = await opened(open_hub, array_bundle("embedded", {MARKET_EMBEDDING: 4}, "mae-0"), array_bundle(
        "windowed", {WINDOW: 5}))

    async def nothing_stored(symbol: str, now_ms: int, arrays: tuple[str, ...] = ()) -> Features:
        return await type(hub.features).read(hub.features, symbol, now_ms)

    hub.features.read = nothing_stored  # type: ignore[method-assign]
    answer = await hub.decide_later()
    assert reason_of(answer, "head windowed") == "needs features window, which are absent: never written"
    assert reason_of(answer, "head embedded") == "is made for embedding mae-0; in use is none"
    assert reason_of(answer, "features window") == ""


async def test_a_head_that_comes_in_while_features_are_read_is_decided_with_what_it_takes(open_hub: Any) -> None:
    hub = await opened(open_hub)
    late, read = array_bundle("late", {WINDOW: 300}), hub.features.read

    async def slow(symbol: str, now_ms: int, arrays: tuple[str, ...] = ()) -> Features:
        found = await read(symbol, now_ms, arrays)
        if len(hub.features.read_arrays) == 1:
            await hub.register(late)
        return found

    hub.features.read = slow  # type: ignore[method-assign]
    answer = await hub.decide_later()
    assert hub.features.read_arrays == [(), (WINDOW,)]
    assert late.policy_id in answer["proposals"]
    assert answer["degraded"] == []


async def test_decisions_with_arrays_replay_equal_in_every_field(open_hub: Any) -> None:
    hub = await opened(open_hub, array_bundle("windowed", {WINDOW: 300}),
                       array_bundle("wide", {WINDOW: 600}, seed=1, arrays_alone=False))
    for minute in range(60):
        hub.features.event_time_ms = {WINDOW: 0} if minute % 7 == 6 else {}
        answer = await hub.decide_later(symbol=("BTC", "ETH")[minute % 2])
        if answer["acts"] and answer["action"]["direction"] != "flat":
            await hub.report(answer, 0.001 * (-1) ** minute)
    report = replay_ledger(hub.home.ledger, hub.home.policies)
    assert report.equal, list(report.lines(5))
    assert report.decisions == 60
    assert report.proposals > 130
    assert learnt(folded(hub.reader)) == learnt(hub.state)


async def test_a_recorded_window_that_was_altered_is_found_by_the_replay(open_hub: Any, tmp_path: Path) -> None:
    windowed = array_bundle("windowed", {WINDOW: 300})
    hub = await opened(open_hub, windowed)
    await hub.decide_later()
    recorded = features_of(hub)["arrays"][WINDOW]
    altered = base64.b64encode((floats(recorded) + np.float32(0.5)).tobytes()).decode()
    copy = tmp_path / "copy.sqlite"
    with apsw.Connection(str(hub.home.ledger)) as source, apsw.Connection(str(copy)) as target:
        with target.backup("main", source, "main") as backup:
            backup.step()
        for (trigger,) in list(target.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'")):
            target.execute(f"DROP TRIGGER {trigger}")
        target.execute("UPDATE ledger SET body = replace(body, ?, ?)", (recorded, altered))
    report = replay_ledger(copy, hub.home.policies)
    assert any(f"proposals.{windowed.policy_id}.confidence" in str(found) for found in report.differences)


def test_arrays_come_back_from_the_row_to_the_last_bit() -> None:
    rng = np.random.default_rng(0)
    arrays = {WINDOW: rng.normal(size=600).astype(np.float32), MARKET_EMBEDDING: np.float32([1e-40, -0.0, 3e38])}
    features = Features((1.0,), {WINDOW: 5}, arrays=arrays, embedding_version="mae-1")
    body = orjson.loads(orjson.dumps(features.to_dict()))
    back = Features.from_dict(body)
    assert back.to_dict() == body
    assert back.embedding_version == "mae-1"
    for group, values in arrays.items():
        assert back.arrays[group].tobytes() == values.tobytes()
    assert set(features.only({WINDOW: 10}).arrays) == {WINDOW}
    assert features.only({WINDOW: 10}).arrays[WINDOW].tobytes() == arrays[WINDOW][-10:].tobytes()


@pytest.mark.parametrize(("arrays", "version", "reason"), [
    ({WINDOW: 301}, "none", "multiple of 5"), ({WINDOW: 605}, "none", "at most 600"),
    ({MARKET_EMBEDDING: 257}, "mae-1", "at most 256"), ({"order_book": 5}, "none", "required_groups"),
    ({MARKET_EMBEDDING: 16}, "none", "one embedding_version")])
def test_arrays_that_nobody_serves_are_refused(tmp_path: Path, arrays: dict[str, int], version: str,
                                               reason: str) -> None:
    folder = PolicyFolder(tmp_path)
    bundle = folder.add(pack_bundle(array_bundle("odd", arrays, version)))
    with pytest.raises(BundleRefused, match=reason):
        HeadRack(folder).load(bundle.policy_id)


def test_a_head_without_its_array_has_no_answer_and_says_which(tmp_path: Path) -> None:
    folder = PolicyFolder(tmp_path)
    bundle = folder.add(pack_bundle(array_bundle("windowed", {WINDOW: 300})))
    rack = HeadRack(folder)
    rack.load(bundle.policy_id)
    for arrays in ({}, {WINDOW: np.zeros(299, np.float32)}):
        context = Context("BTC", "momentum", 0, (0.0,) * len(DECISION_V1), {}, Portfolio(1.0), arrays=arrays)
        proposal, _, failed = rack.propose([bundle.policy_id], context)[bundle.policy_id]
        assert proposal is None
        assert WINDOW in failed


async def test_ages_of_arrays_are_told_like_those_of_features(hub: PlainHub) -> None:
    version = embedders_of(hub.home).add(pack_bundle(encoder_bundle()), load_embedder)
    await hub.service.embeddings.use(version, "")
    hub.features.embedding_version = version
    hub.features.event_time_ms = {WINDOW: hub.time_ms - STALE_MS}
    told = {entry["group"]: entry for entry in feature_ages(await hub.service.feature_ages())
            if entry["symbol"] == "BTC"}
    assert (told[WINDOW]["fresh"], told[WINDOW]["age_ms"], told[WINDOW]["required"]) == (False, STALE_MS, False)
    assert told[MARKET_EMBEDDING]["fresh"]


async def test_an_embedding_that_is_no_longer_in_use_is_not_told_as_stale(hub: PlainHub) -> None:
    version = embedders_of(hub.home).add(pack_bundle(encoder_bundle()), load_embedder)
    await hub.service.embeddings.use(version, "")
    hub.features.embedding_version = version
    hub.features.event_time_ms = {MARKET_EMBEDDING: hub.time_ms - STALE_MS}

    async def told() -> list[bool]:
        return [entry["fresh"] for entry in feature_ages(await hub.service.feature_ages())
                if entry["group"] == MARKET_EMBEDDING]

    assert set(await told()) == {False}, "its feed has stopped"
    await hub.service.embeddings.use(NO_EMBEDDING, "", force=True)
    assert await told() == []


async def test_what_nobody_who_is_asked_takes_is_neither_read_nor_told_as_stale(hub: PlainHub) -> None:
    version = embedders_of(hub.home).add(pack_bundle(encoder_bundle()), load_embedder)
    await hub.service.embeddings.use(version, "")
    hub.features.embedding_version = version
    await hub.register(array_bundle("embedded_v1", {MARKET_EMBEDDING: 4}, version))
    hub.features.event_time_ms = {MARKET_EMBEDDING: hub.time_ms - STALE_MS}

    async def told() -> set[str]:
        return {entry["part"] for entry in (await hub.decide_later())["degraded"]}

    assert f"features {MARKET_EMBEDDING}" in await told(), "a head is made for it, and its feed has stopped"
    await hub.service.embeddings.use(NO_EMBEDDING, "", force=True)
    assert await told() == {"head embedded_v1"}
    assert MARKET_EMBEDDING not in hub.features.read_arrays[-1]
    report = replay_ledger(hub.home.ledger, hub.home.policies)
    assert report.equal, list(report.lines(5))
