"""Signatures: over the policy's id, by a trusted key where keys are configured, and never wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from policies.bundle import Bundle, Signature, pack_bundle, read_bundle
from policies.errors import BundleRefused
from policies.signing import public_key_of, sign_bundle, verify

Build = Callable[..., Bundle]
KEY, OTHER = (Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2))


def test_a_signed_policy_is_the_same_policy_and_verifies_after_packing(onnx_bundle: Build) -> None:
    signed = read_bundle(pack_bundle(sign_bundle(onnx_bundle(), KEY)))
    assert signed.policy_id == onnx_bundle().policy_id
    verify(signed)
    verify(signed, [public_key_of(OTHER), public_key_of(KEY).upper()])


def test_without_trusted_keys_no_signature_is_needed(onnx_bundle: Build) -> None:
    verify(onnx_bundle())


def test_with_trusted_keys_one_of_them_must_have_signed(onnx_bundle: Build) -> None:
    with pytest.raises(BundleRefused, match=r"no signature\.json"):
        verify(onnx_bundle(), [public_key_of(KEY)])
    with pytest.raises(BundleRefused, match="not trusted"):
        verify(sign_bundle(onnx_bundle(), OTHER), [public_key_of(KEY)])


def test_a_signature_of_another_policy_is_refused_even_where_none_is_needed(onnx_bundle: Build) -> None:
    stolen = replace(onnx_bundle(alias="other"), signature=sign_bundle(onnx_bundle(), KEY).signature)
    for trusted in ([], [public_key_of(KEY)]):
        with pytest.raises(BundleRefused, match="is not of policy"):
            verify(stolen, trusted)


def test_another_key_named_over_a_signature_is_refused(onnx_bundle: Build) -> None:
    signature = sign_bundle(onnx_bundle(), OTHER).signature
    assert signature is not None
    for key in (public_key_of(KEY), "f" * 64, "0" * 64):
        forged = replace(onnx_bundle(), signature=Signature(key, signature.signature))
        with pytest.raises(BundleRefused, match="is not of policy"):
            verify(forged, [key])


def test_signing_the_bare_id_for_something_else_is_no_signature_of_a_policy(onnx_bundle: Build) -> None:
    bare = KEY.sign(onnx_bundle().policy_id.encode()).hex()
    with pytest.raises(BundleRefused, match="is not of policy"):
        verify(replace(onnx_bundle(), signature=Signature(public_key_of(KEY), bare)))
