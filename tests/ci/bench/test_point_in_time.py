from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest

from ci.bench import point_in_time
from ci.bench.load import NotMeasured
from ci.bench.point_in_time import FEATURES_PER_VIEW, WORK, Shape, asked_frame, run, unequal_values

SMALL = Shape("small", 200, timedelta(minutes=3), asked_rows=50)


def test_a_row_per_shape_compares_the_three_on_equal_values() -> None:
    said: list[str] = []
    rows = run(said.append, rounds=1, shapes=(SMALL, SMALL))
    assert all(row.work == f"{WORK}: small" for row in rows)
    for row in rows:
        assert row.figure is not None
        assert row.peer_figure is not None
        assert row.floor_figure is not None
        assert row.ratio_to_peer == row.peer_figure / row.figure
        assert row.ratio_to_floor == row.figure / row.floor_figure
    assert ["the peer" in row.aim for row in rows] == [True, False]
    assert sum("every value equal" in line for line in said) == 2


def test_a_single_unequal_value_is_counted_in_any_order_of_the_rows() -> None:
    rng = np.random.default_rng(3)
    names = [f"f{view}_{place}" for view, count in enumerate(FEATURES_PER_VIEW) for place in range(count)]
    ours = asked_frame(SMALL, rng).assign(**{name: rng.normal(size=50) for name in names})
    ours.loc[4, "f0_3"] = np.nan
    other = ours.sample(frac=1, random_state=3)
    assert unequal_values(ours, other) == 0
    ours.loc[7, "f1_0"] = np.nextafter(ours.loc[7, "f1_0"], 2)
    assert unequal_values(ours, other) == 1
    assert unequal_values(ours, other.iloc[1:]) > 1


def test_unequal_values_end_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(point_in_time, "unequal_values", lambda ours, other: 1)
    with pytest.raises(NotMeasured, match="1 of 1000 values differ"):
        run(lambda text: None, rounds=1, shapes=(SMALL,))
