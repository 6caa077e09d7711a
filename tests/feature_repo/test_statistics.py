from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pytest
from numpy.typing import NDArray

from feature_repo.drift import BINS, DAY_MS, DriftSettings, count_days, judge_day
from feature_repo.features import DECISION_V1, FeatureList
from feature_repo.statistics import FeatureStatistics, StatisticsUnavailable
from policies.errors import InvalidInput

SMALL = DriftSettings(least_rows=10, least_reference_days=3, reference_days=5)
STEP_MS, ROWS_A_DAY = DAY_MS // 40, 40
FIRST_MS = 20_000 * DAY_MS
F = len(DECISION_V1)

OPEN_ELSEWHERE = """
import duckdb, sys
connection = duckdb.connect(sys.argv[1])
print("open", flush=True)
sys.stdin.read()
"""


def rows(days: float, seed: int = 0, start_ms: int = FIRST_MS) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Forty rows a day; a tenth of the values is missing."""
    rng = np.random.default_rng(seed)
    count = int(days * ROWS_A_DAY)
    values = rng.standard_normal((count, F)) * DECISION_V1.scales
    values[rng.random((count, F)) < 0.1] = np.nan
    return start_ms + STEP_MS * np.arange(count, dtype=np.int64), values


@pytest.fixture
def store(tmp_path: Path) -> FeatureStatistics:
    return FeatureStatistics(tmp_path / "features" / "statistics.duckdb", settings=SMALL)


@contextmanager
def held_by_another_process(path: Path) -> Iterator[None]:
    with subprocess.Popen([sys.executable, "-c", OPEN_ELSEWHERE, str(path)], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        yield
        other.communicate()


def same(store: FeatureStatistics, days: NDArray[np.int64], counts: NDArray[np.int64],
         symbol: str | None = "BTC") -> bool:
    held_days, held = store.histograms(symbol)
    return np.array_equal(held_days, days) and np.array_equal(held, counts)


def test_what_was_recorded_is_what_was_counted(store: FeatureStatistics) -> None:
    times, values = rows(4.5)
    assert store.record("BTC", times, values) == len(times)
    assert same(store, *count_days(times, values, DECISION_V1.scales))
    assert store.counted_until_ms("BTC") == times[-1]
    assert store.symbols() == ("BTC",)


def test_rows_count_once_however_the_calls_are_cut(store: FeatureStatistics) -> None:
    times, values = rows(3.5)
    for stop in (1, 2, 17, 17, 60, 45, 100, len(times)):
        store.record("BTC", times[max(0, stop - 50):stop], values[max(0, stop - 50):stop])
    assert same(store, *count_days(times, values, DECISION_V1.scales))
    assert store.record("BTC", times, values) == 0
    assert same(store, *count_days(times, values, DECISION_V1.scales))


def test_row_older_than_the_newest_counted_is_left_out(store: FeatureStatistics) -> None:
    times, values = rows(2)
    store.record("BTC", times[10:30], values[10:30])
    assert store.record("BTC", times[:35], values[:35]) == 5
    assert same(store, *count_days(times[10:35], values[10:35], DECISION_V1.scales))


def test_days_beyond_the_reference_are_removed_by_symbol(store: FeatureStatistics) -> None:
    times, values = rows(12)
    store.record("ETH", *rows(2))
    store.record("BTC", times[:300], values[:300])
    store.record("BTC", times, values)
    assert store.kept_days == SMALL.reference_days + SMALL.days_running
    assert store.histograms("BTC")[0].tolist() == list(range(20_005, 20_012))
    assert store.histograms("ETH")[0].tolist() == [20_000, 20_001]
    assert FeatureStatistics(store.path).kept_days == 92


def test_every_day_an_alarm_looks_at_keeps_its_whole_reference(store: FeatureStatistics) -> None:
    times, values = rows(12)
    store.record("BTC", times, values)
    reports = store.history("BTC")[-SMALL.days_running:]
    assert [report.reference_days for report in reports] == [SMALL.reference_days] * SMALL.days_running
    days, counts = count_days(times, values, DECISION_V1.scales)
    assert reports == [judge_day(int(day), days, counts, store.judged, SMALL, "BTC") for day in days[-2:]]


def test_drift_of_a_day_is_that_of_its_counts(store: FeatureStatistics) -> None:
    times, values = rows(6)
    values[-ROWS_A_DAY:] += 2 * DECISION_V1.scales
    store.record("BTC", times, values)
    ordinary, shifted = store.drift("BTC", 20_004), store.drift("BTC", 20_005)
    assert ordinary.figure is not None
    assert shifted.figure is not None
    assert shifted.figure > 0.3 > ordinary.figure
    assert store.history("BTC", 20_005, 20_005) == [shifted]
    assert store.drift("BTC", 20_099).reason == "no rows of that day"


def test_day_in_progress_is_judged_as_far_as_it_goes(store: FeatureStatistics) -> None:
    times, values = rows(5)
    store.record("BTC", times[:-35], values[:-35])
    assert store.drift("BTC", 20_004).figure is None
    store.record("BTC", times[:-20], values[:-20])
    assert store.drift("BTC", 20_004).rows == 20
    assert store.drift("BTC", 20_004).figure is not None


def test_pooled_counts_are_the_sum_of_the_symbols(store: FeatureStatistics) -> None:
    for seed, symbol in enumerate(("BTC", "ETH")):
        store.record(symbol, *rows(3, seed))
    both = store.histograms("BTC")[1] + store.histograms("ETH")[1]
    assert same(store, np.arange(20_000, 20_003), both, None)
    assert store.drift(None, 20_002).symbol is None


def test_nothing_recorded_is_said_and_makes_no_file(store: FeatureStatistics) -> None:
    assert store.drift("BTC", 20_000).reason == "no rows of that day"
    assert (store.history(None), store.symbols(), store.counted_until_ms("BTC")) == ([], (), None)
    assert not store.path.exists()
    assert store.record("BTC", *rows(0)) == 0
    assert store.history("BTC") == []


def test_another_object_reads_what_one_wrote(store: FeatureStatistics) -> None:
    times, values = rows(3)
    store.record("BTC", times[:70], values[:70])
    again = FeatureStatistics(store.path, settings=SMALL)
    assert again.record("BTC", times, values) == len(times) - 70
    assert same(store, *count_days(times, values, DECISION_V1.scales))


def test_forgotten_symbol_can_be_counted_anew(store: FeatureStatistics) -> None:
    times, values = rows(3)
    store.record("BTC", times, values + 1)
    store.record("ETH", times, values)
    store.forget("BTC")
    assert store.symbols() == ("ETH",)
    assert store.record("BTC", times, values) == len(times)
    assert same(store, *count_days(times, values, DECISION_V1.scales))


def test_lists_are_kept_apart_and_a_feature_of_another_scale_does_not_count(store: FeatureStatistics) -> None:
    times, values = rows(3)
    store.record("BTC", times, values)
    first = DECISION_V1.specs[0]

    def similar(name: str, scale: float) -> FeatureStatistics:
        specs = (*DECISION_V1.specs[1:], replace(first, scale=scale))
        features = FeatureList(name, specs, DECISION_V1.required_groups, DECISION_V1.optional_groups,
                               DECISION_V1.ttl_ms)
        return FeatureStatistics(store.path, features, SMALL)

    assert similar("decision_v2", first.scale).histograms("BTC")[1].shape == (0, F, BINS + 1)
    _, counts = count_days(times, values, DECISION_V1.scales)
    assert np.array_equal(similar("decision_v1", first.scale).histograms("BTC")[1], np.roll(counts, -1, axis=1))
    rescaled = similar("decision_v1", 2 * first.scale).histograms("BTC")[1]
    assert not rescaled[:, -1].any()
    assert np.array_equal(rescaled[:, :-1], counts[:, 1:])


def test_file_that_another_process_holds_is_refused_and_left_alone(store: FeatureStatistics) -> None:
    times, values = rows(2)
    store.record("BTC", times[:50], values[:50])
    with held_by_another_process(store.path):
        for call in (lambda: store.record("BTC", times, values), lambda: store.drift("BTC", 20_001)):
            with pytest.raises(StatisticsUnavailable, match=r"statistics\.duckdb.*lock"):
                call()
    assert store.counted_until_ms("BTC") == times[49]
    assert store.record("BTC", times, values) == len(times) - 50


def test_file_of_another_kind_is_refused(store: FeatureStatistics) -> None:
    store.path.parent.mkdir(parents=True)
    store.path.write_text("not a database " * 1000)
    with pytest.raises(StatisticsUnavailable, match="statistics"):
        store.record("BTC", *rows(1))


def test_record_that_fails_half_way_changes_nothing(store: FeatureStatistics, monkeypatch: pytest.MonkeyPatch) -> None:
    times, values = rows(2)
    store.record("BTC", times[:50], values[:50])

    def fails(*_: object) -> None:
        raise RuntimeError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(store, "_table", fails)
        with pytest.raises(RuntimeError):
            store.record("BTC", times, values)
    assert same(store, *count_days(times[:50], values[:50], DECISION_V1.scales))
    assert store.record("BTC", times, values) == len(times) - 50


def test_file_without_tables_holds_nothing(store: FeatureStatistics) -> None:
    store.path.parent.mkdir(parents=True)
    duckdb.connect(str(store.path)).close()  # as a writer leaves it that ends before its first commit
    assert store.history("BTC") == []


def test_rows_that_do_not_fit_or_do_not_rise_are_refused(store: FeatureStatistics) -> None:
    times, values = rows(1)
    with pytest.raises(InvalidInput, match="event_time_ms: must be rising"):
        store.record("BTC", times[[0, 2, 1]], values[:3])
    with pytest.raises(InvalidInput, match=f"40 rows of {F} numbers"):
        store.record("BTC", times, values[:, 1:])
    assert not store.path.exists()
