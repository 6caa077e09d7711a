"""Who vouches for a policy: Ed25519 signatures over its id, which covers every byte of it.

Signatures are optional. With trusted keys configured, a bundle that none of them has signed is refused; without, a
signature is still checked against the key that it names, because a wrong one is a sign of something.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from policies.bundle import SIGNATURE, Bundle, Signature
from policies.errors import BundleRefused

PURPOSE = b"learner hub policy "  # so that a signature made for something else says nothing about a policy


def public_key_of(private_key: Ed25519PrivateKey) -> str:
    """The 32 bytes of the public key in hex: what stands in a list of trusted keys."""
    return private_key.public_key().public_bytes_raw().hex()


def sign_bundle(bundle: Bundle, private_key: Ed25519PrivateKey) -> Bundle:
    """The same policy, with this key's signature in place of any other."""
    signed = private_key.sign(PURPOSE + bundle.policy_id.encode())
    return replace(bundle, signature=Signature(public_key_of(private_key), signed.hex()))


def verify(bundle: Bundle, trusted_keys: Collection[str] = ()) -> None:
    """BundleRefused unless a trusted key (hex) has signed the bundle, or, where none is trusted, nothing is wrong."""
    signature = bundle.signature
    if signature is None:
        if trusted_keys:
            raise BundleRefused(f"policy {bundle.policy_id[:12]} has no {SIGNATURE}; only signed policies are served")
        return
    if trusted_keys and signature.key not in {key.lower() for key in trusted_keys}:
        raise BundleRefused(f"policy {bundle.policy_id[:12]} is signed with the key {signature.key[:12]}..., "
                            f"which is not trusted")
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(signature.key))
        key.verify(bytes.fromhex(signature.signature), PURPOSE + bundle.policy_id.encode())
    except (InvalidSignature, ValueError) as error:
        raise BundleRefused(f"the signature with the key {signature.key[:12]}... is not of policy "
                            f"{bundle.policy_id[:12]}") from error
