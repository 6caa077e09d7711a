"""Ray for training: the cluster that RAY_ADDRESS names, or one of this machine that ends with the job.

Ray's ports listen on all interfaces and accept calls that can run code. So one of this machine gets a token and client
certificates of its own, made anew for the job. A hub that runs beside has its own Ray and notices nothing of it.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from policies.ray_tls import ray_tls_environment


@contextmanager
def ray_cluster(cpus: int | None = None) -> Iterator[int]:
    """Connect for the length of the job; yields how many fits may run at once. cpus: of this machine; None: all."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # One thread a fit: several run side by side, and a sum must not depend on how many threads made it.
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
    outside = os.environ.get("RAY_ADDRESS")
    sessions = None if outside else Path(tempfile.mkdtemp(prefix="train-ray-"))
    if sessions is not None and "ray" not in sys.modules:  # it reads its variables when it is imported
        os.environ.update(keys_in(sessions))
    import ray

    try:
        if outside:
            ray.init(address=outside, log_to_driver=False, logging_level=logging.ERROR)
        else:
            ray.init(address="local", num_cpus=cpus or os.cpu_count() or 1, include_dashboard=False,
                     log_to_driver=False, logging_level=logging.ERROR, _node_ip_address="127.0.0.1",
                     _temp_dir=str(sessions), object_store_memory=512 * 2**20)
        yield max(1, int(ray.cluster_resources().get("CPU", 1)))
    finally:
        ray.shutdown()
        if sessions is not None:
            shutil.rmtree(sessions, ignore_errors=True)


def keys_in(folder: Path) -> dict[str, str]:
    """What keeps everyone else out of a Ray of one's own: variables for it and for whoever may join it."""
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    return {**ray_tls_environment(folder / "tls"), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
