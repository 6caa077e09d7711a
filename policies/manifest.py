"""The manifest of a policy: what it is, what it sees, what it was made from; its canonical JSON is the policy's id.

A manifest is numbers and names only. Every field is checked when it is made, so that other code may rely on it.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from policies.errors import BundleRefused, one_line

MANIFEST = "manifest.json"
ONNX_FILE, CBM_FILE, TENSORS_FILE = "model.onnx", "model.cbm", "weights.safetensors"
MAX_MEMBERS = 8  # of an ensemble
MEMBER_FILES = tuple(f"member_{i}.pt" for i in range(MAX_MEMBERS))
WINDOW_ENCODER, ENSEMBLE, ONNX_ACTOR = "window_encoder", "ensemble", "onnx_actor"
FILES_BY_KIND: Mapping[str, frozenset[str]] = {  # of an ensemble: the most; it has the first few of them
    "momentum_rule": frozenset(), "onnx_classifier": frozenset({ONNX_FILE}),
    "catboost_classifier": frozenset({CBM_FILE}), "linear_softmax": frozenset({TENSORS_FILE}),
    ONNX_ACTOR: frozenset({ONNX_FILE, TENSORS_FILE}),
    ENSEMBLE: frozenset(MEMBER_FILES), WINDOW_ENCODER: frozenset({ONNX_FILE})}
FEATURE_SERVICES = ("decision_v1",)
MAX_MANIFEST_BYTES = 2**20
MAX_PARAMETER = 1e15
MAX_FEATURES = 4_096
MAX_ARRAY = 65_536  # numbers of one array group
MAX_EMBEDDING = 4_096
WHOLE_NUMBERS = range(-2**63, 2**64)  # that the ledger can record
MAX_DEPTH = 64  # of objects and lists in one another; every reader of the ledger takes more
SHORTEST_ID = 8  # digits of a policy's id by which it can be named

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")
_LIKE_AN_ID = re.compile(rf"[0-9a-fA-F]{{{SHORTEST_ID},}}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Manifest:
    """What a policy is made of and was made from.

    features: names in the order of the feature vector. optional_features: those of them that may be NaN (they belong to
    optional groups). inputs: which feature plays which part, for kinds that look at single features.
    arrays: by array group, how many numbers are taken: always the last ones of the array.
    parameters: numbers of the kind, such as action levels and thresholds; see `policies.heads`.
    trained_on: JSON of any shape: range, symbols, code version, seed, every trial. files: SHA-256 (hex) by file name.
    """

    kind: str
    alias: str
    features: tuple[str, ...]
    feature_service: str = "decision_v1"
    required_groups: tuple[str, ...] = ("bars",)
    optional_groups: tuple[str, ...] = ()
    optional_features: tuple[str, ...] = ()
    embedding_version: str = "none"
    inputs: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, float] = field(default_factory=dict)
    trained_on: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    arrays: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_names(self)
        _check_mappings(self)
        _check_arrays(self)

    @property
    def width(self) -> int:
        """Numbers in an input row: the features, then for each group in sorted(arrays) its last numbers."""
        return len(self.features) + sum(self.arrays.values())

    def canonical_json(self) -> bytes:
        """Sorted keys, no blanks, UTF-8: the bytes whose SHA-256 is the policy's id."""
        values = asdict(self)
        if not self.arrays:  # bundles from before there were arrays keep their ids
            del values["arrays"]
        return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()

    @classmethod
    def from_json(cls, raw: bytes) -> Manifest:
        if len(raw) > MAX_MANIFEST_BYTES:
            raise BundleRefused(f"{MANIFEST} has {len(raw)} bytes; at most {MAX_MANIFEST_BYTES} are read")
        values = json_object(raw, MANIFEST)
        names = [f.name for f in fields(cls)]
        for key in values.keys() - set(names):
            near = difflib.get_close_matches(key, names, n=1)
            raise BundleRefused(f"{MANIFEST}: unknown key {key!r:.100}"
                                + (f"; did you mean {near[0]!r}?" if near else ""))
        missing = {"kind", "alias", "features"} - values.keys()
        if missing:
            raise BundleRefused(f"{MANIFEST}: missing {', '.join(sorted(missing))}")
        as_given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**as_given)

    def require_feature_order(self, names: tuple[str, ...]) -> None:
        """BundleRefused unless the policy was made for exactly these features in this order."""
        if self.features == tuple(names):
            return
        pairs = list(zip(self.features, names, strict=False))
        place = next((i for i, (own, given) in enumerate(pairs) if own != given), len(pairs))
        raise BundleRefused(f"policy {self.alias} was made for other features than {self.feature_service} serves: "
                            f"{len(self.features)} against {len(names)}, first difference at {place}")


