"""Does the search see what is there, and nothing that is not? Whole searches on generated markets, with and without
an edge in them.

    python -m ci.experiments.planted --seeds 5 --home var

Each seed is a market of its own; every kind of head is swept, fitted walk-forward and judged as `make retrain_sup`
does. On noise no head may pass at more than 5 %; on the planted signal somebody should. The simulated rates with many
more seeds are those of `ci.experiments.judgement_power`; this shows that trained heads behave like them. Killed and
started again, it goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ci.experiments.searches import Search, found_by, quiet, searching
from ci.experiments.zero_edge import clopper_pearson
from reports.report import BenchRow, write_report
from train.candidates import Retrained
from train.retrain_log import figures
from train.retrain_settings import HEADS, RetrainSettings
from train.training_set import open_market

SYMBOLS = ("BTC", "ETH")
SIGNAL, NOISE = 1.0, 0.0
AIM = 0.05


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Heads that pass the judgement on noise and on a planted signal")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--lookback", type=int, default=25_200)
    parser.add_argument("--heads", default=",".join(HEADS))
    parser.add_argument("--home", type=Path, default=Path("var"), help="the report goes to HOME/reports")
    options = parser.parse_args(arguments)
    quiet()
    console = Console(width=140)
    searches = [Search(f"{'signal' if signal else 'noise'}_{seed}",
                       open_market("generated", None, SYMBOLS, 100 + seed, signal, 43_200),
                       RetrainSettings(SYMBOLS, lookback_bars=options.lookback, trials=2, seed=seed,
                                       heads=tuple(options.heads.split(","))))
                for signal in (NOISE, SIGNAL) for seed in range(1, options.seeds + 1)]
    with searching() as pool:
        rows = [row for search, found in found_by(searches, options.home / "experiments" / "planted", pool,
                                                  console.print) for row in rows_of(search, found)]
    console.print(table_of(rows))
    noise, signal = ([row for row in rows if row["market"].startswith(kind)] for kind in ("noise", "signal"))
    summary = [share_of("no head passes on planted noise", noise, False),
               share_of("the planted signal is found", _best_of_each(signal), True)]
    for line in summary:
        console.print(f"{line.work}: {line.detail['said']}; aim: {line.aim}", highlight=False, soft_wrap=True)
    write_report(options.home / "reports", "planted", {"heads": rows}, (), summary)
    return 0 if all(line.met for line in summary) else 1


def rows_of(search: Search, found: Retrained) -> list[dict[str, Any]]:
    return [{"market": search.name, "head": candidate.name, **figures(candidate), "passed": candidate.passed,
             "missed": list(candidate.missed)} for candidate in found.candidates]


def share_of(work: str, rows: Sequence[dict[str, Any]], wanted: bool) -> BenchRow:
    """How many of these pass, with the exact 95 % interval. wanted: whether they should."""
    passed = sum(bool(row["passed"]) for row in rows)
    low, high = clopper_pearson(passed, len(rows))
    met = passed > len(rows) / 2 if wanted else passed <= AIM * len(rows)
    return BenchRow(f"deep heads earn their place: {work}", passed / len(rows), "share", "-", None, None, None, None,
                    "> 50 %" if wanted else f"<= {AIM:.0%}", met,
                    detail={"said": f"{passed} of {len(rows)} (95 %: {low:.1%} to {high:.1%})",
                            "interval_95": [low, high]})


def table_of(rows: Sequence[dict[str, Any]]) -> Table:
    names = ("trades", "profit_factor", "max_drawdown_percent", "expectancy", "deflated_sharpe", "overfitting")
    shown = Table("market", "head", *names, "passed")
    for row in rows:
        shown.add_row(row["market"], row["head"], *(f"{row[name]:.4g}" if name in row else "-" for name in names),
                      "yes" if row["passed"] else "no")
    return shown


def _best_of_each(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The best head of each market: they come best first."""
    seen: dict[str, dict[str, Any]] = {}
    for row in rows:
        seen.setdefault(row["market"], row)
    return list(seen.values())


if __name__ == "__main__":
    raise SystemExit(main())
