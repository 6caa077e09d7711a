"""A policy as inert files: a manifest and, by its kind, weights in a format that cannot run code when it is loaded.

A bundle is a folder, or one zip file (usually named `.pt`) with the same members: `manifest.json` and the files that it
names with their SHA-256. The policy's id is the SHA-256 of the manifest's canonical JSON, so it covers every byte.
Whatever is not exactly that is refused with the reason; nothing is ever unpickled.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import json
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from policies.errors import BundleRefused
from policies.onnx_graph import require_closed_graph

MANIFEST = "manifest.json"
ONNX_FILE = "model.onnx"
FILES_BY_KIND = {"momentum_rule": frozenset[str](), "onnx_classifier": frozenset({ONNX_FILE})}
FEATURE_SERVICES = ("decision_v1",)
MAX_FILES = 16  # the manifest included
MAX_BYTES = 64 * 2**20  # of all files together, unpacked
MAX_MANIFEST_BYTES = 2**20
MAX_PARAMETER = 1e15
EXPORT_HINT = "`make retrain_sup` exports a proper bundle"

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_EPOCH_OF_ZIP = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Manifest:
    """What a policy is made of and was made from.

    features: names in the order of the feature vector. optional_features: those of them that may be NaN (they belong to
    optional groups). inputs: which feature plays which part, for kinds that look at single features.
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

    def __post_init__(self) -> None:
        _check_manifest(self)

    def canonical_json(self) -> bytes:
        """Sorted keys, no blanks, UTF-8: the bytes whose SHA-256 is the policy's id."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=False,
                          allow_nan=False).encode()

    @classmethod
    def from_json(cls, raw: bytes) -> Manifest:
        if len(raw) > MAX_MANIFEST_BYTES:
            raise BundleRefused(f"{MANIFEST} has {len(raw)} bytes; at most {MAX_MANIFEST_BYTES} are read")
        try:
            values = json.loads(raw, object_pairs_hook=_without_duplicates)
        except (ValueError, RecursionError) as error:
            raise BundleRefused(f"{MANIFEST} is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise BundleRefused(f"{MANIFEST} must be a JSON object, got {type(values).__name__}")
        names = [f.name for f in fields(cls)]
        for key in values.keys() - set(names):
            near = difflib.get_close_matches(key, names, n=1)
            raise BundleRefused(f"{MANIFEST}: unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
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


@dataclass(frozen=True)
class Bundle:
    """A checked bundle in memory. files: content by name, the manifest left out."""

    manifest: Manifest
    files: Mapping[str, bytes]

    def __post_init__(self) -> None:
        _check_files(self.manifest, self.files)

    @cached_property
    def policy_id(self) -> str:
        return _sha256(self.manifest.canonical_json())


def make_bundle(manifest: Manifest, files: Mapping[str, bytes]) -> Bundle:
    """The manifest completed by the hashes of its files, with them."""
    return Bundle(replace(manifest, files={name: _sha256(content) for name, content in files.items()}), dict(files))


def write_bundle(folder: Path, manifest: Manifest, files: Mapping[str, bytes]) -> Bundle:
    """Make a bundle and store it as a folder of its own, which must not exist yet. Every file is on disk on return."""
    bundle = make_bundle(manifest, files)
    folder.mkdir(parents=True, mode=0o700)
    for name, content in {**bundle.files, MANIFEST: bundle.manifest.canonical_json()}.items():
        with (folder / name).open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    return bundle


def pack_bundle(bundle: Bundle) -> bytes:
    """The bundle as one zip file; the same bytes for the same bundle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in sorted({**bundle.files, MANIFEST: bundle.manifest.canonical_json()}.items()):
            archive.writestr(zipfile.ZipInfo(name, _EPOCH_OF_ZIP), content, zipfile.ZIP_DEFLATED, 6)
    return buffer.getvalue()


def read_bundle(source: Path | bytes) -> Bundle:
    """The bundle in a folder, a file or a file's bytes. Raises BundleRefused with the reason."""
    if isinstance(source, bytes):
        contents = _unpack(source)
    elif source.is_dir():
        contents = _read_folder(source)
    else:
        contents = _unpack(_read_file(source, MAX_BYTES + MAX_MANIFEST_BYTES))
    if MANIFEST not in contents:
        raise BundleRefused(f"no {MANIFEST} among {sorted(contents)}; {EXPORT_HINT}")
    manifest = Manifest.from_json(contents.pop(MANIFEST))
    return Bundle(manifest, contents)


def _check_manifest(manifest: Manifest) -> None:
    """Every field's type and range; what other code may then rely on."""
    if not isinstance(manifest.kind, str) or manifest.kind not in FILES_BY_KIND:
        raise BundleRefused(f"manifest.kind must be one of {', '.join(FILES_BY_KIND)}, got {manifest.kind!r}")
    if not isinstance(manifest.alias, str) or not _NAME.fullmatch(manifest.alias):
        raise BundleRefused(f"manifest.alias must be letters, digits, '_', '-' or '.', got {manifest.alias!r}")
    if manifest.feature_service not in FEATURE_SERVICES:
        raise BundleRefused(f"manifest.feature_service must be one of {', '.join(FEATURE_SERVICES)}, "
                            f"got {manifest.feature_service!r}")
    for name in ("features", "required_groups", "optional_groups", "optional_features"):
        names = getattr(manifest, name)
        if not isinstance(names, tuple) or not all(isinstance(n, str) and n for n in names) \
                or len(set(names)) != len(names):
            raise BundleRefused(f"manifest.{name} must be a list of different names")
    if not manifest.features:
        raise BundleRefused("manifest.features is empty: the order of the feature vector is unknown")
    if not isinstance(manifest.embedding_version, str) or not manifest.embedding_version:
        raise BundleRefused("manifest.embedding_version must be a name, or 'none'")
    _check_mappings(manifest)


