"""What the parameter learners start from is a row of the ledger: the next decision obeys it, and replays are equal."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from mixed_run import mixed_run
from plain_bundles import momentum_bundle, onnx_bundle
from plain_hub import TOKENS, PlainHub, rows_of
from whole_state import learnt

from hub.replay import replay_ledger
from hub.state import folded
from hub.status import params
from policies.errors import InvalidInput
from policies.rows import PARAM_START
from policies.types import STRATEGIES
from router.param_start import BUCKETS, FoundLevels, ParamStart

FOUND = FoundLevels(0.012, 0.005, 0.0005, 800, -0.05, 1.0, 0.3, 0.05)
START = ParamStart({strategy: dict.fromkeys(BUCKETS, FOUND) for strategy in STRATEGIES}, {"market": "a test"})
OTHER = ParamStart({"momentum": {"calm_up": FOUND}})


async def begin(hub: PlainHub, start: ParamStart = START) -> dict[str, Any]:
    return await hub.service.params.begin_from(start.to_dict(), "a test")


async def test_the_next_decision_obeys_and_its_entry_is_a_limit(hub: PlainHub) -> None:
    before = await hub.trade()
    assert before["action"]["limit_offset_pct"] == 0.0
    await hub.report(before, 0.0, exit_reason="not_filled")
    await begin(hub)
    after = await hub.trade()
    assert after["action"]["limit_offset_pct"] == 0.0005


async def test_the_same_start_again_is_one_row_and_going_back_to_an_earlier_one_is_another(hub: PlainHub) -> None:
    accepted = [(await begin(hub, start))["accepted"] for start in (START, START, OTHER, OTHER, START)]
    assert accepted == ["recorded", "duplicate", "recorded", "duplicate", "recorded"]
    rows = [row for row in rows_of(hub, "observation") if row.body["what"] == PARAM_START]
    assert [row.body["detail"]["id"] for row in rows] == [START.start_id, OTHER.start_id, START.start_id]
    assert hub.state.start.position == rows[-1].position
    assert hub.state.params.start == START


async def test_what_is_no_start_is_refused_and_nothing_is_written(hub: PlainHub) -> None:
    head = hub.reader.head()
    broken = json.loads(START.canonical_json())
    broken["levels"]["momentum"]["calm_up"]["tp_pct"] = 0.0
    with pytest.raises(InvalidInput, match="tp_pct"):
        await hub.service.params.begin_from(broken, "")
    assert hub.reader.head() == head


@pytest.mark.parametrize("learning", [{}, {"param_mode": "bo", "bo": {"enabled": True, "min_samples": 3}}])
async def test_a_restart_and_a_replay_find_everything_equal(open_hub: Any, learning: dict[str, Any]) -> None:
    hub: PlainHub = open_hub({"learning": learning})
    await hub.register(momentum_bundle())
    await hub.register(onnx_bundle())
    names = momentum_bundle().policy_id, onnx_bundle().policy_id
    await mixed_run(hub, *names, minutes=40)
    await begin(hub)
    await mixed_run(hub, *names, minutes=40)
    await begin(hub, ParamStart())
    await hub.decide_later()
    report = replay_ledger(hub.home.ledger, hub.home.policies)
    assert report.equal, list(report.lines(5))
    assert report.decisions == 81
    assert learnt(folded(hub.reader)) == learnt(hub.state)
    assert learnt(hub.writers_state, memory=False) == learnt(hub.state, memory=False)
    if learning:
        assert any(hub.state.optimiser.suggests(*place) for place in hub.state.optimiser._buckets)


async def test_a_revised_outcome_is_taken_back_from_the_optimiser_too(hub: PlainHub) -> None:
    trade = await hub.trade()
    await hub.report(trade, 0.001)
    await hub.report(trade, -0.001, revision=1)
    (known,) = hub.state.optimiser._buckets.values()
    assert [arm.trades for arm in known.seen.values() if arm.trades] == [1]
    assert sum(arm.total for arm in known.seen.values()) < 0


async def test_the_routes_take_it_show_it_and_audit_it(hub: PlainHub) -> None:
    transport = httpx.ASGITransport(hub.api())
    ops, bot = ({"Authorization": f"Bearer {TOKENS[scope]}"} for scope in ("ops", "bot"))
    async with httpx.AsyncClient(transport=transport, base_url="http://hub") as client:
        body = {"start": json.loads(START.canonical_json()), "reason": "searched last night"}
        answer = (await client.post("/v1/params/start", json=body, headers=ops)).json()
        assert (answer["accepted"], answer["start_id"], answer["buckets"]) == ("recorded", START.start_id, 54)
        shown = (await client.get("/v1/params", headers=bot)).json()
        assert (shown["start"]["start_id"], shown["start"]["reason"]) == (START.start_id, "searched last night")
        assert len(shown["start"]["levels"]) == 54
        refused = await client.post("/v1/params/start", json={"start": {"kind": "x"}}, headers=ops)
        assert (refused.status_code, refused.json()["code"]) == (422, "invalid_input")
        audit = (await client.get("/v1/audit", headers=ops)).json()
    summaries = [row["summary"] for row in audit["rows"] if row["rule"] == PARAM_START]
    assert summaries == [f"parameters start from {START.start_id[:12]} (54 buckets): searched last night"]
    assert audit["verified"]


async def test_the_params_of_a_strategy_say_what_they_rest_on(open_hub: Any) -> None:
    hub = open_hub({"learning": {"bo": {"enabled": True}}})
    await begin(hub)
    features = await hub.features.read("BTC", hub.time_ms)
    told = params(hub.state, "momentum", "BTC", features)
    assert told["start"]["tp_pct"] == 0.012
    assert (told["param_mode"], told["optimiser"]["suggests"]) == ("bandit", False)
    assert told["optimiser"]["suggestion"] == told["proposal"], "before it has seen enough, it is the bandit"
