"""Every decision can be made again from the ledger and the bundles, and whatever was altered is found."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import orjson
import pytest
from mixed_run import mixed_run
from plain_bundles import momentum_bundle, onnx_bundle
from plain_hub import PlainHub, llm_view, opens, rows_of

from hub.config import HubConfig
from hub.home import Home
from hub.replay import ReplayReport, replay_ledger
from policies.bundle import Bundle

BRITTLE = onnx_bundle("brittle", seed=7, most_ret_1=25.0)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A ledger of over 300 decisions: outcomes of all kinds, conflicts, failed heads and a changed configuration."""
    root = tmp_path_factory.mktemp("replay")
    asyncio.run(_record(root))
    return Home(root)


async def _record(root: Path) -> None:
    hub = PlainHub(root)
    bundles: tuple[Bundle, ...] = (momentum_bundle(), onnx_bundle(), BRITTLE)
    production, challenger, _ = [await hub.register(bundle) for bundle in bundles]
    await mixed_run(hub, production, challenger, minutes=190)
    await _conflict(hub, challenger)
    await _failed_head(hub)
    await hub.close()
    hub = PlainHub(root, {"learning": {"param_mode": "static"}, "rollout": {"mode": "hybrid"},
                          "shield": {"max_leverage": 4.0}})
    await mixed_run(hub, production, challenger, minutes=170)
    view = llm_view(min_conf=0.5)
    for _ in range(200):
        answer = await hub.decide_later(llm=view)
        if opens(answer):
            await hub.report(answer, 0.001)
            break
    await hub.close()


async def _conflict(hub: PlainHub, challenger: str) -> None:
    hub.heads.during = lambda: hub.command("pause", challenger)
    await hub.decide_later()
    await hub.command("resume", challenger)
    assert hub.service.seen.conflicts == 1


async def _failed_head(hub: PlainHub) -> None:
    hub.features.fixed["ret_1"] = 30.0
    answer = await hub.decide_later()
    assert "failed" in answer["proposals"][BRITTLE.policy_id]
    hub.features.fixed.clear()


Edit = Callable[[dict[str, Any]], None]