def json_object(raw: bytes, name: str) -> dict[str, Any]:
    """The JSON object in a bundle's file, no key given twice. BundleRefused, naming the file, if it is not one."""
    try:
        values = json.loads(raw, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise BundleRefused(f"{name} is not JSON: {one_line(error)}") from error
    if not isinstance(values, dict):
        raise BundleRefused(f"{name} must be a JSON object, got {type(values).__name__}")
    return values


def require_plain_name(name: object) -> None:
    """BundleRefused unless a file's name can only ever mean a file in its own folder."""
    if not _is_name(name):
        raise BundleRefused(f"file name {name!r:.120}: a bundle's files are named by letters, digits, '_', '-' and "
                            f"'.', without folders")


def _is_name(value: object) -> bool:
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def is_sha256(value: object) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def _check_names(manifest: Manifest) -> None:
    if not isinstance(manifest.kind, str) or manifest.kind not in FILES_BY_KIND:
        raise BundleRefused(f"manifest.kind must be one of {', '.join(FILES_BY_KIND)}, got {manifest.kind!r:.100}")
    if not _is_name(manifest.alias):
        raise BundleRefused(f"manifest.alias must be letters, digits, '_', '-' or '.', got {manifest.alias!r:.100}")
    if _LIKE_AN_ID.fullmatch(manifest.alias):
        raise BundleRefused(f"manifest.alias {manifest.alias} reads like the beginning of a policy's id; name it by "
                            f"more than hexadecimal digits")
    if manifest.feature_service not in FEATURE_SERVICES:
        raise BundleRefused(f"manifest.feature_service must be one of {', '.join(FEATURE_SERVICES)}, "
                            f"got {manifest.feature_service!r:.100}")
    for name in ("features", "required_groups", "optional_groups", "optional_features"):
        names = getattr(manifest, name)
        if not isinstance(names, tuple) or not all(map(_is_name, names)) or len(set(names)) != len(names):
            raise BundleRefused(f"manifest.{name} must be a list of different names, of letters, digits, '_', '-' and "
                                f"'.'")
        if len(names) > MAX_FEATURES:
            raise BundleRefused(f"manifest.{name} has {len(names)} names; at most {MAX_FEATURES} are served")
    if not manifest.features and manifest.kind != WINDOW_ENCODER:
        raise BundleRefused("manifest.features is empty: the order of the feature vector is unknown")
    if not _is_name(manifest.embedding_version):
        raise BundleRefused("manifest.embedding_version must be a name, or 'none'")


def _check_mappings(manifest: Manifest) -> None:
    for name in ("inputs", "parameters", "trained_on", "files", "arrays"):
        values = getattr(manifest, name)
        if not isinstance(values, dict):
            raise BundleRefused(f"manifest.{name} must be an object")
        if name in ("inputs", "parameters", "arrays") and not all(map(_is_name, values)):
            raise BundleRefused(f"manifest.{name} must have names of letters, digits, '_', '-' and '.'")
    if len(manifest.inputs) > MAX_FEATURES:
        raise BundleRefused(f"manifest.inputs has {len(manifest.inputs)} parts; at most {MAX_FEATURES} are served")
    known = set(manifest.features)
    unknown = [n for n in (*manifest.optional_features, *manifest.inputs.values())
               if not isinstance(n, str) or n not in known]
    if unknown:
        raise BundleRefused("manifest names features that are not in its list: "
                            + one_line(", ".join(map(str, unknown))))
    for name, value in manifest.parameters.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MAX_PARAMETER:
            raise BundleRefused(f"manifest.parameters.{name} must be a finite number, got {value!r:.50}")
    for name, sha256 in manifest.files.items():
        require_plain_name(name)
        if not is_sha256(sha256):
            raise BundleRefused(f"manifest.files.{name} must be a SHA-256 in hex")
    _check_recordable(manifest.trained_on)
    try:
        manifest.canonical_json()
    except (ValueError, TypeError, RecursionError) as error:
        raise BundleRefused(f"manifest must be finite plain JSON: {one_line(error)}") from error


def _check_recordable(trained_on: Mapping[str, Any]) -> None:
    """Whole numbers and depth that a row of the ledger can have: what it refuses, both serving processes had opened."""
    level: list[Any] = [trained_on]
    for _ in range(MAX_DEPTH):
        parts = [part for value in level for part in (value.values() if isinstance(value, Mapping) else value)]
        if any(isinstance(part, int) and part not in WHOLE_NUMBERS for part in parts):
            raise BundleRefused("manifest.trained_on holds a whole number beyond 64 bits")
        level = [part for part in parts if isinstance(part, Mapping | list | tuple)]
        if not level:
            return
    raise BundleRefused(f"manifest.trained_on is nested deeper than the {MAX_DEPTH} levels that are recorded")


def _check_arrays(manifest: Manifest) -> None:
    for group, count in manifest.arrays.items():
        named = f"manifest.arrays.{group}"
        if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MAX_ARRAY:
            raise BundleRefused(f"{named} must be a whole number between 1 and {MAX_ARRAY}, got {count!r:.50}")
        if manifest.kind != WINDOW_ENCODER and group not in manifest.required_groups:
            raise BundleRefused(f"{named}: an array group is also named in required_groups")
    if manifest.kind == WINDOW_ENCODER:
        _check_encoder(manifest)


def _check_encoder(manifest: Manifest) -> None:
    if set(manifest.arrays) != {"window"} or manifest.features or manifest.inputs:
        raise BundleRefused("a window_encoder sees arrays.window and nothing else")
    size = manifest.parameters.get("size")
    if set(manifest.parameters) != {"size"} or not isinstance(size, int | float) or size != int(size) \
            or not 1 <= size <= MAX_EMBEDDING:
        raise BundleRefused(f"a window_encoder has one parameter, size, a whole number between 1 and {MAX_EMBEDDING}")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key is given twice")
    return values
