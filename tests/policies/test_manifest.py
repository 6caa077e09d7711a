"""Manifests: every field is checked, and the id of a policy from before there were arrays stays what it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest

from feature_repo.features import ARRAYS, DECISION_V1
from policies.bundle import Bundle
from policies.embedder import version_of
from policies.errors import BundleRefused
from policies.manifest import Manifest
from sentry.ledger import encoded

Build = Callable[..., Bundle]


def with_changes(bundle: Bundle, **changes: object) -> bytes:
    return json.dumps({**json.loads(bundle.manifest.canonical_json()), **changes}).encode()


def nested(levels: int) -> dict[str, Any]:
    """An object in which one is in another, this many in all."""
    values: dict[str, Any] = {}
    for _ in range(levels - 1):
        values = {"a": values}
    return values


def test_what_is_as_large_and_deep_as_the_ledger_takes_is_no_reason_to_refuse(onnx_bundle: Build) -> None:
    for trained_on in ({"seed": 2**64 - 1, "least": -2**63}, nested(64), {"a": [[True, None, "x", 1.5]]}):
        manifest = Manifest.from_json(with_changes(onnx_bundle(), trained_on=trained_on))
        assert json.loads(encoded({"manifest": json.loads(manifest.canonical_json())}))["manifest"]["trained_on"] == \
            trained_on


def test_the_id_of_a_policy_without_arrays_is_what_it_always_was(momentum_bundle: Build) -> None:
    assert momentum_bundle(parameters={"threshold": 1.0}).policy_id == \
        "1bc7dd0000a967f144dd754fbda861973749d9bed71d3b8730bc4ee1d8cc288d"


def test_arrays_are_part_of_the_id_and_come_back(onnx_bundle: Build) -> None:
    manifest = onnx_bundle(arrays={"window": 300}, required_groups=("bars", "window")).manifest
    raw = manifest.canonical_json()
    assert Manifest.from_json(raw) == manifest
    assert json.loads(raw)["arrays"] == {"window": 300}
    other = onnx_bundle(arrays={"window": 305}, required_groups=("bars", "window")).manifest
    assert hashlib.sha256(raw).digest() != hashlib.sha256(other.canonical_json()).digest()


def test_a_row_is_as_wide_as_its_features_and_arrays() -> None:
    groups = ("bars", "window", "market_embedding")
    manifest = Manifest("onnx_classifier", "any", ("a", "b"), required_groups=groups,
                        arrays={"window": 10, "market_embedding": 4})
    assert manifest.width == 16


ENCODER: dict[str, Any] = {"kind": "window_encoder", "alias": "mae", "features": (), "arrays": {"window": 300},
                           "parameters": {"size": 16}, "files": {"model.onnx": "0" * 64}}


def test_only_a_window_encoder_may_have_no_features() -> None:
    assert Manifest(**ENCODER).width == 300
    for kind in ("onnx_classifier", "ensemble", "linear_softmax", "momentum_rule"):
        with pytest.raises(BundleRefused, match="features is empty"):
            Manifest(kind, "any", ())


@pytest.mark.parametrize("changes", [
    {"arrays": {}}, {"arrays": {"market_embedding": 3}}, {"arrays": {"window": 5, "other": 1}}, {"features": ("a",)},
    {"parameters": {}}, {"parameters": {"size": 1.5}}, {"parameters": {"size": 0}}, {"parameters": {"size": 10**9}},
    {"parameters": {"size": 4, "more": 1}}])
def test_an_encoder_of_something_else_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BundleRefused, match="window_encoder"):
        Manifest(**{**ENCODER, **changes})


@pytest.mark.parametrize("count", [0, -1, 1.5, True, "3", None, 10**9])
def test_an_array_of_no_sensible_length_is_refused(count: Any) -> None:
    with pytest.raises(BundleRefused, match=r"arrays\.window"):
        Manifest("onnx_classifier", "any", ("a",), required_groups=("window",), arrays={"window": count})


def test_an_array_group_that_is_not_required_is_refused() -> None:
    with pytest.raises(BundleRefused, match="required_groups"):
        Manifest("onnx_classifier", "any", ("a",), arrays={"window": 5})


@pytest.mark.parametrize(("changes", "reason"), [
    ({"leverge": 5}, "unknown key"), ({"featurs": []}, "did you mean 'features'"), ({"kind": "pickle"}, "kind"),
    ({"kind": {}}, "kind"), ({"alias": "a/b"}, "alias"), ({"alias": None}, "alias"),
    ({"alias": "0123abcd"}, "like the beginning of a policy's id"), ({"alias": "DEADBEEF"}, "like the beginning"),
    ({"alias": "ab" * 32}, "like the beginning"),
    ({"features": []}, "order of the feature vector"), ({"features": ["a", "a"]}, "different names"),
    ({"features": "abc"}, "different names"), ({"feature_service": "decision_v9"}, "feature_service"),
    ({"optional_features": ["nope"]}, "not in its list"), ({"inputs": {"momentum": "nope"}}, "not in its list"),
    ({"inputs": {"momentum": {}}}, "not in its list"), ({"parameters": {"leverage": float("nan")}}, "finite"),
    ({"parameters": {"leverage": float("inf")}}, "finite"), ({"parameters": {"leverage": 10**400}}, "finite"),
    ({"parameters": {"leverage": True}}, "finite"), ({"parameters": {"leverage": "5"}}, "finite"),
    ({"trained_on": {"loss": float("nan")}}, "plain JSON"), ({"trained_on": {"seed": 2**64}}, "beyond 64 bits"),
    ({"trained_on": {"a": [{"seed": -2**63 - 1}]}}, "beyond 64 bits"),
    ({"trained_on": nested(65)}, "deeper than the 64 levels"), ({"trained_on": nested(900)}, "deeper than the 64"),
    ({"trained_on": []}, "object"),
    ({"files": {"../x": "0" * 64}}, "without folders"), ({"files": {"model.onnx": "abc"}}, "SHA-256"),
    ({"arrays": []}, "object"),
])
def test_a_senseless_manifest_is_refused(onnx_bundle: Build, changes: dict[str, object], reason: str) -> None:
    with pytest.raises(BundleRefused, match=reason):
        Manifest.from_json(with_changes(onnx_bundle(), **changes))


@pytest.mark.parametrize("raw", [b"", b"[]", b"\xff", b"[" * 100_000, b'{"kind":"a","kind":"b"}', b'{"kind":"a"}'])
def test_a_manifest_that_is_no_manifest_is_refused(raw: bytes) -> None:
    with pytest.raises(BundleRefused, match="manifest"):
        Manifest.from_json(raw)


@pytest.mark.parametrize(("name", "many", "reason"), [
    ("inputs", {str(number): "ret_1" for number in range(4_097)}, "inputs has 4097 parts; at most 4096"),
    ("required_groups", tuple(map(str, range(4_097))), "required_groups has 4097 names; at most 4096"),
    ("optional_features", tuple(map(str, range(4_097))), "optional_features has 4097 names; at most 4096")])
def test_no_list_of_a_manifest_is_longer_than_that_of_the_features(onnx_bundle: Build, name: str, many: Any,
                                                                   reason: str) -> None:
    with pytest.raises(BundleRefused, match=reason):
        Manifest.from_json(with_changes(onnx_bundle(), **{name: many}))


@pytest.mark.parametrize("changes", [
    {"features": ["\x1b[2J", "b"]}, {"required_groups": ["bars", "\x1b[31mX\n"]}, {"optional_groups": [""]},
    {"embedding_version": "\x1b[2J\nregistered"}, {"embedding_version": ""}, {"features": ["a" * 101]},
    {"parameters": {"leverage\n": 5}}, {"inputs": {"\x1b": "ret_1"}}, {"arrays": {"window\r": 5}}])
def test_what_is_no_plain_name_is_refused_in_one_printable_line(onnx_bundle: Build, changes: dict[str, Any]) -> None:
    with pytest.raises(BundleRefused, match=r"names|a name") as refused:
        Manifest.from_json(with_changes(onnx_bundle(), **changes))
    assert str(refused.value).isprintable()


def test_every_name_that_the_hub_serves_is_a_plain_one() -> None:
    groups = (*DECISION_V1.groups, *ARRAYS)
    Manifest("onnx_classifier", "any", DECISION_V1.names, required_groups=groups, optional_features=DECISION_V1.names,
             embedding_version=version_of("ab" * 32), arrays=dict.fromkeys(ARRAYS, 5))


def test_to_check_many_names_takes_no_more_than_a_moment() -> None:
    class Counted(str):
        compared = 0
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            Counted.compared += 1
            return str.__eq__(self, other)

    features = tuple(Counted(f"f{number}") for number in range(4_096))
    Manifest("onnx_classifier", "any", features, inputs={str(number): "f4095" for number in range(4_096)})
    assert Counted.compared < 20_000


def test_another_feature_order_is_refused(onnx_bundle: Build) -> None:
    manifest = onnx_bundle().manifest
    manifest.require_feature_order(manifest.features)
    with pytest.raises(BundleRefused, match="first difference at 0"):
        manifest.require_feature_order(manifest.features[::-1])
    with pytest.raises(BundleRefused, match="first difference at 3"):
        manifest.require_feature_order(manifest.features[:3])
