"""One Ray for the tests of a file that train."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from train.cluster import ray_cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[int]:
    with ray_cluster(cpus=1) as cores:
        yield cores
