from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from policies.errors import InvalidInput
from reports.report import Aim, BenchRow, Plot, RunPlot, Side, compared, rows_table, write_report


def row(unit: str, hub: Sequence[float], peer: Sequence[float], floor: Sequence[float], aim: Aim) -> BenchRow:
    return compared(f"Work in {unit}", unit, Side("the hub", hub), Side("the <peer>", peer), Side("the floor", floor),
                    aim, [Side("another", [3.0])], {"features": 20})


COST = row("ms", [7.0, 8.0, 9.0], [4.0], [1.0, 2.0], Aim(least_to_peer=0.5))
RATE = row("1/s", [200.0, 400.0], [700.0], [1_500.0], Aim(least_to_peer=0.5))
UNKNOWN = BenchRow("Days in alarm", None, "days", "none", None, None, None, None, ">= 1", None)


def test_a_ratio_to_the_peer_above_one_is_better_whatever_the_unit() -> None:
    assert COST.ratio_to_peer == pytest.approx(4 / 8)
    assert RATE.ratio_to_peer == pytest.approx(300 / 700)


def test_a_ratio_to_the_floor_is_one_of_costs() -> None:
    assert COST.ratio_to_floor == pytest.approx(8 / 1.5)
    assert RATE.ratio_to_floor == pytest.approx(1_500 / 300)


@pytest.mark.parametrize(("aim", "met", "text"), [
    (Aim(least_to_peer=2.0), True, "ratio_to_peer >= 2"),
    (Aim(least_to_peer=2.01), False, "ratio_to_peer >= 2.01"),
    (Aim(most_to_floor=4.0), True, "ratio_to_floor <= 4"),
    (Aim(most_to_floor=3.99), False, "ratio_to_floor <= 3.99"),
    (Aim(2.0, 3.99), False, "ratio_to_peer >= 2, ratio_to_floor <= 3.99"),
    (Aim(2.0, 4.0), True, "ratio_to_peer >= 2, ratio_to_floor <= 4"),
    (Aim(), None, "-"),
])
def test_an_aim_is_met_from_exactly_its_ratio_on(aim: Aim, met: bool | None, text: str) -> None:
    found = row("ms", [4.0], [8.0], [1.0], aim)
    assert (found.met, found.aim) == (met, text)


@pytest.mark.parametrize("figures", [[], [0.0], [1.0, -1.0], [math.nan], [math.inf, 1.0]])
def test_figures_that_give_no_ratio_are_refused(figures: list[float]) -> None:
    with pytest.raises(InvalidInput, match="figures of it"):
        Side("it", figures)


def test_report_holds_the_rows_with_their_runs_and_spread_and_whatever_is_added(tmp_path: Path) -> None:
    page = write_report(tmp_path / "reports", "bench", {"machine": {"cores": 2}}, rows=[COST, RATE, UNKNOWN])
    report = json.loads((tmp_path / "reports" / "bench.json").read_text())
    cost, _, unknown = report["rows"]
    assert {"work", "figure", "unit", "peer", "peer_figure", "floor_figure", "ratio_to_peer", "ratio_to_floor", "aim",
            "met"} <= cost.keys() == unknown.keys()
    assert (cost["figure"], cost["met"], cost["floor"]) == (8.0, True, "the floor")
    assert cost["runs"] == {"hub": [7.0, 8.0, 9.0], "peer": [4.0], "floor": [1.0, 2.0], "another": [3.0]}
    assert cost["spread"] == {"hub": [7.0, 9.0], "peer": [4.0, 4.0], "floor": [1.0, 2.0], "another": [3.0, 3.0]}
    assert cost["detail"] == {"hub": "the hub", "features": 20}
    assert (unknown["figure"], unknown["runs"]) == (None, {})
    assert report["machine"] == {"cores": 2}
    text = page.read_text()
    assert text.count("<svg") == 2, "a row without runs has no plot"
    assert "the &lt;peer&gt;" in text
    assert "<peer>" not in text
    assert not re.search(r"<script|https?://", text)


def test_plots_of_a_report_stand_before_those_of_its_rows(tmp_path: Path) -> None:
    line = Plot("a line", "x", "y", {"one": [(0.0, 1.0), (1.0, 2.0)]})
    text = write_report(tmp_path, "demo", {}, [line], [COST]).read_text()
    assert text.count("<svg") == 2
    assert text.index("a line") < text.index("Work in ms")


def test_plot_of_runs_shows_every_run_and_no_mark_leaves_it() -> None:
    svg = ElementTree.fromstring(RunPlot(RATE.work, RATE.unit, RATE.runs).svg())
    width = float(svg.attrib["viewBox"].split()[2])
    dots = [float(mark.attrib["cx"]) for mark in svg if mark.tag == "circle"]
    bars = [float(mark.attrib["width"]) for mark in svg if mark.tag == "rect"]
    assert len(dots) == 5
    assert max(dots) < width
    assert bars == pytest.approx([bars[2] * figure / 1_500 for figure in (300, 700, 1_500, 3)], abs=0.1)


def test_table_shows_every_row_and_whether_its_aim_is_met() -> None:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(rows_table([COST, RATE, UNKNOWN]))
    text = console.export_text()
    for shown in ("0.50", "yes", "no", "(7 - 9)", "Days in alarm"):
        assert shown in text
