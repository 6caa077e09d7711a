"""Handing over to a hub: the embedder before the head that was made for it, and every refusal in words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from encoder_bundles import encoder_bundle
from hub_door import FakeHub, fake_hub
from plain_bundles import momentum_bundle
from rich.console import Console
from small_search import searched

from policies.bundle import pack_bundle
from policies.embedder import version_of
from policies.free_ports import free_port
from train.candidates import Retrained
from train.handover import HandoverFailed, HubDoor
from train.retrain_sup import hand_over


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    with fake_hub(tmp_path / "home", 1_000) as found:
        yield found


def door(hub: FakeHub) -> HubDoor:
    return HubDoor(hub.url, hub.home)


def led_by(name: str) -> Retrained:
    """The small search, with this head the best."""
    found = searched().retrained
    best = sorted(found.candidates, key=lambda candidate: candidate.name != name)
    return replace(found, candidates=tuple(best))


def test_a_running_hub_tells_its_clock(hub: FakeHub) -> None:
    status = door(hub).status()
    assert status is not None
    assert status["hub"]["now_ms"] == 1_000


def test_no_hub_or_one_of_another_home_is_no_hub(hub: FakeHub, tmp_path: Path) -> None:
    assert HubDoor(f"http://127.0.0.1:{free_port()}", hub.home).status() is None
    assert HubDoor(hub.url, tmp_path / "another home").status() is None
    (tmp_path / "tokens.json").write_text(json.dumps({"ops": "another"}))
    assert HubDoor(hub.url, tmp_path).status() is None
    (tmp_path / "tokens.json").write_text("torn")
    assert HubDoor(hub.url, tmp_path).status() is None


def test_a_bundle_arrives_as_it_is(hub: FakeHub) -> None:
    bundle = momentum_bundle()
    assert door(hub).register(bundle)["policy_id"] == bundle.policy_id
    assert hub.asked == [("/v1/policies", pack_bundle(bundle))]


@pytest.mark.parametrize("status", [401, 413, 422, 500, 503])
def test_a_refusal_says_what_the_hub_said(hub: FakeHub, status: int) -> None:
    hub.answers["/v1/policies"] = status, {"detail": "weights are not finite"}
    with pytest.raises(HandoverFailed, match=f"{status}.*weights are not finite"):
        door(hub).register(momentum_bundle())


def test_a_hub_that_goes_away_is_a_failed_handover(hub: FakeHub) -> None:
    with pytest.raises(HandoverFailed, match="ConnectError"):
        HubDoor(f"http://127.0.0.1:{free_port()}", hub.home).register(momentum_bundle())
    (hub.home / "tokens.json").unlink()
    with pytest.raises(HandoverFailed, match="FileNotFoundError"):
        door(hub).register(momentum_bundle())


def test_an_embedder_is_registered_and_then_used(hub: FakeHub) -> None:
    bundle = encoder_bundle()
    assert door(hub).use_embedder(bundle) == ""
    assert [path for path, _ in hub.asked] == ["/v1/policies", "/v1/embedding"]
    assert json.loads(hub.asked[1][1])["version"] == version_of(bundle.policy_id)


def test_an_embedding_that_is_needed_is_not_changed_by_a_search(hub: FakeHub) -> None:
    hub.answers["/v1/embedding"] = 409, {"detail": "production was made for another one"}
    assert door(hub).use_embedder(encoder_bundle()) == "production was made for another one"
    hub.answers["/v1/embedding"] = 500, {"detail": "broken"}
    with pytest.raises(HandoverFailed, match="broken"):
        door(hub).use_embedder(encoder_bundle())


@pytest.mark.parametrize("conflict", [False, True])
def test_the_embedder_comes_before_the_head_that_was_made_for_it(hub: FakeHub, conflict: bool) -> None:
    if conflict:
        hub.answers["/v1/embedding"] = 409, {"detail": "production was made for another one"}
    retrained, say = led_by("catboost_mae"), Console(record=True, width=200)
    hand_over(retrained.candidates[0], retrained.embedder, door(hub), say)
    assert retrained.embedder is not None
    assert [path for path, _ in hub.asked] == ["/v1/policies", "/v1/embedding", "/v1/policies"]
    assert hub.asked[0][1] == pack_bundle(retrained.embedder)
    assert hub.asked[2][1] == pack_bundle(retrained.candidates[0].bundle)
    assert ("hub embedding use" in say.export_text()) == conflict


def test_a_head_without_an_embedding_leaves_the_embedder_alone(hub: FakeHub) -> None:
    retrained = led_by("linear")
    hand_over(retrained.candidates[0], retrained.embedder, door(hub), Console(quiet=True))
    assert hub.asked == [("/v1/policies", pack_bundle(retrained.candidates[0].bundle))]
