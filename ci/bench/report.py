"""What a benchmark found, as rows: for the terminal, as JSON, and as a page with a plot."""

from __future__ import annotations

import html
import importlib.metadata
import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.table import Table

PACKAGES = ("ray", "fastapi", "uvicorn", "pydantic", "numpy", "apsw", "redis", "onnxruntime")
COLORS = ("#2b6cb0", "#718096", "#a0aec0")  # the hub, the peer, the floor
PLOT_WIDTH, LINE_HEIGHT, LABELS_WIDTH = 720, 26, 110


@dataclass(frozen=True)
class Runs:
    """One figure of one engine, run by run, in the order of the runs."""

    figures: Sequence[float]

    @property
    def median(self) -> float:
        return statistics.median(self.figures)

    @property
    def spread(self) -> tuple[float, float]:
        return min(self.figures), max(self.figures)


@dataclass(frozen=True)
class Finding:
    """One comparison. unit: "ms" is a cost, "1/s" a rate. aim: the least ratio_to_peer."""

    work: str
    unit: str
    peer: str
    floor: str
    aim: float
    ours: Runs
    peers: Runs
    floors: Runs

    @property
    def ratio_to_peer(self) -> float:
        """More than 1 is better than the peer, whatever the unit."""
        return 1 / self._cost_over(self.peers)

    @property
    def ratio_to_floor(self) -> float:
        """Of costs: 1 is the limit, more is worse. A rate's cost is the time for one."""
        return self._cost_over(self.floors)

    @property
    def met(self) -> bool:
        return self.ratio_to_peer >= self.aim

    def row(self) -> dict[str, Any]:
        return {
            "work": self.work, "figure": self.ours.median, "unit": self.unit, "peer": self.peer,
            "peer_figure": self.peers.median, "floor": self.floor, "floor_figure": self.floors.median,
            "ratio_to_peer": self.ratio_to_peer, "ratio_to_floor": self.ratio_to_floor,
            "aim": f"ratio_to_peer >= {self.aim:g}", "met": self.met, "runs": len(self.ours.figures),
            "spread": self.ours.spread, "peer_spread": self.peers.spread, "floor_spread": self.floors.spread,
            "figures": list(self.ours.figures), "peer_figures": list(self.peers.figures),
            "floor_figures": list(self.floors.figures),
        }

    def _cost_over(self, others: Runs) -> float:
        ratio = self.ours.median / others.median
        return ratio if self.unit == "ms" else 1 / ratio


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    memory_gib = round(psutil.virtual_memory().total / 2**30)
    return {"processor": _processor(), "cores": os.cpu_count(), "memory_gib": memory_gib,
            "system": platform.platform(), "python": platform.python_version()}


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def table(findings: Sequence[Finding]) -> Table:
    shown = Table("work", "hub", "peer", "floor", "ratio to peer", "ratio to floor", "aim", "met")
    for one in findings:
        shown.add_row(one.work, *(_figure(runs, one.unit) for runs in (one.ours, one.peers, one.floors)),
                      f"{one.ratio_to_peer:.2f}", f"{one.ratio_to_floor:.2f}", f">= {one.aim:g}",
                      "yes" if one.met else "no")
    return shown


def write(folder: Path, name: str, findings: Sequence[Finding], more: dict[str, Any]) -> Path:
    """Write folder/name.json, and folder/name.html beside it; returns the path of the page."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    report = {"rows": [one.row() for one in findings], **more}
    (folder / f"{name}.json").write_text(json.dumps(report, indent=1, allow_nan=False))
    page = folder / f"{name}.html"
    page.write_text(_page(findings, more))
    return page


def _page(findings: Sequence[Finding], more: dict[str, Any]) -> str:
    plots = "".join(f"<h2>{html.escape(one.work)}</h2><p>{html.escape(_sentence(one))}</p>{plot(one)}"
                    for one in findings)
    rest = html.escape(json.dumps(more, indent=1))
    return ('<!doctype html><html lang="en"><meta charset="utf-8"><title>Benchmarks</title>'
            "<style>body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:760px;color:#1a202c}"
            "h2{font-size:1.1rem;margin:2rem 0 0}pre{color:#4a5568}text{font-size:13px}</style>"
            f"<h1>Benchmarks</h1><p>Dots are runs, the bar ends at their median.</p>{plots}<pre>{rest}</pre></html>")


def plot(finding: Finding) -> str:
    """Bars of the medians from zero, with a dot for each run, as inline SVG."""
    lines = list(zip(("hub", "peer", "floor"), (finding.ours, finding.peers, finding.floors), COLORS, strict=True))
    most = max(figure for _, runs, _ in lines for figure in runs.figures)
    scale = (PLOT_WIDTH - LABELS_WIDTH - 110) / most
    marks = []
    for place, (name, runs, color) in enumerate(lines):
        middle = place * LINE_HEIGHT + LINE_HEIGHT / 2
        marks.append(f'<text x="0" y="{middle + 4:g}">{name}</text>'
                     f'<rect x="{LABELS_WIDTH}" y="{middle - 8:g}" width="{runs.median * scale:.1f}" height="16" '
                     f'fill="{color}" opacity="0.45"/>')
        marks += [f'<circle cx="{LABELS_WIDTH + figure * scale:.1f}" cy="{middle:g}" r="4" fill="{color}"/>'
                  for figure in runs.figures]
        marks.append(f'<text x="{LABELS_WIDTH + max(runs.figures) * scale + 10:.1f}" y="{middle + 4:g}">'
                     f"{runs.median:.4g} {finding.unit}</text>")
    height = len(lines) * LINE_HEIGHT
    return (f'<svg role="img" viewBox="0 0 {PLOT_WIDTH} {height}" width="100%" '
            f'aria-label="{html.escape(finding.work)}">{"".join(marks)}</svg>')


def _sentence(one: Finding) -> str:
    return (f"{one.ratio_to_peer:.2f} of the peer ({one.peer}), aim {one.aim:g}; "
            f"costs {one.ratio_to_floor:.2f} of the floor ({one.floor}).")


def _figure(runs: Runs, unit: str) -> str:
    low, high = runs.spread
    return f"{runs.median:.4g} {unit}\n({low:.4g} - {high:.4g})"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
