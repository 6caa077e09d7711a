"""Bars that are kept as arrays come back as they were, and their digest names every column."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from feature_repo.features import MINUTE_MS
from policies.bars import Bars
from train.kept_bars import BAR_COLUMNS, arrays_of_bars, bars_of_arrays, digests_of, intervals_of


def bars(symbol: str, funding: bool) -> Bars:
    prices = np.linspace(10.0, 11.0, 5)
    return Bars(symbol, MINUTE_MS, np.arange(5) * MINUTE_MS, prices, prices + 1, prices - 1, prices + 0.5, prices * 2,
                np.array([0.0, 0.0, 1e-4, 0.0, 0.0]) if funding else None)


def test_bars_of_several_symbols_come_back_as_they_were() -> None:
    held = {"BTC": bars("BTC", True), "ETH": bars("ETH", False)}
    found = bars_of_arrays(arrays_of_bars(held), intervals_of(held))
    assert found.keys() == held.keys()
    for symbol, run in held.items():
        assert (found[symbol].symbol, found[symbol].interval_ms) == (symbol, run.interval_ms)
        for column in BAR_COLUMNS:
            np.testing.assert_array_equal(getattr(found[symbol], column), getattr(run, column))
    assert found["ETH"].funding_rate is None


@pytest.mark.parametrize("column", BAR_COLUMNS)
def test_another_value_in_any_column_is_another_digest(column: str) -> None:
    held = bars("BTC", True)
    other = getattr(held, column).copy()
    other[3] += 1
    assert digests_of({"BTC": held}) != digests_of({"BTC": replace(held, **{column: other})})
    assert digests_of({"BTC": held}) == digests_of({"BTC": bars("BTC", True)})
