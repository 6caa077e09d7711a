"""The drift of a night is that of the counts that the feature job keeps, and too few days are no failure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from feature_repo.back_fill import BackFill
from feature_repo.drift import DAY_MS, DriftSettings
from feature_repo.generated import START_MS, GeneratedMarket
from feature_repo.sources import sources_of
from feature_repo.statistics import FeatureStatistics
from feature_repo.store import FeatureRepo
from train.nightly.drift_step import (
    OFFLINE_ONLY,
    drift_history,
    last_whole_day,
    main,
    plot_of,
    sentence_of,
    summary_of,
)

BARS, SEED = 9_000, 3  # six days and a bit
SETTINGS = DriftSettings(reference_days=3, least_reference_days=2, days_running=3)
LAST_DAY = last_whole_day(START_MS + BARS * 60_000)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[FeatureRepo, FeatureStatistics]:
    """The offline store and the counts as `hub features` leaves them."""
    market = GeneratedMarket(SEED, 1.0, ("BTC",), BARS)
    repo = FeatureRepo(tmp_path_factory.mktemp("home"), OFFLINE_ONLY, market.origin)
    repo.apply()
    statistics = FeatureStatistics(repo.offline.folder / "statistics.duckdb", settings=SETTINGS)
    for _ in BackFill(market, sources_of(market), repo, statistics).run("BTC", 0):
        pass
    return repo, statistics


def test_a_day_is_whole_when_the_next_one_has_begun() -> None:
    assert last_whole_day(5 * DAY_MS - 1) == 3
    assert last_whole_day(5 * DAY_MS) == 4


def test_drift_from_the_store_is_the_drift_of_the_counts(filled: tuple[FeatureRepo, FeatureStatistics]) -> None:
    repo, statistics = filled
    judged = [report for report in drift_history(repo, ("BTC",), LAST_DAY, SETTINGS)["BTC"]
              if report.figure is not None]
    assert len(judged) >= 3
    assert judged[-1].day == LAST_DAY
    assert judged[-2:] == [statistics.drift("BTC", report.day) for report in judged[-2:]]  # it forgot earlier ones


def test_no_row_after_the_day_is_looked_at(filled: tuple[FeatureRepo, FeatureStatistics]) -> None:
    repo, _ = filled
    whole, earlier = (drift_history(repo, ("BTC",), day, SETTINGS)["BTC"] for day in (LAST_DAY, LAST_DAY - 2))
    assert earlier[-1] == next(report for report in whole if report.day == LAST_DAY - 2)


def test_what_is_told_of_a_day(filled: tuple[FeatureRepo, FeatureStatistics]) -> None:
    history = drift_history(filled[0], ("BTC",), LAST_DAY, SETTINGS)
    summary = summary_of(history, DriftSettings(limit=1e-9, days_running=2))
    row, last = summary["symbols"][0], history["BTC"][-1]
    assert (row["figure"], row["reference_days"], row["alarm"]) == (last.figure, 3, True)
    assert "ALARM" in sentence_of(summary)
    assert summary_of(history, DriftSettings(limit=100))["symbols"][0]["alarm"] is False
    assert "<polyline" in plot_of(history, SETTINGS).svg()


def test_too_few_days_are_said_and_are_no_failure(filled: tuple[FeatureRepo, FeatureStatistics],
                                                  tmp_path: Path) -> None:
    """The command's own settings ask for 14 days of reference, and this store holds six."""
    home = filled[0].home
    ended = CliRunner().invoke(main, [
        "--home", str(home), "--coins", "BTC", "--until", str((LAST_DAY + 1) * DAY_MS), "--market", "generated",
        "--seed", str(SEED), "--generated-bars", str(BARS), "--out", str(tmp_path)])
    assert ended.exit_code == 0, ended.output
    assert "not judged: fewer than 14 days of reference" in ended.output
    assert json.loads((tmp_path / "drift.json").read_bytes())["symbols"][0]["figure"] is None
    assert (home / "reports" / "nightly_drift.html").exists()
