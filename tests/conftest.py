"""What more than one room's tests need."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from plain_hub import momentum_bundle, onnx_bundle
from running_hub import RunningHub


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of a file run on one worker, for their fixtures; whole hubs on one after another, for the machine."""
    for item in items:
        whole_hubs = "end_to_end" in item.path.parts
        item.add_marker(pytest.mark.xdist_group("end_to_end" if whole_hubs else item.path.as_posix()))


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
