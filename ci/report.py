"""Reports: `reports/NAME.json` for programs, `NAME.html` beside it for people, in one place for every target.

A page is one file with inline SVG, so that it opens anywhere and loads nothing.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

WIDTH, HEIGHT, MARGIN = 720, 240, 44
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
class BenchRow:
    """One figure against its peer and its floor. Ratios are oriented so that more than 1 is better than the peer."""

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


def write_report(folder: Path, name: str, content: Mapping[str, Any], plots: Sequence[Plot] = (),
                 rows: Sequence[BenchRow] = ()) -> Path:
    """Write NAME.json and NAME.html; returns the path of the page. content: what the JSON holds besides `rows`."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    document = {"rows": [asdict(row) for row in rows], **content}
    (folder / f"{name}.json").write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2))
    figures = "".join(f"<figure>{plot.svg()}<figcaption>{html.escape(plot.title)}</figcaption></figure>"
                      for plot in plots)
    page = (f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(name)}</title>"
            f"<style>{STYLE}</style><h1>{html.escape(name)}</h1>{figures}"
            + "".join(f"<h2>{html.escape(key)}</h2>{_table(value)}" for key, value in document.items() if value)
            + "</html>")
    path = folder / f"{name}.html"
    path.write_text(page)
    return path


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
