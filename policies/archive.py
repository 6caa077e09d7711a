"""The members of a bundle as bytes by name, from a folder or a zip file, whatever somebody put there.

Names, links, sizes and packings are checked before a member is opened; nothing is written, followed or unpickled.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import zipfile
import zlib
from itertools import islice
from pathlib import Path

from policies.errors import BundleRefused, one_line
from policies.manifest import MANIFEST, MAX_MANIFEST_BYTES, require_plain_name

MAX_FILES = 16  # the manifest included
MAX_BYTES = 64 * 2**20  # of all files together, unpacked
EXPORT_HINT = "`make retrain_sup` exports a proper bundle"


def read_members(source: Path | bytes) -> dict[str, bytes]:
    """Content by name of a folder, a file or a file's bytes. Raises BundleRefused with the reason."""
    if isinstance(source, bytes):
        return unpack(source)
    if source.is_dir():
        return read_folder(source)
    return unpack(read_plain_file(source, MAX_BYTES + MAX_MANIFEST_BYTES))


def read_folder(folder: Path) -> dict[str, bytes]:
    with os.scandir(folder) as listed:
        entries = sorted(islice(listed, MAX_FILES + 1), key=lambda entry: entry.name)
    if len(entries) > MAX_FILES:
        raise BundleRefused(f"{folder} holds more than the {MAX_FILES} files that a bundle may have")
    contents: dict[str, bytes] = {}
    left = MAX_BYTES
    for entry in entries:
        require_plain_name(entry.name)
        contents[entry.name] = read_plain_file(Path(entry.path), left)
        left -= len(contents[entry.name])
    return contents


def read_plain_file(path: Path, limit: int) -> bytes:
    """The content of a plain file of at most `limit` bytes; links, pipes and devices are refused, not opened."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        why = "it is a link" if error.errno == errno.ELOOP else error.strerror
        raise BundleRefused(f"{path} cannot be read as a plain file: {why}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BundleRefused(f"{path} is not a plain file")
    with os.fdopen(descriptor, "rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise BundleRefused(f"{path.name} is larger than the {MAX_BYTES // 2**20} MiB that a bundle may have")
    return content


def unpack(raw: bytes) -> dict[str, bytes]:
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
        raise BundleRefused(f"the archive is damaged: {one_line(error)}; {EXPORT_HINT}") from error
    return contents


def _check_members(members: list[zipfile.ZipInfo]) -> None:
    names = [member.filename for member in members]
    pickles = [name for name in names if name.endswith(".pkl")]
    if pickles:
        raise BundleRefused(f"a pickled archive ({pickles[0]!r:.100}): loading it could run code; {EXPORT_HINT}")
    if len(members) > MAX_FILES or len(set(names)) != len(names):
        raise BundleRefused(f"a bundle has at most {MAX_FILES} files with different names, the archive lists "
                            f"{names!s:.300}")
    for member in members:
        require_plain_name(member.filename)
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
