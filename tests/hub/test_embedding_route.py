"""The route by which an operator chooses the embedding."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from array_heads import array_bundle
from encoder_bundles import encoder_bundle
from http_door import assert_problem, bearer
from plain_hub import PlainHub

from hub.embedding_use import embedders_of
from policies.bundle import pack_bundle
from policies.embedder import load_embedder


async def test_an_embedding_is_stored_used_reverted_and_each_choice_is_audited(
        hub: PlainHub, client: httpx.AsyncClient) -> None:
    async def choose(**body: Any) -> httpx.Response:
        return await client.post("/v1/embedding", json=body, headers=bearer("ops"))

    assert assert_problem(await choose(version="mae-unknown"), 404)["code"] == "unknown"
    assert assert_problem(await choose(revert=True), 422)["field"] == "revert"
    stored = await client.post("/v1/policies", content=pack_bundle(encoder_bundle()), headers=bearer("ops"))
    version = stored.json()["embedding_version"]
    used = (await choose(version=version, reason="trained", command_id="c1")).json()
    assert (used["version"], used["earlier"], used["accepted"]) == (version, "none", "recorded")
    assert (await choose(version=version, reason="trained", command_id="c1")).json()["accepted"] == "duplicate"
    assert (await client.get("/v1/status", headers=bearer("bot"))).json()["embedding"]["version"] == version
    assert (await choose(revert=True, reason="odd")).json()["version"] == "none"
    audit = (await client.get("/v1/audit", headers=bearer("ops"))).json()
    assert [(row["actor"], row["summary"]) for row in audit["rows"] if row["rule"] == "embedding"] == [
        ("ops", "revert_embedding: none: odd"), ("ops", f"use_embedding: {version}: trained")]
    assert audit["verified"]


async def test_an_embedding_that_production_needs_is_not_changed_without_force(
        hub: PlainHub, client: httpx.AsyncClient) -> None:
    version = embedders_of(hub.home).add(pack_bundle(encoder_bundle()), load_embedder)
    await hub.service.embeddings.use(version, "")
    await hub.register(array_bundle("embedded_v1", {"market_embedding": 4}, version))
    await hub.command("promote", "embedded_v1")
    before = hub.reader.head()
    answer = await client.post("/v1/embedding", json={"version": "none"}, headers=bearer("ops"))
    problem = assert_problem(answer, 409)
    assert (problem["code"], problem["heads"]) == ("embedding_in_use", ["embedded_v1"])
    assert hub.reader.head() == before
    forced = await client.post("/v1/embedding", json={"version": "none", "force": True}, headers=bearer("ops"))
    assert (forced.status_code, forced.json()["version"]) == (200, "none")


@pytest.mark.parametrize("body", [{}, {"version": "a", "revert": True}, {"revert": False}, {"version": "a b"},
                                  {"version": "a", "reason": ""}, {"revert": "yes"}, {"version": "a", "force": 1}])
async def test_a_bad_choice_of_an_embedding_is_refused(
        hub: PlainHub, client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    before = hub.reader.head()
    assert_problem(await client.post("/v1/embedding", json=body, headers=bearer("ops")), 422)
    assert hub.reader.head() == before
