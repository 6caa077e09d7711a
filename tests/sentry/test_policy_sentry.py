from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fake_fold import CADENCE_MS, GENESIS, SETTINGS, FakeFold, decision, outcome

from policies.errors import ContentConflict, HubError, InvalidInput, LedgerCorrupt, UnknownEntity
from policies.rows import BOOK, LLM_ONLY, NewRow, Row, decision_id_of, is_audited
from policies.types import Judgement
from sentry.audit import AuditTrail
from sentry.ledger import Ledger
from sentry.policy_sentry import PolicySentry


class Bench:
    """A sentry on files, with two registered policies; `again` is what a restart does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.open()
        self.sentry.register("p1", "one", {"m": 1}, "ops", 10)
        self.sentry.register("p2", "two", {"m": 2}, "ops", 20)

    def open(self, genesis: NewRow = GENESIS) -> None:
        self.ledger = Ledger(self.folder / "hub.sqlite", lock_wait_s=0)
        self.audit = AuditTrail(self.folder / "policy_audit.sqlite")
        self.sentry = PolicySentry(self.ledger, self.audit, FakeFold, genesis, 5, SETTINGS)

    def again(self, genesis: NewRow = GENESIS) -> None:
        self.ledger.close()
        self.audit.close()
        self.open(genesis)

    def decide(self, request_id: str, policy_id: str = "p1", now_ms: int = 1_000, **others: Any) -> str:
        body = {**decision(request_id, policy_id, self.sentry.fold.position), **others}
        answer = self.sentry.commit_decision(body, now_ms)
        assert answer.status == "committed"
        assert answer.row is not None
        return answer.row.key

    def kinds(self) -> list[str]:
        return [row.kind for row in self.ledger.rows()]

    def state(self) -> dict[str, Any]:
        return {**vars(self.sentry.fold), "gates": {p: self.sentry.fold.gates.standing(p) for p in ("p1", "p2")}}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_empty_ledger_begins_with_the_genesis_and_registrations_with_their_epochs(bench: Bench) -> None:
    assert bench.kinds() == ["genesis", "policy", "epoch", "policy", "epoch"]
    assert bench.sentry.fold.shares == {"p1": 0.5, "p2": 0.5}
    assert bench.audit.verify(bench.ledger) == []
    assert len(bench.audit.tail(100)) == 5


def test_restart_is_a_replay(bench: Bench) -> None:
    for number in range(4):
        bench.sentry.record_outcome(outcome(bench.decide(f"r{number}", "p2"), exit_price=99.0), "hub", 9_000)
        if number == 2:
            break
    before = bench.state()
    bench.again()
    assert bench.state() == before
    assert bench.sentry.fold.gates.standing("p2") is Judgement.THROTTLE


def test_changed_configuration_or_code_is_recorded_once_at_start(bench: Bench) -> None:
    bench.again()
    assert "configuration" not in bench.kinds()
    for name in ("config_hash", "code_hash"):
        changed = NewRow("genesis", "genesis", {**GENESIS.body, name: "f" * 64})
        bench.again(changed)
        bench.again(changed)
    rows = list(bench.ledger.rows(kinds={"configuration"}))
    assert [(row.body["config_hash"][0], row.body["code_hash"][0]) for row in rows] == [("f", "e"), ("c", "f")]
    assert rows[0].key == "f" * 64 + f"@{rows[0].position}"
    assert bench.sentry.fold.last_blocking_position >= rows[-1].position


# -- decisions -------------------------------------------------------------------------------------


def test_decision_is_recorded_once_and_its_retry_gets_the_recorded_row(bench: Bench) -> None:
    body = decision("r", "p1", bench.sentry.fold.position)
    first = bench.sentry.commit_decision(body, 1_000)
    bench.sentry.command("c", "pause", "p1", "ops", "", 1_500)
    second = bench.sentry.commit_decision(body, 2_000)
    assert (first.status, second.status) == ("committed", "recorded")
    assert first.row == second.row
    assert first.row is not None
    assert first.row.key == decision_id_of(11, "r")
    with pytest.raises(ContentConflict):
        bench.sentry.commit_decision({**body, "request_hash": "another"}, 2_000)


@pytest.mark.parametrize("between", ["command", "register", "verdict", "epoch"])
def test_decision_under_way_when_who_may_act_changes_conflicts(bench: Bench, between: str) -> None:
    body = decision("r", "p1", bench.sentry.fold.position)
    if between == "command":
        bench.sentry.command("c", "pause", "p2", "ops", "", 1_000)
    elif between == "register":
        bench.sentry.register("p3", "three", {}, "ops", 1_000)
    elif between == "verdict":
        bench.sentry.throttle_policy("p2", 1_000)
    else:
        assert bench.sentry.expire_epoch(20 + CADENCE_MS) is not None
    head = bench.ledger.head()
    answer = bench.sentry.commit_decision(body, 1_000)
    assert (answer.status, answer.row, answer.position, bench.ledger.head()) == ("conflict", None, head, head)
    assert bench.sentry.commit_decision({**body, "as_of": answer.position}, 1_000).status == "committed"


def test_decision_under_way_when_a_gate_fires_conflicts(bench: Bench) -> None:
    trades = [bench.decide(f"r{number}") for number in range(3)]
    late = decision("late", "p1", bench.sentry.fold.position)
    answers = [bench.sentry.record_outcome(outcome(trade, exit_price=99.0), "hub", 9_000) for trade in trades]
    assert [verdict["judgement"] for verdict in answers[-1].verdicts] == ["throttle"]
    assert bench.sentry.commit_decision(late, 9_000).status == "conflict"
    assert bench.sentry.commit_decision({**late, "as_of": bench.ledger.head()}, 9_000).status == "conflict"
    bench.decide("other", "p2")


def test_policy_without_a_share_does_not_act_but_llm_only_does(bench: Bench) -> None:
    bench.sentry.command("c", "pause", "p1", "ops", "", 1_000)
    head = bench.sentry.fold.position
    assert bench.sentry.commit_decision(decision("r", "p1", head), 1_000).status == "conflict"
    assert bench.sentry.commit_decision(decision("r", LLM_ONLY, head), 1_000).status == "committed"


@pytest.mark.parametrize(("field", "value"), [
    ("request_id", ""), ("request_hash", None), ("policy_id", 5), ("as_of", -1), ("as_of", 10_000), ("as_of", 1.0),
    ("as_of", True), ("extra", float("nan")),
])
def test_decision_that_makes_no_sense_is_refused(bench: Bench, field: str, value: object) -> None:
    body = {**decision("r", "p1", bench.sentry.fold.position), field: value}
    with pytest.raises(InvalidInput, match=field):
        bench.sentry.commit_decision(body, 1_000)


# -- outcomes --------------------------------------------------------------------------------------


def test_outcome_episode_verdicts_and_audit_are_recorded_together(bench: Bench) -> None:
    trades = [bench.decide(f"r{number}") for number in range(3)]
    answers = [bench.sentry.record_outcome(outcome(trade, exit_price=99.0), "hub", 9_000) for trade in trades]
    assert [answer.accepted for answer in answers] == ["recorded"] * 3
    assert [len(answer.verdicts) for answer in answers] == [0, 0, 1]
    assert bench.kinds()[-3:] == ["outcome", "verdict", "epoch"]
    assert [one.id for one in bench.ledger.query_episodes(10)] == sorted(trades, reverse=True)
    assert bench.audit.tail(2)[1].summary == "throttle: profit_factor 0 against 1.5"
    assert bench.audit.verify(bench.ledger) == []


def test_outcome_reported_again_gets_the_same_answer(bench: Bench) -> None:
    trades = [bench.decide(f"r{number}") for number in range(3)]
    for trade in trades:
        first = bench.sentry.record_outcome(outcome(trade, exit_price=99.0), "hub", 9_000)
    bench.sentry.throttle_policy("p2", 9_500)
    head = bench.ledger.head()
    again = bench.sentry.record_outcome(outcome(trades[-1], exit_price=99.0), "hub", 99_000)
    assert (again.accepted, again.position, again.verdicts) == ("duplicate", first.position, first.verdicts)
    assert len(first.verdicts) == 1
    assert bench.ledger.head() == head


def test_other_content_under_a_recorded_key_is_refused_with_the_differing_fields(bench: Bench) -> None:
    trade = bench.decide("r")
    bench.sentry.record_outcome(outcome(trade), "hub", 9_000)
    with pytest.raises(ContentConflict) as conflict:
        bench.sentry.record_outcome(outcome(trade, exit_price=102.0, fees=0.2), "hub", 9_000)
    assert conflict.value.fields == ["exit_price", "pnl", "fees"]


def test_higher_revision_supersedes_and_a_lower_one_comes_too_late(bench: Bench) -> None:
    trade = bench.decide("r")
    bench.sentry.record_outcome(outcome(trade, revision=1), "hub", 9_000)
    bench.sentry.record_outcome(outcome(trade, revision=10, exit_price=102.0), "hub", 9_000)
    assert bench.ledger.get("outcome", f"{trade}/0/10").body["supersedes"] == 1  # type: ignore[union-attr]
    assert bench.sentry.record_outcome(outcome(trade, revision=1), "hub", 9_000).accepted == "superseded_by_later"
    with pytest.raises(ContentConflict, match="10 is recorded"):
        bench.sentry.record_outcome(outcome(trade, revision=2), "hub", 9_000)
    assert bench.sentry.record_outcome(outcome(trade, part=1), "hub", 9_000).accepted == "recorded"
    episodes = bench.ledger.query_episodes(10)
    assert [(one.id, one.outcome["part"]) for one in episodes] == [(trade, 1)]


def test_outcome_of_an_unknown_decision_is_refused(bench: Bench) -> None:
    with pytest.raises(UnknownEntity):
        bench.sentry.record_outcome(outcome("d-unknown"), "hub", 9_000)


def test_outcome_may_be_entered_before_its_decision_only_by_as_much_as_clocks_may_differ(bench: Bench) -> None:
    trade = bench.decide("r", now_ms=5_000)
    with pytest.raises(InvalidInput, match="entry_time_ms"):
        bench.sentry.record_outcome(outcome(trade, entry_time_ms=2_999, exit_time_ms=6_000), "hub", 9_000)
    answer = bench.sentry.record_outcome(outcome(trade, entry_time_ms=3_000, exit_time_ms=6_000), "hub", 9_000)
    assert answer.accepted == "recorded"


@pytest.mark.parametrize(("change", "field"), [
    ({"exit_time_ms": 11_001}, "exit_time_ms"),
    ({"entry_time_ms": 2_001}, "exit_time_ms"), ({"pnl": 10.001}, "pnl"), ({"pnl": -10.0}, "pnl"),
    ({"pnl": float("nan")}, "pnl"), ({"pnl": "10"}, "pnl"), ({"size": 0.0}, "size"), ({"size": None}, "size"),
    ({"entry_price": float("inf")}, "entry_price"), ({"fees": -0.1}, "fees"), ({"funding": float("nan")}, "funding"),
    ({"drawdown_proxy": 1.1}, "drawdown_proxy"), ({"exit_reason": "luck"}, "exit_reason"), ({"part": -1}, "part"),
    ({"revision": 0.5}, "revision"), ({"equity": -1.0}, "equity"), ({"final": 1}, "final"), ({"luck": 1}, "luck"),
    ({"symbol": "ETH"}, "symbol"), ({"exit_reason": "not_filled"}, "pnl"),
])
def test_outcome_that_cannot_be_true_is_refused_and_nothing_is_recorded(
        bench: Bench, change: dict[str, Any], field: str) -> None:
    trade = bench.decide("r")
    head = bench.ledger.head()
    with pytest.raises(InvalidInput) as refusal:
        bench.sentry.record_outcome(outcome(trade, **change), "hub", 9_000)
    assert (refusal.value.field, bench.ledger.head(), bench.sentry.fold.position) == (field, head, head)


def test_pnl_may_be_rounded_and_follows_the_direction(bench: Bench) -> None:
    long, short = bench.decide("r1"), bench.decide("r2", direction="short")
    bench.sentry.record_outcome(outcome(long, pnl=10.0 * (1 + 9e-7)), "hub", 9_000)
    bench.sentry.record_outcome(outcome(short, pnl=-10.0), "hub", 9_000)


def test_own_trade_of_the_bot_needs_no_decision_but_says_what_it_was(bench: Bench) -> None:
    own = outcome("mine-1", equity=9_000.0, symbol="BTC", strategy="sniping", direction="short", pnl=-10.0)
    answer = bench.sentry.record_outcome(own, "bot", 9_000)
    assert answer.accepted == "recorded"
    row = bench.ledger.get("outcome", "mine-1/0/0")
    assert row is not None
    assert (row.body["trade"]["policy_id"], row.body["trade"]["equity"]) == (LLM_ONLY, pytest.approx(9_010.1))
    assert bench.sentry.record_outcome(own, "bot", 9_000).accepted == "duplicate"
    with pytest.raises(ContentConflict, match="strategy"):
        bench.sentry.record_outcome({**own, "strategy": "momentum"}, "bot", 9_000)
    for missing in ("symbol", "strategy", "direction", "equity"):
        with pytest.raises(InvalidInput, match=missing):
            bench.sentry.record_outcome({**own, "decision_id": "mine-2", missing: None}, "bot", 9_000)
    with pytest.raises(InvalidInput, match="decision_id"):
        bench.sentry.record_outcome({**own, "decision_id": bench.decide("r")}, "bot", 9_000)


# -- who may act -----------------------------------------------------------------------------------


def test_command_is_recorded_once_by_its_id(bench: Bench) -> None:
    first = bench.sentry.command("c", "pause", "p1", "ops", "looks odd", 1_000)
    again = bench.sentry.command("c", "pause", "p1", "ops", "looks odd", 2_000)
    assert (first.accepted, again.accepted, again.position) == ("recorded", "duplicate", first.position)
    assert bench.sentry.fold.shares == {"p2": 1.0}
    with pytest.raises(ContentConflict, match="command, policy_id"):
        bench.sentry.command("c", "resume", "p2", "ops", "looks odd", 2_000)
    with pytest.raises(UnknownEntity, match="p1, p2"):
        bench.sentry.command("d", "pause", "p9", "ops", "", 1_000)
    with pytest.raises(InvalidInput):
        bench.sentry.command("d", "explode", "p1", "ops", "", 1_000)
    with pytest.raises(InvalidInput):
        bench.sentry.command("d", "promote", BOOK, "ops", "", 1_000)


def test_pause_holds_through_a_restart(bench: Bench) -> None:
    bench.sentry.command("c", "pause", "p1", "ops", "", 1_000)
    bench.again()
    assert not bench.sentry.fold.admits({"policy_id": "p1"})


def test_registration_is_idempotent(bench: Bench) -> None:
    assert bench.sentry.register("p1", "one", {"m": 1}, "someone else", 99).accepted == "duplicate"
    with pytest.raises(ContentConflict, match="manifest"):
        bench.sentry.register("p1", "one", {"m": 9}, "ops", 99)
    for policy_id in ("", BOOK, LLM_ONLY):
        with pytest.raises(InvalidInput):
            bench.sentry.register(policy_id, "x", {}, "ops", 99)


def test_epoch_ends_when_it_is_over(bench: Bench) -> None:
    assert bench.sentry.expire_epoch(20 + CADENCE_MS - 1) is None
    number = bench.sentry.fold.epoch
    assert bench.sentry.expire_epoch(20 + CADENCE_MS) is not None
    assert bench.sentry.fold.epoch == number + 1


def test_observation_is_recorded(bench: Bench) -> None:
    position = bench.sentry.observe("latency_ms", "p1", 12.5, {"head": "p1"}, 1_000).position
    row = bench.ledger.get("observation", str(position))
    assert row is not None
    assert row.body == {"what": "latency_ms", "policy_id": "p1", "figure": 12.5, "detail": {"head": "p1"}}


# -- judgements ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("metrics", "judgement"), [
    ({"profit_factor": 2.0, "max_drawdown": 1.0, "latency_p95": 100.0}, "approve"),
    ({"profit_factor": 1.4, "max_drawdown": 1.0, "latency_p95": 100.0}, "throttle"),
    ({"profit_factor": 1.4, "max_drawdown": 4.1, "latency_p95": 300.0}, "halt"),
    ({"profit_factor": 2.0, "max_drawdown": 1.0, "latency_p95": 251.0}, "reduce"),
    ({"profit_factor": 2.0, "max_drawdown": 1.0}, "reduce"),
    ({"profit_factor": float("nan"), "max_drawdown": 1.0, "latency_p95": 1.0}, "throttle"),
    ({}, "halt"),
])
def test_validated_policy_is_judged_by_its_metrics(bench: Bench, metrics: dict[str, float], judgement: str) -> None:
    head = bench.ledger.head()
    assert bench.sentry.validate_policy("p1", metrics).judgement == judgement
    assert bench.ledger.head() == head


def test_unknown_metric_is_refused(bench: Bench) -> None:
    with pytest.raises(InvalidInput, match="sharpe"):
        bench.sentry.validate_policy("p1", {"sharpe": 3.0})


@pytest.mark.parametrize(("name", "judgement"), [
    ("approve_policy", "approve"), ("reduce_traffic", "reduce"), ("throttle_policy", "throttle"),
    ("emergency_halt", "halt"),
])
def test_operators_verdict_holds_at_once_and_is_audited(bench: Bench, name: str, judgement: str) -> None:
    getattr(bench.sentry, name)("p1", 1_000, actor="ada", reason="because")
    assert bench.sentry.fold.gates.standing("p1") == judgement
    epoch, verdict = bench.audit.tail(2)
    assert (verdict.actor, verdict.rule, verdict.policy_id, epoch.kind) == ("ada", "operator", "p1", "epoch")
    with pytest.raises(UnknownEntity):
        getattr(bench.sentry, name)("p9", 1_000)


# -- failures --------------------------------------------------------------------------------------


class Broken(FakeFold):
    """Fails on the outcome of one price, halfway through its change of state; never comes to rest after another."""

    def apply(self, row: Row) -> None:
        if row.kind == "outcome" and row.body["outcome"]["exit_price"] == 99.0:
            self.records.clear()
            raise ZeroDivisionError
        super().apply(row)

    def consequences(self, at_ms: int) -> list[NewRow]:
        if "p1" in self.records and self.records["p1"].gain == pytest.approx(20 / 10_000):
            return [NewRow("observation", None, {})]
        return super().consequences(at_ms)


@pytest.mark.parametrize(("exit_price", "failure"), [(99.0, ZeroDivisionError), (102.0, LedgerCorrupt)])
def test_state_after_a_failed_operation_is_the_ledgers(
        bench: Bench, exit_price: float, failure: type[Exception]) -> None:
    trade = bench.decide("r")
    before, state = list(bench.ledger.rows()), bench.state()
    bench.sentry = PolicySentry(bench.ledger, bench.audit, Broken, GENESIS, 5, SETTINGS)
    with pytest.raises(failure):
        bench.sentry.record_outcome(outcome(trade, exit_price=exit_price), "hub", 9_000)
    assert list(bench.ledger.rows()) == before
    assert {**bench.state(), "records": 0} == {**state, "records": 0}
    assert bench.sentry.fold.policies() == ["p1", "p2"]
    assert bench.ledger.query_episodes(1) == []
    bench.decide("next")


def test_refusal_leaves_the_fold_as_it_is(bench: Bench) -> None:
    fold = bench.sentry.fold
    with pytest.raises(HubError):
        bench.sentry.command("c", "pause", "p9", "ops", "", 1_000)
    assert bench.sentry.fold is fold


def test_audit_that_failed_once_is_made_up_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(bench.audit, "extend", lambda rows: 1 // 0)
        assert bench.sentry.command("c1", "pause", "p1", "ops", "", 1_000).accepted == "recorded"
    assert [finding.what for finding in bench.audit.verify(bench.ledger)] == ["truncated"] * 2
    bench.sentry.command("c2", "resume", "p1", "ops", "", 2_000)
    assert bench.audit.verify(bench.ledger) == []
    assert len(bench.audit.tail(100)) == sum(is_audited(row) for row in bench.ledger.rows())


class Steady(FakeFold):
    """Says of each epoch whether the shares are others than before, as the hub's own fold does."""

    def expire_epoch(self, now_ms: int) -> list[NewRow]:
        (epoch,) = super().expire_epoch(now_ms)
        return [NewRow("epoch", epoch.key, {**epoch.body, "changed": epoch.body["shares"] != self.shares})]


def test_epoch_that_leaves_the_traffic_as_it_was_is_recorded_but_not_audited(
        bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.sentry = PolicySentry(bench.ledger, bench.audit, Steady, GENESIS, 5, SETTINGS)
    with monkeypatch.context() as watched:
        watched.setattr(bench.audit, "complete", lambda ledger: pytest.fail("nothing is to be audited"))
        for number in range(1, 4):
            assert bench.sentry.expire_epoch(number * CADENCE_MS * 2) is not None
    held = bench.audit.position
    assert bench.ledger.head() == held + 3
    bench.sentry.command("c1", "pause", "p1", "ops", "", 10 * CADENCE_MS)
    assert [row.kind for row in bench.audit.tail(2)] == ["epoch", "command"]
    assert [row.position for row in bench.audit.tail(2)] == [held + 5, held + 4]
    assert bench.audit.verify(bench.ledger) == []
