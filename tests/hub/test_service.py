"""The use cases: one request is one decision, one outcome is one row, and what is refused leaves nothing behind."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from plain_bundles import momentum_bundle, onnx_bundle
from plain_hub import EQUITY, PlainHub, llm_view, opens, portfolio, rows_of
from whole_state import learnt

from feature_repo.features import MINUTE_MS
from policies.bundle import Bundle, make_bundle
from policies.errors import BundleRefused, ContentConflict, HubError, InvalidInput, UnknownEntity, WriterUnavailable
from policies.types import STRATEGIES

# -- decisions --------------------------------------------------------------------------------------------------------


async def test_the_same_request_again_gets_the_recorded_answer_and_stays_one_row(hub: PlainHub) -> None:
    request = hub.request(time_ms=hub.time_ms + MINUTE_MS, llm=llm_view())
    first = await hub.service.decide(request)
    await hub.decide_later(minutes=5)
    hub.features.failed = "gone since"
    assert [await hub.service.decide(request) for _ in range(3)] == [first] * 3
    assert first["versions"]["position"] is not None
    assert len(rows_of(hub, "decision")) == 2


async def test_the_same_request_at_the_same_moment_is_one_row(hub: PlainHub) -> None:
    request = hub.request(time_ms=hub.time_ms + MINUTE_MS)
    answers = await asyncio.gather(*(hub.service.decide(request) for _ in range(8)))
    assert len(rows_of(hub, "decision")) == 1
    assert all(answer == answers[0] for answer in answers)


async def test_another_body_under_a_recorded_request_id_is_refused(hub: PlainHub) -> None:
    request = hub.request()
    await hub.service.decide(request)
    with pytest.raises(ContentConflict, match="request_id"):
        await hub.service.decide({**request, "portfolio": portfolio(EQUITY + 1)})
    assert len(rows_of(hub, "decision")) == 1


async def test_a_recorded_answer_survives_reopening(open_hub: Any) -> None:
    hub = open_hub()
    await hub.register(momentum_bundle())
    request = hub.request(time_ms=hub.time_ms + MINUTE_MS)
    first = await hub.service.decide(request)
    await hub.close()
    assert await open_hub().service.decide(request) == first


async def test_a_request_without_a_time_is_asked_at_the_clocks(hub: PlainHub) -> None:
    later = (await hub.decide_later())["time_ms"]
    assert (await hub.decide(time_ms=None))["time_ms"] == later


@pytest.mark.parametrize(("changes", "field"), [
    ({"symbol": "DOGE"}, "symbol"), ({"time_ms": 0}, "time_ms"),
    ({"parent_decision_id": "d-none"}, "parent_decision_id"),
])
async def test_a_refused_request_leaves_no_row_and_does_not_move_the_clock(
        hub: PlainHub, changes: dict[str, Any], field: str) -> None:
    await hub.decide_later()
    before, now_ms = hub.reader.head(), hub.time_ms
    with pytest.raises(InvalidInput) as refused:
        await hub.decide(**{"time_ms": now_ms + 7 * MINUTE_MS, **changes})
    assert refused.value.field == field
    assert (hub.reader.head(), hub.time_ms) == (before, now_ms)


async def test_what_adds_to_a_trade_names_it_and_leaves_the_slot_to_it(hub: PlainHub, production: str) -> None:
    trade = await hub.trade(production)
    held_by = {"parent_decision_id": trade["decision_id"]}
    adds = [answer for answer in [await hub.decide(**held_by) for _ in range(30)] if opens(answer)]
    assert len(adds) > 1
    await hub.report(adds[0], 0.001)
    assert hub.state.slot_is_open("BTC", "momentum", hub.time_ms) == trade["decision_id"]
    await hub.report(trade, 0.001)
    assert hub.state.slot_is_open("BTC", "momentum", hub.time_ms) is None
    for free in ({}, {"symbol": "ETH"}):
        with pytest.raises(InvalidInput, match="which is free"):
            await hub.decide(**held_by, **free)


async def test_an_epoch_ends_after_its_cadence_and_once_a_moment(hub: PlainHub) -> None:
    await hub.decide_later()
    epoch, cadence_s = hub.state.epoch.number, hub.config.learning.bandits.update_cadence_sec
    await hub.decide(time_ms=hub.time_ms + cadence_s * 1_000 - 1)
    assert hub.state.epoch.number == epoch
    at_the_end = hub.state.epoch.ends_ms
    await asyncio.gather(*(hub.decide(time_ms=at_the_end) for _ in range(6)))
    assert hub.state.epoch.number == epoch + 1
    assert rows_of(hub, "epoch")[-1].body["reason"] == "cadence"


# -- outcomes ---------------------------------------------------------------------------------------------------------


async def test_an_outcome_of_an_unknown_decision_is_refused(hub: PlainHub) -> None:
    trade = await hub.trade()
    before = hub.reader.head()
    with pytest.raises(UnknownEntity, match="d-none"):
        await hub.service.learn({**hub.outcome(trade, 0.001), "decision_id": "d-none"})
    assert hub.reader.head() == before


async def test_an_outcome_with_another_content_under_its_key_names_what_differs(hub: PlainHub) -> None:
    report = hub.outcome(await hub.trade(), 0.001)
    await hub.service.learn(report)
    before = learnt(hub.state)
    with pytest.raises(ContentConflict) as refused:
        await hub.service.learn({**report, "fees": 2.0, "exit_reason": "manual"})
    assert sorted(refused.value.fields) == ["exit_reason", "fees"]
    assert learnt(hub.state) == before


async def test_a_revision_below_a_recorded_one_is_refused_and_a_repeated_old_one_is_told_so(hub: PlainHub) -> None:
    trade = await hub.trade()
    await hub.report(trade, 0.001)
    await hub.report(trade, 0.002, revision=2)
    assert (await hub.report(trade, 0.001))["accepted"] == "superseded_by_later"
    with pytest.raises(ContentConflict, match="revision: 2"):
        await hub.report(trade, 0.003, revision=1)


async def test_an_outcome_that_is_reported_again_gets_the_verdicts_it_caused(hub: PlainHub) -> None:
    report = hub.outcome(await hub.trade(), -0.05)
    first, again = await hub.service.learn(report), await hub.service.learn(report)
    assert (first["accepted"], again["accepted"]) == ("recorded", "duplicate")
    assert first["verdicts"] == again["verdicts"]
    assert [verdict["judgement"] for verdict in first["verdicts"]] == ["halt"]


@pytest.mark.parametrize(("changes", "field"), [
    ({"pnl": 123.0}, "pnl"), ({"entry_time_ms": 0}, "entry_time_ms"), ({"symbol": "BTC"}, "symbol"),
    ({"origin": "bot", "symbol": "BTC", "strategy": "momentum", "direction": "long"}, "decision_id"),
    ({"origin": "bot", "symbol": "DOGE", "strategy": "momentum", "direction": "long"}, "symbol"),
    ({"origin": "bot"}, "symbol"),
])
async def test_an_outcome_that_cannot_be_true_is_refused_by_name(
        hub: PlainHub, changes: dict[str, Any], field: str) -> None:
    report = hub.outcome(await hub.trade(), 0.001)
    before = hub.reader.head()
    with pytest.raises(InvalidInput) as refused:
        await hub.service.learn({**report, **changes})
    assert refused.value.field == field
    assert hub.reader.head() == before


async def test_nothing_is_acknowledged_while_the_writer_is_away(hub: PlainHub) -> None:
    trade = await hub.trade()
    hub.writer.away = True
    for write in (hub.report(trade, 0.001), hub.command("pause", "momentum_v1"), hub.register(onnx_bundle("late", 9))):
        with pytest.raises(WriterUnavailable):
            await write
    hub.writer.away = False
    assert (await hub.report(trade, 0.001))["accepted"] == "recorded"


# -- policies ---------------------------------------------------------------------------------------------------------


async def test_the_decision_after_a_registration_asks_the_new_head(hub: PlainHub) -> None:
    new = await hub.register(onnx_bundle("linear_v2", seed=5))
    assert new in (await hub.decide_later())["proposals"]


async def test_a_policy_is_named_by_its_id_the_beginning_of_it_or_its_newest_alias(hub: PlainHub) -> None:
    newer = await hub.register(onnx_bundle("linear_v1", seed=5))
    for name in (newer, newer[:8], "linear_v1"):
        assert hub.service.policy_id_of(name) == newer
    for name in (newer[:7], "nobody"):
        with pytest.raises(UnknownEntity, match="momentum_v1"):
            hub.service.policy_id_of(name)


async def test_an_alias_never_stands_for_the_id_of_another_policy(
        hub: PlainHub, monkeypatch: pytest.MonkeyPatch) -> None:
    own = next(policy_id for policy_id, head in hub.state.heads.items() if head.alias == "momentum_v1")
    other = next(policy_id for policy_id in hub.state.heads if policy_id != own)
    for taken in (own, own[:8], own[:12]):  # as in a ledger from before such aliases were refused
        monkeypatch.setattr(hub.state.heads[other], "alias", taken)
        assert hub.service.policy_id_of(taken) == own


async def test_the_beginning_of_two_ids_is_refused_with_both(hub: PlainHub) -> None:
    own, head = next(iter(hub.state.heads.items()))
    twin = own[:10] + "0" * 54
    hub.state.heads[twin] = head
    with pytest.raises(InvalidInput, match=f"2 ids begin like that, such as {own} and {twin}") as refused:
        hub.service.policy_id_of(own[:9])
    assert refused.value.field == "policy"
    assert (hub.service.policy_id_of(twin), hub.service.policy_id_of(own)) == (twin, own)


def wrong_order() -> Bundle:
    manifest = onnx_bundle().manifest
    return make_bundle(replace(manifest, features=manifest.features[::-1]), onnx_bundle().files)


def short_of_features() -> Bundle:
    manifest = replace(momentum_bundle().manifest, features=("ret_15", "ret_1"), optional_features=())
    return make_bundle(manifest, {})


@pytest.mark.parametrize("bundle", [wrong_order(), short_of_features()], ids=["order", "fewer"])
async def test_a_bundle_made_for_other_features_is_refused_at_registration(hub: PlainHub, bundle: Bundle) -> None:
    before = hub.reader.head()
    with pytest.raises(BundleRefused, match="other features"):
        await hub.register(bundle)
    assert hub.reader.head() == before


async def test_a_head_that_is_not_sound_is_refused_at_registration(hub: PlainHub) -> None:
    before = hub.reader.head()
    with pytest.raises(BundleRefused, match="not sound"):
        await hub.register(onnx_bundle("always_nan", most_ret_1=-100.0))
    assert hub.reader.head() == before


async def test_commands_name_a_policy_that_is_registered(hub: PlainHub) -> None:
    with pytest.raises(UnknownEntity):
        await hub.command("pause", "nobody")
    with pytest.raises(HubError):
        await hub.command("promote", "book")


async def test_readiness_names_the_part_that_is_missing(hub: PlainHub) -> None:
    assert (await hub.service.readiness())["ready"]
    hub.writer.away, hub.features.failed = True, "away"
    found = await hub.service.readiness()
    assert (found["ready"], found["parts"]) == (False, {"ledger": True, "sentry": False, "features": False})


async def test_what_was_served_is_counted(hub: PlainHub) -> None:
    await hub.decide_later()
    hub.features.failed = "away"
    await hub.decide_later()
    seen = hub.service.seen
    assert sum(seen.decisions.values()) == len(seen.latencies_ms) == 2
    assert seen.decisions["llm_only", "observed"] == 1
    assert seen.degraded == {("features", "away"): 1}


async def test_two_decisions_at_once_in_one_slot_open_one_trade(hub: PlainHub) -> None:
    hub.features.fixed = {"ret_15": 3.0}
    answers = await asyncio.gather(*(hub.decide() for _ in range(8)))
    opened = [row for row in rows_of(hub, "decision") if row.body["opens"]]
    assert len(opened) == 1
    assert sum(opens(answer) for answer in answers) == 1
    assert {change["rule"].split(" ")[0] for answer in answers for change in answer["shielded"]
            if change["field"] == "direction"} >= {"slot"}


async def test_what_begins_and_ceases_to_be_degraded_is_recorded_once_and_known_after_a_restart(
        open_hub: Any) -> None:
    hub = open_hub()
    await hub.register(momentum_bundle())
    hub.features.failed = "Redis: ConnectionError"
    for _ in range(3):
        await hub.decide_later()
    assert hub.state.degraded == {"features": "Redis: ConnectionError"}
    await hub.close()
    again = open_hub()
    assert again.state.degraded == {"features": "Redis: ConnectionError"}
    await again.decide_later()
    assert [row.body["what"] for row in rows_of(again, "observation")] == ["degraded", "recovered"]
    assert again.state.degraded == {}


async def test_a_refused_outcome_does_not_move_the_replay_clock(hub: PlainHub) -> None:
    report = hub.outcome(await hub.trade(), 0.001)
    now_ms = hub.time_ms
    with pytest.raises(UnknownEntity):
        await hub.service.learn({**report, "decision_id": "d-unknown", "exit_time_ms": now_ms + 90 * MINUTE_MS})
    assert hub.time_ms == now_ms


async def test_the_decision_that_reports_the_books_fall_already_takes_no_new_risk(hub: PlainHub) -> None:
    hub.features.fixed = {"ret_15": 3.0}
    await hub.decide_later(symbol="ETH")
    answer = await hub.decide_later(portfolio=portfolio(equity=0.95 * EQUITY))
    assert answer["action"]["direction"] == "flat"
    assert "book" in {entry["part"] for entry in answer["degraded"]}


async def test_a_writer_that_hangs_is_not_asked_to_record_its_own_absence(hub: PlainHub) -> None:
    hub.features.event_time_ms = {"quote": 0}
    await hub.decide_later()
    assert "features quote of BTC" in hub.state.degraded
    hub.writer.away = True
    asked = []
    hub.writer.observe = lambda *given: asked.append(given)  # type: ignore[method-assign, assignment]
    hub.features.event_time_ms = {}
    assert (await hub.decide_later())["decision_id"] is None
    assert asked == []


async def test_one_read_that_failed_says_nothing_of_single_groups(hub: PlainHub) -> None:
    hub.features.event_time_ms = {"quote": 0}
    await hub.decide_later()
    hub.features.failed = "Redis is away"
    await hub.decide_later()
    assert set(hub.state.degraded) == {"features", "features quote of BTC"}
    hub.features.failed = ""
    await hub.decide_later()
    assert set(hub.state.degraded) == {"features quote of BTC"}


async def test_decisions_asked_at_once_record_once_what_they_all_found(hub: PlainHub) -> None:
    await hub.decide_later()
    before = len(rows_of(hub, "observation"))
    hub.features.event_time_ms = {"quote": 0}
    observe = hub.writer.observe

    async def slowly(*given: Any) -> dict[str, Any]:
        await asyncio.sleep(0.01)
        return await observe(*given)

    hub.writer.observe = slowly  # type: ignore[method-assign]
    await asyncio.gather(*(hub.decide(strategy=strategy) for strategy in STRATEGIES))
    found = [row.body["detail"]["part"] for row in rows_of(hub, "observation")[before:]]
    assert found == ["features quote of BTC"]
