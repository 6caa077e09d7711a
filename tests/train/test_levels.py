"""When a head trades: the same rule as the head's own, each pair judged by what its trades earned."""

from __future__ import annotations

import numpy as np
import pytest
from labelled_rows import IDENTITY, LAYOUT, labelled_rows

from policies.bundle import ONNX_FILE, Manifest, make_bundle
from policies.errors import InvalidInput
from policies.heads import CLASSES, load_head
from policies.types import Context, Direction, Portfolio
from train.dataset import FLAT, LONG, SHORT
from train.levels import LEAST_TRADES, choose_levels, choose_trial, chosen_directions, level_trials
from train.linear import LinearLearner


@pytest.mark.parametrize("levels", [{"min_conf": 0.6, "max_p_flat": 1.0}, {"min_conf": 0.5, "max_p_flat": 0.27}])
def test_the_rule_over_many_rows_is_the_heads_own_rule(levels: dict[str, float]) -> None:
    learner = LinearLearner()
    fitted = learner.fit(labelled_rows(1_000, 1), labelled_rows(200, 2), LAYOUT, learner.defaults(), 0,
                         lambda step, loss: None)
    graph = IDENTITY.append_to(fitted.graph())
    manifest = Manifest("onnx_classifier", "any_v1", LAYOUT.features, optional_features=LAYOUT.optional,
                        parameters=levels)
    head = load_head(make_bundle(manifest, {ONNX_FILE: graph.SerializeToString()}))
    values = labelled_rows(300, 5).values.astype(np.float64)
    signs = chosen_directions(head.predict(values), **levels)
    proposed = [head.propose(Context("BTC", "momentum", 0, tuple(row), {}, Portfolio(1e4))).action.direction.sign
                for row in values]
    assert signs.tolist() == proposed
    assert set(proposed) == {-1, 0, 1}


def test_a_trial_is_judged_by_what_its_trades_earned() -> None:
    long_return, short_return = labelled_rows(500, 6).returns.T
    probabilities = np.random.default_rng(0).dirichlet(np.ones(3), 500)
    for trial in level_trials(probabilities, long_return, short_return):
        earned = []
        for (p_short, p_flat, p_long), long, short in zip(probabilities, long_return, short_return, strict=True):
            if max(p_short, p_long) / (p_short + p_long) >= trial["min_conf"] and p_flat <= trial["max_p_flat"]:
                earned.append(long if p_long > p_short else short)
        assert trial["trades"] == len(earned)
        assert trial["mean"] == pytest.approx(np.mean(earned))
        assert trial["score"] == pytest.approx(np.mean(earned) / (np.std(earned) / len(earned) ** 0.5))


def test_the_chosen_trial_reaches_the_aim_if_one_does_and_never_rests_on_few_trades() -> None:
    def trial(trades: float, score: float, profit_factor: float) -> dict[str, float]:
        return {"trades": trades, "score": score, "profit_factor": profit_factor}

    few, aimed, strong = trial(LEAST_TRADES - 1, 99, 99), trial(50, 3, 2.6), trial(500, 9, 1.4)
    assert choose_trial([few, aimed, strong]) is aimed
    assert choose_trial([few, strong]) is strong
    assert choose_trial([few, trial(2, 100, 100)]) is few


def test_every_pair_that_was_tried_is_counted() -> None:
    rows = labelled_rows(400, 3)
    levels = choose_levels(np.random.default_rng(1).dirichlet(np.ones(3), 400), *rows.returns.T)
    assert levels.count == len({(trial["min_conf"], trial["max_p_flat"]) for trial in levels.trials}) == 18
    assert levels.chosen in levels.trials
    assert (levels.min_conf, levels.max_p_flat) == (levels.chosen["min_conf"], levels.chosen["max_p_flat"])


def test_rows_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(InvalidInput, match="probabilities"):
        choose_levels(np.full((4, 3), 1 / 3), np.zeros(5), np.zeros(5))


def test_classes_are_places_in_the_heads_order() -> None:
    assert (CLASSES[SHORT], CLASSES[FLAT], CLASSES[LONG]) == (Direction.SHORT, Direction.FLAT, Direction.LONG)
