"""A policy of policies: members packed inside one bundle, whose Actions are combined by fixed weights.

The rule of `combine`, for members i with weights w_i that sum to 1, directions and confidences c_i:

- p_long is the sum of w_i c_i over the members that go long, p_short over those that go short, p_flat the rest. The
  greater of the two is the direction; if they are equal, flat.
- Flat also unless those who agree hold `quorum` of the weight.
- Confidence is the agreeing members' weighted mean confidence, times p of the direction / (p_long + p_short): whoever
  contradicts lowers it, whoever stays flat does not. Under the strictest min_conf of those who agree: flat.
- Leverage, margin and stop are the least, min_conf the greatest of those who agree; target and limit offset are their
  weighted means. So the loss at the stop, the notional, the stop's width and the leverage are never more than any
  agreeing member's own.
- A member that cannot answer leaves the ensemble without an answer: other weights would be another policy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies.bundle import Bundle, make_bundle, pack_bundle, read_bundle
from policies.errors import BundleRefused, InvalidInput
from policies.head import Head, Policy, require_parameters
from policies.manifest import ENSEMBLE, MAX_MEMBERS, MEMBER_FILES, WINDOW_ENCODER, Manifest
from policies.types import Action, Direction, Proposal

EMBEDDING_GROUP = "market_embedding"
DEFAULT_QUORUM = 0.5
MAX_WEIGHT = 1e6
MAX_MEMBER_BYTES = 128 * 2**20  # of all members' files together, unpacked

_LEAST = 1e-9  # of weight that rounding may take from a quorum


class EnsembleHead(Head):
    """parameters: weight_0, weight_1 ... of member_0.pt, member_1.pt ..., >= 0, in any unit; quorum: 0..1."""

    def __init__(self, bundle: Bundle, load_member: Callable[[Bundle], Head]) -> None:
        super().__init__(bundle)
        if self.manifest.inputs:
            raise BundleRefused("an ensemble's members name their own inputs: manifest.inputs must be empty")
        packed = _unpacked_members(bundle)
        names = [f"weight_{place}" for place in range(len(packed))]
        require_parameters(self.manifest, {"quorum": (0.0, 1.0), **dict.fromkeys(names, (0.0, MAX_WEIGHT))})
        weights = np.array([float(self.manifest.parameters.get(name, 0.0)) for name in names])
        if not weights.sum() > 0:
            raise BundleRefused(f"an ensemble needs a weight > 0 among {', '.join(names)}")
        self._weights = weights / weights.sum()
        self._quorum = float(self.manifest.parameters.get("quorum", DEFAULT_QUORUM))
        _require_fitting(self.manifest, [member.manifest for member in packed])
        self._members = [load_member(member) for member in packed]
        self._places = [_places(self.manifest, member.manifest) for member in packed]

    @property
    def members(self) -> Sequence[Policy]:
        return tuple(self._members)

    @property
    def needed_features(self) -> tuple[str, ...]:
        """Those without which no member trades."""
        return tuple(name for name in self.features if all(name in member.needed_features for member in self._members))

    def decide(self, row: NDArray[np.float64]) -> Proposal:
        return combine(self._proposals(row), self._weights, self._quorum)

    def _probabilities(self, row: NDArray[np.float64]) -> NDArray[np.float64]:
        p_short, p_long = _votes(list(self._proposals(row).values()), self._weights)
        return np.array([p_short, max(0.0, 1.0 - p_short - p_long), p_long])

    def _proposals(self, row: NDArray[np.float64]) -> dict[str, Proposal]:
        if row.shape != (self.width,):
            raise InvalidInput("features", f"{self.width} numbers", row.shape)
        return {member.manifest.alias: member.decide(row[places])
                for member, places in zip(self._members, self._places, strict=True)}


def combine(proposals: Mapping[str, Proposal], weights: NDArray[np.float64],
            quorum: float = DEFAULT_QUORUM) -> Proposal:
    """One proposal of those by alias, by the rule above. weights: (K,) >= 0 that sum to 1, in their order."""
    given = list(proposals.values())
    p_short, p_long = _votes(given, weights)
    direction = Direction.LONG if p_long > p_short else Direction.SHORT
    agreeing = [(proposal, float(weight)) for proposal, weight in zip(given, weights, strict=True)
                if weight > 0 and proposal.action.direction is direction]
    share = sum(weight for _, weight in agreeing)
    agreed = max(p_long, p_short)
    confidence = min(1.0, agreed / share * agreed / (p_long + p_short)) if agreed > 0 else 0.5
    action = _strictest(agreeing or list(zip(given, map(float, weights), strict=True)), direction)
    if p_long == p_short or share < quorum - _LEAST or confidence < action.min_conf:
        action = action.flat()
    signals = {alias: {"direction": proposal.action.direction.value, "confidence": proposal.confidence,
                       "weight": float(weight)}
               for (alias, proposal), weight in zip(proposals.items(), weights, strict=True)}
    return Proposal(action, confidence, signals)


def make_ensemble(alias: str, members: Sequence[Bundle], weights: Sequence[float], quorum: float = DEFAULT_QUORUM,
                  trained_on: Mapping[str, Any] | None = None) -> Bundle:
    """A bundle of kind ensemble. Members have different aliases, the same features, and weights >= 0 in any unit."""
    if not 1 <= len(members) <= MAX_MEMBERS or len(weights) != len(members):
        raise InvalidInput("members", f"1 to {MAX_MEMBERS} bundles, each with a weight", (len(members), len(weights)))
    manifests = [member.manifest for member in members]
    first = manifests[0]
    versions = {m.embedding_version for m in manifests if EMBEDDING_GROUP in m.arrays} or {first.embedding_version}
    optional = set.intersection(*(set(m.optional_features) for m in manifests))
    arrays: dict[str, int] = {}
    for manifest in manifests:
        arrays |= {group: max(count, arrays.get(group, 0)) for group, count in manifest.arrays.items()}
    required = _union([m.required_groups for m in manifests])
    manifest = Manifest(
        kind=ENSEMBLE, alias=alias, features=first.features, feature_service=first.feature_service,
        required_groups=required, arrays=arrays,
        optional_groups=tuple(g for g in _union([m.optional_groups for m in manifests]) if g not in required),
        optional_features=tuple(name for name in first.features if name in optional),
        embedding_version=min(versions), trained_on=dict(trained_on or {}),
        parameters={"quorum": quorum, **{f"weight_{i}": float(weight) for i, weight in enumerate(weights)}})
    _require_fitting(manifest, manifests)
    return make_bundle(manifest, {MEMBER_FILES[i]: pack_bundle(member) for i, member in enumerate(members)})


def _votes(proposals: Sequence[Proposal], weights: NDArray[np.float64]) -> tuple[float, float]:
    """(p_short, p_long), together at most 1."""
    votes = {Direction.SHORT: 0.0, Direction.LONG: 0.0, Direction.FLAT: 0.0}
    for proposal, weight in zip(proposals, weights, strict=True):
        votes[proposal.action.direction] += float(weight) * proposal.confidence
    return votes[Direction.SHORT], votes[Direction.LONG]


def _strictest(weighed: Sequence[tuple[Proposal, float]], direction: Direction) -> Action:
    """See the rule: the least of whatever could lose money, the means of the rest."""
    actions = [proposal.action for proposal, _ in weighed]
    total = sum(weight for _, weight in weighed)

    def mean(values: Sequence[float]) -> float:
        return sum(value * weight for value, (_, weight) in zip(values, weighed, strict=True)) / total

    return Action(direction, min(a.size_fraction for a in actions), min(a.leverage for a in actions),
                  mean([a.tp_pct for a in actions]), min(a.sl_pct for a in actions),
                  mean([a.limit_offset_pct for a in actions]), max(a.min_conf for a in actions))


def _unpacked_members(bundle: Bundle) -> list[Bundle]:
    left, members = MAX_MEMBER_BYTES, []
    for name in MEMBER_FILES[:len(bundle.files)]:
        try:
            member = read_bundle(bundle.files[name])
        except BundleRefused as error:
            raise BundleRefused(f"{name}: {error}") from error
        if member.manifest.kind in (ENSEMBLE, WINDOW_ENCODER):
            raise BundleRefused(f"{name} is of kind {member.manifest.kind}: an ensemble's members are plain heads")
        left -= sum(map(len, member.files.values()))
        if left < 0:
            raise BundleRefused(f"an ensemble's members have at most {MAX_MEMBER_BYTES // 2**20} MiB together")
        members.append(member)
    return members


def _require_fitting(manifest: Manifest, members: Sequence[Manifest]) -> None:
    """BundleRefused unless whatever the ensemble is given is enough for each member, and no more than they take."""
    if len({member.alias for member in members}) != len(members):
        raise BundleRefused("an ensemble's members need different aliases")
    for member in members:
        rules = [("features, or another order of them", member.features == manifest.features),
                 ("feature service", member.feature_service == manifest.feature_service),
                 ("required groups", set(member.required_groups) <= set(manifest.required_groups)),
                 ("optional features", set(manifest.optional_features) <= set(member.optional_features)),
                 ("embedding version", EMBEDDING_GROUP not in member.arrays
                  or member.embedding_version == manifest.embedding_version)]
        for what, holds in rules:
            if not holds:
                raise BundleRefused(f"the ensemble's member {member.alias} was made for other {what}")
    most: dict[str, int] = {}
    for member in members:
        most |= {group: max(count, most.get(group, 0)) for group, count in member.arrays.items()}
    if most != dict(manifest.arrays):
        raise BundleRefused(f"the ensemble's arrays are {dict(manifest.arrays)}, its members take {most}")


def _places(manifest: Manifest, member: Manifest) -> NDArray[np.int64]:
    """Where the numbers of a member's row stand in the ensemble's."""
    parts, first = [np.arange(len(manifest.features))], len(manifest.features)
    for group, count in sorted(manifest.arrays.items()):
        first += count
        parts.append(np.arange(first - member.arrays.get(group, 0), first))
    return np.concatenate(parts).astype(np.int64)


def _union(groups: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Every name once, in the order in which they come."""
    return tuple(dict.fromkeys(name for names in groups for name in names))
