"""The checker that every policy must pass: used by tests, at registration, and by whoever writes a policy.

`python -m policies.checks PATH` prints what is wrong with the bundle at PATH, and ends with 1 if anything is. It opens
the bundle as a hub would: in a process of its own, with limits.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from policies.errors import BundleRefused, HubError
from policies.head import CLASSES, Policy
from policies.probe_rows import Rows, head_rows, window_rows
from policies.types import Context, Direction, Portfolio, Proposal

LATENCY_LIMIT_MS = 50.0
MOST_NAMED = 6  # findings in a refusal
TOLERANCE = 1e-4  # by which a served probability may differ from the training framework's


class Encoder(Protocol):
    """What turns windows into embeddings; see `policies.embedder`."""

    window: int
    size: int

    def embed(self, windows: NDArray[np.float32]) -> NDArray[np.float32]: ...


def check_policy(head: Policy, rows: ArrayLike | None = None, latency_limit_ms: float = LATENCY_LIMIT_MS,
                 timer: Callable[[], float] = time.perf_counter) -> list[str]:
    """What is wrong with a head, in sentences; [] if it is sound.

    rows: (N, width) input rows, N >= 2, as the head will meet them; without, normal and extreme ones.
    latency_limit_ms: that 95 % of the rows must be answered within; each row's figure is the better of two. Infinite:
    how long it takes is not looked at, so that the findings do not depend on what else the machine does.
    timer: seconds on any clock that doesn't go back. An ensemble's members are checked as well.
    """
    vectors = head_rows(len(head.features), head.arrays) if rows is None else np.array(rows, dtype=np.float64)
    if vectors.ndim != 2 or len(vectors) < 2 or vectors.shape[1] != head.width:
        return [f"rows to check with must be (N, {head.width}) with N >= 2, got {vectors.shape}"]
    findings = _check_at_once(head, vectors[:5], latency_limit_ms, timer)
    if findings:
        return findings
    for check in (_check_predictions, _check_proposals, _check_missing, _check_unusable_vectors):
        try:
            findings += check(head, vectors)
        except HubError as error:
            findings.append(f"failed on a vector that it should answer: {error}")
    if not findings:
        findings += _check_latency([_asked(head, row) for row in vectors], latency_limit_ms, timer)
    findings = list(dict.fromkeys(findings))  # two checks may meet one fault
    for member in getattr(head, "members", ()):
        name = f"its member {member.policy_id[:12]}"
        findings += [f"{name}: {finding}" for finding in check_policy(member, None, latency_limit_ms, timer)]
    return findings


def require_sound(head: Policy, rows: ArrayLike | None = None, latency_limit_ms: float = LATENCY_LIMIT_MS) -> None:
    """BundleRefused with every finding unless `check_policy` finds nothing."""
    refuse_unless_sound(head.policy_id, check_policy(head, rows, latency_limit_ms))


def refuse_unless_sound(policy_id: str, findings: Sequence[str]) -> None:
    """BundleRefused with the first findings if there are any."""
    if findings:
        more = f"; and {len(findings) - MOST_NAMED} more" if len(findings) > MOST_NAMED else ""
        raise BundleRefused(f"policy {policy_id[:12]} is not sound: " + "; ".join(findings[:MOST_NAMED]) + more)


def check_agreement(served_answers: Callable[[ArrayLike], Rows], rows: ArrayLike, expected: ArrayLike,
                    tolerance: float = TOLERANCE) -> list[str]:
    """What differs between the served answers and those of the framework that trained the head; [] if nothing does.

    served_answers: such as `predict` of a head, or `act` of an actor. rows: (N, width). expected: (N, 3), what the
    framework answers to them. tolerance: greatest difference.
    """
    wanted = np.asarray(expected, dtype=np.float64)
    try:
        served = served_answers(rows)
    except HubError as error:
        return [f"failed on a row that its framework answered: {error}"]
    if served.shape != wanted.shape:
        return [f"answers shape {served.shape}, its framework {wanted.shape}"]
    apart = np.abs(served - wanted).max(axis=1, initial=0.0)
    wrong = ~(apart <= tolerance)  # so that NaN counts
    if not wrong.any():
        return []
    return [f"{int(wrong.sum())} of {len(wanted)} rows differ from its framework by more than {tolerance:g}, the first "
            f"is row {int(np.argmax(wrong))} by {apart[wrong][0]:g}"]


def check_encoder(encoder: Encoder, latency_limit_ms: float = LATENCY_LIMIT_MS,
                  timer: Callable[[], float] = time.perf_counter) -> list[str]:
    """What is wrong with an encoder of windows, in sentences; [] if it is sound."""
    windows = window_rows(encoder.window).astype(np.float32)
    try:
        first = [_embedded(encoder, row[None]) for row in windows[:5]]
        slow = _check_latency(first, latency_limit_ms, timer, percent=50)
        if slow:
            return slow
        embedded = encoder.embed(windows)
        if embedded.shape != (len(windows), encoder.size) or not np.all(np.isfinite(embedded)):
            return [f"embeddings of {windows.shape} are not finite numbers of shape {(len(windows), encoder.size)}"]
        findings = []
        if not np.array_equal(embedded, encoder.embed(windows)):
            findings.append("the same windows get different embeddings")
        if not np.array_equal(embedded, np.concatenate([encoder.embed(row[None]) for row in windows])):
            findings.append("a window gets another embedding in a batch than by itself")
    except HubError as error:
        return [f"failed on a window that it should encode: {error}"]
    return findings or _check_latency([_embedded(encoder, row[None]) for row in windows], latency_limit_ms, timer)


def _check_predictions(head: Policy, rows: Rows) -> list[str]:
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


def _check_proposals(head: Policy, rows: Rows) -> list[str]:
    contexts = [_context(head, row) for row in rows]
    proposals = [head.propose(context) for context in contexts]
    findings = sorted({finding for proposal in proposals for finding in _bounds(proposal)})
    if proposals != [head.propose(context) for context in contexts]:
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


def _check_missing(head: Policy, rows: Rows) -> list[str]:
    """Answers whatever optional feature is missing, alone or with all others; trades on no missing needed one."""
    optional = [head.features.index(name) for name in head.optional_features]
    findings = []
    for number, places in enumerate([*([place] for place in optional), *([optional] if optional else [])]):
        row = rows[number % len(rows)].copy()
        row[places] = np.nan
        named = head.features[places[0]] if len(places) == 1 else "every optional feature"
        try:
            if not np.all(np.isfinite(head.predict(row))) or _bounds(head.propose(_context(head, row))):
                findings.append(f"answers nonsense when {named} is missing, which is optional")
        except HubError as error:
            findings.append(f"does not answer when {named} is missing, which is optional: {error}")
    needed = [head.features.index(name) for name in head.needed_features if name not in head.optional_features]
    for place in [*needed, *range(len(head.features), head.width)]:
        named = head.features[place] if place < len(head.features) else f"number {place} of its arrays"
        row = rows[0].copy()
        row[place] = np.nan
        findings += _trades_on(head, row, f"in which {named} is NaN")
    return findings


def _check_unusable_vectors(head: Policy, rows: Rows) -> list[str]:
    """Nothing but flat, or a HubError, for vectors from which nobody may trade."""
    short = _context(head, rows[0])
    findings = [finding for what, value in (("all NaN", np.nan), ("all infinite", np.inf))
                for finding in _trades_on(head, np.full(head.width, value), f"that is {what}")]
    for what, features in (("one number short", short.features[:-1]), ("empty", ())):
        findings += _trades(head, Context("CHECK", "momentum", 0, features, {}, short.portfolio, arrays=short.arrays),
                            f"that is {what}")
    for group, count in head.arrays.items():
        for what, arrays in (("absent", {}), ("one number short", {group: (0.0,) * (count - 1)})):
            findings += _trades(head, Context("CHECK", "momentum", 0, short.features, {}, short.portfolio,
                                              arrays={**short.arrays, group: (), **arrays}),
                                f"whose {group} is {what}")
    return findings


def _trades_on(head: Policy, row: Rows, described: str) -> list[str]:
    return _trades(head, _context(head, row), described)


def _trades(head: Policy, context: Context, described: str) -> list[str]:
    try:
        proposal = head.propose(context)
    except HubError:
        return []
    return [] if proposal.action.direction is Direction.FLAT else [f"trades on a vector {described}"]


def _check_at_once(head: Policy, rows: Rows, limit_ms: float, timer: Callable[[], float]) -> list[str]:
    """Whether it is far too slow, before it is asked a thousand times. What fails is for the other checks to say."""
    try:
        return _check_latency([_asked(head, row) for row in rows], limit_ms, timer, percent=50)
    except HubError:
        return []


def _check_latency(calls: Sequence[Callable[[], object]], limit_ms: float, timer: Callable[[], float],
                   percent: int = 95) -> list[str]:
    """A row's figure is the better of two. Nobody is asked on once the limit cannot be met, nor once a row is over it
    and those so far have had the time that all may take: on a busy machine, the rest would take minutes."""
    if math.isinf(limit_ms):
        return []
    forgiven = len(calls) - 1 - (len(calls) - 1) * percent // 100  # rows that may be over the limit
    patience_ms, taken_ms, beyond = 2 * len(calls) * limit_ms, [], 0
    for call in calls:
        times_ms = [_timed_ms(call, timer) for _ in range(2)]
        taken_ms.append(min(times_ms))
        patience_ms -= sum(times_ms)
        beyond += not taken_ms[-1] <= limit_ms
        if beyond > forgiven or (taken_ms[-1] > limit_ms and patience_ms < 0):
            return [f"answers too slowly: {percent} % of {len(calls)} rows must be answered within {limit_ms:g} ms, "
                    f"and {beyond} of the first {len(taken_ms)} were not, the last in {taken_ms[-1]:.1f} ms"]
    most_ms = float(np.percentile(taken_ms, percent))
    if most_ms <= limit_ms:
        return []
    return [f"answers too slowly: {percent} % of {len(calls)} rows within {most_ms:.1f} ms, "
            f"allowed are {limit_ms:g} ms"]


def _timed_ms(call: Callable[[], object], timer: Callable[[], float]) -> float:
    started = timer()
    call()
    return 1_000.0 * (timer() - started)


def _asked(head: Policy, row: Rows) -> Callable[[], object]:
    context = _context(head, row)
    return lambda: head.propose(context)


def _embedded(encoder: Encoder, window: NDArray[np.float32]) -> Callable[[], object]:
    return lambda: encoder.embed(window)


def _context(head: Policy, row: Rows) -> Context:
    """The context from which a head builds this input row."""
    count = len(head.features)
    features, arrays = tuple(map(float, row[:count])), {}
    for group in sorted(head.arrays):
        arrays[group] = row[count:count + head.arrays[group]]
        count += head.arrays[group]
    return Context("CHECK", "momentum", 0, features, {}, Portfolio(equity=10_000.0), arrays=arrays)


def main(arguments: Sequence[str]) -> int:
    """0 if the bundle at the one path given is sound, 1 if not, 2 if nothing was asked."""
    # Here, because the loader's child imports this module.
    from policies.bundle import read_bundle
    from policies.loader import require_checked

    if len(arguments) != 1:
        print("usage: python -m policies.checks PATH", file=sys.stderr)
        return 2
    try:
        bundle = read_bundle(Path(arguments[0]))
        require_checked(bundle)
    except BundleRefused as error:
        print(error)
        return 1
    print(f"policy {bundle.manifest.alias} {bundle.policy_id} is sound")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
