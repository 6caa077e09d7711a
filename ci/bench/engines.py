"""The three that are compared, each in a process of its own because Ray reads its settings when it is imported.

    python -m ci.bench.engines hub --home /tmp/bench/hub --port 8123

hub     the hub itself on a home that is there already
peer    a no-op on Serve with its default settings: what anyone gets who puts an endpoint on Serve
floor   a no-op on Serve with the hub's engine settings (HAProxy, throughput optimised): less is not possible on it

Each prints SERVING when it answers, and ends, with everything that it started, when its standard input does: so nothing
is left over when who started it is gone.
"""

from __future__ import annotations

import argparse
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import psutil

from ci.bench.load import NotMeasured
from ci.bench.setting import configuration
from hub import engine
from hub.home import Home
from policies.free_ports import free_port

SERVING = "serving"
LONGEST_END_S = 60.0


@contextmanager
def serving(kind: str, home: Path, port: int, log: IO[str]) -> Iterator[None]:
    """An engine that serves inside the block, in another process."""
    command = [sys.executable, "-m", "ci.bench.engines", kind, "--home", str(home), "--port", str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.strip() == SERVING:
                    break
                log.write(line)
            else:
                raise NotMeasured(f"the {kind} did not start; see {log.name}")
            yield
        finally:
            process.stdin.close()
            _wait_for_end(process)


def _wait_for_end(process: subprocess.Popen[str]) -> None:
    try:
        process.wait(LONGEST_END_S)
    except subprocess.TimeoutExpired:
        stuck = psutil.Process(process.pid)
        engine.end([*stuck.children(recursive=True), stuck])


def _hub(home: Home, port: int) -> None:
    config = configuration(port, free_port(), free_port())
    with engine.prepared(home, _say):
        from hub.up import running  # imports Ray, which reads what was just prepared

        with running(home, config, None, _say, with_mlflow=False, first_heads=False):
            _until_told_to_end()


def _floor(home: Home, port: int) -> None:
    config = configuration(port, dashboard_port=free_port())
    with engine.prepared(home, _say):
        from ray import serve

        from ci.bench.no_op import NoOp

        try:
            engine.start_ray(home, config)
            engine.start_proxy(config)
            serve.run(NoOp.bind(), name="no-op")  # type: ignore[attr-defined]
            _until_told_to_end()
        finally:
            engine.stop(home)


def _peer(home: Home, port: int) -> None:
    token = home.run / "ray_token"  # else Ray would leave one in the user's home
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    os.environ.update({"RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"})
    import ray
    from ray import serve

    from ci.bench.no_op import NoOp

    ray.init(address="local", num_cpus=8, log_to_driver=False, dashboard_port=free_port())
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(NoOp.bind(), name="no-op")  # type: ignore[attr-defined]
        _until_told_to_end()
    finally:
        ray.shutdown()


def _say(line: str) -> None:
    print(line, flush=True)


def _until_told_to_end() -> None:
    _say(SERVING)
    sys.stdin.read()


KINDS = {"hub": _hub, "peer": _peer, "floor": _floor}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("kind", choices=sorted(KINDS))
    arguments.add_argument("--home", type=Path, required=True)
    arguments.add_argument("--port", type=int, required=True)
    options = arguments.parse_args()
    home = Home(options.home)
    home.create()
    KINDS[options.kind](home, options.port)


if __name__ == "__main__":
    main()
