"""What more than one room's tests need."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

# Before NumPy comes in. Workers of tests share the cores; threads of its linear algebra would only wait for each other.
os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

import pytest
from plain_bundles import momentum_bundle, onnx_bundle
from running_hub import RunningHub
from xdist.scheduler import LoadScopeScheduling

TOGETHER = ("end_to_end", "engine")  # whole hubs one after another; what is compiled, compiled once


class FilesTogether(LoadScopeScheduling):
    """The tests of a file run on one worker, for their fixtures; those of some rooms, too."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", 1)[0]
        return next((room for room in TOGETHER if f"/{room}/" in file), file)


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
