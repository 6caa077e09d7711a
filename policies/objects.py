"""The two places where artefacts lie: a folder, and an S3 bucket. Contents by key, whole or not at all.

Somebody waits for what is read, so a reading of S3 ends within 20 s however the store hangs; what is written may take
its time.
"""

from __future__ import annotations

import os
import stat
import tempfile
import time
from pathlib import Path
from typing import Any

CONNECT_TIMEOUT_S = 3.0
READ_TIMEOUT_S = 5.0  # between two pieces of an answer
WRITE_TIMEOUT_S = 20.0  # for the answer to what was written
ATTEMPTS = 3  # of one reading or writing
AGAIN_WITHIN_S = 6.0  # of the beginning: a reading is not tried again later than this
ANSWER_WITHIN_S = 14.0  # of the beginning: an answer that has not ended by then is given up
PAUSE_S = 0.2  # between two attempts

PIECE_BYTES = 2**16  # small enough that a trickle is noticed

_SERVERS_FAULT = 500  # and beyond: statuses of HTTP that another attempt may not get
_ABSENT = frozenset({"NoSuchKey", "404", "NotFound"})


class FolderObjects:
    """Keys are paths below `root`, which is made by the first `put`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, key: str, content: bytes) -> None:
        target = self._root / key
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".new-", delete=False) as file:
            try:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                os.rename(file.name, target)
            except BaseException:
                os.unlink(file.name)
                raise
        _sync_folder(target.parent)

    def get(self, key: str, most_bytes: int) -> bytes | None:
        try:
            descriptor = os.open(self._root / key, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(f"{key} is not a plain file")
            return file.read(most_bytes + 1)


class S3Objects:
    """Keys below a prefix of a bucket. Clients are made at first use: only then are AWS's libraries imported."""

    def __init__(self, bucket: str, prefix: str, endpoint_url: str = "") -> None:
        self._bucket, self._prefix, self._endpoint_url = bucket, f"{prefix}/" if prefix else "", endpoint_url
        self._clients: dict[float, Any] = {}  # by how long they wait for an answer

    def put(self, key: str, content: bytes) -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self._s3(WRITE_TIMEOUT_S, ATTEMPTS).put_object(Bucket=self._bucket, Key=self._prefix + key, Body=content)
        except (BotoCoreError, ClientError) as error:
            raise OSError(str(error)) from error

    def get(self, key: str, most_bytes: int) -> bytes | None:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            client = self._s3(READ_TIMEOUT_S, 1)
        except BotoCoreError as error:
            raise OSError(str(error)) from error
        began, failed = time.monotonic(), ""
        for attempt in range(ATTEMPTS):  # botocore would repeat requests, but not an answer that broke off
            if attempt:
                time.sleep(PAUSE_S)
                if time.monotonic() - began > AGAIN_WITHIN_S:
                    break
            try:
                answer = client.get_object(Bucket=self._bucket, Key=self._prefix + key)
                promised = min(answer["ContentLength"], most_bytes + 1)
                with answer["Body"] as body:
                    content = _read(body, promised, began + ANSWER_WITHIN_S)
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") in _ABSENT:
                    return None
                failed = str(error)
                if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) < _SERVERS_FAULT:
                    break  # it would be refused again
                continue
            except BotoCoreError as error:
                failed = str(error)
                continue
            if len(content) == promised:
                return content
            failed = f"{key} broke off after {len(content)} of {answer['ContentLength']} bytes"
        raise OSError(failed)

    def _s3(self, answer_timeout_s: float, attempts: int) -> Any:
        if answer_timeout_s not in self._clients:
            import boto3
            from botocore.config import Config

            settings = Config(connect_timeout=CONNECT_TIMEOUT_S, read_timeout=answer_timeout_s,
                              retries={"total_max_attempts": attempts, "mode": "standard"})
            # A session of its own: the default one is shared by threads and keeps the first credentials it saw.
            self._clients[answer_timeout_s] = boto3.session.Session().client(
                "s3", endpoint_url=self._endpoint_url or None, config=settings)
        return self._clients[answer_timeout_s]


def _read(body: Any, most_bytes: int, until_s: float) -> bytes:
    """Up to most_bytes; less if the answer ends before, or the monotonic clock reaches until_s."""
    parts, left = [], most_bytes
    while left > 0 and time.monotonic() < until_s and (part := body.read(min(left, PIECE_BYTES))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
