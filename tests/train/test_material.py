"""The material of a search on disk: found again as it was kept, mapped and not to be changed."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from bar_makers import jumpy_bars

from train.examples import Examples
from train.kept_bars import BAR_COLUMNS
from train.material import Material, keep_material, load_material
from train.steps import Steps

ROWS, FEATURES, EMBEDDING, WINDOW = 20, 3, 2, 4


def material(seed: int = 0) -> Material:
    rng = np.random.default_rng(seed)
    times = 60_000 * np.arange(1, ROWS + 1)
    values = rng.normal(size=(ROWS, FEATURES + EMBEDDING + 5 * WINDOW)).astype(np.float32)
    values[3, 1] = np.nan
    rows = Examples(np.array(["BTC", "kPEPE"] * (ROWS // 2)), times, times + 90_000, values, rng.integers(0, 3, ROWS),
                    rng.normal(size=(ROWS, 2)), ("a", "b", "c"), ("b",), EMBEDDING, WINDOW)
    unfunded = replace(jumpy_bars(seed + 1), symbol="kPEPE", funding_rate=None)
    return Material(rows, {"BTC": replace(jumpy_bars(seed), symbol="BTC"), "kPEPE": unfunded})


def test_what_was_kept_is_loaded_as_it_was(tmp_path: Path) -> None:
    kept = material()
    keep_material(Steps(tmp_path), "rows", kept)
    found = load_material(tmp_path, "rows")
    for field in fields(Examples):
        was, now = getattr(kept.examples, field.name), getattr(found.examples, field.name)
        if isinstance(was, np.ndarray):
            assert was.dtype == now.dtype, field.name
            assert was.tobytes() == np.ascontiguousarray(now).tobytes(), field.name
        else:
            assert was == now, field.name
    assert list(found.bars) == ["BTC", "kPEPE"]
    for symbol, run in kept.bars.items():
        assert found.bars[symbol].interval_ms == run.interval_ms
        for column in BAR_COLUMNS:
            assert np.array_equal(getattr(found.bars[symbol], column), getattr(run, column)), (symbol, column)


def test_rows_are_mapped_from_disk_and_cannot_be_changed(tmp_path: Path) -> None:
    keep_material(Steps(tmp_path), "rows", material())
    values = load_material(tmp_path, "rows").examples.values
    assert isinstance(values, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        values[0, 0] = 1.0


def test_several_materials_of_one_search_are_kept_apart(tmp_path: Path) -> None:
    steps = Steps(tmp_path)
    for seed, name in enumerate(("rows", "rows_embedded", "another")):
        keep_material(steps, name, material(seed))
    for seed, name in enumerate(("rows", "rows_embedded", "another")):
        assert np.array_equal(load_material(tmp_path, name).examples.returns, material(seed).examples.returns)
