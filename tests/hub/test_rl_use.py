"""Who has the reinforcement-learning policy's say: taken in at the start, asked with the others, only lowers sizes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from plain_bundles import momentum_bundle, onnx_bundle
from plain_hub import TOKENS, PlainHub, rows_of
from small_models import actor_bundle

from feature_repo.features import DECISION_V1
from hub.config import RlConfig
from hub.decide import Answer
from hub.replay import replay_ledger
from hub.rl_start import take_in_rl
from hub.status import status
from policies.bundle import Bundle, pack_bundle
from policies.errors import InvalidInput, UnknownEntity
from policies.rows import RL_POLICY
from policies.types import Action, Direction, Proposal

ENABLED = {"learning": {"rl": {"enabled": True, "blend_weight": 0.4}, "param_mode": "static"},
           "router": {"probation_size_scale": 1.0}}
CONFIG = RlConfig(enabled=True, blend_weight=0.4)


def actor(**changes: Any) -> Bundle:
    return actor_bundle(features=DECISION_V1.names, optional_features=DECISION_V1.may_be_missing,
                        required_groups=DECISION_V1.required_groups, optional_groups=DECISION_V1.optional_groups,
                        **changes)


@pytest.fixture
async def hub(open_hub: Any) -> PlainHub:
    """With a momentum rule in production, and an actor that has the say."""
    started: PlainHub = open_hub(ENABLED)
    await started.register(momentum_bundle())
    await started.register(actor())
    await started.command("promote", "momentum_v1")
    await started.service.rl.use("actor_v1", "models/policy_rl.pt", "taken in at the start")
    return started


def wants(hub: PlainHub, direction: Direction, size: float) -> None:
    """Have the actor answer this size, whatever it sees."""
    proposal = Proposal(Action(direction, 0.01, 5.0, 0.01, 0.01), 0.5 + size / 2)
    hub.heads.instead = {actor().policy_id: Answer(proposal, 1.0)}


def own_size(answer: dict[str, Any]) -> float:
    return float(answer["proposals"][momentum_bundle().policy_id]["action"]["size_fraction"])


async def test_its_answer_scales_the_executed_size_and_is_recorded_and_shown(hub: PlainHub) -> None:
    answer = await hub.trade(momentum_bundle().policy_id)
    rl = answer["rl"]
    assert rl["policy_id"] == actor().policy_id
    assert 0.6 <= rl["factor"] <= 1.0
    assert answer["action"]["size_fraction"] == pytest.approx(rl["factor"] * own_size(answer))
    assert rows_of(hub, "decision")[-1].body["rl"] == rl


@pytest.mark.parametrize(("size", "factor"), [(1.0, 1.0), (0.5, 0.8)])
async def test_consent_keeps_and_dissent_lowers(hub: PlainHub, size: float, factor: float) -> None:
    for direction in (Direction.LONG, Direction.SHORT):
        wants(hub, direction, size)
        answer = await hub.trade(momentum_bundle().policy_id)
        agrees = answer["action"]["direction"] == direction
        assert answer["rl"]["factor"] == pytest.approx(factor if agrees else 0.6)
        assert "rl" not in {entry["part"] for entry in answer["degraded"]}
        await hub.report(answer, 0.0, exit_reason="not_filled")


async def test_where_it_fails_sizes_are_the_smaller_ones_and_the_answer_says_so(hub: PlainHub) -> None:
    hub.heads.instead = {actor().policy_id: Answer(None, None, "missed its deadline of 250 ms")}
    answer = await hub.trade(momentum_bundle().policy_id)
    assert answer["rl"] == {"policy_id": actor().policy_id, "signed_size": None, "factor": 0.6}
    assert {"part": "rl", "reason": "actor_v1 missed its deadline of 250 ms: sizes times 0.6"} in answer["degraded"]
    await hub.report(answer, 0.0, exit_reason="not_filled")
    await hub.command("pause", "actor_v1")
    hub.heads.instead = {}
    answer = await hub.trade(momentum_bundle().policy_id)
    assert answer["rl"]["factor"] == 0.6
    assert {"part": "rl", "reason": "actor_v1 was not asked: sizes times 0.6"} in answer["degraded"]


async def test_a_replay_finds_every_decision_equal(hub: PlainHub) -> None:
    for minute in range(30):
        hub.heads.instead = {actor().policy_id: Answer(None, None, "unreachable")} if minute % 7 == 6 else {}
        answer = await hub.decide_later(symbol=("BTC", "ETH", "SOL")[minute % 3])
        if answer["acts"] and answer["action"]["direction"] != "flat":
            await hub.report(answer, 0.0002)
    await hub.service.rl.use(None, "models/policy_rl.pt", "cannot be read: No such file or directory")
    await hub.decide_later()
    report = replay_ledger(hub.home.ledger, hub.home.policies)
    assert report.equal, list(report.lines(5))
    assert report.decisions == 31


async def test_only_a_registered_actor_is_given_the_say_and_the_same_again_is_no_row(hub: PlainHub) -> None:
    head = hub.reader.head()
    with pytest.raises(InvalidInput, match="onnx_actor"):
        await hub.service.rl.use("momentum_v1", "", "x")
    with pytest.raises(UnknownEntity):
        await hub.service.rl.use("nobody", "", "x")
    again = await hub.service.rl.use("actor_v1", "models/policy_rl.pt", "taken in at the start")
    assert (again["accepted"], hub.reader.head()) == ("duplicate", head)
    told = status(hub.service, "", await hub.service.feature_ages())["rl"]
    assert (told["enabled"], told["alias"], told["blend_weight"]) == (True, "actor_v1", 0.4)


# -- at the start -----------------------------------------------------------------------------------------------------


class LoopDoor:
    """A client that is called in a thread, of an application on this loop."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client, self._loop = client, asyncio.get_running_loop()

    def post(self, url: str, *, content: bytes | None = None, json: Any = None) -> httpx.Response:
        return asyncio.run_coroutine_threadsafe(self._client.post(url, content=content, json=json), self._loop).result()


