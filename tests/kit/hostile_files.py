"""Files that no hub may serve, nor run: each broken or hostile in one way, and right in everything else.

Every file that could run code would make the folder `executed` beside itself; `executed(folder)` tells whether any did.
"""

from __future__ import annotations

import gzip
import io
import json
import lzma
import os
import pickle
import stat
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hostile_weights import hostile_actors, hostile_weights, trades_on_nan
from small_models import linear_classifier

from policies.bundle import Bundle, Manifest, make_bundle, pack_bundle, write_bundle
from policies.ensemble import make_ensemble
from policies.manifest import MANIFEST
from policies.signing import public_key_of, sign_bundle

TRUSTED, UNTRUSTED = (Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2))
TRUSTED_KEYS = (public_key_of(TRUSTED),)
FEATURES = ("ret_1", "ret_15", "vol", "funding_rate")


@dataclass(frozen=True)
class Hostile:
    """why: what it is. says: words of its refusal. trusted_keys: must be configured for it to be refused."""

    name: str
    path: Path
    why: str
    says: str = ""
    trusted_keys: tuple[str, ...] = ()

    @property
    def uploadable(self) -> bool:
        """A plain file that can be sent over a wire, refused by whoever trusts any key or none."""
        return self.path.is_file() and not self.path.is_symlink() and not self.trusted_keys


def executed(folder: Path) -> bool:
    return (folder / "executed").exists()


def hostile_files(folder: Path, features: tuple[str, ...] = FEATURES) -> list[Hostile]:
    """Make them all in `folder`, for a hub that serves these features. Nothing but refusals may come of them."""
    folder.mkdir(parents=True, exist_ok=True)
    right = _onnx(features)
    code = pickle.dumps(_Effect(str(folder / "executed")), 4)
    made = [*_packed(right, code, folder), *_lying_manifests(right), *_ensembles(right, code), *_signatures(right)]
    for name, kind, file, content, why, says in hostile_weights(len(features), code):
        bundle = make_bundle(Manifest(kind, name, features), {file: content})
        made.append((name, pack_bundle(bundle), why, says))
    made += [(name, pack_bundle(bundle), why, says) for name, bundle, why, says in hostile_actors(code, features)]
    blind = replace(right.manifest, alias="blind", optional_features=features)
    made.append(("onnx_trades_on_nan", pack_bundle(make_bundle(blind, {"model.onnx": trades_on_nan(len(features))})),
                 "a head that trades when it knows nothing", "trades on a vector that is all NaN"))
    found = [*(_written(folder, *entry) for entry in made), *_odd_places(folder, right)]
    keys = {"unsigned": TRUSTED_KEYS, "signed_by_a_stranger": TRUSTED_KEYS}
    return [replace(hostile, trusted_keys=keys.get(hostile.name, ())) for hostile in found]


Made = Iterator[tuple[str, bytes, str, str]]  # name, content, what it is, words of the refusal


class _Effect:
    """When unpickled, makes a folder."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self._path,)


def _onnx(features: tuple[str, ...], **changes: object) -> Bundle:
    manifest = Manifest(**{"kind": "onnx_classifier", "alias": "candidate", "features": features, **changes})
    return make_bundle(manifest, {"model.onnx": linear_classifier(manifest.width).SerializeToString()})


def _written(folder: Path, name: str, content: bytes, why: str, says: str) -> Hostile:
    path = folder / f"{name}.pt"
    path.write_bytes(content)
    return Hostile(name, path, why, says)


def _zip(members: Mapping[str | zipfile.ZipInfo, bytes], packing: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", packing) as archive:
        for name, content in members.items():
            archive.writestr(name, content, packing)
    return buffer.getvalue()


def _packed(right: Bundle, code: bytes, folder: Path) -> Made:
    yield from _code(right, code, folder)
    yield from _names(right)
    yield from _sizes(right)
    yield from _damages(right)


def _code(right: Bundle, code: bytes, folder: Path) -> Made:
    """Files that run code in whoever loads them."""
    protocol_0 = pickle.dumps(_Effect(str(folder / "executed")), 0)
    yield "pickle", code, "a pickle", "a pickle: loading it could run code"
    yield "pickle_as_text", protocol_0, "a pickle of the oldest protocol", "neither a folder nor a zip"
    yield "pickle_gzipped", gzip.compress(code), "a pickle in gzip", "neither a folder nor a zip"
    yield "pickle_lzma", lzma.compress(code), "a pickle in xz", "neither a folder nor a zip"
    yield "script", b"#!/bin/sh\nmkdir " + str(folder / "executed").encode(), "a script", "neither a folder nor a zip"
    yield "pickle_in_zip", _zip({**right.members(), "data.pkl": code}), "a pickle beside the bundle", "a pickled"
    yield "pickle_nested", _zip({**right.members(), "archive/data.pkl": code}), "a pickle in a folder", "a pickled"
    yield "pickle_renamed", _zip({**right.members(), "weights.bin": code}), "a pickle under another name", "holds"
    yield "pickle_as_manifest", _zip({**right.members(), MANIFEST: code}), "a pickle as the manifest", "not JSON"
    with warnings.catch_warnings():
        for name, module in _torch_files(folder):
            yield name, module, f"what torch saves: a {name}", "pickle"


def _torch_files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Real archives of a module, each with an effect in its pickle."""
    import torch

    class Module(torch.nn.Linear):
        def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:  # type: ignore[override]
            return os.mkdir, (str(folder / "executed"),)

    warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit: such files will be about for long
    for name, zipped in (("torch_module", True), ("torch_module_legacy", False)):
        buffer = io.BytesIO()
        torch.save({"weights": torch.zeros(3), "module": Module(2, 3)}, buffer, _use_new_zipfile_serialization=zipped)
        yield name, buffer.getvalue()
    state, scripted = io.BytesIO(), io.BytesIO()
    torch.save(torch.nn.Linear(2, 3).state_dict(), state)
    yield "torch_state", state.getvalue()
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 3), torch.zeros(1, 2)), scripted)
    yield "torch_script", scripted.getvalue()


