"""The search as one job: the same anywhere, interrupted anywhere, blind to what comes later, every trial counted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_search import (
    BARS,
    PLAIN,
    SETTINGS,
    GarbledMarket,
    Searched,
    Told,
    WatchedPool,
    market,
    repo_of,
    retraining,
    searched,
    without_ray,
)

from feature_repo.features import DECISION_V1, MARKET_EMBEDDING, MINUTE_MS
from feature_repo.generated import START_MS, GeneratedMarket
from policies.bars import Bars
from policies.bundle import Bundle, pack_bundle, read_bundle
from policies.embedder import load_embedder, version_of
from policies.errors import InvalidInput
from policies.heads import load_head
from train.candidates import Candidate, Retrained
from train.dataset import FeatureRows
from train.estimate import seconds_of
from train.jobs import Made, fit_and_test, sweep
from train.locked import UnderWay, locked
from train.retrain_settings import RetrainSettings
from train.training_set import bracket_name, joined_rows
from train.trials import TrialBook


@pytest.fixture(autouse=True)
def _small() -> Iterator[None]:
    with without_ray():
        yield


@pytest.fixture(scope="module")
def found() -> Searched:
    return searched()


@pytest.fixture(scope="module")
def plain_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which the plain search is over."""
    home = tmp_path_factory.mktemp("plain")
    with without_ray():
        retraining(home, PLAIN).run()
    return home


def ids(retrained: Retrained) -> dict[str, str]:
    return {candidate.name: candidate.bundle.policy_id for candidate in retrained.candidates}


def stopping_after(step: str) -> Told:
    def told(name: str, share: float) -> None:
        if name == step and share == 1.0:
            raise KeyboardInterrupt

    return told


def test_interrupted_after_every_step_it_goes_on_and_ends_as_the_one_that_was_not(found: Searched,
                                                                                 tmp_path: Path) -> None:
    pool = WatchedPool()  # objects to anything that is made twice
    steps = retraining(tmp_path).steps
    done_before: dict[str, int] = {}
    for step in steps:
        with pytest.raises(KeyboardInterrupt):
            retraining(tmp_path, pool=pool, told=stopping_after(step)).run()
        job = retraining(tmp_path)
        assert step in job.finished_steps or step == "embedder"  # that one tells of its end just before it is kept
        places = {name: (tmp_path / "retrain" / job.key / name).stat().st_ino for name in job.finished_steps}
        assert places == {**places, **done_before}
        done_before = places
    assert set(done_before) == set(steps)
    last = retraining(tmp_path, pool=pool).run()
    assert set(pool.jobs) == set(found.jobs)
    assert ids(last) == ids(found.retrained)  # in another home, with nothing interrupted
    assert last.key == found.retrained.key
    assert last.trials == found.retrained.trials
    assert last.reconstruction == found.retrained.reconstruction
    assert last.sweeps.keys() == found.retrained.sweeps.keys()