async def begun(hub: PlainHub, config: RlConfig = CONFIG) -> list[str]:
    """What is said while it is taken in."""
    said: list[str] = []
    async with httpx.AsyncClient(transport=httpx.ASGITransport(hub.api()), base_url="http://hub",
                                 headers={"Authorization": f"Bearer {TOKENS['ops']}"}) as client:
        await asyncio.to_thread(take_in_rl, LoopDoor(client), hub.home.root, config, said.append)
    return said


def placed(hub: PlainHub, content: bytes) -> Path:
    path = hub.home.root / CONFIG.policy_path
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture
async def plain(open_hub: Any) -> PlainHub:
    started: PlainHub = open_hub(ENABLED)
    await started.register(momentum_bundle())
    return started


async def test_it_is_registered_as_a_head_of_its_own_and_given_the_say(plain: PlainHub) -> None:
    placed(plain, pack_bundle(actor()))
    said = await begun(plain)
    assert said == [f"rl: actor_v1 ({actor().policy_id[:12]}) has a say in sizes, blend weight 0.4"]
    assert (plain.state.rl.policy_id, set(plain.state.heads)) == (
        actor().policy_id, {actor().policy_id, momentum_bundle().policy_id})
    head = plain.reader.head()
    await begun(plain)
    assert plain.reader.head() == head, "a restart changes nothing"


@pytest.mark.parametrize(("content", "reason"), [
    (None, "cannot be read: No such file"), (b"\x80\x04pickle", ""), (pack_bundle(onnx_bundle()), "not an onnx_actor")])
async def test_what_is_absent_or_no_actor_is_refused_by_name_and_the_hub_goes_on_with_smaller_sizes(
        plain: PlainHub, content: bytes | None, reason: str) -> None:
    if content is not None:
        placed(plain, content)
    (said,) = await begun(plain)
    assert said.startswith("rl: models/policy_rl.pt: ")
    assert reason in said
    assert len(plain.state.heads) == 1
    answer = await plain.trade()
    assert answer["rl"] == {"policy_id": None, "signed_size": None, "factor": 0.6}
    (told,) = [entry["reason"] for entry in answer["degraded"] if entry["part"] == "rl"]
    assert told.startswith("models/policy_rl.pt: ")
    assert reason in told


async def test_where_it_is_not_enabled_nothing_is_asked_or_recorded(open_hub: Any) -> None:
    hub: PlainHub = open_hub()
    await hub.register(momentum_bundle())
    head = hub.reader.head()
    assert await begun(hub, RlConfig()) == []
    assert hub.reader.head() == head
    assert "rl" not in await hub.decide_later()
    assert "rl" not in rows_of(hub, "decision")[-1].body
    assert not [row for row in rows_of(hub, "observation") if row.body["what"] == RL_POLICY]
