"""Steps of a long job: there whole or not at all, made once, found again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from train.steps import Steps, key_of


def test_a_kept_step_is_found_again_with_everything_it_made(tmp_path: Path) -> None:
    Steps(tmp_path).keep("fit.a.0", {"loss": 0.5}, {"x": np.arange(5.0), "names": np.array(["BTC", "ETH"])},
                         {"bundle.pt": b"\x00\x01"})
    again = Steps(tmp_path)
    assert again.has("fit.a.0")
    assert again.result("fit.a.0") == {"loss": 0.5}
    arrays = again.arrays("fit.a.0")
    assert arrays["x"].tolist() == [0, 1, 2, 3, 4]
    assert arrays["names"].tolist() == ["BTC", "ETH"]
    assert again.file("fit.a.0", "bundle.pt") == b"\x00\x01"


def test_a_step_that_failed_to_be_written_is_not_there(tmp_path: Path) -> None:
    steps = Steps(tmp_path)
    with pytest.raises(ValueError, match="JSON"):
        steps.keep("fit", {"loss": float("nan")})
    assert not steps.has("fit")
    steps.keep("fit", {"loss": 1.0})
    assert steps.result("fit") == {"loss": 1.0}


def test_a_step_that_is_there_is_not_changed(tmp_path: Path) -> None:
    steps = Steps(tmp_path)
    steps.keep("fit", {"loss": 1.0})
    steps.keep("fit", {"loss": 2.0})
    assert steps.result("fit") == {"loss": 1.0}


def test_what_a_step_under_way_has_kept_is_removed_when_it_is_done(tmp_path: Path) -> None:
    steps = Steps(tmp_path)
    (steps.scratch("embedder") / "epoch").write_text("3")
    assert (Steps(tmp_path).scratch("embedder") / "epoch").read_text() == "3"
    steps.keep("embedder", {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["embedder"]


def test_arrays_of_a_step_cannot_be_changed_by_who_reads_them(tmp_path: Path) -> None:
    steps = Steps(tmp_path)
    steps.keep("rows", {}, {"x": np.zeros(3)})
    with pytest.raises(ValueError, match="read-only"):
        steps.arrays("rows")["x"][0] = 1.0


def test_the_key_of_a_job_depends_on_every_part_and_not_on_the_order_of_names() -> None:
    assert key_of({"a": 1, "b": [2, 3]}) == key_of({"b": [2, 3], "a": 1})
    assert len({key_of({"a": 1}), key_of({"a": 2}), key_of({"a": 1}, 1), key_of({"b": 1})}) == 4