def _names(right: Bundle) -> Made:
    for label, name in (("traversal", "../evil"), ("absolute", "/tmp/evil"), ("backslash", "..\\evil"),
                        ("folder", "a/b"), ("hidden", ".evil"), ("line_break", "a\nb"), ("long", "a" * 300)):
        yield f"name_{label}", _zip({**right.members(), name: b"x"}), f"a member named {name!r:.40}", "file name"
    link = zipfile.ZipInfo("model.onnx")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    members: dict[str | zipfile.ZipInfo, bytes] = {MANIFEST: right.manifest.canonical_json(), link: b"/etc/passwd"}
    yield "link_in_zip", _zip(members), "weights that are a link", "a link or no plain file"
    twice = {**right.members(), "other.onnx": b"what another reader would find"}
    shared = _zip(twice).replace(b"other.onnx", b"model.onnx")
    yield "name_twice", shared, "two members of one name", "files with different names"
    yield "zip_in_zip", _zip({"bundle.pt": pack_bundle(right)}), "a bundle in an archive", "no manifest.json"


def _sizes(right: Bundle) -> Made:
    packed = zipfile.ZIP_DEFLATED
    yield "bomb", _zip({MANIFEST: b"{}", "model.onnx": bytes(70 * 2**20)}, packed), "a declared bomb", "unpacks to"
    lying = bytearray(_zip({MANIFEST: bytes(2**24)}, packed))
    for place in (lying.find(b"PK\x03\x04") + 22, lying.find(b"PK\x01\x02") + 24):
        struct.pack_into("<I", lying, place, 10)
    yield "bomb_that_lies", bytes(lying), "a bomb that declares ten bytes", "damaged"
    yield "bomb_that_overlaps", _overlapping(), "twelve members that are the same bytes", "unpacks to"
    many = {f"f{i}": b"" for i in range(5_000)}
    yield "many_members", _zip({**right.members(), **many}), "5,000 members", "more than 16"
    yield "large_manifest", _zip({**right.members(), MANIFEST: b" " * 2**21}), "a manifest of 2 MiB", "at most 1048576"


def _overlapping() -> bytes:
    """One packed member of 8 MiB that the directory lists twelve times."""
    raw = _zip({"f00": bytes(2**23)}, zipfile.ZIP_DEFLATED)
    start, end = raw.find(b"PK\x01\x02"), raw.find(b"PK\x05\x06")
    entry = raw[start:end]
    directory = b"".join(entry.replace(b"f00", f"f{i:02d}".encode()) for i in range(12))
    tail = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 12, 12, len(directory), start, 0)
    return raw[:start] + directory + tail


def _damages(right: Bundle) -> Made:
    raw = _zip(right.members())
    yield "cut", raw[:len(raw) // 2], "half of an archive", "damaged"
    yield "empty", b"", "no byte at all", "neither a folder nor a zip"
    place = raw.find(right.files["model.onnx"]) + 100
    yield "flipped_in_zip", raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1:], "a flipped bit", "damaged"
    yield "program_before", b"\x7fELF" + bytes(60) + raw, "a program with an archive behind it", "neither a folder nor"
    encrypted = bytearray(raw)
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        encrypted[encrypted.find(signature) + offset] |= 1
    yield "encrypted", bytes(encrypted), "an encrypted member", "encrypted"
    yield "packed_by_lzma", _zip(right.members(), zipfile.ZIP_LZMA), "another packing", "packed in another way"


