"""A process of heads: who asks never waits for a load, and what cannot be loaded says why at once."""

from __future__ import annotations

import math
import threading
from pathlib import Path

import pytest
from plain_bundles import momentum_bundle, onnx_bundle
from plain_hub import PlainHub
from waiting import eventually

from feature_repo.features import DECISION_V1
from hub.deployments import _HeadShell
from hub.head_rack import NOT_LOADED, HeadRack
from hub.rack_loading import MOST_PAUSE_S, RETRY_S, keep_loading, load_registered, registered
from hub.replay import replay_ledger
from policies import checks, loader
from policies.bundle import Bundle, pack_bundle
from policies.errors import BundleRefused, WriterUnavailable
from policies.head import Policy
from policies.heads import load_head
from policies.registry import PolicyFolder
from policies.sound_marks import SERVED_LIMITS, SoundMarks
from policies.types import Context, Portfolio

CONTEXT = Context("BTC", "momentum", 0, (0.5,) * len(DECISION_V1), {}, Portfolio(1e4))
GOOD, OTHER = momentum_bundle(), onnx_bundle()


class Canary:
    """Counts whom it examined, and refuses all while `reason` is set."""

    def __init__(self, reason: str = "") -> None:
        self.reason = reason
        self.examined: list[str] = []

    def __call__(self, bundle: Bundle) -> None:
        self.examined.append(bundle.policy_id)
        if self.reason:
            raise BundleRefused(self.reason)


def stored(tmp_path: Path, *bundles: Bundle) -> PolicyFolder:
    folder = PolicyFolder(tmp_path / "policies")
    for bundle in bundles:
        folder.add(pack_bundle(bundle))
    return folder


def failures(rack: HeadRack, *bundles: Bundle) -> list[str]:
    answers = rack.propose([bundle.policy_id for bundle in bundles], CONTEXT)
    return [answers[bundle.policy_id][2] for bundle in bundles]


def test_asking_never_loads(tmp_path: Path) -> None:
    canary = Canary()
    rack = HeadRack(stored(tmp_path, GOOD, OTHER), canary)
    rack.load(GOOD.policy_id)
    assert failures(rack, GOOD, OTHER) == ["", NOT_LOADED]
    assert canary.examined == []


def test_a_refused_head_is_examined_once_and_its_reason_is_told_each_time(tmp_path: Path) -> None:
    canary = Canary("answers nonsense")
    rack = HeadRack(stored(tmp_path, GOOD, OTHER), canary)
    for _ in range(3):
        rack.load_new([OTHER.policy_id, GOOD.policy_id])
        assert failures(rack, GOOD, OTHER) == ["", "answers nonsense"]
    assert len(canary.examined) == 1
    canary.reason = ""
    rack.retry([OTHER.policy_id])
    assert failures(rack, OTHER) == [""]
    assert rack.refused == {}


