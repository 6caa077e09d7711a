"""Registration by signed webhook (Standard Webhooks): a training job elsewhere says what it has published.

`POST /v1/webhooks/policy` with {"type": "policy.published", "data": {"url", "policy_id" or "sha256"}}. A message is
believed for its signature, for five minutes by the wall clock, and once: its id is recorded with what came of it, so a
repeated one gets the same answer and changes nothing. What is not signed leaves no trace.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pydantic
from standardwebhooks import Webhook

from hub.registration import Registrar
from hub.schemas import PolicyPublished
from policies.errors import BundleRefused, ContentConflict, HubError, InvalidInput
from policies.rows import Row
from sentry.ledger import LedgerReader

TOLERANCE_S = 300.0
RECEIVED = "webhook"  # what the row of a message is, as an observation; its key is webhook/<id>

_ID = re.compile(r"[A-Za-z0-9_.:\-]{1,80}")
_TIMESTAMP = re.compile(r"[0-9]{1,12}")
MOST_SIGNATURES = 16  # of one message: while a secret is being replaced there are two


class NotSigned(HubError):
    """A message without a signature of ours, or too old or too new; it was not read."""

    code = "not_signed"


def secret_file(home: Path) -> Path:
    return home / "webhook_secret"


def webhook_secret(home: Path) -> str:
    """The secret as senders need it, `whsec_` and base64; made at first use, readable by its owner only."""
    path = secret_file(home)
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        pass
    made = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
    beside = path.with_suffix(f".{os.getpid()}.new")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(made + "\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(beside, path)  # unlike a rename, it never takes another process's place
    except FileExistsError:
        return path.read_text().strip()
    finally:
        beside.unlink()
    return made


def verify(secret: str, headers: Mapping[str, str], body: bytes, now_s: float) -> str:
    """The id of a message that is ours; NotSigned says why another one is not. headers: names in lower case.

    now_s: the wall clock, whatever clock the hub trades by, as senders know no other.
    """
    message_id, sent, signatures = (headers.get(f"webhook-{name}", "") for name in ("id", "timestamp", "signature"))
    if not (_ID.fullmatch(message_id) and _TIMESTAMP.fullmatch(sent) and signatures):
        raise NotSigned("webhook-id, webhook-timestamp and webhook-signature are required, see standardwebhooks.com")
    if not abs(now_s - int(sent)) <= TOLERANCE_S:
        raise NotSigned(f"webhook-timestamp is more than {TOLERANCE_S:g} s away from now")
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise NotSigned("the body is not UTF-8") from None
    expected = Webhook(secret).sign(message_id, datetime.fromtimestamp(int(sent), UTC), text).encode()
    given = signatures.encode("utf-8", "replace").split(b" ")[:MOST_SIGNATURES]
    if not any(hmac.compare_digest(one, expected) for one in given):
        raise NotSigned("no signature of this message is made with the hub's secret")
    return message_id


class PolicyWebhook:
    """reader: of the ledger, for what came of messages before. wall_s: seconds since 1970."""

    def __init__(self, registrar: Registrar, reader: LedgerReader, secret: str, wall_s: Callable[[], float]) -> None:
        self._registrar, self._reader, self._secret, self._wall_s = registrar, reader, secret, wall_s
        self._under_way: dict[str, asyncio.Lock] = {}

    async def receive(self, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
        """Register what the message announces. The same id again gets the same answer, with another body a
        ContentConflict; while the store, the writer or a process of heads is away nothing is recorded, and the sender
        comes again.
        """
        message_id = verify(self._secret, headers, body, self._wall_s())
        body_sha256 = hashlib.sha256(body).hexdigest()
        recorded = await self._registrar.shielded(self._recorded(message_id, body, body_sha256))
        return _answer(recorded, message_id, body_sha256)

    async def _recorded(self, message_id: str, body: bytes, body_sha256: str) -> Row:
        """What came of the message, now or before."""
        lock = self._under_way.setdefault(message_id, asyncio.Lock())
        try:
            async with lock:
                recorded = self._reader.get("observation", f"webhook/{message_id}")
                if recorded is None:
                    with self._registrar.entered(webhook=True):
                        recorded = await self._effect(message_id, body, body_sha256)
                return recorded
        finally:
            if not lock.locked():
                self._under_way.pop(message_id, None)

    async def _effect(self, message_id: str, body: bytes, body_sha256: str) -> Row:
        data = _published(body)
        refusal_key = f"refused/webhook/{message_id}"
        detail = {"message_id": message_id, "body_sha256": body_sha256, "url": data.url, "refused": "", "alias": "",
                  "position": None}
        # A refusal that is recorded stands, though its message could not be: told again, it may be worded otherwise.
        policy_id, detail["refused"] = None, self._registrar.refusal(refusal_key, data.url)
        if not detail["refused"]:
            try:
                done = await self._registrar.register_url(data.url, "webhook", data.policy_id, data.sha256, refusal_key)
                policy_id, detail["alias"], detail["position"] = done["policy_id"], done["alias"], done["position"]
            except (BundleRefused, InvalidInput, ContentConflict):
                detail["refused"] = self._registrar.refusal(refusal_key, data.url)
                if not detail["refused"]:
                    raise
        service = self._registrar.service
        await service.writer.observe({"what": RECEIVED, "policy_id": policy_id, "figure": None, "detail": detail,
                                      "key": f"webhook/{message_id}"}, service.clock.now_ms())
        row = self._reader.get("observation", f"webhook/{message_id}")
        assert row is not None, "the writer acknowledged a row that the ledger does not hold"
        return row


def _published(body: bytes) -> Any:
    try:
        return PolicyPublished.model_validate_json(body).data
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"]) or "body"
        raise InvalidInput(name, first["msg"], first.get("input")) from None


def _answer(row: Row, message_id: str, body_sha256: str) -> dict[str, Any]:
    """From the record alone, so that every repetition reads the same."""
    detail = row.body["detail"]
    if detail["body_sha256"] != body_sha256:
        raise ContentConflict("webhook", message_id, ["body"])
    if detail["refused"]:
        raise BundleRefused(detail["refused"])
    return {"webhook_id": message_id, "policy_id": row.body["policy_id"], "alias": detail["alias"],
            "position": detail["position"]}
