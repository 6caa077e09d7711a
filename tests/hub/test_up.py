"""What `hub up` does about the first heads, beside a hub that answers over HTTP."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from plain_bundles import momentum_bundle
from plain_hub import PlainHub

from hub import up
from hub.home import Home
from hub.market import MarketChoice
from policies.bundle import pack_bundle
from policies.clock import ClockChoice

MARKET = MarketChoice("generated", None, ("BTC",), 0, 1.0, 3_000, "a test")


def beside(hub: PlainHub, monkeypatch: pytest.MonkeyPatch) -> up.Running:
    """A running hub whose address leads to this one; its first head is a momentum rule, trained in no time."""
    trained = hub.home.root / "first.pt"
    trained.write_bytes(pack_bundle(momentum_bundle()))
    answers: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        answers.append(f"{request.method} {request.url.path}")
        if request.method == "GET":
            return httpx.Response(200, json={"policies": []})
        return httpx.Response(422, json={"code": "bundle_refused", "detail": "no signature"})

    client, transport = httpx.Client, httpx.MockTransport(answer)
    monkeypatch.setattr(up.httpx, "Client", lambda **more: client(transport=transport, **more))
    monkeypatch.setattr(up, "_trained", lambda *_: [trained])
    return up.Running(Home(hub.home.root), hub.config, MARKET, "", "", None, None, None, ClockChoice("replay", 0, 0))


def test_with_trusted_keys_a_new_home_is_served_by_the_llm_alone_and_says_so(
        open_hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    up._first_heads(beside(open_hub({"registration": {"trusted_keys": ["ab" * 32]}}), monkeypatch), said.append)
    assert len(said) == 1
    assert "trusted_keys" in said[0]
    assert "LLM decides alone" in said[0]


def test_without_trusted_keys_a_first_head_that_is_refused_ends_the_start(
        open_hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(up.NotStarted, match="no signature"):
        up._first_heads(beside(open_hub(), monkeypatch), lambda _: None)
