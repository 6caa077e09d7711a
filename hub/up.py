"""`hub up`: starts every part, says what it does, serves until it is told to end, and ends exactly what it started.

The order is the order of need: market and features, Redis, Ray, the ledger's writer, Serve. The first decision can be
asked for as soon as Serve answers; first heads are trained while the hub already serves the LLM alone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import ray
from ray import serve

from feature_repo.features import DECISION_V1
from feature_repo.market import replay_range
from feature_repo.redis_server import EmbeddedRedis
from hub import engine
from hub.actors import FeederShell, sentry_parts
from hub.app import build_app
from hub.config import HubConfig
from hub.deployments import FEEDER, NAMESPACE, SENTRY
from hub.home import Home
from hub.market import MarketChoice, settle
from hub.rl_start import take_in_rl
from policies.clock import ClockChoice
from policies.errors import HubError
from policies.registry import PolicyFolder
from sentry.actor import SentryShell
from sentry.ledger import LedgerReader

Say = Callable[[str], None]

SENTRY_THREADS = 8  # callers at once: each replica has two batches under way


class NotStarted(HubError):
    """A part did not come up in its time; the message names the log that says why."""

    code = "not_started"


@dataclass(frozen=True)
class Running:
    """A hub that serves. redis: the embedded server, if it is used.

    split_ms, stop_ms: end of the training range, which is where the replay starts, and of the bars; None if live.
    """

    home: Home
    config: HubConfig
    choice: MarketChoice
    market: str
    redis_url: str
    redis: EmbeddedRedis | None
    split_ms: int | None
    stop_ms: int | None
    clock: ClockChoice

    @property
    def url(self) -> str:
        return f"http://{self.config.server.host}:{self.config.server.port}"


@contextmanager
def running(home: Home, config: HubConfig, data_dir: str | None, say: Say, with_mlflow: bool = True,
            first_heads: bool = True) -> Iterator[Running]:
    """A hub that serves inside the block, on a home that `engine.prepared` holds; every process is gone after it,
    however it is left.
    """
    with ExitStack() as stack:
        stack.callback(_end_children)
        say("configuration: " + _described(config))
        hub = _prepared(home, config, data_dir, say, stack)
        say("Ray: starting")
        stack.callback(engine.stop, home)
        engine.start_ray(home, config)
        say("sentry: replaying the ledger; feeder: applying the feature repo")
        starting = _start_actors(hub)
        engine.start_proxy(config)
        ray.get(starting, timeout=300)
        say("Serve: starting the hub's deployments")
        serve.run(build_app(home, config, hub.redis_url, hub.market, hub.clock), name="hub")
        _wait_until_ready(hub)
        say(f"serving at {hub.url}")
        if with_mlflow:
            _start_mlflow(hub, say)
        if first_heads:
            _first_heads(hub, say)
        with _ops_client(hub) as client:
            take_in_rl(client, home.root, config.learning.rl, say)
        yield hub


def up(home: Home, config: HubConfig, data_dir: str | None, say: Say, first_heads: bool = True,
       with_mlflow: bool = True) -> None:
    """Serve until SIGINT or SIGTERM."""
    # SIGINT too: a shell that starts a command in the background has it ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        with running(home, config, data_dir, say, with_mlflow, first_heads) as hub:
            _say_addresses(hub, with_mlflow, say)
            try:
                while True:
                    time.sleep(1.0)
                    _watch(hub, say)
            except KeyboardInterrupt:
                say("ending every process of this hub")
                # From here on nothing may interrupt the clearing up.
                for number in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(number, signal.SIG_IGN)
        say("ended")
    except KeyboardInterrupt:
        say("interrupted while starting; what had been started is ended")


def _watch(hub: Running, say: Say) -> None:
    """Ray restarts what belongs to it; the embedded Redis is ours. The feeder fills it again by itself."""
    if hub.redis is not None and not hub.redis.running:
        say("Redis has ended; starting it again")
        hub.redis.start()


def _prepared(home: Home, config: HubConfig, data_dir: str | None, say: Say, stack: ExitStack) -> Running:
    choice, market = settle(config, data_dir)
    say(f"market: {market.describe()}")
    redis_url, redis = config.storage.redis_url, None
    if not redis_url:
        redis = EmbeddedRedis(home.run / "redis", config.storage.redis_port).start()
        stack.callback(redis.stop)
        redis_url = redis.url
        say(f"Redis: embedded server on port {config.storage.redis_port}")
    split = stop = None
    if choice.recorded:
        _, split, stop = replay_range(market, choice.symbols)
    mode = config.clock.mode
    if mode == "auto":
        mode = "replay" if choice.recorded else "live"
    clock = ClockChoice(mode, max(split or 0, _latest_ms(home)), stop or 0)
    return Running(home, config, choice, market.describe(), redis_url, redis, split, stop, clock)


def _latest_ms(home: Home) -> int:
    """The time of the ledger's last row, where a replay goes on; 0 before there is one."""
    if not home.ledger.exists():
        return 0
    reader = LedgerReader(home.ledger)
    try:
        return max((row.at_ms for row in reader.rows(after=reader.head() - 1)), default=0)
    finally:
        reader.close()


def _start_actors(hub: Running) -> list[Any]:
    """Named actors, restarted by Ray without end and never asked twice: their constructors replay.

    Detached, because an actor without a handle in this process would be ended; Ray itself ends with this process.
    Returns what to wait for.
    """
    options: dict[str, Any] = {"namespace": NAMESPACE, "lifetime": "detached", "max_restarts": -1,
                               "max_task_retries": 0, "num_cpus": 0.1}
    sentry: Any = ray.remote(SentryShell).options(name=SENTRY, max_concurrency=SENTRY_THREADS, **options).remote(
        str(hub.home.root), hub.config, sentry_parts, hub.clock.make(0).now_ms())
    feeder: Any = ray.remote(FeederShell).options(name=FEEDER, **options).remote(
        hub.home, hub.choice, hub.redis_url, hub.clock.start_ms)
    return [sentry.ping.remote(), feeder.ready.remote()]


