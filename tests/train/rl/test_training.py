"""Trainings with RLlib itself: interrupted and gone on with, restored, exported, learnt on from. Tiny, on one Ray."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rl_rows import SYMBOLS, rows_folder, small_rows

from policies.actor import ActorLimits
from policies.errors import BundleRefused, InvalidInput
from train.rl.arrays import read_arrays, write_arrays
from train.rl.checkpoint import STATE, load_checkpoint, read_checkpoint, save_checkpoint
from train.rl.env_settings import EnvSettings
from train.rl.evaluate import constant
from train.rl.export import (
    CHECKED_ROWS,
    actor_bundle,
    actor_in,
    actor_of,
    reference_actions,
    require_acts_as_trained,
)
from train.rl.loaded import ANY, SEEN, opened
from train.rl.rows import load_rows
from train.rl.settings import RlSettings
from train.rl.training import figures_of, remembers, train

PPO = RlSettings(SYMBOLS, steps=12_000, evaluations=3, seed=1, env=EnvSettings(episode_bars=60))
SAC = replace(PPO, algo="sac", steps=5_120, evaluations=1, steps_per_update=64)
STANDARD = {"mean": np.zeros(60), "scale": np.ones(60)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, cluster: int) -> Path:
    return rows_folder(tmp_path_factory.mktemp("job"), 2_500)


@pytest.fixture(scope="module")
def interrupted(folder: Path) -> tuple[Path, list[Mapping[str, Any]]]:
    """The checkpoint of a PPO training that was stopped at its second look, and what it had told."""
    last, told = folder / "train.last", []

    def stop_at_two(look: Mapping[str, Any]) -> None:
        told.append(look)
        if len(told) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(PPO, folder, 1, last, lambda algorithm, begins: None, stop_at_two, {SEEN: {"here": 5_000}})
    return last, told


@pytest.fixture(scope="module")
def sac(folder: Path) -> Any:
    from train.rl.algorithms import built

    algorithm = built(SAC, folder, 1)
    while algorithm.updates < 5:
        algorithm.train()
    yield algorithm
    algorithm.stop()


def test_a_training_that_was_interrupted_goes_on_from_its_last_look(folder: Path, interrupted: Any,
                                                                    tmp_path: Path) -> None:
    last, told = shutil.copytree(interrupted[0], tmp_path / "last"), interrupted[1]
    before = read_checkpoint(last).module
    begun: list[Any] = []
    trained = train(PPO, folder, 1, last, lambda algorithm, begins: begun.append(
        (begins, algorithm.learner_group.get_state()["learner"]["rl_module"]["default_policy"])))
    assert begun[0][0] is False
    assert all(np.array_equal(before[name], weights) for name, weights in begun[0][1].items())
    assert list(trained.looks[:2]) == told
    assert all(look["steps"] >= floor for look, floor in zip(trained.looks, (4_000, 8_000, 12_000), strict=True))
    assert trained.best["figure"] == max(look["figure"] for look in trained.looks)
    assert set(trained.module) <= set(before)
    assert _leaves(read_checkpoint(last).best) == _leaves(dict(trained.module))


def test_what_is_exported_does_what_rllib_does_on_a_thousand_rows(folder: Path, interrupted: Any, sac: Any) -> None:
    from train.rl.algorithms import module_with, weights_of

    rows = load_rows(folder)
    raw = np.random.default_rng(0).normal(size=(CHECKED_ROWS, 60)) * rows.standard.scale * 2 + rows.standard.mean
    for settings, weights in ((PPO, read_checkpoint(interrupted[0]).best), (SAC, weights_of(sac))):
        module = module_with(settings, weights)
        bundle = actor_bundle("actor", actor_of(weights, settings.algo), rows.standard, ActorLimits(), {})
        assert require_acts_as_trained(bundle, module, raw) <= 1e-5
        shifted = {name: values + (1e-3 if name.endswith("0.bias") else 0) for name, values in weights.items()}
        with pytest.raises(BundleRefused, match="differ from its framework"):
            require_acts_as_trained(bundle, module_with(settings, shifted), raw)


def test_what_sac_does_without_exploring_is_the_middle_of_what_it_does_exploring(sac: Any) -> None:
    import torch

    module, seen = sac.get_module(), np.random.default_rng(0).normal(size=(20, 100)).astype(np.float32)
    with torch.no_grad():
        logits = module.forward_inference({"obs": torch.from_numpy(seen)})["action_dist_inputs"]
        explored = module.get_exploration_action_dist_cls().from_logits(logits)
        middle = np.median(np.stack([explored.sample().numpy() for _ in range(2_001)]), axis=0)
    assert reference_actions(module, seen) == pytest.approx(middle, abs=0.08)


def test_a_restored_sac_is_the_one_that_was_saved_temperature_and_memory_too(folder: Path, sac: Any,
                                                                            tmp_path: Path) -> None:
    from train.rl.algorithms import built, weights_of

    sac.learner_group._learner.curr_log_alpha["default_policy"].data.fill_(-2.5)
    save_checkpoint(tmp_path / "it", sac, {"algo": "sac", "size": "small"}, STANDARD)
    assert not list(tmp_path.glob(".*"))
    again = built(SAC, folder, 2)
    try:
        found = read_checkpoint(tmp_path / "it")
        assert found.about == {"algo": "sac", "size": "small"}
        load_checkpoint(found, again)
        seen = np.random.default_rng(0).normal(size=(200, 100)).astype(np.float32)
        assert np.array_equal(reference_actions(again.get_module(), seen), reference_actions(sac.get_module(), seen))
        assert np.array_equal(actor_of(weights_of(again), "sac").act(seen), actor_of(weights_of(sac), "sac").act(seen))
        own, other = (one.learner_group.get_state()["learner"] for one in (sac, again))
        for part in ("rl_module", "optimizer"):
            assert _leaves(own[part]) == _leaves(other[part])
        assert float(again.learner_group._learner.curr_log_alpha["default_policy"].detach()[0]) == -2.5
        assert len(again.experience) == len(sac.experience) > 0
        drawn = [one.experience.drawn(50, np.random.default_rng(3))["reward"].tolist() for one in (sac, again)]
        assert drawn[0] == drawn[1]
        updates = again.updates
        assert updates == sac.updates > 0
        again.train()
        assert again.updates > updates  # it remembers enough to learn at once
    finally:
        again.stop()


@pytest.mark.parametrize(("where", "held"), [
    ("train.rl.checkpoint.write_arrays", 1), ("train.rl.experience.write_arrays", 1), ("json.dump", 1),
    ("pathlib.Path.replace", 1), ("pathlib.Path.unlink", 2)])
def test_wherever_saving_is_killed_the_folder_holds_one_whole_checkpoint(
        sac: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, held: int) -> None:
    def save(look: int) -> None:
        save_checkpoint(tmp_path, sac, {"look": look}, STANDARD, {"weight": np.full(3, look)})

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    save(1)
    with monkeypatch.context() as patch:
        patch.setattr(where, killed)
        with pytest.raises(KeyboardInterrupt):
            save(2)
    found = read_checkpoint(tmp_path)
    assert (found.about["look"], found.best["weight"].tolist()) == (held, [held] * 3)
    save(3)
    assert read_checkpoint(tmp_path).about["look"] == 3
    assert len(list(tmp_path.iterdir())) == 3, "what the killed one left is gone"


def test_sac_updates_as_often_as_it_is_told(sac: Any) -> None:
    before, updates = len(sac.experience), sac.updates
    for _ in range(4):
        sac.train()
    assert sac.updates - updates == pytest.approx((len(sac.experience) - before) / SAC.steps_per_update, abs=1)
    assert remembers(sac) is sac.experience


def test_the_actor_of_a_bundle_can_be_learnt_on_from(folder: Path, interrupted: Any, tmp_path: Path) -> None:
    from train.rl.algorithms import built, weights_of

    weights, rows = read_checkpoint(interrupted[0]).best, load_rows(folder)
    bundle = actor_bundle("actor", actor_of(weights, "ppo"), rows.standard, ActorLimits(), {SEEN: {"here": 5_000}})
    seen = np.random.default_rng(0).normal(size=(200, 100)).astype(np.float32)
    assert np.array_equal(actor_in(bundle).act(seen), actor_of(weights, "ppo").act(seen))
    from train.training_set import write_packed

    write_packed(tmp_path / "actor.pt", bundle)
    loaded = opened(tmp_path / "actor.pt", PPO)
    assert loaded.standard.mean.tolist() == rows.standard.mean.tolist()
    assert loaded.seen_until_ms == {"here": 5_000}
    for other in (replace(PPO, size="full"), SAC):
        with pytest.raises(InvalidInput, match=rf"ALGO={other.algo} SIZE={other.size}"):
            opened(tmp_path / "actor.pt", other)
    algorithm = built(replace(PPO, seed=5), folder, 5)
    try:
        loaded.into(algorithm)
        assert np.array_equal(reference_actions(algorithm.get_module(), seen), actor_in(bundle).act(seen))
        assert not np.array_equal(weights_of(algorithm)["pi.net.mlp.0.bias"], np.zeros(6))
    finally:
        algorithm.stop()


def test_a_checkpoint_holds_nothing_that_runs_and_one_of_another_kind_is_refused(interrupted: Any, sac: Any,
                                                                                 tmp_path: Path) -> None:
    last = interrupted[0]
    assert {path.suffix for path in last.iterdir()} == {".json", ".npz"}
    with np.load(read_checkpoint(last).arrays_file, allow_pickle=False) as arrays:
        assert all(arrays[name].dtype != object for name in arrays.files)
    with pytest.raises(InvalidInput, match="ALGO=sac"):
        opened(last, SAC)
    with pytest.raises(InvalidInput, match="same algorithm and size"):
        load_checkpoint(read_checkpoint(last), sac)
    with pytest.raises(InvalidInput, match="folder of a checkpoint"):
        opened(tmp_path / "nothing", PPO)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "state.json").write_text(json.dumps({}))
    with pytest.raises(InvalidInput, match="a checkpoint of make retrain_rl"):
        opened(tmp_path / "broken", PPO)
    shutil.copytree(last, tmp_path / "arrays")
    read_checkpoint(tmp_path / "arrays").arrays_file.write_bytes(b"no arrays")
    with pytest.raises(InvalidInput, match="a checkpoint of make retrain_rl"):
        opened(tmp_path / "arrays", PPO)
    state = json.loads((tmp_path / "arrays" / STATE).read_bytes())
    (tmp_path / "arrays" / STATE).write_text(json.dumps({name: state[name] for name in ("learner", "about")}))
    with pytest.raises(InvalidInput, match=r"LOAD.*earlier one, which did not say which bars it has seen"):
        opened(tmp_path / "arrays", PPO)


def test_what_chooses_weighs_playing_and_serving_alike_whatever_the_number_of_symbols() -> None:
    rows = small_rows()
    one, act = rows.market[0], constant(0.7, -0.6, -0.6)
    twin = replace(one, bars=replace(one.bars, symbol="TWIN"))
    alone, both = (figures_of(act, market, rows.ranges.validation, PPO) for market in ([one], [one, twin]))
    assert both["served_net_return_percent"] == pytest.approx(2 * alone["served_net_return_percent"])
    assert both["figure"] == pytest.approx(alone["figure"])
    assert alone["served_net_return_percent"] != 0


def test_what_has_seen_bars_of_the_test_range_cannot_be_gone_on_with(interrupted: Any) -> None:
    loaded = opened(interrupted[0], PPO)
    loaded.require_unseen("here", 5_000)
    loaded.require_unseen("elsewhere", 1)
    with pytest.raises(InvalidInput, match=r"LOAD.*until 5000"):
        loaded.require_unseen("here", 4_999)
    with pytest.raises(InvalidInput, match=r"LOAD.*until 5000"):
        replace(loaded, seen_until_ms={ANY: 5_000}).require_unseen("here", 4_999)


def test_an_actor_says_what_it_has_seen_by_its_ranges_if_not_by_the_market(folder: Path, interrupted: Any,
                                                                          tmp_path: Path) -> None:
    from train.training_set import write_packed

    actor, standard = actor_of(read_checkpoint(interrupted[0]).best, "ppo"), load_rows(folder).standard
    for number, (about, seen) in enumerate((({"ranges": {"validation": {"until_ms": 7}}}, {ANY: 7}), ({}, None))):
        path = tmp_path / f"{number}.pt"
        write_packed(path, actor_bundle("actor", actor, standard, ActorLimits(), about))
        if seen is None:
            with pytest.raises(InvalidInput, match=r"LOAD.*which bars it has seen"):
                opened(path, PPO)
        else:
            assert opened(path, PPO).seen_until_ms == seen


def test_a_checkpoint_that_is_not_whole_is_refused_before_anything_begins(interrupted: Any, sac: Any,
                                                                          tmp_path: Path) -> None:
    def altered(name: str, about: Any = None, **changes: Any) -> Path:
        shutil.copytree(interrupted[0], tmp_path / name)
        state = json.loads((tmp_path / name / STATE).read_bytes())
        state["about"] = {**state["about"], **(about or {})}
        (tmp_path / name / STATE).write_text(json.dumps(state))
        file = read_checkpoint(tmp_path / name).arrays_file
        arrays = {**read_arrays(file), **changes}
        write_arrays(file, {key: values for key, values in arrays.items() if values is not None})
        return tmp_path / name

    weights = next(name for name in read_checkpoint(interrupted[0]).arrays if name.startswith("learner/rl_module"))
    for path, said in ((altered("old", about={SEEN: None}), "which bars it has seen"),
                       (altered("scale", **{"standard/scale": np.zeros(60)}), "scales above 0"),
                       (altered("mean", **{"standard/mean": None}), "60 finite means"),
                       (altered("weights", **{weights: None}), "whole checkpoint")):
        with pytest.raises(InvalidInput, match=rf"LOAD.*{said}"):
            opened(path, PPO)
    save_checkpoint(tmp_path / "sac", sac, {"algo": "sac", "size": "small", SEEN: {}}, STANDARD)
    assert opened(tmp_path / "sac", SAC).seen_until_ms == {}
    remembered = read_checkpoint(tmp_path / "sac").remembered_file
    assert remembered is not None
    remembered.unlink()
    with pytest.raises(InvalidInput, match="LOAD"):
        opened(tmp_path / "sac", SAC)


def _leaves(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _leaves(part) for name, part in tree.items()}
    if isinstance(tree, list | tuple):
        return [_leaves(part) for part in tree]
    return np.asarray(tree).tolist() if hasattr(tree, "shape") else tree
