"""Handing a candidate to a running hub, over the HTTP that anyone uses: the hub checks it like any other."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from policies.bundle import Bundle, pack_bundle
from policies.errors import HubError

TIMEOUT_S = 60.0  # the hub tries a bundle in a process of its own before it answers


class HandoverFailed(HubError):
    """A hub is there and did not take the candidate."""

    code = "handover_failed"


@dataclass(frozen=True)
class HubDoor:
    """Where a hub listens. home: whose `tokens.json` opens it."""

    url: str
    home: Path

    def status(self) -> dict[str, Any] | None:
        """What /v1/status says; None if no hub answers there, or one whose tokens are not this home's."""
        try:
            answer = httpx.get(f"{self.url}/v1/status", headers=self._headers(), timeout=5.0)
            answer.raise_for_status()
            found: dict[str, Any] = answer.json()
            return found
        except (httpx.HTTPError, OSError, ValueError, KeyError):
            return None

    def register(self, bundle: Bundle) -> dict[str, Any]:
        """Idempotent: a policy that the hub has already is the same policy. Raises HandoverFailed with its reason."""
        return self._post("/v1/policies", content=pack_bundle(bundle),
                          headers={"Content-Type": "application/octet-stream"})

    def use_embedder(self, embedder: Bundle) -> str:
        """Hand over the embedder and have decisions made with it from now on; `hub embedding revert` goes back.

        "" when it is in use; else why the hub would not switch: a head with a share needs the one that is in use. That
        is for an operator to weigh, never for a search.
        """
        kept = self.register(embedder)
        answer = self._asked("/v1/embedding", json={"version": kept["embedding_version"],
                                                    "reason": "the head that is handed over was made for it"})
        if answer.status_code == 409:
            return str(answer.json().get("detail", answer.text))
        self._require(answer)
        return ""

    def begin_params_from(self, start: dict[str, Any], reason: str) -> dict[str, Any]:
        """Have the parameter learners begin from this document; idempotent. Raises HandoverFailed with its reason."""
        return self._post("/v1/params/start", json={"start": start, "reason": reason})

    def _post(self, path: str, **content: Any) -> dict[str, Any]:
        return self._require(self._asked(path, **content))

    def _asked(self, path: str, headers: dict[str, str] | None = None, **content: Any) -> httpx.Response:
        try:
            return httpx.post(f"{self.url}{path}", headers={**self._headers(), **(headers or {})}, timeout=TIMEOUT_S,
                              **content)
        except (httpx.HTTPError, OSError, ValueError, KeyError) as error:
            raise HandoverFailed(f"{self.url}{path}: {type(error).__name__}: {error}") from error

    def _require(self, answer: httpx.Response) -> dict[str, Any]:
        if answer.is_error:
            raise HandoverFailed(f"{answer.url} answered {answer.status_code}: {answer.text[:1_000]}")
        found: dict[str, Any] = answer.json()
        return found

    def _headers(self) -> dict[str, str]:
        tokens = json.loads((self.home / "tokens.json").read_bytes())
        return {"Authorization": f"Bearer {tokens['ops']}"}
