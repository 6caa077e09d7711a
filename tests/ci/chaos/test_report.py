"""The rows of a run: which aims a finding meets, and that a missed one is told."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import orjson

from ci.chaos.faults import Rebuild, Spell
from ci.chaos.load import Answered
from ci.chaos.report import guard_row, rows, table, write
from ci.chaos.run import Finding, head_again_s

REBUILD = Rebuild(0.6, 0.4, 10, 10, ("bars", "price"), True)
FINE = Finding("flushed", "Redis flushed", 160, 0, (), 10.0, 60.0, 80.0, 20.0, 150, 1.0, 40, (), {"features bars": 10},
               0.5, REBUILD)


def met(*found: Finding) -> dict[str, bool | None]:
    return {row.work.partition(": ")[2]: row.met for row in rows(found)}


def test_a_run_without_a_flaw_meets_every_aim() -> None:
    assert set(met(FINE, dataclasses.replace(FINE, name="bars", rebuild=None)).values()) == {True}


def test_one_slow_unsafe_or_failed_fault_misses_its_aim() -> None:
    assert not met(FINE, dataclasses.replace(FINE, name="slow", p99_ms=100.0))["slowest p99"]
    assert not met(FINE, dataclasses.replace(FINE, p99_ms=math.nan))["slowest p99"]
    assert not met(dataclasses.replace(FINE, unsafe=("r: acts without a head",)))["unsafe answers"]
    assert not met(dataclasses.replace(FINE, failed=1))["answers that are no 2xx"]


def test_a_rebuild_that_is_slow_incomplete_or_different_misses_its_aim() -> None:
    for changed in (dataclasses.replace(REBUILD, seconds=60.0), dataclasses.replace(REBUILD, rows=9),
                    dataclasses.replace(REBUILD, equal=False)):
        assert False in met(dataclasses.replace(FINE, rebuild=changed)).values()


def test_without_a_guard_the_check_must_notice() -> None:
    assert guard_row(dataclasses.replace(FINE, p99_ms=4_000.0)).met
    assert not guard_row(FINE).met


def test_a_head_again_is_counted_from_the_end_of_the_fault_and_after_the_last_answer_without_one() -> None:
    def answer(sent_s: float, role: str) -> Answered:
        return Answered(sent_s, sent_s + 0.01, "BTC", False, 200, {"role": role})

    answers = [answer(1.0, "production"), answer(1.2, "llm_only"), answer(1.9, "production"), answer(2.5, "challenger")]
    assert math.isclose(head_again_s(Spell(0.9, 2.0), answers), 0.51)
    assert math.isclose(head_again_s(Spell(0.9, 0.9), answers), 1.01)
    assert head_again_s(Spell(0.9, 2.0), answers[:1]) == 0.0


def test_the_report_holds_every_fault_and_names_what_was_not_safe(tmp_path: Path) -> None:
    unsafe = dataclasses.replace(FINE, unsafe=("r: acts without a head",))
    page = write(tmp_path, [unsafe], rows([unsafe]), [Answered(1.0, 1.01, "BTC", True, 200, {})], 12.0)
    held = orjson.loads((tmp_path / "chaos.json").read_bytes())
    assert held["faults"][0]["unsafe"] == ["r: acts without a head"]
    assert held["faults"][0]["rebuild"]["rows"] == 10
    assert "acts without a head" in page.read_text()
    assert table([unsafe]).row_count == 1
