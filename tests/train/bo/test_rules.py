"""What each strategy trades on: one plain rule each, on features that decisions see."""

from __future__ import annotations

import numpy as np
import pytest

from feature_repo.features import DECISION_V1
from policies.errors import InvalidInput
from policies.types import STRATEGIES
from train.bo.rules import RULES

NAN = np.nan
CASES = {
    "momentum": [((1.2, 0.5), 1), ((-1.2, -0.5), -1), ((1.2, -0.5), 0), ((0.9, 2.0), 0), ((NAN, 1.0), 0)],
    "breakout": [((0.99, 0.1), 1), ((-0.99, 0.1), -1), ((0.99, -0.1), 0), ((0.5, 1.0), 0)],
    "scalping": [((2.0,), -1), ((-2.0,), 1), ((1.0,), 0), ((NAN,), 0)],
    "sniping": [((3.0, 2.5), -1), ((-3.0, 2.5), 1), ((3.0, 1.0), 0), ((2.0, 9.0), 0)],
    "market_making": [((0.5,), -1), ((-0.5,), 1), ((0.1,), 0)],
}


@pytest.mark.parametrize("strategy", CASES)
def test_a_rule_trades_as_it_says(strategy: str) -> None:
    rule = RULES[strategy]
    rows = np.array([values for values, _ in CASES[strategy]])
    found = rule.directions({name: rows[:, place] for place, name in enumerate(rule.reads)})
    assert found.tolist() == [direction for _, direction in CASES[strategy]]


def test_every_strategy_but_arbitrage_has_one_on_features_of_decisions() -> None:
    assert set(RULES) == set(STRATEGIES) - {"arbitrage"}
    for rule in RULES.values():
        assert set(rule.reads) <= set(DECISION_V1.names)
        assert not set(rule.reads) & set(DECISION_V1.may_be_missing), "it can always be asked"
        assert all(0 <= offset <= 0.05 for offset in rule.offsets)
    assert 0.0 not in RULES["market_making"].offsets, "its entries rest in the book"


def test_a_feature_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(InvalidInput, match="ret_60"):
        RULES["momentum"].directions({"ret_15": np.zeros(3)})
