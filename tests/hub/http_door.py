"""The HTTP edge of a plain hub, as tests knock at it, and what every refusal must look like."""

from __future__ import annotations

import json
from typing import Any

import httpx
from plain_hub import TOKENS, PlainHub, llm_view

SECRETS = (*TOKENS.values(), "/root", "Traceback", "site-packages")


def client_of(hub: PlainHub) -> httpx.AsyncClient:
    # An exception that the application did not answer fails the test.
    return httpx.AsyncClient(transport=httpx.ASGITransport(hub.api()), base_url="http://hub")


def bearer(scope: str) -> dict[str, str]:
    return {"Content-Type": "application/json",
            **({"Authorization": f"Bearer {TOKENS[scope]}"} if scope in TOKENS else {})}


def assert_problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem.keys() >= {"type", "title", "status", "code", "detail"}
    assert (problem["status"], problem["type"]) == (status, f"urn:learner-hub:{problem['code']}")
    assert not [secret for secret in SECRETS if secret in answer.text]
    return dict(problem)


def raw(hub: PlainHub, name: str, literal: str, path: str = "/v1/decisions") -> bytes:
    """A request's JSON with one value replaced by a literal as it stands. name: dotted, of an object that is there."""
    whole = hub.request(llm=llm_view()) if path == "/v1/decisions" else hub.outcome(
        {"decision_id": "d0", "action": {"direction": "long", "size_fraction": 0.02, "leverage": 5.0},
         "time_ms": hub.time_ms}, 0.001)
    place = whole
    *outer, last = name.split(".")
    for part in outer:
        place = place[part]
    place[last] = "@here@"
    return json.dumps(whole).replace('"@here@"', literal).encode()
