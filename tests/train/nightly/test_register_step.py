"""The best candidate that passed is handed over, by its judgement; the start of the parameters as well."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from array_heads import array_bundle
from click.testing import CliRunner, Result
from encoder_bundles import encoder_bundle
from hub_door import FakeHub, fake_hub
from plain_bundles import momentum_bundle

from feature_repo.features import MARKET_EMBEDDING
from policies.bundle import Bundle, make_bundle, pack_bundle
from policies.free_ports import free_port
from train.commands import AWAY, REFUSED
from train.nightly import param_start_step, register_step
from train.nightly.register_step import best_of, rank_of


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    with fake_hub(tmp_path / "home", 1_000) as found:
        yield found


def judged(alias: str, passed: bool | None, sharpe: float | None, low: float | None = None) -> Bundle:
    told: dict[str, Any] = {} if passed is None else {
        "passed": passed, "judgement": {"deflated_sharpe": sharpe, "head": {"profit_factor_interval": {"low": low}}}}
    bundle = momentum_bundle()
    return make_bundle(replace(bundle.manifest, alias=alias, trained_on=told, files={}), dict(bundle.files))


def left(folder: Path, **candidates: tuple[Bundle, bool]) -> None:
    """Candidates, and whether each passed its forward test."""
    folder.mkdir()
    for name, (bundle, passed) in candidates.items():
        path = folder / f"candidate_{name}.pt"
        path.write_bytes(pack_bundle(bundle))
        (folder / f"forward_{name}.json").write_text(json.dumps({"path": str(path), "passed": passed}))


def run(command: Any, folder: Path, url: str, home: Path, *more: str) -> Result:
    return CliRunner().invoke(command, ["--home", str(home), "--hub-url", url, "--out", str(folder), *more])


def test_the_best_is_that_of_the_judgement_and_one_without_is_last(tmp_path: Path) -> None:
    order = [judged("a", True, 0.9), judged("b", False, 0.99), judged("c", False, 0.5, 1.2),
             judged("d", False, 0.5, 1.1), judged("e", False, None), judged("f", None, None)]
    mixed = [order[place] for place in (3, 5, 0, 4, 2, 1)]
    assert [bundle.manifest.alias for bundle in sorted(mixed, key=rank_of)] == list("abcdef")
    left(tmp_path / "x", worse=(order[3], True), better=(order[2], True))
    assert best_of((tmp_path / "x").glob("candidate_*.pt"))[1] == order[2]


def test_only_what_passed_is_handed_over(hub: FakeHub, tmp_path: Path) -> None:
    folder, good, better = tmp_path / "x", judged("good", False, 0.4), judged("better", True, 0.9)
    left(folder, good=(good, True), better=(better, False))
    ended = run(register_step.main, folder, hub.url, hub.home, "--forward", str(folder))
    assert ended.exit_code == 0, ended.output
    assert hub.asked == [("/v1/policies", pack_bundle(good))]
    told = json.loads((folder / "registered.json").read_bytes())
    assert (told["alias"], told["policy_id"]) == ("good", good.policy_id)


def test_without_a_hub_it_says_how_to_hand_it_over_later(tmp_path: Path) -> None:
    left(tmp_path / "x", only=(judged("only", True, 0.9), True))
    ended = run(register_step.main, tmp_path / "x", f"http://127.0.0.1:{free_port()}", tmp_path, "--forward",
                str(tmp_path / "x"))
    assert ended.exit_code == AWAY == 6
    assert f"hub register --path {tmp_path / 'x' / 'candidate_only.pt'}" in ended.output
    assert not (tmp_path / "x" / "registered.json").exists()


def test_a_hub_that_refuses_is_a_failure_with_its_reason(hub: FakeHub, tmp_path: Path) -> None:
    hub.answers["/v1/policies"] = 422, {"detail": "not sound"}
    left(tmp_path / "x", only=(judged("only", True, 0.9), True))
    ended = run(register_step.main, tmp_path / "x", hub.url, hub.home, "--forward", str(tmp_path / "x"))
    assert ended.exit_code == REFUSED == 4
    assert "not sound" in ended.output


def test_an_embedder_comes_before_the_head_that_was_made_for_it(hub: FakeHub, tmp_path: Path) -> None:
    bundle = array_bundle("embedded", {MARKET_EMBEDDING: 4}, "mae-1")
    left(tmp_path / "x", only=(bundle, True))
    (tmp_path / "x" / "embedder.pt").write_bytes(pack_bundle(encoder_bundle()))
    hub.answers["/v1/embedding"] = 409, {"detail": "production was made for another one"}
    ended = run(register_step.main, tmp_path / "x", hub.url, hub.home, "--forward", str(tmp_path / "x"))
    assert ended.exit_code == 0, ended.output
    assert [path for path, _ in hub.asked] == ["/v1/policies", "/v1/embedding", "/v1/policies"]
    assert "hub embedding use mae-1 --force" in ended.output


def test_the_start_of_the_parameters_is_handed_over_as_it_is(hub: FakeHub, tmp_path: Path) -> None:
    document = {"kind": "param_start", "levels": {}}
    (tmp_path / "param_start.json").write_text(json.dumps(document))
    arguments = ("--made", str(tmp_path))
    assert run(param_start_step.main, tmp_path, hub.url, hub.home, *arguments).exit_code == 0
    (path, body), = hub.asked
    assert path == "/v1/params/start"
    assert json.loads(body)["start"] == document
    hub.answers["/v1/params/start"] = 422, {"detail": "levels: none"}
    ended = run(param_start_step.main, tmp_path, hub.url, hub.home, *arguments)
    assert (ended.exit_code, "levels: none" in ended.output) == (REFUSED, True)
    nobody = f"http://127.0.0.1:{free_port()}"
    ended = run(param_start_step.main, tmp_path, nobody, hub.home, *arguments)
    assert (ended.exit_code, "hub params start --path" in ended.output) == (AWAY, True)


def test_a_search_that_left_nothing_is_a_failure(hub: FakeHub, tmp_path: Path) -> None:
    ended = run(param_start_step.main, tmp_path, hub.url, hub.home, "--made", str(tmp_path))
    assert ended.exit_code == 1
    assert hub.asked == []