@pytest.fixture
def altered(recorded: Home, tmp_path: Path) -> Callable[..., ReplayReport]:
    """Replays a copy of the ledger after `edit` of one row's body: the `place`-th of those that `where` holds for.

    Never of an outcome that was revised: what a revision took back before anybody decided on it has left no trace.
    """

    def replay(kind: str, edit: Edit, place: int = 0, where: Callable[[dict[str, Any]], bool] = lambda _: True,
               episodes_too: bool = False) -> ReplayReport:
        copy = tmp_path / "copy.sqlite"
        shutil.copy(recorded.ledger, copy)
        connection = apsw.Connection(str(copy))
        for (trigger,) in list(connection.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'")):
            connection.execute(f"DROP TRIGGER {trigger}")
        rows = [(position, orjson.loads(body)) for position, body in connection.execute(
            "SELECT position, body FROM ledger WHERE kind = ? ORDER BY position", (kind,))]
        revised = {body["outcome"]["decision_id"] for _, body in rows if body.get("outcome", {}).get("revision")}
        position, body = [(at, body) for at, body in rows if where(body) and not (
            kind == "outcome" and body["outcome"]["decision_id"] in revised)][place]
        edit(body)
        connection.execute("UPDATE ledger SET body = ? WHERE position = ?",
                           (orjson.dumps(body, option=orjson.OPT_SORT_KEYS).decode(), position))
        if episodes_too:
            connection.execute("UPDATE episodes SET outcome_json = ? WHERE id = ?", (
                orjson.dumps(body["outcome"], option=orjson.OPT_SORT_KEYS).decode(), body["outcome"]["decision_id"]))
        connection.close()
        return replay_ledger(copy, recorded.policies)

    return replay


def acted(body: dict[str, Any]) -> bool:
    """An outcome, in one part, of a head's filled trade."""
    outcome = body["outcome"]
    return bool(body["trade"]["acts"] and outcome["exit_reason"] == "target" and outcome["final"]
                and outcome["part"] == outcome["revision"] == 0)


def earns_more(body: dict[str, Any]) -> None:
    """One more dollar, in PnL and exit price alike."""
    outcome = body["outcome"]
    sign = {"long": 1, "short": -1}[body["trade"]["direction"]]
    outcome["exit_price"] += sign / outcome["size"]
    outcome["pnl"] = (outcome["exit_price"] - outcome["entry_price"]) * outcome["size"] * sign


def claims_more(body: dict[str, Any]) -> None:
    body["outcome"]["pnl"] += 0.001


def paths(report: ReplayReport) -> set[str]:
    return {difference.path for difference in report.differences}


async def test_a_ledger_from_before_new_heads_went_first_replays_equal(
        open_hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its configurations lack `router.first_decisions`, and its challengers were always drawn."""
    configuration = HubConfig.configuration

    def older(self: HubConfig) -> dict[str, Any]:
        found = configuration(self)
        assert found["router"].pop("first_decisions") == 0
        return found

    with monkeypatch.context() as patched:
        patched.setattr(HubConfig, "configuration", older)
        hub = open_hub({"router": {"first_decisions": 0}})
        for bundle in (momentum_bundle(), onnx_bundle(), momentum_bundle("m2", 0.5), momentum_bundle("m3", 0.9)):
            await hub.register(bundle)
        for _ in range(30):
            await hub.decide_later()
        await hub.close()
    hub = open_hub()
    last = rows_of(hub, "policy")[-1].position
    shares = {tuple(sorted(row.body["shares"])) for row in rows_of(hub, "epoch") if row.position > last}
    assert len(shares) > 1, "nobody went first"
    await hub.register(momentum_bundle("m4", 0.7))  # by the settings of today: it goes first
    assert hub.state.epoch.roles.shares[momentum_bundle("m4", 0.7).policy_id] == 0.1
    for _ in range(5):
        await hub.decide_later()
    report = replay_ledger(hub.home.ledger, hub.home.policies)
    assert report.equal, list(report.lines(5))


def test_all_of_it_is_equal(recorded: Home) -> None:
    seen: list[tuple[int, int]] = []
    report = replay_ledger(recorded.ledger, recorded.policies, progress=lambda done, total: seen.append((done, total)))
    assert list(report.lines(20)) == []
    assert report.equal
    assert report.summary().startswith("all equal: ")
    assert report.decisions >= 300
    assert report.proposals > 500
    assert report.outcomes > 100
    assert report.consequences > 300
    assert seen[-1] == (report.rows, report.rows)


@pytest.mark.parametrize("place", [0, 40, -2])
def test_a_consistently_altered_pnl_is_found_by_what_was_learnt_from_it(
        altered: Callable[..., ReplayReport], place: int) -> None:
    report = altered("outcome", earns_more, place, acted, episodes_too=True)
    assert not report.equal
    assert "outcome.pnl" not in paths(report)
    assert "DIFFERENT" in report.summary()


def test_an_altered_pnl_of_the_last_outcome_is_found_by_its_episode(altered: Callable[..., ReplayReport]) -> None:
    report = altered("outcome", earns_more, -1, acted)
    assert "episode" in paths(report)


def test_a_pnl_that_does_not_follow_from_its_prices_is_named(altered: Callable[..., ReplayReport]) -> None:
    report = altered("outcome", claims_more, -1, acted)
    assert "outcome.pnl" in paths(report)


EDITS: dict[str, tuple[str, Edit, str]] = {
    "action": ("decision", lambda body: body["action"].update(leverage=body["action"]["leverage"] + 1),
               "action.leverage"),
    "weight": ("decision", lambda body: body["weights"].update(momentum=body["weights"]["momentum"] + 1e-12),
               "weights.momentum"),
    "who decided": ("decision", lambda body: body.update(policy_id="llm_only"), "policy_id"),
    "as_of": ("decision", lambda body: body.update(as_of=10**9), "as_of"),
    "effect": ("decision", lambda body: body.update(acts=not body["acts"]), "acts"),
    "roles": ("epoch", lambda body: body.update(role_probability=0.123), "role_probability"),
}


@pytest.mark.parametrize("what", EDITS)
def test_an_altered_field_is_named(altered: Callable[..., ReplayReport], what: str) -> None:
    kind, edit, path = EDITS[what]
    assert path in paths(altered(kind, edit, place=25))


def test_an_altered_proposal_is_named(altered: Callable[..., ReplayReport]) -> None:
    policy_id = momentum_bundle().policy_id

    def edit(body: dict[str, Any]) -> None:
        body["proposals"][policy_id]["confidence"] += 1e-9

    report = altered("decision", edit, 30, lambda body: "confidence" in body["proposals"].get(policy_id, {}))
    assert f"proposals.{policy_id}.confidence" in paths(report)


def test_an_altered_figure_of_a_gates_verdict_is_named(tmp_path: Path) -> None:
    """On a ledger of its own: the gate's verdict is its last row but one, so nothing else can tell."""
    async def run() -> None:
        hub = PlainHub(tmp_path / "gate")
        policy_id = await hub.register(momentum_bundle())
        await hub.report(await hub.trade(policy_id), -0.05)
        await hub.close()

    asyncio.run(run())
    ledger = tmp_path / "gate" / "hub.sqlite"
    assert replay_ledger(ledger, tmp_path / "gate" / "policies").equal
    connection = apsw.Connection(str(ledger))
    connection.execute("DROP TRIGGER ledger_is_never_updated")
    connection.execute("UPDATE ledger SET body = json_set(body, '$.figure', 4.5) WHERE kind = 'verdict'")
    connection.close()
    assert paths(replay_ledger(ledger, tmp_path / "gate" / "policies")) == {"figure"}


def test_a_verdict_that_nothing_called_for_is_named(altered: Callable[..., ReplayReport]) -> None:
    report = altered("verdict", lambda body: body.update(actor="sentry"))
    assert ("kind", "verdict", "no verdict") in {
        (found.path, found.recorded, found.recomputed) for found in report.differences}


def test_a_bundle_that_is_gone_is_a_difference_in_every_proposal_of_it(recorded: Home, tmp_path: Path) -> None:
    shutil.copytree(recorded.policies, tmp_path / "policies")
    shutil.rmtree(tmp_path / "policies" / momentum_bundle().policy_id)
    report = replay_ledger(recorded.ledger, tmp_path / "policies")
    assert not report.equal
    assert any(path.startswith(f"proposals.{momentum_bundle().policy_id}") for path in paths(report))


async def test_trades_that_only_the_bot_knows_the_direction_of_replay_equal(open_hub: Any) -> None:
    """Nobody said anything, and the bot traded all the same; an order that was not filled has no PnL at any price."""
    hub = open_hub()
    quiet = await hub.decide_later()
    await hub.report(quiet, 0.001, sign=-1)
    unfilled = await hub.decide_later(llm=llm_view("long"))
    await hub.report(unfilled, 0.0, sign=1, exit_reason="not_filled", exit_price=101.0)
    report = replay_ledger(hub.home.ledger, hub.home.policies)
    assert list(report.lines(5)) == []
    assert report.outcomes == 2


def test_lines_are_limited_and_say_how_many_more_there_are(altered: Callable[..., ReplayReport]) -> None:
    report = altered("outcome", earns_more, 0, acted)
    lines = list(report.lines(3))
    assert len(lines) == 4
    assert lines[-1] == f"... and {len(report.differences) - 3} more"
