"""Hubs of plain parts, opened on a fresh home and closed after the test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from http_door import client_of
from plain_bundles import momentum_bundle, onnx_bundle
from plain_hub import PlainHub

OpenHub = Callable[..., PlainHub]


@pytest.fixture
async def open_hub(tmp_path: Path) -> AsyncIterator[OpenHub]:
    """Opens a hub; by default each on the same home, whose last hub must be closed by then."""
    opened: list[PlainHub] = []

    def start(settings: dict[str, Any] | None = None, name: str = "home", **more: Any) -> PlainHub:
        opened.append(PlainHub(tmp_path / name, settings, **more))
        return opened[-1]

    yield start
    for hub in opened:
        await hub.close()


@pytest.fixture
async def hub(open_hub: OpenHub) -> PlainHub:
    """A hub in rollout `full` with two heads: the momentum rule, which is the incumbent, and a linear classifier."""
    started = open_hub()
    await started.register(momentum_bundle())
    await started.register(onnx_bundle())
    return started


@pytest.fixture
def production() -> str:
    return momentum_bundle().policy_id


@pytest.fixture
def challenger() -> str:
    return onnx_bundle().policy_id


@pytest.fixture
async def client(hub: PlainHub) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(hub) as opened:
        yield opened
