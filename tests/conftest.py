"""What more than one room's tests need."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from plain_hub import momentum_bundle, onnx_bundle
from running_hub import RunningHub
from xdist.scheduler import LoadScopeScheduling


class FilesTogether(LoadScopeScheduling):
    """The tests of a file run on one worker, for their fixtures; whole hubs one after another, for the machine."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", 1)[0]
        return "end_to_end" if "end_to_end/" in file else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FilesTogether:
    return FilesTogether(config, log)


@pytest.fixture(scope="module")
def running_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHub]:
    """One hub for the tests of a file that need a whole one: two registered heads, the momentum rule the incumbent."""
    hub = RunningHub(tmp_path_factory.mktemp("hub") / "home", mlflow=True).start()
    try:
        for bundle in (momentum_bundle(), onnx_bundle()):
            hub.register(bundle)
        yield hub
    finally:
        if hub.processes():
            hub.kill()
