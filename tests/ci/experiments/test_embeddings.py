"""Do embeddings help: the table is of the searches, the interval is of Student, and what was done is not done again."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_search import PLAIN, WatchedPool, market, searched, without_ray

from ci.experiments import embeddings
from ci.experiments.embeddings import TWINS, interval_of, main, rows_of, summary_of, table_of
from ci.experiments.searches import Search, found_by


@pytest.fixture(autouse=True)
def _small() -> Iterator[None]:
    with without_ray():
        yield


def row(head: str, gain: float, seed: int = 1) -> dict[str, object]:
    return {"seed": seed, "head": head, "gain_percent": gain, "profit_factor": 1.0 + gain / 100,
            "twin_profit_factor": 1.0}


def test_a_row_is_the_head_beside_its_twin() -> None:
    found = searched().retrained
    heads = {candidate.name: candidate.judgement.head for candidate in found.candidates}
    rows = rows_of(5, found)
    assert [(one["head"], one["twin"]) for one in rows] == list(TWINS)
    for one in rows:
        expected = 100 * (heads[one["head"]].profit_factor / heads[one["twin"]].profit_factor - 1)
        assert one["gain_percent"] == pytest.approx(expected)
        assert (one["seed"], one["trades"]) == (5, heads[one["head"]].trades)
        assert one["reconstruction_gain"] == found.reconstruction[0]["gain_over_mean"]
    assert table_of(rows).row_count == len(TWINS)


def test_the_interval_holds_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    hits = sum(low <= 3.0 <= high for low, high in (interval_of(rng.normal(3, 2, 5).tolist()) for _ in range(2_000)))
    assert 0.93 <= hits / 2_000 <= 0.97


def test_fewer_than_two_seeds_have_no_interval() -> None:
    assert all(map(math.isnan, interval_of([1.0])))
    assert all(map(math.isnan, interval_of([])))


@pytest.mark.parametrize(("gains", "met"), [([5.0, 6.0, 7.0], True), ([-5.0, 6.0, 7.0], False),
                                            ([-5.0, -6.0, -7.0], False)])
def test_help_is_claimed_only_if_the_whole_interval_is_above_nothing(gains: list[float], met: bool) -> None:
    rows = [row("catboost_mae", gain, seed) for seed, gain in enumerate(gains)] + [row("linear_mae", 99.0)]
    found = summary_of("catboost_mae", "catboost", rows)
    assert found.met is met
    assert found.detail["said"].startswith(f"{sum(gains) / 3:+.1f} %")


def test_searches_are_each_in_a_home_of_their_own_and_go_on_where_they_were(tmp_path: Path) -> None:
    searches = [Search(f"seed_{seed}", market(5_000), replace(PLAIN, seed=seed)) for seed in (1, 2)]
    said: list[str] = []
    first = [found.key for _, found in found_by(searches[:1], tmp_path, WatchedPool(), said.append)]
    pool = WatchedPool()
    again = [found.key for _, found in found_by(searches, tmp_path, pool, said.append)]
    assert again[0] == first[0] != again[1]
    steps = len(pool.jobs) + 1
    assert said[1:] == [f"(1/2) seed_1: {steps} of {steps} steps are done",
                        f"(2/2) seed_2: 0 of {steps} steps are done"]
    assert {path.name for path in tmp_path.iterdir()} == {"seed_1", "seed_2"}


def test_the_command_leaves_a_report_of_every_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HUB_DATA_DIR", raising=False)
    monkeypatch.setattr(embeddings, "searching", without_ray)
    monkeypatch.setattr(embeddings, "found_by", lambda searches, folder, pool, say: (
        (search, searched().retrained) for search in searches))
    assert main(["--seeds", "2", "--home", str(tmp_path)]) == 0
    told = (tmp_path / "reports" / "embeddings.json").read_text()
    assert json.loads(told)
    assert told.count('"reconstruction_gain"') == 2 * len(TWINS)
