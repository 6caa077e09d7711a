"""The chain: in its order, stopped by the first failure with its code, and nothing of it left running."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from array_heads import array_bundle
from plain_bundles import momentum_bundle
from small_search import market

from ci.pipeline import __main__ as chain_module
from ci.pipeline import forward, track, train_small
from ci.pipeline.__main__ import STEPS, Chain, table_of, write
from ci.pipeline.settings import PipelineSettings
from ci.pipeline.step import FAILED, NOT_PASSED, Stopped, ended, leave_note, read_note
from policies.bundle import Bundle, make_bundle, pack_bundle
from train.tracking import Tracker

BARS = 3_000
SETTINGS = {"market": "generated", "generated_bars": BARS, "seed": 3, "coins": "BTC,ETH", "lookback": 3_000,
            "patience_s": 0.0}


@pytest.fixture
def settings(tmp_path: Path) -> PipelineSettings:
    return PipelineSettings(tmp_path / "home", **SETTINGS)


class Watched:
    """A chain whose steps only say that they were there; `failing` fails. open: contexts that have not ended."""

    def __init__(self, settings: PipelineSettings, monkeypatch: pytest.MonkeyPatch, failing: str = "",
                 local: bool = False) -> None:
        self.ran, self.open = list[tuple[str, PipelineSettings, tuple[str, ...]]](), set[str]()

        def opened(name: str, made: Any) -> Callable[..., Any]:
            @contextmanager
            def context(*_: Any) -> Iterator[Any]:
                self.open.add(name)
                yield made
                self.open.discard(name)
            return context

        monkeypatch.setattr(chain_module, "cluster", opened("cluster", "2 cores"))
        monkeypatch.setattr(chain_module, "local_s3", opened("s3", "http://s3"))
        monkeypatch.setattr(chain_module, "local_hub", opened("hub", ("http://hub", Path("/hub"))))
        self.chain = Chain(settings, lambda text: None, local)
        self.chain.runs |= {name: self._step(name, failing) for name in self.chain.runs
                            if name not in ("cluster", "local")}

    def _step(self, name: str, failing: str) -> Callable[[PipelineSettings, Any], str]:
        def run(settings: PipelineSettings, say: Any) -> str:
            self.ran.append((name, settings, tuple(sorted(self.open))))
            if name == failing:
                raise Stopped(NOT_PASSED, "stopped here")
            return f"{name} was here"
        return run

    @property
    def states(self) -> dict[str, str]:
        return {line.step: line.state for line in self.chain.lines}


def test_every_step_runs_once_in_order(settings: PipelineSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(settings, monkeypatch)
    assert watched.chain.run() == 0
    assert [name for name, _, _ in watched.ran] == [name for name in STEPS if name not in ("cluster", "local")]
    assert list(watched.states) == list(STEPS)
    assert watched.states["local"] == "left out"
    assert table_of(watched.chain.lines).row_count == len(STEPS)


def test_the_cluster_is_there_for_the_training_only(
        settings: PipelineSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(settings, monkeypatch)
    watched.chain.run()
    assert {name: there for name, _, there in watched.ran if there} == {"train_small": ("cluster",)}


@pytest.mark.parametrize("failing", [name for name in STEPS if name not in ("cluster", "local")])
def test_a_failure_stops_the_chain_with_its_code_and_leaves_nothing_running(
        settings: PipelineSettings, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    watched = Watched(settings, monkeypatch, failing, local=True)
    assert watched.chain.run() == NOT_PASSED
    assert watched.open == set()
    assert watched.ran[-1][0] == failing
    later = STEPS[STEPS.index(failing) + 1:]
    assert watched.states[failing] == "failed"
    assert {watched.states[name] for name in later} <= {"not run"}


def test_a_store_and_a_hub_of_its_own_serve_the_steps_after_them(
        settings: PipelineSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain_module.os, "environ", {})
    watched = Watched(settings, monkeypatch, local=True)
    assert watched.chain.run() == 0
    told = {name: (asked, there) for name, asked, there in watched.ran}
    assert told["track"][1] == ()
    for name in ("publish", "webhook", "verify"):
        asked, there = told[name]
        assert there == ("hub", "s3")
        assert (asked.artefacts, asked.s3_endpoint_url, asked.url) == ("s3://elite-policies", "http://s3", "http://hub")
        assert asked.hub_folder == Path("/hub")
    named = Watched(replace(settings, hub_url="http://mine"), monkeypatch, local=True)
    assert named.chain.run() == 0
    assert named.ran[-1][1].url == "http://mine"
    assert named.ran[-1][2] == ("s3",)


def test_it_may_begin_in_the_middle(settings: PipelineSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(settings, monkeypatch)
    assert watched.chain.run("publish") == 0
    assert [name for name, _, _ in watched.ran] == ["publish", "webhook", "verify"]


def test_the_report_holds_every_step_and_the_code(
        settings: PipelineSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    watched = Watched(settings, monkeypatch, "forward")
    code = watched.chain.run()
    assert write(tmp_path, watched.chain.lines, settings, code).exists()
    report = json.loads((tmp_path / "ci_pipeline.json").read_text())
    assert report["exit_code"] == NOT_PASSED
    assert [step["step"] for step in report["steps"]] == list(STEPS)
    assert report["steps"][3]["said"] == "stopped here"


def trained(settings: PipelineSettings, *bundles: Bundle) -> None:
    """Candidates of a search that has seen all but the last bars, as the training leaves them."""
    until_ms = int(market(BARS).bars("BTC").close_time_ms[-501])
    heads = []
    for bundle in bundles:
        said = {"symbols": ["BTC", "ETH"], "bars": {"until_ms": until_ms}}
        made = make_bundle(replace(bundle.manifest, trained_on=said), bundle.files)
        path = settings.home / "models" / f"candidate_{made.manifest.alias}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pack_bundle(made))
        heads.append({"head": made.manifest.alias, "policy_id": made.policy_id})
    (settings.home / "reports").mkdir(parents=True, exist_ok=True)
    (settings.home / "reports" / "retrain_sup.json").write_bytes(orjson.dumps({"heads": heads}))
    leave_note(settings.home, train_small.TRAINED, train_small.candidates(settings))


def test_a_file_of_another_training_is_no_candidate(settings: PipelineSettings) -> None:
    trained(settings, momentum_bundle("rule"))
    (settings.home / "models" / "candidate_rule.pt").write_bytes(pack_bundle(momentum_bundle("other")))
    with pytest.raises(Stopped, match="another training"):
        train_small.candidates(settings)


def test_the_forward_step_stops_the_chain_before_publication_and_tracks_what_it_found(
        settings: PipelineSettings) -> None:
    lost = array_bundle("embedded", {"market_embedding": 4}, "mae-0123456789ab")
    trained(settings, momentum_bundle("rule", 1.5), lost)
    demanding = replace(settings, min_pf=99.0)
    code, said = ended(forward.run, demanding, lambda text: None)
    assert (code, "rule: profit factor" in said) == (NOT_PASSED, True)
    assert "mae-0123456789ab" in said
    code, said = ended(forward.run, settings, lambda text: None)
    assert (code, said) == (0, "1 of 2 passed, the first is rule")
    assert (settings.home / "reports" / "forward_test_rule.html").exists()
    tested = read_note(settings.home, forward.TESTED, "forward")
    assert [one["passed"] for one in tested] == [True, False]
    for _ in range(2):
        assert ended(track.run, settings, lambda text: None)[0] == 0
    tracker = Tracker(settings.home, track.EXPERIMENT)
    runs = tracker._client.search_runs([tracker._experiment_id])
    assert sorted(run.info.run_name for run in runs) == ["embedded", "rule"]
    [rule] = [run for run in runs if run.info.run_name == "rule"]
    assert rule.data.metrics["trades"] == tested[0]["played"]["trades"]
    assert {file.path for file in tracker._client.list_artifacts(rule.info.run_id)} == {"rule.pt", "forward_test.json"}


def test_a_server_of_mlflow_that_is_not_there_is_away(settings: PipelineSettings) -> None:
    leave_note(settings.home, forward.TESTED, [])
    code, said = ended(track.run, replace(settings, mlflow_url="http://127.0.0.1:9"), lambda text: None)
    assert (code, "MLflow at http://127.0.0.1:9" in said) == (6, True)


def test_a_training_that_fails_stops_the_chain(
        settings: PipelineSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_small, "training", lambda settings: ["false"])
    assert ended(train_small.run, settings, lambda text: None)[0] == FAILED
