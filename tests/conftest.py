"""What more than one room's tests need."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from plain_hub import momentum_bundle, onnx_bundle
from running_hub import RunningHub


@pytest.fixture(scope="module")
def running_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHub]:
    """One hub for the tests of a file that need a whole one: two registered heads, the momentum rule the incumbent."""
    hub = RunningHub(tmp_path_factory.mktemp("hub") / "home").start()
    try:
        for bundle in (momentum_bundle(), onnx_bundle()):
            hub.register(bundle)
        yield hub
    finally:
        if hub.processes():
            hub.kill()
