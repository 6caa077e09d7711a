"""The first trained head: gradient-boosted trees on the feature vector, exported as a closed ONNX graph.

Trees are fitted on one slice of time; a later one stops the boosting early and chooses when the head trades at all
(`min_conf`, `max_p_flat`). What it is worth must therefore be measured on a third, later still.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
from annotated_types import Ge, Gt, Le
from catboost import CatBoostClassifier
from numpy.typing import NDArray
from onnx import TensorProto, helper

from policies.bundle import ONNX_FILE, Bundle, Manifest, make_bundle
from policies.errors import BundleRefused, InvalidInput
from policies.heads import CLASSES, load_head
from policies.onnx_graph import PROBABILITIES
from train.dataset import FLAT, LONG, SHORT, Brackets, Dataset

MIN_CONF_TRIALS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75)
MAX_P_FLAT_TRIALS = (0.2, 0.3, 1.0)
LEAST_TRADES = 30  # on the validation slice, for a trial to be chosen
AIMED_PROFIT_FACTOR = 2.5  # the ladder asks for 2, and the best of many trials flatters itself
SERVED_TOLERANCE = 1e-5


@dataclass(frozen=True)
class CatBoostSettings:
    depth: Annotated[int, Ge(1), Le(10)] = 5
    iterations: Annotated[int, Ge(1), Le(300)] = 300
    learning_rate: Annotated[float, Gt(0), Le(1)] = 0.1
    early_stopping_rounds: Annotated[int, Ge(1)] = 30
    thread_count: Annotated[int, Ge(1)] = 2
    seed: int = 7


@dataclass(frozen=True)
class Trained:
    """A trained bundle and figures of its training."""

    bundle: Bundle
    metrics: Mapping[str, float]


def train_catboost(fit: Dataset, validation: Dataset, template: Manifest, brackets: Brackets,
                   settings: CatBoostSettings) -> Trained:
    """The same data and settings give the same bundle, byte for byte.

    template: alias, features, groups and whatever `trained_on` the caller knows; kind and levels are set here.
    """
    for name, part in (("fit", fit), ("validation", validation)):
        counts = np.bincount(part.classes, minlength=len(CLASSES))
        if not counts.all():
            raise InvalidInput(f"{name}.classes", "at least one row of short, flat and long", counts.tolist())
    model = CatBoostClassifier(
        loss_function="MultiClass", depth=settings.depth, iterations=settings.iterations,
        learning_rate=settings.learning_rate, random_seed=settings.seed, thread_count=settings.thread_count,
        allow_writing_files=False, verbose=False)
    model.fit(_float32(fit), fit.classes, eval_set=(_float32(validation), validation.classes),
              early_stopping_rounds=settings.early_stopping_rounds)
    probabilities = model.predict_proba(_float32(validation))
    trials = level_trials(probabilities, validation)
    chosen = choose_trial(trials)
    manifest = replace(
        template, kind="onnx_classifier",
        parameters={"leverage": brackets.leverage, "tp_pct": brackets.tp_pct, "sl_pct": brackets.sl_pct,
                    "min_conf": chosen["min_conf"], "max_p_flat": chosen["max_p_flat"]},
        trained_on={**template.trained_on, "settings": asdict(settings), "brackets": asdict(brackets),
                    "fit": _span(fit), "validation": _span(validation), "trees": int(model.tree_count_),
                    "trials": trials},
        files={})
    bundle = make_bundle(manifest, {ONNX_FILE: export_onnx(model)})
    _require_served_as_trained(bundle, probabilities[:200], validation.values[:200])
    metrics = {"trees": float(model.tree_count_), "validation_log_loss": _log_loss(probabilities, validation.classes),
               **{f"validation_{name}": value for name, value in chosen.items()}}
    return Trained(bundle, metrics)


def export_onnx(model: CatBoostClassifier) -> bytes:
    """The model as one graph from rows to a float32 tensor `probabilities`.

    CatBoost's own export ends in a map from class names to numbers and carries the time of training; both are dropped,
    the second because a bundle's id must depend on nothing but what was learnt.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ONNX_FILE
        model.save_model(str(path), format="onnx")
        graph = onnx.load_model(str(path), load_external_data=False)
    trees = next(node for node in graph.graph.node if node.op_type == "TreeEnsembleClassifier")
    trees.output[1] = PROBABILITIES
    del graph.graph.node[:], graph.graph.output[:], graph.metadata_props[:]
    graph.graph.node.append(trees)
    graph.graph.output.append(helper.make_tensor_value_info(PROBABILITIES, TensorProto.FLOAT, ["N", len(CLASSES)]))
    return graph.SerializeToString(deterministic=True)


