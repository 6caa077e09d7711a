"""A candidate as its owner has it, a file or a folder, and what the hub said to it. Nothing is opened here."""

from __future__ import annotations

import io
import stat
import zipfile
from dataclasses import dataclass
from pathlib import Path

from hub.client.wire import Reply

MOST_BYTES = 65 * 2**20  # the hub takes no larger ones
MOST_FILES = 64


@dataclass(frozen=True)
class Registration:
    """policy_id "": not registered, and reason says why. refused: it was judged; sending it again changes nothing."""

    policy_id: str = ""
    alias: str = ""
    position: int | None = None
    reason: str = ""
    refused: bool = False


def candidate_bytes(path: Path) -> bytes:
    """What to send: a file as it is, whatever it is, or a folder's files as one zip file.

    ValueError for what cannot be sent: links, pipes and folders in a folder, and more than the hub takes.
    """
    if not path.is_dir():
        return _content(path.resolve(), MOST_BYTES)
    entries = sorted(path.iterdir())
    if len(entries) > MOST_FILES:
        raise ValueError(f"{path} holds {len(entries)} files; a bundle has fewer")
    packed, left = io.BytesIO(), MOST_BYTES
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry in entries:
            content = _content(entry, left)
            archive.writestr(zipfile.ZipInfo(entry.name), content, zipfile.ZIP_DEFLATED)
            left -= len(content)
    return packed.getvalue()


def registration_of(reply: Reply) -> Registration:
    answer = reply.answer
    if answer is None:
        return Registration(reason=reply.reason, refused=reply.refusal)
    policy_id, alias, position = answer.get("policy_id"), answer.get("alias"), answer.get("position")
    if not isinstance(policy_id, str) or not isinstance(alias, str) or not isinstance(position, int):
        return Registration(reason=f"an answer without policy_id, alias and position: {sorted(answer)}")
    return Registration(policy_id, alias, position)


def _content(path: Path, most_bytes: int) -> bytes:
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path} is not a plain file")
    if found.st_size > most_bytes:
        raise ValueError(f"{path} is larger than the {MOST_BYTES // 2**20} MiB that the hub takes; "
                         "`make retrain_sup` exports a proper bundle")
    return path.read_bytes()
