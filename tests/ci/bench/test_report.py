from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from rich.console import Console

from ci.bench.report import Finding, Runs, plot, table, write

COST = Finding("A full decision over HTTP: p50, one client", "ms", "the peer", "the floor", 0.5,
               Runs([7.0, 8.0, 9.0]), Runs([4.0]), Runs([1.0, 2.0]))
RATE = Finding("A full decision over HTTP: requests/s, 16 clients", "1/s", "the <peer>", "the floor", 0.5,
               Runs([200.0, 400.0]), Runs([700.0]), Runs([1_500.0]))


def test_a_ratio_to_the_peer_above_one_is_better_whatever_the_unit() -> None:
    assert COST.ratio_to_peer == pytest.approx(4 / 8)
    assert RATE.ratio_to_peer == pytest.approx(300 / 700)


def test_a_ratio_to_the_floor_is_one_of_costs() -> None:
    assert COST.ratio_to_floor == pytest.approx(8 / 1.5)
    assert RATE.ratio_to_floor == pytest.approx(1_500 / 300)


def test_the_aim_is_met_from_exactly_its_ratio_on() -> None:
    assert COST.met
    assert not RATE.met


def test_report_holds_the_rows_with_their_spread_and_whatever_is_added(tmp_path: Path) -> None:
    page = write(tmp_path / "reports", "bench", [COST, RATE], {"machine": {"cores": 2}})
    report = json.loads((tmp_path / "reports" / "bench.json").read_text())
    cost, rate = report["rows"]
    assert {"work", "figure", "unit", "peer", "peer_figure", "floor_figure", "ratio_to_peer", "ratio_to_floor", "aim",
            "met"} <= cost.keys() == rate.keys()
    assert (cost["figure"], cost["spread"], cost["runs"], cost["met"]) == (8.0, [7.0, 9.0], 3, True)
    assert report["machine"] == {"cores": 2}
    text = page.read_text()
    assert text.count("<svg") == 2
    assert "the &lt;peer&gt;" in text
    assert not re.search(r"<script|https?://", text)


def test_plot_shows_every_run_and_no_mark_leaves_it() -> None:
    svg = ElementTree.fromstring(plot(RATE))
    width = float(svg.attrib["viewBox"].split()[2])
    dots = [float(mark.attrib["cx"]) for mark in svg if mark.tag == "circle"]
    bars = [float(mark.attrib["width"]) for mark in svg if mark.tag == "rect"]
    assert len(dots) == 4
    assert max(dots) < width
    assert bars == pytest.approx([bars[2] * 300 / 1_500, bars[2] * 700 / 1_500, bars[2]], abs=0.1)


def test_table_shows_both_rows_and_whether_their_aim_is_met() -> None:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table([COST, RATE]))
    text = console.export_text()
    assert "0.50" in text
    assert "yes" in text
    assert "no" in text