def chosen_directions(probabilities: NDArray[np.float64], min_conf: float, max_p_flat: float) -> NDArray[np.int64]:
    """(N,) +1, -1 or 0: the rule of `policies.heads` over many rows at once."""
    p_short, p_flat, p_long = probabilities[:, SHORT], probabilities[:, FLAT], probabilities[:, LONG]
    directed = p_short + p_long
    confidence = np.maximum(p_short, p_long) / np.where(directed > 0, directed, 1.0)
    trades = (p_long != p_short) & (confidence >= min_conf) & (p_flat <= max_p_flat)
    return np.where(trades, np.sign(p_long - p_short), 0.0).astype(np.int64)


def level_trials(probabilities: NDArray[np.float64], rows: Dataset) -> list[dict[str, float]]:
    """For each pair of levels: trades, their mean net return on margin, that mean in standard errors (`score`), and the
    profit factor (0 if there is no loss to divide by).

    Every row counts as a trade of its own, so trades overlap: scores compare trials, they prove nothing.
    """
    trials = []
    for min_conf, max_p_flat in itertools.product(MIN_CONF_TRIALS, MAX_P_FLAT_TRIALS):
        directions = chosen_directions(probabilities, min_conf, max_p_flat)
        earned = np.where(directions > 0, rows.long_return, rows.short_return)[directions != 0]
        error = float(earned.std() / np.sqrt(len(earned))) if len(earned) > 1 else 0.0
        mean = float(earned.mean()) if len(earned) else 0.0
        loss = -float(earned[earned < 0].sum())
        trials.append({"min_conf": min_conf, "max_p_flat": max_p_flat, "trades": float(len(earned)), "mean": mean,
                       "score": mean / error if error > 0 else 0.0,
                       "profit_factor": float(earned[earned > 0].sum()) / loss if loss > 0 else 0.0})
    return trials


def choose_trial(trials: list[dict[str, float]]) -> dict[str, float]:
    """The best score among trials with enough trades and the aimed profit factor; the first of equals.

    Where none has that profit factor, the best score with enough trades; where none has enough, the one with most.
    """
    enough = [trial for trial in trials if trial["trades"] >= LEAST_TRADES]
    if not enough:
        return max(trials, key=lambda trial: trial["trades"])
    aimed = [trial for trial in enough if trial["profit_factor"] >= AIMED_PROFIT_FACTOR]
    return max(aimed or enough, key=lambda trial: trial["score"])


def _require_served_as_trained(bundle: Bundle, trained: NDArray[np.float64], values: NDArray[np.float64]) -> None:
    worst = float(np.abs(load_head(bundle).predict(values) - trained).max())
    if not worst <= SERVED_TOLERANCE:
        raise BundleRefused(f"{bundle.manifest.alias}: served and trained probabilities differ by {worst:.2g}, "
                            f"more than {SERVED_TOLERANCE:g}")


def _float32(dataset: Dataset) -> NDArray[np.float32]:
    """What serving feeds the graph with, so that no value falls on another side of a split."""
    return dataset.values.astype(np.float32)


def _log_loss(probabilities: NDArray[np.float64], classes: NDArray[np.int8]) -> float:
    return float(-np.log(np.maximum(probabilities[np.arange(len(classes)), classes], 1e-15)).mean())


def _span(dataset: Dataset) -> dict[str, Any]:
    return {"rows": len(dataset), "from_ms": int(dataset.event_time_ms[0]), "until_ms": int(dataset.event_time_ms[-1])}