def test_a_job_that_dies_while_it_works_leaves_nothing_half_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                                 ) -> None:
    def dies(*arguments: object, **more: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("train.steps.np.save", dies)
        with pytest.raises(OSError, match="no space"):
            retraining(tmp_path, PLAIN).run()
    assert retraining(tmp_path, PLAIN).finished_steps == ()
    with monkeypatch.context() as broken:
        broken.setattr("train.jobs.pack_bundle", dies)
        with pytest.raises(OSError, match="no space"):  # without the baseline nothing can be judged
            retraining(tmp_path, PLAIN).run()
    assert retraining(tmp_path, PLAIN).finished_steps == ("rows", "sweep.linear", "sweep.catboost")
    assert len(retraining(tmp_path, PLAIN).run().candidates) == 2


def test_workers_find_a_home_that_is_named_from_the_working_folder(plain_home: Path, tmp_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(plain_home.parent)
    job = retraining(Path(plain_home.name), PLAIN)
    monkeypatch.chdir(tmp_path)  # as a worker of Tune has another one
    assert set(job.finished_steps) == set(job.steps)


def test_a_head_that_cannot_be_made_is_left_out_and_made_the_next_time(tmp_path: Path,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(*arguments: object, **more: object) -> None:
        raise MemoryError("no more trees")

    with monkeypatch.context() as broken:
        broken.setattr("train.catboost.CatBoostLearner.fit", dies)
        found = retraining(tmp_path, PLAIN).run()
    assert [candidate.name for candidate in found.candidates] == ["linear"]
    assert set(found.failed) == {"catboost"}
    again = retraining(tmp_path, PLAIN).run()
    assert {candidate.name for candidate in again.candidates} == {"linear", "catboost"}
    assert again.failed == {}


def test_an_ensemble_is_tested_anew_once_a_member_can_be_made_that_could_not(tmp_path: Path,
                                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    killed = True

    def fits(plan: str, *arguments: object) -> Made:
        if plan == "timesnet" and killed:
            raise MemoryError("killed")
        return fit_and_test(quick.get(plan, plan), *arguments)  # type: ignore[arg-type]

    quick = {"tabnet": "catboost", "timesnet": "catboost"}  # what it is made of makes no difference here
    monkeypatch.setattr("train.retrain.sweep", lambda plan, *arguments: sweep(quick.get(plan, plan), *arguments))
    monkeypatch.setattr("train.retrain.fit_and_test", fits)
    settings = replace(SETTINGS, trials=1, mae=None, heads=("catboost", "tabnet", "timesnet", "ensemble"))
    without = retraining(tmp_path, settings).run()
    killed = False
    pool = WatchedPool()
    whole = retraining(tmp_path, settings, pool=pool).run()
    assert (without.job, whole.job) == (f"{whole.key} without timesnet", whole.key)
    members = [len(member_weights(next(c for c in found.candidates if c.name == "ensemble").bundle))
               for found in (without, whole)]
    assert members == [2, 3]
    assert "fit.ensemble.0.0" in pool.jobs
    assert whole.trials == without.trials + 2  # the head that had failed, and the ensemble with it


def test_features_that_were_added_beside_the_same_bars_make_another_search(plain_home: Path,
                                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    before = retraining(plain_home, PLAIN).key

    def with_mood(*arguments: object) -> dict[str, FeatureRows]:
        rows = joined_rows(*arguments)  # type: ignore[arg-type]
        mood = DECISION_V1.names.index("fear_greed")
        return {symbol: replace(part, values=np.where(np.arange(part.values.shape[1]) == mood, 50.0, part.values))
                for symbol, part in rows.items()}

    monkeypatch.setattr("train.joined.joined_rows", with_mood)
    after = retraining(plain_home, PLAIN)
    assert after.key != before
    assert after.finished_steps == ()


def test_a_finished_job_run_again_does_nothing_and_says_the_same(plain_home: Path) -> None:
    first = retraining(plain_home, PLAIN).run()
    pool = WatchedPool()
    told: list[tuple[str, float]] = []
    job = retraining(plain_home, PLAIN, pool=pool, told=lambda step, share: told.append((step, share)))
    assert job.finished_steps == job.steps
    again = job.run()
    assert pool.jobs == {}
    assert ids(again) == ids(first)
    assert [c.name for c in again.candidates] == [c.name for c in first.candidates]
    assert {share for _, share in told} == {1.0}
    assert again.trials == first.trials


def test_every_step_is_told_from_its_beginning_to_its_end_and_never_goes_back(found: Searched) -> None:
    steps = retraining(found.home).steps
    assert {step for step, _ in found.told} == set(steps)
    for step in steps:
        shares = [share for name, share in found.told if name == step]
        assert shares == sorted(shares)
        assert shares[-1] == 1.0
        assert 0.0 <= shares[0] <= 1.0
    embedder = [share for name, share in found.told if name == "embedder"]
    assert len(set(embedder)) > 3  # it is the long one, and tells how far it is


# Nothing that comes later.


class LatestAsked(GeneratedMarket):
    """Notes the latest close that it ever gave away."""

    latest_ms = 0

    def bars(self, symbol: str, start_ms: int | None = None, stop_ms: int | None = None) -> Bars:
        run = super().bars(symbol, start_ms, stop_ms)
        self.latest_ms = max(self.latest_ms, int(run.close_time_ms[-1]))
        return run

    def describe(self) -> str:
        return market().describe()  # it stands in every bundle


def test_no_bar_after_the_given_time_is_asked_for_or_makes_a_difference(plain_home: Path, tmp_path: Path) -> None:
    until_ms = START_MS + BARS * MINUTE_MS
    of = LatestAsked(3, 1.0, ("BTC", "ETH"), BARS + 500)
    job = retraining(tmp_path, PLAIN, of, until_ms)
    assert of.latest_ms == until_ms
    assert job.key == retraining(plain_home, PLAIN).key  # as if the later bars did not exist
    assert retraining(tmp_path, PLAIN, GarbledMarket(of, until_ms), until_ms).key == job.key
    assert retraining(tmp_path, PLAIN, GarbledMarket(of, until_ms - MINUTE_MS), until_ms).key != job.key
    assert retraining(tmp_path, PLAIN, of, until_ms + MINUTE_MS).key != job.key
    of.latest_ms = 0
    assert ids(retraining(tmp_path, PLAIN, of, until_ms).run()) == ids(retraining(plain_home, PLAIN).run())
    assert of.latest_ms == until_ms


def test_bars_after_the_first_test_began_change_nothing_that_is_fitted_before_it(found: Searched,
                                                                                tmp_path: Path) -> None:
    start_ms = found.retrained.grid.start_ms
    end_ms = START_MS + (BARS - 60) * MINUTE_MS  # as they were: which rows are the last with a label sets the folds
    pool, of = WatchedPool(), GarbledMarket(market(), start_ms, end_ms)
    job = retraining(tmp_path, of=of, pool=pool, told=stopping_after("fit.ensemble.0.0"))
    assert job.key != found.retrained.key
    with pytest.raises(KeyboardInterrupt):
        job.run()
    other = tmp_path / "retrain" / job.key

    def model(folder: Path, step: str) -> tuple[bytes, object, object]:
        bundle = read_bundle((folder / step / "bundle.pt").read_bytes())
        return bundle.files["model.onnx"], bundle.manifest.parameters, bundle.manifest.trained_on.get("levels_tried")

    for step in ("embedder", *(f"fit.{plan}.0.0" for plan in SETTINGS.plans)):
        assert model(found.steps.folder, step) == model(other, step), step
    for plan in SETTINGS.swept:
        trials = [json.loads((folder / f"sweep.{plan}" / "result.json").read_bytes())["trials"]
                  for folder in (found.steps.folder, other)]
        for one, two in zip(*trials, strict=True):
            assert (one["settings"], one["loss"], one["state"]) == (two["settings"], two["loss"], two["state"])
            assert one["found"]["trades"] != two["found"]["trades"]  # the tests themselves did change
    weights = [read_bundle(jobs["fit.ensemble.0.0"][1][2]).manifest.parameters for jobs in (found.jobs, pool.jobs)]
    assert weights[0] == weights[1]


def test_the_embedder_has_seen_no_bar_of_any_test(found: Searched) -> None:
    assert found.retrained.embedder is not None
    assert found.retrained.embedder.manifest.trained_on["until_ms"] == found.retrained.grid.start_ms


# What comes out.


def test_candidates_are_all_heads_best_first_and_can_be_served(found: Searched) -> None:
    candidates = found.retrained.candidates
    assert {candidate.name for candidate in candidates} == {*SETTINGS.plans, "ensemble"}
    passed = [candidate.passed for candidate in candidates]
    assert passed == sorted(passed, reverse=True)
    confidence = [round(candidate.judgement.deflated_sharpe, 3) for candidate in candidates]
    assert confidence == sorted(confidence, reverse=True)
    for candidate in candidates:
        assert read_bundle(pack_bundle(candidate.bundle)) == candidate.bundle
        load_head(candidate.bundle)
        assert candidate.bundle.manifest.alias == f"{candidate.name}_{found.retrained.key[:6]}"


def test_a_bundle_carries_the_judgement_of_its_walk_forward(found: Searched) -> None:
    for candidate in found.retrained.candidates:
        told = candidate.bundle.manifest.trained_on
        assert told["passed"] == candidate.passed
        assert told["missed"] == list(candidate.missed)
        assert told["judgement"]["trials"] == candidate.judgement.trials == found.retrained.trials
        assert told["judgement"]["head"]["trades"] == len(candidate.trades["net_return"])
        json.dumps(told, allow_nan=False)


def test_heads_with_an_embedding_are_made_for_the_embedder_that_comes_with_them(found: Searched) -> None:
    embedder = found.retrained.embedder
    assert embedder is not None
    version = version_of(embedder.policy_id)
    assert load_embedder(embedder).version == version
    for candidate in found.retrained.candidates:
        manifest = candidate.bundle.manifest
        assert manifest.embedding_version == (version if MARKET_EMBEDDING in manifest.arrays else "none")
    named = {c.name for c in found.retrained.candidates if c.bundle.manifest.embedding_version == version}
    assert named == {"linear_mae", "catboost_mae", "ensemble"}


def test_every_head_is_compared_with_its_baseline(found: Searched) -> None:
    baselines = {candidate.name: candidate.baseline for candidate in found.retrained.candidates}
    assert baselines == {"linear": None, "catboost": "linear", "linear_mae": "linear", "catboost_mae": "catboost",
                         "ensemble": "linear"}
    for candidate in found.retrained.candidates:
        assert (candidate.judgement.difference is None) == (candidate.baseline is None)


def member_weights(bundle: Bundle) -> list[float]:
    return [float(value) for name, value in sorted(bundle.manifest.parameters.items()) if name.startswith("weight_")]


def test_the_ensembles_weights_are_those_of_its_last_fold(found: Searched) -> None:
    final = next(c for c in found.retrained.candidates if c.name == "ensemble").bundle
    tested = read_bundle(found.jobs["fit.ensemble.0.0"][1][2])
    assert member_weights(final) == member_weights(tested)
    assert sum(member_weights(final)) == pytest.approx(1.0)


# Trials.


def test_trials_add_up_over_searches_and_what_was_judged_before_stays_as_it_was(tmp_path: Path) -> None:
    def by_name(retrained: Retrained) -> dict[str, Candidate]:
        return {candidate.name: candidate for candidate in retrained.candidates}

    found = [retraining(tmp_path, settings).run() for settings in (PLAIN, replace(PLAIN, trials=3), PLAIN)]
    assert found[0].trials == 4  # two sweeps of one, two walk-forwards
    assert found[1].trials > 4
    assert ids(found[2]) == ids(found[0])
    for name, before in by_name(found[0]).items():
        assert by_name(found[2])[name].judgement == before.judgement
        assert by_name(found[1])[name].judgement.trials == found[1].trials


def test_searches_that_differ_in_members_or_window_are_other_trials_of_one_book(found: Searched,
                                                                                tmp_path: Path) -> None:
    shutil.copytree(found.home / "trials", tmp_path / "trials")
    assert SETTINGS.mae is not None
    fewer = replace(SETTINGS, trials=1)
    shorter = replace(fewer, window_bars=20, mae=replace(SETTINGS.mae, seq_len=20))
    counts = [found.retrained.trials, *(retraining(tmp_path, settings).run().trials for settings in (fewer, shorter))]
    assert counts[0] < counts[1] < counts[2]


def test_the_book_holds_a_track_for_each_head_that_was_judged(found: Searched) -> None:
    target = found.jobs["fit.linear.0.0"][1][1].target
    with TrialBook(found.home) as book:
        assert book.count(target) == found.retrained.trials == 2 * SETTINGS.trials + len(found.retrained.candidates)
        tracks = book.performance(target, found.retrained.grid).returns
    for candidate in found.retrained.candidates:
        total = candidate.trades["net_return"].sum()
        assert np.isclose(tracks.sum(axis=0), total, rtol=1e-9).any(), candidate.name


# Who is refused.


def test_a_history_that_is_too_short_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="BTC with 100"):
        retraining(tmp_path, PLAIN, until_ms=START_MS + 100 * MINUTE_MS)
    assert not (tmp_path / "retrain").exists()


def test_the_store_keeps_the_labels_that_were_learnt_from(found: Searched, plain_home: Path) -> None:
    repo = repo_of(plain_home, market().origin)
    rows = retraining(plain_home, PLAIN)._rows().examples
    table = repo.labels(rows.symbol[-200:].tolist(), np.array(rows.event_time_ms[-200:]),
                        bracket_name(PLAIN.brackets, PLAIN.costs), int(rows.known_ms.max()))
    assert np.allclose(table["long_return"].to_numpy(float), rows.returns[-200:, 0])


def test_every_step_of_a_search_with_all_heads_has_an_estimate(tmp_path: Path) -> None:
    settings = RetrainSettings(PLAIN.symbols, lookback_bars=PLAIN.lookback_bars)
    job = retraining(tmp_path, settings)
    assert len(job.steps) > 20
    assert all(seconds_of(step, settings) > 0 for step in job.steps)


def test_two_at_once_are_refused(plain_home: Path) -> None:
    job = retraining(plain_home, PLAIN)
    with locked(plain_home / "retrain" / job.key / "lock", "another one"), pytest.raises(UnderWay, match="same search"):
        job.run()
    assert job.run().candidates
