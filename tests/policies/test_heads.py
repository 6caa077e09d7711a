"""Heads: from probabilities to an Action, the rule of the baseline, and ONNX answers that no batch size changes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto, numpy_helper

from policies.bundle import Bundle, Manifest, make_bundle
from policies.errors import BundleRefused, HubError, InvalidInput
from policies.heads import PredictionFailed, load_head
from policies.types import Context, Direction, Portfolio

Build = Callable[..., Bundle]
ROWS = np.random.default_rng(1).normal(size=(50, 4))


def context(*features: float) -> Context:
    return Context("BTC", "momentum", 0, features, {"bars": 0}, Portfolio(10_000.0))


@pytest.mark.parametrize(("z", "direction"), [(1.5, "long"), (-1.5, "short"), (0.9, "flat"), (math.nan, "flat"),
                                              (math.inf, "flat")])
def test_momentum_goes_with_a_large_return_and_stays_flat_otherwise(momentum_bundle: Build, z: float,
                                                                    direction: str) -> None:
    proposal = load_head(momentum_bundle(parameters={"threshold": 1.0})).propose(context(0.0, z, 0.0, 0.0))
    assert proposal.action.direction == direction


def test_momentum_is_the_more_confident_the_larger_the_return(momentum_bundle: Build) -> None:
    head = load_head(momentum_bundle())
    small, large = (head.propose(context(0.0, z, 0.0, 0.0)).confidence for z in (1.5, -3.0))
    assert 0.5 < small < large < 1.0


def test_default_size_risks_a_fifth_of_a_percent_at_the_stop(momentum_bundle: Build) -> None:
    for parameters in ({}, {"leverage": 20.0, "sl_pct": 0.004}, {"leverage": 2.0, "sl_pct": 0.02}):
        action = load_head(momentum_bundle(parameters=parameters)).propose(context(0.0, 5.0, 0.0, 0.0)).action
        assert action.risk_fraction == pytest.approx(0.002)


def test_a_flat_action_holds_nothing(momentum_bundle: Build) -> None:
    action = load_head(momentum_bundle()).propose(context(0.0, 0.0, 0.0, 0.0)).action
    assert (action.direction, action.size_fraction) == (Direction.FLAT, 0.0)


def test_levels_come_from_the_manifest(momentum_bundle: Build) -> None:
    parameters = {"leverage": 7.0, "tp_pct": 0.012, "sl_pct": 0.006, "min_conf": 0.55}
    action = load_head(momentum_bundle(parameters=parameters)).propose(context(0.0, 5.0, 0.0, 0.0)).action
    assert {name: getattr(action, name) for name in parameters} == parameters


def test_onnx_answers_equal_softmax_of_the_linear_map(onnx_bundle: Build, onnx_model: ModelProto) -> None:
    weights = numpy_helper.to_array(onnx_model.graph.initializer[0]).astype(np.float64)
    scores = np.exp(ROWS @ weights)
    np.testing.assert_allclose(load_head(onnx_bundle()).predict(ROWS), scores / scores.sum(axis=1, keepdims=True),
                               atol=1e-5)


def test_onnx_answers_do_not_depend_on_the_batch(onnx_bundle: Build) -> None:
    head = load_head(onnx_bundle())
    np.testing.assert_array_equal(head.predict(ROWS), np.array([head.predict(row) for row in ROWS]))
    assert head.predict(np.empty((0, 4))).shape == (0, 3)


def test_the_rule_follows_the_probabilities(onnx_bundle: Build) -> None:
    head = load_head(onnx_bundle(parameters={"min_conf": 0.6, "max_p_flat": 0.4}))
    seen = set()
    for row in ROWS * 2:
        p_short, p_flat, p_long = head.predict(row)
        confidence = max(p_short, p_long) / (p_short + p_long)
        expected = Direction.LONG if p_long > p_short else Direction.SHORT
        if confidence < 0.6 or p_flat > 0.4:
            expected = Direction.FLAT
        proposal = head.propose(context(*row))
        assert proposal.action.direction is expected
        assert proposal.confidence == pytest.approx(confidence)
        seen.add(expected)
    assert seen == set(Direction)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e300])
def test_a_required_feature_that_is_not_finite_is_an_error_by_name(onnx_bundle: Build, value: float) -> None:
    with pytest.raises(PredictionFailed, match="ret_15"):
        load_head(onnx_bundle()).propose(context(0.0, value, 0.0, 0.0))


def test_a_nan_answer_is_an_error(onnx_bundle: Build) -> None:
    head = load_head(onnx_bundle(optional_features=("funding_rate",)))
    with pytest.raises(PredictionFailed, match="probabilities"):
        head.propose(context(0.0, 0.0, 0.0, math.nan))


@pytest.mark.parametrize("shape", [(3,), (5,), (2, 3), (2, 2, 4), ()])
def test_another_number_of_features_is_refused(onnx_bundle: Build, shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInput):
        load_head(onnx_bundle()).predict(np.zeros(shape))


@pytest.mark.parametrize("parameters", [{"leverage": 0.5}, {"leverage": 51.0}, {"sl_pct": 0.0}, {"min_conf": 0.4},
                                        {"risk_per_trade": 0.1}, {"threshold": -1.0}, {"levrage": 5.0}])
def test_a_parameter_out_of_range_or_unknown_is_refused(momentum_bundle: Build, parameters: dict[str, float]) -> None:
    with pytest.raises(BundleRefused, match=next(iter(parameters))):
        load_head(momentum_bundle(parameters=parameters))


def test_a_momentum_bundle_without_its_feature_is_refused(momentum_bundle: Build) -> None:
    with pytest.raises(BundleRefused, match=r"inputs\.momentum"):
        load_head(momentum_bundle(inputs={}))


def test_a_graph_that_the_runtime_cannot_open_is_refused(onnx_bundle: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object, **_options: object) -> None:
        raise RuntimeError("no kernel")

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    with pytest.raises(BundleRefused, match="no kernel"):
        load_head(onnx_bundle())


ARRAYS = {"arrays": {"window": 10, "market_embedding": 4}, "required_groups": ("bars", "window", "market_embedding")}


def test_a_row_is_the_features_then_the_last_numbers_of_each_group_in_the_order_of_names(onnx_bundle: Build) -> None:
    head = load_head(onnx_bundle(**ARRAYS))
    features, embedding, window = ROWS[0], np.arange(6.0) / 10, np.arange(20.0) / 20
    asked = dataclasses.replace(context(*features), arrays={"window": window, "market_embedding": tuple(embedding)})
    p_short, _, p_long = head.predict(np.concatenate([features, embedding[-4:], window[-10:]]))
    assert head.width == 18
    assert head.propose(asked).confidence == pytest.approx(max(p_short, p_long) / (p_short + p_long), abs=1e-12)


@pytest.mark.parametrize(("arrays", "reason"), [
    ({}, "market_embedding is absent"), ({"market_embedding": np.zeros(4)}, "window is absent"),
    ({"market_embedding": np.zeros(3), "window": np.zeros(10)}, "market_embedding is 3 numbers, it needs 4"),
    ({"market_embedding": (), "window": np.zeros(10)}, "market_embedding is 0 numbers"),
    ({"market_embedding": np.zeros(4), "window": np.array([np.nan] * 10)}, r"window\[0\] is nan")])
def test_an_array_that_is_absent_short_or_not_finite_is_an_error_by_name(onnx_bundle: Build, arrays: dict[str, object],
                                                                         reason: str) -> None:
    asked = dataclasses.replace(context(*ROWS[0]), arrays=arrays)
    with pytest.raises(PredictionFailed, match=reason):
        load_head(onnx_bundle(**ARRAYS)).propose(asked)


def test_features_too_many_are_not_taken_for_an_array(onnx_bundle: Build) -> None:
    asked = dataclasses.replace(context(*range(8)), arrays={"window": np.zeros(10), "market_embedding": np.zeros(4)})
    with pytest.raises(InvalidInput, match="4 numbers"):
        load_head(onnx_bundle(**ARRAYS)).propose(asked)


def test_an_encoder_is_no_head() -> None:
    manifest = Manifest("window_encoder", "mae", (), arrays={"window": 5}, parameters={"size": 2})
    with pytest.raises(BundleRefused, match="no policy"):
        load_head(make_bundle(manifest, {"model.onnx": b""}))


def test_errors_of_heads_are_in_the_hubs_tree() -> None:
    assert issubclass(PredictionFailed, HubError)
