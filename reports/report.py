"""Reports: `reports/NAME.json` for programs, `NAME.html` beside it for people, in one place for every target.

A page is one file with inline SVG, so that it opens anywhere and loads nothing.
"""

from __future__ import annotations

import html
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson
from rich.table import Table

from policies.errors import InvalidInput

WIDTH, HEIGHT, MARGIN = 720, 240, 44
LINE_HEIGHT, NAMES_WIDTH, FIGURES_WIDTH = 26, 170, 110  # of a plot of single runs
RATES = ("1/s",)  # units of which more is better; all others are costs
HUB, PEER, FLOOR = "hub", "peer", "floor"
COLOURS = ("#2563eb", "#dc2626", "#059669", "#9333ea", "#d97706", "#475569")
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1e293b}
table{border-collapse:collapse;margin:1rem 0;font-variant-numeric:tabular-nums}
th,td{border:1px solid #cbd5e1;padding:.25rem .6rem;text-align:left}th{background:#f1f5f9}
svg{max-width:100%;height:auto}figcaption{color:#475569}"""


@dataclass(frozen=True)
class Plot:
    """Lines over a common x axis. series: by name, (x, y) points in ascending x."""

    title: str
    x_label: str
    y_label: str
    series: Mapping[str, Sequence[tuple[float, float]]]

    def svg(self) -> str:
        points = [p for line in self.series.values() for p in line if math.isfinite(p[1])]
        if not points:
            return "<p>no points</p>"
        (x0, x1), (y0, y1) = (_range([p[axis] for p in points]) for axis in (0, 1))

        def place(x: float, y: float) -> str:
            return (f"{MARGIN + (x - x0) / (x1 - x0) * (WIDTH - 2 * MARGIN):.1f},"
                    f"{HEIGHT - MARGIN - (y - y0) / (y1 - y0) * (HEIGHT - 2 * MARGIN):.1f}")

        parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(self.title)}">',
                 f'<rect x="{MARGIN}" y="{MARGIN}" width="{WIDTH - 2 * MARGIN}" height="{HEIGHT - 2 * MARGIN}" '
                 'fill="none" stroke="#cbd5e1"/>']
        for place_in_legend, (name, line) in enumerate(self.series.items()):
            colour = COLOURS[place_in_legend % len(COLOURS)]
            path = " ".join(place(x, y) for x, y in line if math.isfinite(y))
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
            parts.append(_text(MARGIN + 8 + 130 * place_in_legend, MARGIN - 8, name, colour))
        for value, at in ((y0, HEIGHT - MARGIN), (y1, MARGIN + 10)):
            parts.append(_text(4, at, f"{value:.4g}"))
        parts += [_text(MARGIN, HEIGHT - 24, f"{x0:.6g}"), _text(WIDTH - MARGIN - 60, HEIGHT - 24, f"{x1:.6g}"),
                  _text(WIDTH // 2 - 60, HEIGHT - 8, f"{self.x_label} → {self.y_label}"), "</svg>"]
        return "".join(parts)


@dataclass(frozen=True)
class RunPlot:
    """Bars of medians from zero, with a dot for each run. runs: figures > 0 by side."""

    title: str
    unit: str
    runs: Mapping[str, Sequence[float]]

    def svg(self) -> str:
        scale = (WIDTH - NAMES_WIDTH - FIGURES_WIDTH) / max(figure for figures in self.runs.values()
                                                           for figure in figures)
        parts = []
        for line, (side, figures) in enumerate(self.runs.items()):
            middle, colour = (line + 0.5) * LINE_HEIGHT, COLOURS[line % len(COLOURS)]
            median = statistics.median(figures)
            parts.append(_text(0, middle + 4, side))
            parts.append(f'<rect x="{NAMES_WIDTH}" y="{middle - 8:g}" width="{median * scale:.1f}" height="16" '
                         f'fill="{colour}" opacity="0.45"/>')
            parts += [f'<circle cx="{NAMES_WIDTH + figure * scale:.1f}" cy="{middle:g}" r="3" fill="{colour}"/>'
                      for figure in figures]
            parts.append(_text(round(NAMES_WIDTH + max(figures) * scale + 10, 1), middle + 4,
                               f"{median:.4g} {self.unit}"))
        return (f'<svg viewBox="0 0 {WIDTH} {len(self.runs) * LINE_HEIGHT}" role="img" '
                f'aria-label="{html.escape(self.title)}">{"".join(parts)}</svg>')


@dataclass(frozen=True)
class Aim:
    """What a row is held against: the least ratio to the peer, the highest to the floor, both, or nothing at all."""

    least_to_peer: float | None = None
    most_to_floor: float | None = None

    def __str__(self) -> str:
        parts = [f"ratio_to_peer >= {self.least_to_peer:g}" if self.least_to_peer is not None else "",
                 f"ratio_to_floor <= {self.most_to_floor:g}" if self.most_to_floor is not None else ""]
        return ", ".join(part for part in parts if part) or "-"

    def met(self, ratio_to_peer: float, ratio_to_floor: float) -> bool | None:
        """None if nothing is aimed at."""
        found = [ratio_to_peer >= self.least_to_peer] if self.least_to_peer is not None else []
        found += [ratio_to_floor <= self.most_to_floor] if self.most_to_floor is not None else []
        return all(found) if found else None


@dataclass(frozen=True)
class BenchRow:
    """One figure against its peer and its floor.

    Ratios are oriented so that more than 1 is better than the peer; the ratio to the floor is that of costs, 1 is the
    limit. runs: single figures by side, in the order in which they were taken. detail: whatever else the row rests on.
    """

    work: str
    figure: float | None
    unit: str
    peer: str
    peer_figure: float | None
    floor_figure: float | None
    ratio_to_peer: float | None
    ratio_to_floor: float | None
    aim: str
    met: bool | None
    floor: str = ""
    runs: Mapping[str, Sequence[float]] = field(default_factory=dict)
    detail: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As a report holds it: with the lowest and the highest run of each side."""
        return {**asdict(self), "spread": {side: _spread(figures) for side, figures in self.runs.items()}}

    def summary(self) -> dict[str, Any]:
        """Without the single runs and the detail."""
        return {name: value for name, value in asdict(self).items() if name not in ("runs", "detail")}

    def sentence(self) -> str:
        """For the plot's caption."""
        parts = [self.work]
        if self.ratio_to_peer is not None:
            parts.append(f"{self.ratio_to_peer:.3g} times as good as the peer ({self.peer})")
        if self.ratio_to_floor is not None:
            parts.append(f"{self.ratio_to_floor:.3g} times the cost of the floor ({self.floor})")
        return "; ".join([*parts, f"aim: {self.aim}"])


@dataclass(frozen=True)
class Side:
    """One of those that are compared, in words, and its figure in every run: > 0, at least one."""

    name: str
    figures: Sequence[float]

    def __post_init__(self) -> None:
        if not self.figures or not all(0 < figure < math.inf for figure in self.figures):
            raise InvalidInput(f"figures of {self.name}", "at least one, > 0 and finite", list(self.figures))

    @property
    def median(self) -> float:
        return statistics.median(self.figures)


def compared(work: str, unit: str, hub: Side, peer: Side, floor: Side, aim: Aim, others: Sequence[Side] = (),
             detail: Mapping[str, Any] | None = None) -> BenchRow:
    """The row that the medians of these runs make. others: shown beside them, part of no ratio."""
    to_peer, to_floor = hub.median / peer.median, hub.median / floor.median
    if unit in RATES:  # a rate's cost is the time for one
        to_peer, to_floor = 1 / to_peer, 1 / to_floor
    runs = {HUB: hub.figures, PEER: peer.figures, FLOOR: floor.figures, **{side.name: side.figures for side in others}}
    return BenchRow(work, hub.median, unit, peer.name, peer.median, floor.median, 1 / to_peer, to_floor, str(aim),
                    aim.met(1 / to_peer, to_floor), floor.name, {side: list(found) for side, found in runs.items()},
                    {"hub": hub.name, **(detail or {})})


def write_report(folder: Path, name: str, content: Mapping[str, Any], plots: Sequence[Plot] = (),
                 rows: Sequence[BenchRow] = ()) -> Path:
    """Write NAME.json and NAME.html; returns the path of the page.

    content: what the JSON holds besides `rows`. The page also has a plot of each row that knows its single runs.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    document = {"rows": [row.to_dict() for row in rows], **content}
    (folder / f"{name}.json").write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2))
    shown = {"rows": [row.summary() for row in rows], **content}
    figures = [_figure(plot.svg(), plot.title) for plot in plots]
    figures += [_figure(RunPlot(row.work, row.unit, row.runs).svg(), row.sentence()) for row in rows if row.runs]
    details = "".join(f"<h2>{html.escape(row.work)}</h2>{_table(row.detail)}" for row in rows if row.detail)
    page = (f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(name)}</title>"
            f"<style>{STYLE}</style><h1>{html.escape(name)}</h1>{''.join(figures)}"
            + "".join(f"<h2>{html.escape(key)}</h2>{_table(value)}" for key, value in shown.items() if value)
            + f"{details}</html>")
    path = folder / f"{name}.html"
    path.write_text(page)
    return path


def rows_table(rows: Sequence[BenchRow]) -> Table:
    """For a terminal: medians, and the lowest and the highest run where they are known."""
    shown = Table("work", HUB, PEER, FLOOR, "ratio to peer", "ratio to floor", "aim", "met")
    for row in rows:
        figures = ((HUB, row.figure), (PEER, row.peer_figure), (FLOOR, row.floor_figure))
        shown.add_row(row.work, *(_cell(figure, row.unit, row.runs.get(side)) for side, figure in figures),
                      _ratio(row.ratio_to_peer), _ratio(row.ratio_to_floor), row.aim,
                      "-" if row.met is None else "yes" if row.met else "no")
    return shown


def _cell(figure: float | None, unit: str, figures: Sequence[float] | None) -> str:
    if figure is None:
        return "-"
    low, high = _spread(figures) if figures else (figure, figure)
    return f"{figure:.4g} {unit}" + (f"\n({low:.4g} - {high:.4g})" if figures else "")


def _ratio(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}" if ratio < 100 else f"{ratio:.0f}"


def _spread(figures: Sequence[float]) -> tuple[float, float]:
    return min(figures), max(figures)


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _table(value: Any) -> str:
    """Lists of objects become tables, objects two columns, everything else text."""
    if isinstance(value, Mapping):
        return "<table>" + "".join(f"<tr><th>{html.escape(str(k))}</th><td>{_table(v)}</td></tr>"
                                   for k, v in value.items()) + "</table>"
    if isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
        names = list(dict.fromkeys(name for entry in value for name in entry))
        head = "".join(f"<th>{html.escape(str(name))}</th>" for name in names)
        body = "".join("<tr>" + "".join(f"<td>{_table(entry.get(name))}</td>" for name in names) + "</tr>"
                       for entry in value)
        return f"<table><tr>{head}</tr>{body}</table>"
    if isinstance(value, list | tuple):
        return html.escape(", ".join(str(entry) for entry in value))
    return html.escape(f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value))


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _text(x: float, y: float, text: str, colour: str = "#475569") -> str:
    return f'<text x="{x}" y="{y}" font-size="12" fill="{colour}">{html.escape(text)}</text>'
