"""What a search leaves for people: one run for it and one for each head, whole, and written once."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from small_search import Searched, searched

from policies.bundle import read_bundle
from train.retrain_log import COLUMNS, EXPERIMENT, figures, log_to_mlflow, rows_of, sentences_of, table_of, write_page


@pytest.fixture(scope="module")
def found() -> Searched:
    return searched()


@pytest.fixture(scope="module")
def logged(found: Searched, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    home = tmp_path_factory.mktemp("home")
    return home, log_to_mlflow(home, found.retrained, 1_000)


def runs(home: Path) -> dict[str, Run]:
    client = MlflowClient(f"sqlite:///{home / 'mlflow' / 'mlflow.sqlite'}")
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    return {run.info.run_id: run for run in client.search_runs([experiment.experiment_id])}


def files(run: Run) -> dict[str, bytes]:
    folder = Path(run.info.artifact_uri.removeprefix("file://"))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_head_and_the_embedder_is_a_run_below_that_of_the_search(found: Searched,
                                                                      logged: tuple[Path, dict[str, str]]) -> None:
    home, ids = logged
    names = {candidate.name for candidate in found.retrained.candidates}
    whole = f"search_{found.retrained.key[:6]}"
    assert set(ids) == {whole, "embedder", *names}
    everything = runs(home)
    assert set(everything) == set(ids.values())
    for name, run_id in ids.items():
        assert everything[run_id].info.status == "FINISHED"
        assert everything[run_id].data.tags["job"] == found.retrained.key
        assert everything[run_id].data.tags.get("mlflow.parentRunId") == (None if name == whole else ids[whole])


def test_a_heads_run_has_its_figures_its_pictures_and_its_bundle(found: Searched,
                                                                logged: tuple[Path, dict[str, str]]) -> None:
    home, ids = logged
    everything = runs(home)
    for candidate in found.retrained.candidates:
        run = everything[ids[candidate.name]]
        assert run.data.tags["policy_id"] == candidate.bundle.policy_id
        assert run.data.metrics["trades"] == len(candidate.trades["net_return"])
        assert {"profit_factor", "deflated_sharpe", "max_drawdown_percent", "trials"} <= set(run.data.metrics)
        kept = files(run)
        packed = kept.pop(f"{candidate.bundle.manifest.alias}.pt")
        assert read_bundle(packed) == candidate.bundle
        assert {"equity.png", "drawdown.png"} <= set(kept)
        assert ("calibration.png" in kept) == (candidate.name != "ensemble")
        assert all(content.startswith(b"\x89PNG") for name, content in kept.items() if name.endswith(".png"))


def test_the_embedders_run_has_its_errors_and_its_bundle(found: Searched, logged: tuple[Path, dict[str, str]]) -> None:
    home, ids = logged
    embedder = found.retrained.embedder
    assert embedder is not None
    run = runs(home)[ids["embedder"]]
    assert run.data.tags["kind"] == "window_encoder"
    assert {"overall_mae", "overall_mean", "close_gain_over_interpolation"} <= set(run.data.metrics)
    assert read_bundle(files(run)[f"{embedder.manifest.alias}.pt"]) == embedder


def test_a_search_that_is_there_is_not_written_again(found: Searched, logged: tuple[Path, dict[str, str]]) -> None:
    home, ids = logged
    assert log_to_mlflow(home, found.retrained, 2_000) == ids
    assert set(runs(home)) == set(ids.values())


def test_figures_are_numbers(found: Searched) -> None:
    for candidate in found.retrained.candidates:
        told = figures(candidate)
        assert all(isinstance(value, float) and math.isfinite(value) for value in told.values())
        if candidate.baseline is None:
            assert "baseline_difference" not in told


def test_the_table_has_a_row_for_each_head_best_first(found: Searched) -> None:
    rows = rows_of(found.retrained)
    assert [row["head"] for row in rows] == [candidate.name for candidate in found.retrained.candidates]
    assert all(set(row) == set(COLUMNS) for row in rows)
    assert table_of(found.retrained).row_count == len(rows)
    said = " ".join(sentences_of(found.retrained))
    assert "served answers differ" in said
    assert "linear interpolation" in said


def test_the_page_tells_the_same_as_the_table(found: Searched, tmp_path: Path) -> None:
    page = write_page(tmp_path, found.retrained, {"seconds": 3.0})
    assert page.exists()
    told = json.loads((tmp_path / "reports" / "retrain_sup.json").read_bytes())
    content = told.get("content", told)
    assert json.loads(json.dumps(content["table"])) == json.loads(json.dumps(rows_of(found.retrained)))
    assert [head["head"] for head in content["heads"]] == [c.name for c in found.retrained.candidates]
    assert content["seconds"] == 3.0