def _lying_manifests(right: Bundle) -> Made:
    values = json.loads(right.manifest.canonical_json())

    def with_manifest(manifest: bytes) -> bytes:
        return _zip({**right.members(), MANIFEST: manifest})

    changed = {**right.members(), "model.onnx": right.files["model.onnx"][:-1] + b"?"}
    yield "wrong_hash", _zip(changed), "weights that the manifest does not mean", "SHA-256"
    yield "no_json", with_manifest(b"{"), "a manifest cut off", "not JSON"
    yield "deep_json", with_manifest(b"[" * 200_000), "brackets without end", "not JSON"
    twice = b'{"kind":"momentum_rule",' + json.dumps(values).encode()[1:]
    yield "key_twice", with_manifest(twice), "two kinds", "a key is given twice"
    wrong: list[tuple[str, dict[str, object], str]] = [
        ("unknown_kind", {"kind": "pickle"}, "manifest.kind"), ("features_no_list", {"features": "abc"}, "features"),
        ("nan_parameter", {"parameters": {"leverage": float("nan")}}, "finite"),
        ("unknown_key", {"__reduce__": "os.system"}, "unknown key"), ("alias_path", {"alias": "../x"}, "alias"),
        ("array_of_billions", {"arrays": {"window": 10**12}}, "arrays.window"), ("hash_no_hex", {"files": {
            "model.onnx": "zz"}}, "SHA-256 in hex")]
    for name, changes, says in wrong:
        yield name, with_manifest(json.dumps({**values, **changes}).encode()), f"{name} in the manifest", says
    for name, value in (("leverage", 1_000.0), ("risk_per_trade", 1.0)):
        bundle = make_bundle(replace(right.manifest, parameters={name: value}), right.files)
        yield f"{name}_of_{value:g}", pack_bundle(bundle), f"a {name} that no hub allows", "must be between"


def _ensembles(right: Bundle, code: bytes) -> Made:
    outer = make_ensemble("ensemble", [right], [1.0])
    members = {"in_ensemble": pack_bundle(make_ensemble("inner", [right], [1.0])), "pickled": code,
               "cut": pack_bundle(right)[:200]}
    says = {"in_ensemble": "members are plain heads", "pickled": "member_0.pt: a pickle", "cut": "member_0.pt"}
    for name, content in members.items():
        bundle = make_bundle(outer.manifest, {"member_0.pt": content})
        yield f"ensemble_{name}", pack_bundle(bundle), f"an ensemble whose member is {name}", says[name]
    stranger = _onnx(right.manifest.features[::-1])
    yield "ensemble_other_features", pack_bundle(make_bundle(outer.manifest, {"member_0.pt": pack_bundle(stranger)})), \
        "an ensemble whose member reads other features", "features, or another order"
    weightless = replace(outer.manifest, parameters={"weight_0": 0.0})
    yield "ensemble_without_weight", pack_bundle(make_bundle(weightless, outer.files)), "no weight", "weight > 0"
    encoder = Manifest("window_encoder", "encoder", (), arrays={"window": 10}, parameters={"size": 3})
    graph = {"model.onnx": linear_classifier(10).SerializeToString()}
    yield "encoder_as_policy", pack_bundle(make_bundle(encoder, graph)), "an encoder that decides", "is no policy"


def _signatures(right: Bundle) -> Made:
    yield "unsigned", pack_bundle(right), "no signature where one is asked for", "only signed policies"
    yield "signed_by_a_stranger", pack_bundle(sign_bundle(right, UNTRUSTED)), "a key nobody trusts", "not trusted"
    other = _onnx(right.manifest.features, alias="another")
    stolen = replace(right, signature=sign_bundle(other, TRUSTED).signature)
    yield "signature_of_another", pack_bundle(stolen), "another policy's signature", "is not of policy"
    yield "signature_no_json", _zip({**right.members(), "signature.json": b"yes"}), "a signature of words", "not JSON"


def _odd_places(folder: Path, right: Bundle) -> Iterator[Hostile]:
    """What lies in a file system and is no plain file."""
    (folder / "target.pt").write_bytes(pack_bundle(right))
    (folder / "link.pt").symlink_to(folder / "target.pt")
    yield Hostile("link", folder / "link.pt", "a link to a bundle", "plain file")
    os.mkfifo(folder / "pipe.pt")
    yield Hostile("pipe", folder / "pipe.pt", "a pipe that nobody writes to", "not a plain file")
    yield Hostile("device", Path("/dev/zero"), "a device without end", "not a plain file")
    yield Hostile("nothing", folder / "nothing.pt", "no file at all", "cannot be read")
    for name, plant in (("link", lambda path: path.symlink_to("/etc/passwd")), ("pipe", os.mkfifo),
                        ("folder", lambda path: path.mkdir()), ("flipped", lambda path: path.write_bytes(b"other"))):
        write_bundle(folder / f"folder_{name}", right.manifest, right.files)
        (folder / f"folder_{name}" / "model.onnx").unlink()
        plant(folder / f"folder_{name}" / "model.onnx")
        yield Hostile(f"folder_{name}", folder / f"folder_{name}", f"a folder whose weights are a {name}",
                      "SHA-256" if name == "flipped" else "plain file")
    write_bundle(folder / "folder_more", right.manifest, right.files)
    (folder / "folder_more" / "evil.so").write_bytes(b"\x7fELF")
    yield Hostile("folder_more", folder / "folder_more", "a library beside the weights", "holds")