def test_whatever_reading_a_bundle_raises_the_other_heads_are_loaded(tmp_path: Path,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    folder, get = stored(tmp_path, GOOD, OTHER), PolicyFolder.get

    def torn(self: PolicyFolder, policy_id: str) -> Bundle:
        if policy_id == OTHER.policy_id:
            raise OSError(5, "Input/output error")
        return get(self, policy_id)

    monkeypatch.setattr(PolicyFolder, "get", torn)
    rack = HeadRack(folder)
    rack.load_new([OTHER.policy_id, GOOD.policy_id])
    assert failures(rack, GOOD, OTHER) == ["", "OSError: [Errno 5] Input/output error"]


def busy(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """On a machine on which nothing answers in time; the kinds that were examined."""
    examined = []

    def check(head: Policy, rows: None, latency_limit_ms: float) -> list[str]:
        examined.append(type(head).__name__)
        return [] if math.isinf(latency_limit_ms) else ["answers too slowly"]

    monkeypatch.setattr(checks, "check_policy", check)
    monkeypatch.setattr(loader, "run_canary", lambda bundle, limits: checks.require_sound(
        load_head(bundle), None, limits.latency_ms))
    return examined


def test_without_its_mark_a_head_is_examined_but_not_by_the_clock(tmp_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    examined, rack = busy(monkeypatch), HeadRack(stored(tmp_path, GOOD, OTHER))
    for bundle in (GOOD, OTHER):
        rack.load(bundle.policy_id)
    assert examined == ["MomentumHead", "OnnxClassifierHead"]


def test_what_was_examined_in_haste_still_needs_its_whole_canary_to_be_taken_in(tmp_path: Path) -> None:
    folder = stored(tmp_path, OTHER)
    HeadRack(folder, Canary()).load(OTHER.policy_id)
    assert not folder.marks.holds(OTHER.policy_id)
    canary = Canary()
    HeadRack(folder, canary).load(OTHER.policy_id)
    assert canary.examined == [], "but not to be served again"


async def test_the_ledgers_policies_are_loaded_and_no_others(hub: PlainHub) -> None:
    stray = onnx_bundle("stray", seed=5)
    hub.folder.add(pack_bundle(stray))
    assert registered(hub.home.ledger) == [GOOD.policy_id, OTHER.policy_id]
    rack = HeadRack(hub.folder)
    load_registered(rack, hub.home.ledger)
    assert failures(rack, GOOD, OTHER, stray) == ["", "", NOT_LOADED]


def test_without_a_ledger_there_is_nothing_to_load_yet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(WriterUnavailable):
        registered(tmp_path / "none.sqlite")
    rack = HeadRack(stored(tmp_path, GOOD))
    load_registered(rack, tmp_path / "none.sqlite")
    assert "could not be read" in capsys.readouterr().out
    assert failures(rack, GOOD) == [NOT_LOADED]


async def test_later_looks_are_ever_rarer_and_tell_a_reason_once(hub: PlainHub,
                                                                 capsys: pytest.CaptureFixture[str]) -> None:
    class Ended(Exception):
        """Of the loop that has no end."""

    pauses, looked, canary = [], threading.Event(), Canary("too odd")
    hub.folder.marks._path(OTHER.policy_id).unlink(missing_ok=True)
    hub.folder.marks.under(SERVED_LIMITS)._path(OTHER.policy_id).unlink(missing_ok=True)

    def wait(pause_s: float) -> None:
        assert looked.is_set()
        pauses.append(pause_s)
        if len(pauses) == 7:
            raise Ended

    with pytest.raises(Ended):
        keep_loading(HeadRack(hub.folder, canary), hub.home.ledger, looked, wait)
    assert pauses == [RETRY_S, 2 * RETRY_S, 4 * RETRY_S, 8 * RETRY_S, MOST_PAUSE_S, MOST_PAUSE_S, MOST_PAUSE_S]
    assert canary.examined == [OTHER.policy_id] * 7
    assert capsys.readouterr().out.count("too odd") == 1


async def test_a_replica_answers_with_what_it_has_while_a_head_is_examined(
        hub: PlainHub, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    hub.folder.marks.under(SERVED_LIMITS)._path(OTHER.policy_id).unlink()
    monkeypatch.setattr(loader, "run_canary", lambda bundle, limits: go_on.wait(10))
    monkeypatch.setattr("hub.deployments.START_PATIENCE_S", 0.2)
    shell = _HeadShell(hub.home, most_growth_bytes=0)

    async def told() -> list[str]:
        answers = (await shell.propose([([GOOD.policy_id, OTHER.policy_id], CONTEXT)]))[0]
        return [answers[bundle.policy_id][2] for bundle in (GOOD, OTHER)]

    assert (await told())[1] == NOT_LOADED
    go_on.set()
    eventually(lambda: failures(shell._rack, GOOD, OTHER) == ["", ""], "both are loaded")
    assert await told() == ["", ""]


async def test_a_replay_on_a_busy_machine_finds_the_same(hub: PlainHub, tmp_path: Path,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    await hub.decide_later()
    monkeypatch.setattr(PolicyFolder, "marks", SoundMarks(tmp_path / "marks"))
    examined = busy(monkeypatch)
    report = replay_ledger(hub.home.ledger, hub.home.policies)
    assert report.equal, list(report.lines(5))
    assert (report.proposals, len(examined)) == (2, 2)