def _wait_until_ready(hub: Running, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    answer = "no answer"
    while time.monotonic() < deadline:
        try:
            response = httpx.get(f"{hub.url}/readyz", timeout=2.0)
            if response.status_code == 200:
                return
            answer = response.text
        except httpx.HTTPError as error:
            answer = repr(error)
        time.sleep(0.05)
    raise NotStarted(f"the hub was not ready within {timeout_s:g} s: {answer}")


def _start_mlflow(hub: Running, say: Say) -> None:
    """The server, unless there is one elsewhere, and the mirror of the policies in its registry. Nothing waits for
    either: they are for people.
    """
    url = hub.config.storage.mlflow_url or _start_mlflow_server(hub, say)
    command = [sys.executable, "-m", "hub.mlflow_mirror", "--ledger", str(hub.home.ledger),
               "--policies", str(hub.home.policies), "--mlflow", url]
    with (hub.home.logs / "mlflow_mirror.log").open("ab") as log:
        subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)


def _start_mlflow_server(hub: Running, say: Say) -> str:
    """Its URL. Experiments are written to its database, not through it."""
    port = hub.config.storage.mlflow_port
    folder = hub.home.mlflow
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
               "--backend-store-uri", f"sqlite:///{folder / 'mlflow.sqlite'}",
               "--artifacts-destination", str(folder / "artifacts")]
    # Its job runner would be three more processes that nothing here uses.
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (hub.home.logs / "mlflow.log").open("ab") as log:
        subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=folder, env=environment)
    say(f"MLflow: starting on port {port}")
    return f"http://127.0.0.1:{port}"


def _first_heads(hub: Running, say: Say) -> None:
    """Train and register the first heads if none can be served; the hub serves the LLM alone meanwhile."""
    with _ops_client(hub) as client:
        known = client.get("/v1/policies").raise_for_status().json()["policies"]
        if any(_is_served(hub, policy["policy_id"]) for policy in known):
            return
        if hub.config.registration.trusted_keys:
            say("heads: none can be served, and none are trained: registration.trusted_keys lets in only what one of "
                "them signed, which the first heads are not; until one is registered the LLM decides alone")
            return
        say(f"heads: {'none of the registered ones can be served' if known else 'none registered yet'}; "
            "training the first ones")
        for path in _trained(hub, say):
            answer = client.post("/v1/policies", content=path.read_bytes())
            if answer.status_code != 200:
                raise NotStarted(f"the hub refused {path}: {answer.text}")
            say(f"heads: registered {answer.json()['alias']} as {answer.json()['policy_id'][:12]}")


def _ops_client(hub: Running) -> httpx.Client:
    return httpx.Client(base_url=hub.url, headers={"Authorization": f"Bearer {hub.home.tokens()['ops']}"}, timeout=60.0)


def _is_served(hub: Running, policy_id: str) -> bool:
    """Whether its bundle is there and made for the features of today."""
    try:
        return PolicyFolder(hub.home.policies).get(policy_id).manifest.features == DECISION_V1.names
    except HubError:
        return False


def _trained(hub: Running, say: Say) -> list[Path]:
    """Packed bundles of the first heads, made by a process of their own: training libraries stay out of this one."""
    command = [sys.executable, "-m", "train.first_heads", "--home", str(hub.home.root), "--market", hub.choice.kind,
               "--symbols", ",".join(hub.choice.symbols), "--seed", str(hub.choice.seed),
               "--signal", str(hub.choice.signal), "--generated-bars", str(hub.choice.generated_bars)]
    if hub.split_ms is not None:
        command += ["--until-ms", str(hub.split_ms)]
    if hub.choice.data_dir:
        command += ["--data-dir", hub.choice.data_dir]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line.rstrip())
            say(f"training: {lines[-1]}")
    if process.returncode != 0:
        raise NotStarted(f"training the first heads ended with {process.returncode}: {' | '.join(lines[-5:])}")
    return [Path(line.removeprefix("bundle ")) for line in lines if line.startswith("bundle ")]


def _end_children() -> None:
    engine.end(psutil.Process().children(recursive=True))


def _described(config: HubConfig) -> str:
    return (f"rollout {config.rollout.mode.value}, learning {'on' if config.learning.enabled else 'off'}, "
            f"symbols {', '.join(config.market.symbols)}")


def _say_addresses(hub: Running, with_mlflow: bool, say: Say) -> None:
    storage = hub.config.storage
    say("")
    say(f"HTTP API        {hub.url}/v1/decisions")
    say(f"ops page        {hub.url}/ops")
    say(f"metrics         {hub.url}/metrics")
    say(f"Ray dashboard   http://127.0.0.1:{storage.dashboard_port}   (token: {hub.home.run / 'ray_token'})")
    if with_mlflow:
        say(f"MLflow          {storage.mlflow_url or f'http://127.0.0.1:{storage.mlflow_port}'}")
    say(f"tokens          {hub.home.tokens_file}")
    say(f"webhooks        {hub.url}/v1/webhooks/policy   (secret: `hub webhook-secret`)")
    if hub.split_ms is not None:
        say(f"clock           replay, from {hub.clock.start_ms}; send a later time_ms with a request to move it")
    say("Ctrl-C ends everything.")
