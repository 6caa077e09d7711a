from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import FakeHub

from hub.client import HubClient


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    server = FakeHub()
    yield server
    server.stop()


@pytest.fixture
def outbox(tmp_path: Path) -> Path:
    return tmp_path / "bot" / "outbox.sqlite"


@pytest.fixture
def client(hub: FakeHub, outbox: Path) -> Iterator[HubClient]:
    with HubClient(hub.url, "secret", outbox, timeout_s=0.25, first_backoff_s=0.01) as made:
        yield made
