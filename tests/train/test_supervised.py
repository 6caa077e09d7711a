"""From rows to a served head: whatever its kind, what is served is what was trained, on a thousand rows."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from small_search import MAE, SYMBOLS, WINDOW, market, repo_of, small_learners

from feature_repo.features import DECISION_V1, MARKET_EMBEDDING
from feature_repo.features import WINDOW as WINDOW_GROUP
from feature_repo.windows import CHANNELS
from policies.bundle import Bundle, Manifest, make_bundle, pack_bundle, read_bundle
from policies.embedder import load_embedder, version_of
from policies.ensemble import combine, make_ensemble
from policies.errors import BundleRefused, InvalidInput
from policies.fills import Costs
from policies.head import Head
from policies.heads import CLASSES, Levels, load_head
from policies.types import Context, Direction, Portfolio, Proposal
from train.dataset import Brackets
from train.examples import Examples, build_examples
from train.levels import chosen_directions
from train.mae_export import embed, export_encoder
from train.mae_training import Pretrained, pretrain
from train.supervised import (
    PLANS,
    SERVED_TOLERANCE,
    FittedHead,
    bundle_of,
    fit_head,
    layout_of,
    learner_of,
    require_served_as_trained,
)
from train.training_set import bars_until, joined_rows

BARS, ROWS = 2_200, 1_000
FIT, VALIDATION = np.arange(0, 1_500), np.arange(1_500, 2_200)
LATER = np.arange(2_300, 2_300 + ROWS)
TEMPLATE = Manifest(
    kind="onnx_classifier", alias="template", features=DECISION_V1.names, required_groups=DECISION_V1.required_groups,
    optional_groups=DECISION_V1.optional_groups, optional_features=DECISION_V1.may_be_missing,
    files={"model.onnx": "0" * 64}, trained_on={"market": "generated"})


@pytest.fixture(autouse=True)
def _small() -> Iterator[None]:
    with small_learners():
        yield


@cache
def plain() -> Examples:
    """Some optional features are there in some of the rows."""
    of = market(BARS)
    with tempfile.TemporaryDirectory() as home:
        bars = bars_until(of, SYMBOLS, None, BARS)
        rows = joined_rows(of, repo_of(Path(home), of.origin), bars, lambda line: None)
    found = build_examples(bars, rows, DECISION_V1.names, DECISION_V1.may_be_missing, WINDOW, Brackets(), Costs())
    rng, values = np.random.default_rng(1), found.values.copy()
    for name in DECISION_V1.may_be_missing:
        place = DECISION_V1.names.index(name)
        values[:, place] = np.where(rng.random(len(found)) < 0.5, rng.normal(size=len(found)), np.nan)
    return replace(found, values=values)


@cache
def pretrained() -> tuple[Pretrained, Bundle]:
    with tempfile.TemporaryDirectory() as folder:
        until_ms = int(plain().event_time_ms[FIT[-1]])
        made = pretrain(bars_until(market(BARS), SYMBOLS, None, BARS), until_ms, MAE, Path(folder))
    return made, export_encoder(made)


@cache
def examples() -> Examples:
    return plain().with_embedding(load_embedder(pretrained()[1]))


@cache
def fitted(name: str) -> tuple[FittedHead, Bundle]:
    plan, rows = PLANS[name], examples()
    with small_learners():
        learner = learner_of(plan, "small")
        layout = rows.layout(plan.embedding, learner.uses_window)
        assert layout == layout_of(plan, learner, rows.features, rows.optional, rows.embedding, rows.window_bars)
        head = fit_head(learner, rows.labelled(FIT, layout), rows.labelled(VALIDATION, layout), layout,
                        learner.defaults(), 7)
    template = replace(TEMPLATE, alias=name)
    return head, bundle_of(head, template, Brackets(), version_of(pretrained()[1].policy_id))


def rows_as_trained(name: str) -> NDArray[np.float32]:
    """(ROWS, width) with the embedding that the training framework makes, not the served one."""
    head, _ = fitted(name)
    seen = examples().seen(LATER, head.layout)
    if head.layout.embedding:
        made, _ = pretrained()
        first = len(head.layout.features)
        seen[:, first:first + head.layout.embedding] = embed(made, plain().windows[LATER])
    return seen


def contexts() -> Iterator[Context]:
    """What serving knows of each row: features, and the arrays as the store holds them, longer than a head needs."""
    rows = plain()
    encode = load_embedder(read_bundle(pack_bundle(pretrained()[1])))
    for place in LATER.tolist():
        window = np.concatenate([np.full(5 * len(CHANNELS), 9.0, np.float32), rows.windows[place]])
        time_ms = int(rows.event_time_ms[place])
        yield Context(str(rows.symbol[place]), "momentum", time_ms,
                      tuple(rows.values[place, :len(rows.features)].astype(float).tolist()), {"bars": time_ms},
                      Portfolio(10_000.0),
                      arrays={WINDOW_GROUP: window, MARKET_EMBEDDING: encode.embed(rows.windows[place:place + 1])[0]})


def row_of(context: Context, head: Head) -> NDArray[np.float64]:
    """(width,): the features, then the last numbers of each array group by name."""
    parts = [np.array(context.features, dtype=np.float64)]
    parts += [np.asarray(context.arrays[group], np.float64)[-count:] for group, count in sorted(head.arrays.items())]
    return np.concatenate(parts)


def served(bundle: Bundle) -> Head:
    head = load_head(read_bundle(pack_bundle(bundle)))
    assert isinstance(head, Head)
    return head


def answers_of(head: Head) -> NDArray[np.float64]:
    """(ROWS, 3), one row asked after the other."""
    answers = [head.predict(row_of(context, head)) for context in contexts()]
    return np.array(answers).reshape(ROWS, len(CLASSES))


@pytest.mark.parametrize("name", PLANS)
def test_every_kind_of_head_is_served_as_it_was_trained_on_a_thousand_rows(name: str) -> None:
    head, bundle = fitted(name)
    trained, asked = head.probabilities(rows_as_trained(name)), served(bundle)
    answers = answers_of(asked)
    assert np.abs(answers - trained).max() <= SERVED_TOLERANCE
    assert answers.std(axis=0).max() > 1e-3  # it says something
    levels = Levels(**head.parameters(Brackets()))
    directions = chosen_directions(trained, levels.min_conf, levels.max_p_flat)
    said = np.array([asked.propose(context).action.direction.sign for context in contexts()])
    assert np.array_equal(said, directions)


def test_an_ensemble_of_all_kinds_is_served_as_its_members_were_trained_on_a_thousand_rows() -> None:
    names = [name for name in PLANS if name != "linear"]
    weights = np.arange(1.0, len(names) + 1)
    weights /= weights.sum()
    asked = served(make_ensemble("ensemble", [fitted(name)[1] for name in names], weights.tolist(), quorum=0.1))
    trained = {name: proposals_as_trained(name) for name in names}
    expected = [combine({name: trained[name][row] for name in names}, weights, 0.1) for row in range(ROWS)]
    for context, wanted in zip(contexts(), expected, strict=True):
        said = asked.propose(context)
        assert said.action == wanted.action
        assert said.confidence == pytest.approx(wanted.confidence, abs=SERVED_TOLERANCE)
    votes = [sum(trained[name][row].confidence * weight for name, weight in zip(names, weights, strict=True)
                 if trained[name][row].action.direction is Direction.LONG) for row in range(ROWS)]
    assert np.abs(answers_of(asked)[:, CLASSES.index(Direction.LONG)] - votes).max() <= SERVED_TOLERANCE


def proposals_as_trained(name: str) -> list[Proposal]:
    """By the rule of all heads, from the probabilities of the training framework."""
    head, _ = fitted(name)
    levels, probabilities = Levels(**head.parameters(Brackets())), head.probabilities(rows_as_trained(name))
    signs = chosen_directions(probabilities, levels.min_conf, levels.max_p_flat)
    confidence = probabilities[:, [0, 2]].max(axis=1) / probabilities[:, [0, 2]].sum(axis=1)
    sides = {1: Direction.LONG, 0: Direction.FLAT, -1: Direction.SHORT}
    return [Proposal(levels.action(sides[int(sign)]), float(sure))
            for sign, sure in zip(signs, confidence, strict=True)]


@pytest.mark.parametrize("name", PLANS)
def test_a_bundle_says_what_its_head_needs(name: str) -> None:
    head, bundle = fitted(name)
    arrays = {MARKET_EMBEDDING: MAE.embedding} if PLANS[name].embedding else {}
    arrays |= {WINDOW_GROUP: WINDOW * len(CHANNELS)} if name == "timesnet" else {}
    assert dict(bundle.manifest.arrays) == arrays
    assert bundle.manifest.required_groups == (*DECISION_V1.required_groups, *sorted(arrays))
    version = version_of(pretrained()[1].policy_id)
    assert bundle.manifest.embedding_version == (version if PLANS[name].embedding else "none")
    assert bundle.manifest.trained_on["market"] == "generated"
    assert bundle.manifest.trained_on["settings"] == dict(head.settings)
    assert Levels(**bundle.manifest.parameters) == Levels(**head.parameters(Brackets()))


@pytest.mark.parametrize("name", ["linear", "catboost", "linear_mae", "catboost_mae"])
def test_the_same_rows_and_seed_give_the_same_bundle(name: str) -> None:
    head, bundle = fitted(name)
    again, bundle_again = fitted.__wrapped__(name)  # the fit itself, not what is remembered of it
    assert bundle_again.policy_id == bundle.policy_id
    assert again.validation_log_loss == head.validation_log_loss


def test_agreement_is_told_in_figures() -> None:
    head, bundle = fitted("catboost")
    told = require_served_as_trained(bundle, head, examples().seen(LATER, head.layout))
    assert told["rows"] == ROWS
    assert 0 <= told["largest_difference"] <= SERVED_TOLERANCE
    assert told["served_ms"] > 0


def test_a_bundle_with_another_heads_weights_is_refused() -> None:
    (head, bundle), (_, other) = fitted("linear"), fitted("catboost")
    wrong = make_bundle(bundle.manifest, other.files)
    with pytest.raises(BundleRefused, match="linear"):
        require_served_as_trained(wrong, head, examples().seen(LATER, head.layout))


@pytest.mark.parametrize("part", ["fit", "validation"])
def test_rows_in_which_a_class_never_came_are_refused(part: str) -> None:
    rows, learner = examples(), learner_of(PLANS["linear"], "small")
    layout = rows.layout(False, False)
    parts = {"fit": rows.labelled(FIT, layout), "validation": rows.labelled(VALIDATION, layout)}
    parts[part] = replace(parts[part], classes=np.where(parts[part].classes == 1, 2, parts[part].classes))
    with pytest.raises(InvalidInput, match=rf"{part}\.classes"):
        fit_head(learner, parts["fit"], parts["validation"], layout, learner.defaults(), 7)
