"""The two places where artefacts lie: a folder, and an S3 bucket. Contents by key, whole or not at all."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import Any

CONNECT_TIMEOUT_S = 3.0
READ_TIMEOUT_S = 20.0
ATTEMPTS = 3  # of one request, and of reading one answer to its end

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
    """Keys below a prefix of a bucket. The client is made at first use: only then are AWS's libraries imported."""

    def __init__(self, bucket: str, prefix: str, endpoint_url: str = "") -> None:
        self._bucket, self._prefix, self._endpoint_url = bucket, f"{prefix}/" if prefix else "", endpoint_url
        self._client: Any = None

    def put(self, key: str, content: bytes) -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self._s3().put_object(Bucket=self._bucket, Key=self._prefix + key, Body=content)
        except (BotoCoreError, ClientError) as error:
            raise OSError(str(error)) from error

    def get(self, key: str, most_bytes: int) -> bytes | None:
        from botocore.exceptions import BotoCoreError, ClientError

        failed = ""
        for _ in range(ATTEMPTS):  # botocore repeats requests by itself, but not an answer that broke off
            try:
                answer = self._s3().get_object(Bucket=self._bucket, Key=self._prefix + key)
                promised = min(answer["ContentLength"], most_bytes + 1)
                with answer["Body"] as body:
                    content = _read(body, promised)
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") in _ABSENT:
                    return None
                raise OSError(str(error)) from error
            except BotoCoreError as error:
                failed = str(error)
                continue
            if len(content) == promised:
                return content
            failed = f"{key} broke off after {len(content)} of {answer['ContentLength']} bytes"
        raise OSError(failed)

    def _s3(self) -> Any:
        if self._client is None:
            import boto3
            from botocore.config import Config

            settings = Config(connect_timeout=CONNECT_TIMEOUT_S, read_timeout=READ_TIMEOUT_S,
                              retries={"max_attempts": ATTEMPTS, "mode": "standard"})
            # A session of its own: the default one is shared by threads and keeps the first credentials it saw.
            self._client = boto3.session.Session().client("s3", endpoint_url=self._endpoint_url or None,
                                                          config=settings)
        return self._client


def _read(body: Any, most_bytes: int) -> bytes:
    """Up to most_bytes; less if the answer ends before."""
    parts, left = [], most_bytes
    while left > 0 and (part := body.read(min(left, 2**20))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
