"""`python -m ci.bench` on benchmarks that take no time: which run, what is written, and what a failure does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ci.bench import rows
from ci.bench.__main__ import main
from ci.bench.decision import Extent
from ci.bench.rows import Bench, Say, benches
from reports.report import Aim, BenchRow, Side, compared


def bench(work: str, hub_ms: float) -> Bench:
    def run(say: Say) -> list[BenchRow]:
        say("measuring")
        return [compared(work, "ms", Side("hub", [hub_ms]), Side("peer", [1.0]), Side("floor", [0.5]), Aim(0.5))]

    return run


def broken(say: Say) -> list[BenchRow]:
    raise RuntimeError("no engine")


OFFERED: dict[str, Bench] = {"one": bench("Work one", 1.0), "broken": broken, "other": bench("Work two", 9.0)}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HUB_HOME", str(tmp_path))
    monkeypatch.setattr(rows, "BUSY_WINDOW_S", 0.01)
    return tmp_path


def report(home: Path, name: str) -> Mapping[str, Any]:
    found: dict[str, Any] = json.loads((home / "reports" / f"{name}.json").read_text())
    return found


def test_all_run_in_their_order_and_make_one_report(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([], {name: OFFERED[name] for name in ("one", "other")}) == 0, "a missed aim is no failure"
    found = report(home, "bench")
    assert [(row["work"], row["met"]) for row in found["rows"]] == [("Work one", True), ("Work two", False)]
    assert {"machine", "versions", "wall_s"} <= found.keys()
    assert (home / "reports" / "bench.html").read_text().count("<svg") == 2
    printed = capsys.readouterr().out
    assert printed.count("ratio to floor") == 1, "one table"
    assert "one: measuring" in printed


def test_one_that_fails_says_so_and_the_others_still_run(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([], OFFERED) == 1
    found = report(home, "bench")
    assert [row["work"] for row in found["rows"]] == ["Work one", "Work two"]
    assert [(one["name"], one["failed"]) for one in found["benches"]] == [
        ("one", ""), ("broken", "RuntimeError: no engine"), ("other", "")]
    assert "broken was not measured: RuntimeError: no engine" in capsys.readouterr().out


def test_only_some_run_and_do_not_take_the_place_of_the_whole_report(home: Path) -> None:
    assert main(["--only", "other", "one"], OFFERED) == 0
    assert [row["work"] for row in report(home, "bench_one_other")["rows"]] == ["Work one", "Work two"]
    assert not (home / "reports" / "bench.json").exists()
    with pytest.raises(SystemExit):
        main(["--only", "none"], OFFERED)


def test_an_interrupt_ends_them_all(home: Path) -> None:
    def interrupted(say: Say) -> list[BenchRow]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        main([], {"interrupted": interrupted, **OFFERED})
    assert not (home / "reports" / "bench.json").exists()


def test_every_bench_is_offered() -> None:
    assert list(benches(Extent())) == ["decision", "join", "online", "backtest", "environment",
                                      "sampling"]
