from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from fake_fold import GENESIS, SETTINGS, FakeFold, decision, outcome

from policies.errors import (
    BundleRefused,
    ContentConflict,
    HubError,
    InvalidInput,
    LedgerCorrupt,
    UnknownEntity,
    WriterUnavailable,
)
from sentry.actor import SentryParts, SentryShell


def parts(config: Any) -> SentryParts:
    return SentryParts(FakeFold, GENESIS, SETTINGS)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[SentryShell]:
    shell = SentryShell(str(tmp_path), None, f"{__name__}:parts", 5)
    shell.register("p1", "one", {}, "ops", 10)
    yield shell
    shell.close()


def test_batch_answers_each_item_for_itself(shell: SentryShell) -> None:
    position = shell.ping()["position"]
    bodies = [decision("a", "p1", position), decision("b", "p9", position), decision("", "p1", position),
              decision("c", "llm_only", position), decision("a", "p1", position)]
    answers = shell.commit_decisions(bodies, 1_000)
    assert [getattr(answer, "code", None) or answer["status"] for answer in answers] == [
        "committed", "conflict", "invalid_input", "committed", "recorded"]
    assert answers[0]["decision_id"] == answers[4]["decision_id"]
    reports = [outcome(answers[0]["decision_id"]), outcome("unknown"), {"part": 0},
               {**outcome("own", equity=100.0, symbol="BTC", strategy="momentum", direction="long"), "origin": "bot"}]
    told = shell.record_outcomes(reports, 9_000)
    assert [getattr(one, "code", None) or one["accepted"] for one in told] == [
        "recorded", "unknown", "invalid_input", "recorded"]
    assert {"decision_id", "part", "revision", "position", "verdicts"} < told[0].keys()
    pickle.loads(pickle.dumps([answers, told]))


def test_verdict_stands_before_the_outcome_is_acknowledged(shell: SentryShell) -> None:
    position = shell.ping()["position"]
    made = shell.commit_decisions([decision(f"r{n}", "p1", position) for n in range(4)], 1_000)
    told = shell.record_outcomes([outcome(one["decision_id"], exit_price=99.0) for one in made[:3]], 9_000)
    assert [verdict["judgement"] for verdict in told[2]["verdicts"]] == ["throttle"]
    late = shell.commit_decisions([decision("late", "p1", told[2]["position"])], 9_000)
    assert late[0]["status"] == "conflict"


def test_single_operations_answer_or_raise(shell: SentryShell) -> None:
    assert shell.command("c", "pause", "p1", "ops", "", 1_000)["accepted"] == "recorded"
    with pytest.raises(UnknownEntity):
        shell.command("d", "pause", "p9", "ops", "", 1_000)
    assert shell.expire_epoch(1_001)["expired"] is False
    answer = shell.expire_epoch(10**9)
    assert answer == {"expired": True, "position": shell.ping()["position"]}
    assert shell.observe("drift", "p1", 0.4, {}, 10**9)["accepted"] == "recorded"


def test_audit_is_told_with_its_check(shell: SentryShell, tmp_path: Path) -> None:
    def load() -> None:
        for number in range(30):
            shell.command(f"c{number}", "pause", "p1", "ops", "", 1_000 + number)

    loading = threading.Thread(target=load)
    loading.start()
    while loading.is_alive():
        assert shell.audit(3)["verified"] is True
    loading.join()
    told = shell.audit(2)
    assert [row["kind"] for row in told["rows"]] == ["epoch", "command"]
    apsw.Connection(str(tmp_path / "policy_audit.sqlite")).execute("UPDATE audit SET actor = 'x' WHERE position = 2")
    told = shell.audit(1)
    assert told["verified"] is False
    assert told["findings"][0]["what"] == "edited"


def test_restarted_shell_knows_what_the_last_one_knew(shell: SentryShell, tmp_path: Path) -> None:
    shell.command("c", "pause", "p1", "ops", "", 1_000)
    before = shell.ping()
    shell.close()
    again = SentryShell(str(tmp_path), None, parts, 5)
    assert again.ping() == before
    again.close()
    with pytest.raises(WriterUnavailable):
        again.ping()


def test_factory_path_without_a_function_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput):
        SentryShell(str(tmp_path), None, "some.module", 5)


@pytest.mark.parametrize("error", [
    InvalidInput("a.b", "> 0", -1, "hint"), UnknownEntity("policy", "p", ["q"]), ContentConflict("outcome", "k", []),
    WriterUnavailable("away"), LedgerCorrupt("broken"), BundleRefused("bad"),
], ids=lambda error: error.code)
def test_errors_travel_between_processes(error: HubError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), vars(again), again.args) == (str(error), vars(error), error.args)


def test_importing_the_room_imports_no_framework() -> None:
    code = ("import sys, sentry.actor; "
            "print(sorted({'ray', 'feast', 'mlflow', 'fastapi', 'pydantic', 'router', 'hub'} & sys.modules.keys()))")
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"
