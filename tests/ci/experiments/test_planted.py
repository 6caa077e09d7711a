"""Noise and a planted signal: shares with their exact intervals, and a command that fails if the aims are missed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binom
from small_search import PLAIN, market, searched, without_ray

from ci.experiments import planted
from ci.experiments.planted import main, rows_of, share_of, table_of
from ci.experiments.searches import Search
from train.candidates import Retrained
from train.retrain_log import figures


def result(*passed: bool) -> Retrained:
    """The small search, its first heads passed or not."""
    found = searched().retrained
    heads = [replace(candidate, passed=done) for candidate, done in zip(found.candidates, passed, strict=False)]
    return replace(found, candidates=tuple(heads))


def test_a_row_for_each_head_with_its_figures() -> None:
    found, search = result(True, False), Search("noise_1", market(), PLAIN)
    rows = rows_of(search, found)
    assert [(row["market"], row["passed"]) for row in rows] == [("noise_1", True), ("noise_1", False)]
    for row, candidate in zip(rows, found.candidates, strict=True):
        assert row.items() >= {name: figure for name, figure in figures(candidate).items() if name != "passed"}.items()
    assert table_of(rows).row_count == 2


@pytest.mark.parametrize(("passed", "of"), [(0, 20), (1, 20), (3, 20), (20, 20)])
def test_a_share_comes_with_its_exact_interval(passed: int, of: int) -> None:
    rows = [{"passed": place < passed} for place in range(of)]
    found = share_of("noise", rows, False)
    low, high = found.detail["interval_95"]
    assert found.detail["said"].startswith(f"{passed} of {of}")
    assert low <= passed / of <= high
    if passed > 0:
        assert binom.sf(passed - 1, of, low) == pytest.approx(0.025, rel=1e-3)
    if passed < of:
        assert binom.cdf(passed, of, high) == pytest.approx(0.025, rel=1e-3)


@pytest.mark.parametrize(("passed", "of", "wanted", "met"), [
    (0, 20, False, True), (1, 20, False, True), (2, 20, False, False), (3, 5, True, True), (2, 5, True, False)])
def test_noise_may_pass_in_one_of_twenty_and_a_signal_in_more_than_half(passed: int, of: int, wanted: bool,
                                                                       met: bool) -> None:
    assert share_of("it", [{"passed": place < passed} for place in range(of)], wanted).met is met


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    found: dict[str, Any] = {"noise": result(False, False), "signal": result(True, False)}
    monkeypatch.setattr(planted, "searching", without_ray)
    monkeypatch.setattr(planted, "found_by", lambda searches, folder, pool, say: (
        (search, found[search.name.split("_")[0]]) for search in searches))
    return found


@pytest.mark.usefixtures("made")
def test_the_command_ends_well_if_noise_is_refused_and_the_signal_is_found(tmp_path: Path) -> None:
    assert main(["--seeds", "2", "--home", str(tmp_path)]) == 0
    assert (tmp_path / "reports" / "planted.json").exists()


@pytest.mark.parametrize("which", ["noise", "signal"])
def test_the_command_fails_if_an_aim_is_missed(made: dict[str, Any], tmp_path: Path, which: str) -> None:
    made[which] = result(which == "noise", which == "noise")
    assert main(["--seeds", "2", "--home", str(tmp_path)]) == 1


def test_the_markets_of_noise_and_signal_differ_in_nothing_but_the_edge(made: dict[str, Any],
                                                                       tmp_path: Path,
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Search] = []

    def found_by(searches: list[Search], *rest: object) -> Iterator[tuple[Search, Retrained]]:
        seen.extend(searches)
        return ((search, made[search.name.split("_")[0]]) for search in searches)

    monkeypatch.setattr(planted, "found_by", found_by)
    main(["--seeds", "2", "--home", str(tmp_path)])
    by_name = {search.name: search for search in seen}
    assert set(by_name) == {"noise_1", "noise_2", "signal_1", "signal_2"}
    for seed in (1, 2):
        noise, signal = by_name[f"noise_{seed}"], by_name[f"signal_{seed}"]
        assert noise.settings == signal.settings
        assert noise.market.origin.replace("signal_0", "signal_1") == signal.market.origin
