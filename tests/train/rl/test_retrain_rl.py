"""The command: how it ends, what it leaves, and that it goes on where it was. One Ray, tiny trainings."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hub_door import fake_hub
from mlflow import MlflowClient

from feature_repo.features import MINUTE_MS
from feature_repo.generated import START_MS
from policies.bundle import Bundle, make_bundle, read_bundle
from policies.checks import check_policy
from policies.free_ports import free_port
from policies.heads import load_head
from train.commands import INTERRUPTED, NOT_PASSED, REFUSED
from train.forward import trained_until_ms
from train.locked import locked
from train.rl import retrain_rl
from train.rl.checkpoint import is_checkpoint
from train.rl.retrain_rl import SERVED, Teller, keep_candidate, main

TINY = ["--market", "generated", "--generated-bars", "4500", "--coins", "BTC,ETH", "--lookback", "3000", "--steps",
        "5000"]


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory, cluster: int) -> Iterator[Path]:
    """Where the command runs, on the Ray of this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrain_rl, "ray_cluster", lambda: nullcontext(cluster))
        yield tmp_path_factory.mktemp("homes")


@pytest.fixture(scope="module")
def finished(homes: Path) -> tuple[Path, Result]:
    """A home in which PPO was trained and kept back."""
    home = homes / "finished"
    return home, run(home, "--keep-back")


def run(home: Path, *more: str, url: str | None = None) -> Result:
    nobody = f"http://127.0.0.1:{free_port()}"
    return CliRunner().invoke(main, ["--home", str(home), "--hub-url", url or nobody, *TINY, *more])


def test_it_leaves_a_sound_candidate_a_report_and_a_run(finished: tuple[Path, Result]) -> None:
    home, ended = finished
    assert ended.exit_code == 0, ended.output
    bundle = read_bundle(home / "models" / "candidate_ppo.pt")
    assert check_policy(load_head(bundle)) == []
    assert read_bundle(home / "models" / SERVED).policy_id == bundle.policy_id
    about = bundle.manifest.trained_on
    assert about["judgement"]["trials"] == 1
    assert trained_until_ms(bundle) == about["bars"]["until_ms"] == about["ranges"]["test"]["until_ms"]
    assert (home / "reports" / "retrain_rl.html").exists()
    client = MlflowClient(f"sqlite:///{home / 'mlflow' / 'mlflow.sqlite'}")
    experiment = client.get_experiment_by_name("retrain_rl")
    assert experiment is not None
    logged, = client.search_runs([experiment.experiment_id])
    assert logged.data.metrics["largest_difference"] <= 1e-5
    assert f"{bundle.manifest.alias}.pt" in {one.path for one in client.list_artifacts(logged.info.run_id)}


def test_it_says_where_it_stands_and_the_same_command_makes_nothing_twice(finished: tuple[Path, Result]) -> None:
    home, ended = finished
    assert "seed 7: 4,096 of 5,000 steps" in ended.output
    assert "8 passes over each 4096 steps" in ended.output
    assert "did not pass the judgement" in ended.output
    before = read_bundle(home / "models" / "candidate_ppo.pt").policy_id
    again = run(home, "--keep-back")
    assert "2 of 2 steps are done" in again.output
    assert "seed 7: 4,096" not in again.output
    assert read_bundle(home / "models" / "candidate_ppo.pt").policy_id == before


def test_a_second_command_for_the_same_training_is_refused_while_one_is_under_way(
        finished: tuple[Path, Result]) -> None:
    home, _ = finished
    folder, = home.glob("retrain_rl/*")
    with locked(folder / "lock", "the first"):
        second = run(home, "--keep-back")
    assert second.exit_code == 1
    assert f"the same training, {folder.name}, is under way already (process {os.getpid()})" in second.output
    assert run(home, "--keep-back").exit_code == 0


def test_what_is_handed_over_and_when_not(finished: tuple[Path, Result]) -> None:
    home, _ = finished
    with fake_hub(home, START_MS + 4_000 * MINUTE_MS) as hub:
        hub.answers["/v1/policies"] = 422, {"detail": "not sound"}
        refused = run(home, url=hub.url)
        assert refused.exit_code == REFUSED == 4, refused.output
        del hub.answers["/v1/policies"]
        strict = run(home, "--strict", url=hub.url)
        assert strict.exit_code == NOT_PASSED == 3
        asked = len(hub.asked)
        assert run(home, url=hub.url).exit_code == 0
        assert [path for path, _ in hub.asked[asked:]] == ["/v1/policies"]
    alone = run(home)
    assert alone.exit_code == 0
    assert "hub register --path" in alone.output


