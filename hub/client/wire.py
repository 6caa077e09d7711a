"""HTTP with one deadline over everything, and what the hub's answers mean for who asked."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import dataclass
from typing import Any

import httpx

# These mean that the hub is not there, as 5xx do: a proxy whose ingress was killed answers 404 for a moment, an
# overloaded one 429. Every other 4xx is the hub's own refusal.
_UNAVAILABLE_4XX = frozenset({404, 408, 425, 429})


@dataclass(frozen=True)
class Reply:
    """answer: the JSON object of a 200. Else reason says why there is none, and refusal that the hub itself said no."""

    answer: dict[str, Any] | None = None
    reason: str = ""
    refusal: bool = False
    status: int = 0


class Wire:
    """POSTs with one deadline over everything: connecting, sending, and every byte of the answer.

    httpx bounds single reads, so a server that trickles bytes could hold a caller for ever. Requests therefore run on
    an event loop in a thread of their own, where one that is late can be cancelled and its connection closed.
    """

    def __init__(self, base_url: str, token: str) -> None:
        # Proxies and .netrc of the environment are ignored: the token goes to the hub and nowhere else.
        self._http = httpx.AsyncClient(base_url=base_url, headers={"Authorization": f"Bearer {token}"}, timeout=None,
                                       trust_env=False, limits=httpx.Limits(max_connections=None))
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="hub-client", daemon=True)
        self._thread.start()

    def post(self, path: str, body: bytes, timeout_s: float, kind: str = "application/json") -> Reply:
        if self._closed:
            return Reply(reason="this client is closed")
        request = asyncio.run_coroutine_threadsafe(self._post(path, body, kind), self._loop)
        try:
            return _reply_of(request.result(timeout_s))
        except TimeoutError:
            request.cancel()
            return Reply(reason=f"no answer within {timeout_s * 1000:.0f} ms")
        except Exception as error:  # the one place where any failure of the network stack becomes a reason
            return Reply(reason=f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        asyncio.run_coroutine_threadsafe(self._http.aclose(), self._loop).result(1.0)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(1.0)
        self._loop.close()

    async def _post(self, path: str, body: bytes, kind: str) -> httpx.Response:
        return await self._http.post(path, content=body, headers={"Content-Type": kind})


def _reply_of(response: httpx.Response) -> Reply:
    status = response.status_code
    try:
        content = json.loads(response.content, parse_constant=_no_constant)
    except ValueError as error:
        content, broken = None, str(error)
    else:
        broken = "" if isinstance(content, dict) else "not a JSON object"
    if status == 200:
        return Reply(reason=f"malformed answer: {broken}", status=status) if broken else Reply(content, status=status)
    problem = content if isinstance(content, dict) else {}
    # "unknown" is the hub's own word for a decision it does not hold; a bare 404 is a proxy without a hub behind it.
    refusal = 400 <= status < 500 and (status not in _UNAVAILABLE_4XX or problem.get("code") == "unknown")
    text = problem.get("detail") or problem.get("title") or ""
    return Reply(reason=f"{status} {problem.get('code', '')}: {text}" if text else f"HTTP {status}",
                  refusal=refusal, status=status)


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number of JSON")