def _check_mappings(manifest: Manifest) -> None:
    for name in ("inputs", "parameters", "trained_on", "files"):
        if not isinstance(getattr(manifest, name), dict):
            raise BundleRefused(f"manifest.{name} must be an object")
    unknown = [n for n in (*manifest.optional_features, *manifest.inputs.values()) if n not in manifest.features]
    if unknown:
        raise BundleRefused(f"manifest names features that are not in its list: {', '.join(map(str, unknown))}")
    for name, value in manifest.parameters.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MAX_PARAMETER:
            raise BundleRefused(f"manifest.parameters.{name} must be a finite number, got {value!r:.50}")
    for name, sha256 in manifest.files.items():
        _require_plain_name(name)
        if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
            raise BundleRefused(f"manifest.files.{name} must be a SHA-256 in hex")
    try:
        manifest.canonical_json()
    except (ValueError, TypeError, RecursionError) as error:
        raise BundleRefused(f"manifest must be finite plain JSON: {error}") from error


def _check_files(manifest: Manifest, files: Mapping[str, bytes]) -> None:
    expected = FILES_BY_KIND[manifest.kind]
    for names, against in ((files.keys(), "holds"), (manifest.files.keys(), "names")):
        if names != expected:
            raise BundleRefused(f"a bundle of kind {manifest.kind} has the files {sorted(expected)}; "
                                f"this one {against} {sorted(names)}")
    for name, content in files.items():
        if _sha256(content) != manifest.files[name]:
            raise BundleRefused(f"{name} has SHA-256 {_sha256(content)}, the manifest says {manifest.files[name]}")
    if ONNX_FILE in files:
        require_closed_graph(files[ONNX_FILE], len(manifest.features))


def _read_folder(folder: Path) -> dict[str, bytes]:
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    if len(entries) > MAX_FILES:
        raise BundleRefused(f"{folder} holds {len(entries)} files; a bundle has at most {MAX_FILES}")
    contents: dict[str, bytes] = {}
    left = MAX_BYTES
    for entry in entries:
        _require_plain_name(entry.name)
        contents[entry.name] = _read_file(Path(entry.path), left)
        left -= len(contents[entry.name])
    return contents


def _read_file(path: Path, limit: int) -> bytes:
    """The content of a plain file of at most `limit` bytes; links, pipes and devices are refused, not opened."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise BundleRefused(f"{path} cannot be read as a plain file: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BundleRefused(f"{path} is not a plain file")
    with os.fdopen(descriptor, "rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise BundleRefused(f"{path.name} is larger than the {MAX_BYTES // 2**20} MiB that a bundle may have")
    return content


def _unpack(raw: bytes) -> dict[str, bytes]:
    """Members of a zip file by name, with every declared size checked before anything is inflated."""
    _require_no_pickle(raw)
    # Each member has a central record with this signature: counting bounds what zipfile would have to list.
    if raw.count(b"PK\x01\x02") > 4 * MAX_FILES:
        raise BundleRefused(f"the archive lists more than {MAX_FILES} files")
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            members = archive.infolist()
            _check_members(members)
            contents = {}
            for member in members:
                with archive.open(member) as file:
                    contents[member.filename] = file.read(member.file_size + 1)
                if len(contents[member.filename]) != member.file_size:
                    raise BundleRefused(f"{member.filename} is not as long as the archive declares")
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError,
            OverflowError) as error:
        raise BundleRefused(f"the archive is damaged: {error}; {EXPORT_HINT}") from error
    return contents


def _check_members(members: list[zipfile.ZipInfo]) -> None:
    names = [member.filename for member in members]
    pickles = [name for name in names if name.endswith(".pkl")]
    if pickles:
        raise BundleRefused(f"a pickled archive ({pickles[0]}): loading it could run code; {EXPORT_HINT}")
    if len(members) > MAX_FILES or len(set(names)) != len(names):
        raise BundleRefused(f"a bundle has at most {MAX_FILES} files with different names, the archive lists {names}")
    for member in members:
        _require_plain_name(member.filename)
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise BundleRefused(f"{member.filename} is a link or no plain file")
        if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise BundleRefused(f"{member.filename} is encrypted or packed in another way than stored or deflated")
    total = sum(member.file_size for member in members)
    if total > MAX_BYTES:
        raise BundleRefused(f"the archive unpacks to {total} bytes; a bundle has at most {MAX_BYTES}")


def _require_no_pickle(raw: bytes) -> None:
    if raw[:1] == b"\x80":
        raise BundleRefused(f"a pickle: loading it could run code; {EXPORT_HINT}")
    if raw[:4] != b"PK\x03\x04":
        raise BundleRefused(f"neither a folder nor a zip file with a {MANIFEST}; {EXPORT_HINT}")


def _require_plain_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise BundleRefused(f"file name {name!r}: a bundle's files are named by letters, digits, '_', '-' and '.', "
                            f"without folders")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key is given twice")
    return values


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