def test_an_interrupt_ends_it_with_130_and_the_same_command_goes_on_from_the_last_look(
        finished: tuple[Path, Result], monkeypatch: pytest.MonkeyPatch) -> None:
    home, _ = finished
    heard = Teller.told

    def interrupting(self: Teller, seed: int, look: Any) -> None:
        heard(self, seed, look)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Teller, "told", interrupting)
        stopped = run(home, "--seed", "8", "--keep-back")
    assert stopped.exit_code == INTERRUPTED == 130
    assert "the same command goes on from here" in stopped.output
    assert len(list(home.glob("retrain_rl/*/train.8.last/state.json"))) == 1
    ended = run(home, "--seed", "8", "--keep-back")
    assert ended.exit_code == 0, ended.output
    assert "1 of 2 steps are done" in ended.output
    assert "seed 8: 4,096" not in ended.output
    assert "seed 8: 8,192" in ended.output


def test_it_goes_on_from_the_checkpoint_it_has_named(finished: tuple[Path, Result]) -> None:
    home, ended = finished
    checkpoint = Path(ended.output.split("LOAD=")[1].split(" goes on")[0].replace("\n", ""))
    assert is_checkpoint(checkpoint)
    further = run(home, "--load", str(checkpoint), "--keep-back")
    assert further.exit_code == 0, further.output
    assert "goes on from checkpoint" in further.output
    about = read_bundle(home / "models" / "candidate_ppo.pt").manifest.trained_on
    assert about["loaded"].startswith("checkpoint")
    assert about["seen_until_ms"] == {about["origin"]: about["ranges"]["validation"]["until_ms"]}


def test_what_was_chosen_on_bars_of_the_test_range_is_refused_before_ray_starts(
        finished: tuple[Path, Result], monkeypatch: pytest.MonkeyPatch) -> None:
    home, _ = finished
    monkeypatch.setattr(retrain_rl, "ray_cluster", lambda: pytest.fail("Ray was started"))
    with fake_hub(home, START_MS + 2_200 * MINUTE_MS) as hub:
        for path in (next(home.glob("retrain_rl/*/train.7.last")), home / "models" / "candidate_ppo.pt"):
            refused = run(home, "--load", str(path), "--keep-back", url=hub.url)
            assert refused.exit_code == 2, refused.output
            assert "it has seen this market until" in refused.output


@pytest.mark.parametrize(("word", "arguments"), [
    ("STEPS", ["--steps", "many"]), ("STEPS", ["--steps", "10"]), ("LOOKBACK", ["--lookback", "10"]),
    ("COINS", ["--coins", "BTC,BTC"]), ("SEEDS", ["--seeds", "0"]), ("--algo", ["--algo", "dqn"]),
    ("LOAD", ["--load", "/nowhere/at/all"]), ("EPISODES", ["--episodes"]), ("--size", ["--size", "huge"])])
def test_wrong_arguments_end_with_2_and_the_word(tmp_path: Path, word: str, arguments: list[str]) -> None:
    ended = run(tmp_path / "home", *arguments)
    assert ended.exit_code == 2
    assert word in ended.output
    assert not (tmp_path / "home").exists()


def test_a_policy_of_another_kind_cannot_be_learnt_on_from(tmp_path: Path) -> None:
    from small_models import linear_classifier

    from policies.bundle import Manifest, pack_bundle

    other = make_bundle(Manifest("onnx_classifier", "other", ("a",)),
                        {"model.onnx": linear_classifier(1).SerializeToString()})
    (tmp_path / "other.pt").write_bytes(pack_bundle(other))
    ended = run(tmp_path / "home", "--load", str(tmp_path / "other.pt"))
    assert ended.exit_code == 2
    assert "only an onnx_actor" in ended.output


def test_the_better_on_the_same_validation_range_is_what_the_hub_is_told_of(tmp_path: Path) -> None:
    def candidate(name: str, figure: float | None, market: str = "a") -> Any:
        about = {"market": market, "symbols": ["BTC"], "ranges": {"validation": [1, 2]},
                 "validation": {"figure": figure}}
        from small_models import actor_bundle

        return Fake(name, actor_bundle(alias=f"{name}_{figure}", trained_on=about))

    def served() -> str:
        return read_bundle(tmp_path / "models" / SERVED).manifest.alias

    for name, figure, expected in (("ppo", 0.5, "ppo_0.5"), ("sac", 0.2, "ppo_0.5"), ("sac", 0.7, "sac_0.7"),
                                   ("ppo", None, "ppo_None")):
        keep_candidate(tmp_path, candidate(name, figure))
        assert served() == expected
    keep_candidate(tmp_path, candidate("sac", 0.9))
    keep_candidate(tmp_path, candidate("ppo", 0.1, "b"))
    assert served() == "ppo_0.1"
    assert read_bundle(tmp_path / "models" / "candidate_sac.pt").manifest.alias == "sac_0.9"


class Fake:
    def __init__(self, name: str, bundle: Bundle) -> None:
        self.name, self.bundle = name, replace(bundle)
