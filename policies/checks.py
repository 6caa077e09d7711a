"""The checker that every policy must pass: used by tests, at registration, and by whoever writes a policy."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from policies.errors import BundleRefused, HubError
from policies.heads import CLASSES, Policy
from policies.keyed_random import generator
from policies.types import Context, Direction, Portfolio, Proposal


def check_policy(head: Policy, rows: ArrayLike | None = None) -> list[str]:
    """What is wrong with a head, in sentences; [] if it is sound.

    rows: (N, F) feature vectors, N >= 2, as the head will meet them; without, standard normal ones.
    """
    vectors = _normal_rows(len(head.features)) if rows is None else np.array(rows, dtype=np.float64)
    if vectors.ndim != 2 or len(vectors) < 2 or vectors.shape[1] != len(head.features):
        return [f"rows to check with must be (N, {len(head.features)}) with N >= 2, got {vectors.shape}"]
    findings: list[str] = []
    for check in (_check_predictions, _check_proposals, _check_unusable_vectors):
        try:
            findings += check(head, vectors)
        except HubError as error:
            findings.append(f"failed on a vector that it should answer: {error}")
    return findings


def require_sound(head: Policy, rows: ArrayLike | None = None) -> None:
    """BundleRefused with every finding unless `check_policy` finds nothing."""
    findings = check_policy(head, rows)
    if findings:
        raise BundleRefused(f"policy {head.policy_id[:12]} is not sound: " + "; ".join(findings))


def _normal_rows(features: int) -> NDArray[np.float64]:
    return generator(0, "check_policy").normal(size=(64, features))


def _check_predictions(head: Policy, rows: NDArray[np.float64]) -> list[str]:
    given = rows.copy()
    batch = head.predict(rows)
    if batch.shape != (len(rows), len(CLASSES)) or head.predict(rows[0]).shape != (len(CLASSES),):
        return [f"predict answers shape {batch.shape} to {rows.shape}, not {(len(rows), len(CLASSES))}"]
    findings = []
    if not (np.all((batch >= 0) & (batch <= 1 + 1e-6)) and np.all(np.abs(batch.sum(axis=1) - 1) <= 1e-3)):
        findings.append("predictions are not probabilities that sum to 1")
    if not np.array_equal(batch, head.predict(rows)):
        findings.append("the same rows get different predictions")
    if not np.array_equal(batch, np.array([head.predict(row) for row in rows])):
        findings.append("a row gets another prediction in a batch than by itself")
    if not np.array_equal(batch, head.predict(rows[::-1])[::-1]):
        findings.append("predictions depend on the order of the rows")
    if not np.array_equal(given, rows, equal_nan=True):
        findings.append("predict changes the rows it is given")
    return findings


def _check_proposals(head: Policy, rows: NDArray[np.float64]) -> list[str]:
    proposals = [head.propose(context) for context in map(_context, rows)]
    findings = sorted({finding for proposal in proposals for finding in _bounds(proposal)})
    if proposals != [head.propose(context) for context in map(_context, rows)]:
        findings.append("the same contexts get different proposals")
    return findings


def _bounds(proposal: Proposal) -> list[str]:
    action = proposal.action
    rules: list[tuple[str, float, Callable[[float], bool]]] = [
        ("leverage must be >= 1", action.leverage, lambda v: v >= 1),
        ("size_fraction must be 0..1", action.size_fraction, lambda v: 0 <= v <= 1),
        ("tp_pct must be > 0", action.tp_pct, lambda v: v > 0),
        ("sl_pct must be > 0", action.sl_pct, lambda v: v > 0),
        ("limit_offset_pct must be >= 0", action.limit_offset_pct, lambda v: v >= 0),
        ("min_conf must be 0..1", action.min_conf, lambda v: 0 <= v <= 1),
        ("confidence must be 0..1", proposal.confidence, lambda v: 0 <= v <= 1),
    ]
    findings = [f"{rule}, got {value}" for rule, value, holds in rules if not (math.isfinite(value) and holds(value))]
    if action.direction is Direction.FLAT and action.size_fraction != 0:
        findings.append(f"a flat action must have size 0, got {action.size_fraction}")
    return findings


def _check_unusable_vectors(head: Policy, rows: NDArray[np.float64]) -> list[str]:
    """Nothing but flat, or a HubError, for vectors from which nobody may trade."""
    unusable = {"all NaN": np.full(rows.shape[1], np.nan), "all infinite": np.full(rows.shape[1], np.inf),
                "one number short": rows[0, :-1], "empty": rows[0, :0]}
    findings = []
    for name, vector in unusable.items():
        try:
            proposal = head.propose(_context(vector))
        except HubError:
            continue
        if proposal.action.direction is not Direction.FLAT:
            findings.append(f"trades on a vector that is {name}")
    return findings


def _context(row: NDArray[np.float64]) -> Context:
    return Context("CHECK", "momentum", 0, tuple(map(float, row)), {}, Portfolio(equity=10_000.0))
