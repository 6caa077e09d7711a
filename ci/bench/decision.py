"""A full decision over HTTP, against a no-op on Serve.

The hub checks the token and the schema, reads the features of `decision_v1` and `episode_v1` from Redis, draws a role,
asks two heads in processes of their own, finds the nearest of 50,000 episodes, draws parameters, applies the shield and
commits durably (synchronous=FULL). The peer and the floor do nothing at all; see `ci.bench.engines`.

One at a time is up and loaded, in the order peer, hub, floor, floor, hub, peer and again, so that a machine that grows
slower or faster favours none of them.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path
from typing import IO

import psutil

from ci.bench.engines import serving
from ci.bench.load import ID_PLACE, Load, Timings, get, measure, post
from ci.bench.setting import NO_OP_PATH, configuration, requests_at
from feature_repo.features import DECISION_V1, MINUTE_MS
from feature_repo.market import replay_range
from hub.home import Home
from hub.market import settle
from policies.free_ports import free_port
from reports.report import Aim, BenchRow, Side, compared

WORK = "A full decision over HTTP"
PEER = "a no-op on Serve's default settings"
FLOOR = "a no-op on Serve behind HAProxy, throughput optimised"
HUB = "the hub's decision"
AIM = Aim(least_to_peer=0.5)
HEADS = 2

KINDS = ("peer", "hub", "floor")
CLIENTS = (1, 16)
WARM_UP_S = 3.0
BUSY_WINDOW_S = 0.5
SETTLE_TRIES, QUIET_PERCENT = 40, 10.0

Say = Callable[[str], None]


@dataclass(frozen=True)
class Extent:
    """How much is measured. rounds: each loads every engine twice; seconds: of one load with one number of clients."""

    episodes: int = 50_000
    rounds: int = 2
    seconds: float = 4.0


@dataclass
class Measured:
    """Timings by (engine, clients), in the order in which they were taken.

    busy_percent: of all cores, just before each load. What idle engines cost is a few percent; more is foreign work.
    """

    timings: dict[tuple[str, int], list[Timings]] = field(default_factory=dict)
    busy_percent: list[float] = field(default_factory=list)

    def add(self, kind: str, clients: int, timings: Timings) -> None:
        self.timings.setdefault((kind, clients), []).append(timings)

    def p50_ms(self, kind: str) -> list[float]:
        return [statistics.median(one.latencies_ms) for one in self.timings[kind, CLIENTS[0]]]

    def per_second(self, kind: str) -> list[float]:
        return [one.per_second for one in self.timings[kind, CLIENTS[-1]]]

    def partial_share(self) -> float:
        """Of the hub's answers, how many were degraded in some part."""
        found = [one for (kind, _), several in self.timings.items() if kind == "hub" for one in several]
        return sum(one.partial for one in found) / sum(len(one.latencies_ms) for one in found)


def run(say: Say, extent: Extent) -> list[BenchRow]:
    """Measure all three. Takes some minutes; what it started and wrote is gone afterwards."""
    measured = _measured(extent, say)
    say(f"degraded answers: {measured.partial_share():.2%}; "
        f"busy before a load: {statistics.median(measured.busy_percent):.0f} % in the median")
    return rows(measured, extent)


def rows(measured: Measured, extent: Extent) -> list[BenchRow]:
    """The cost of one decision, and how many there can be."""
    busy = measured.busy_percent
    detail = {"episodes": extent.episodes, "heads": HEADS, "features": len(DECISION_V1),
              "seconds_a_run": extent.seconds, "degraded_share": measured.partial_share(),
              "busy_percent_before_a_load": {"median": statistics.median(busy), "max": max(busy)}}
    compare = ((f"{WORK}: p50, one client", "ms", measured.p50_ms),
               (f"{WORK}: requests/s, {CLIENTS[-1]} clients", "1/s", measured.per_second))
    return [compared(work, unit, Side(HUB, figures("hub")), Side(PEER, figures("peer")), Side(FLOOR, figures("floor")),
                     AIM, detail=detail) for work, unit, figures in compare]


def _measured(extent: Extent, say: Say) -> Measured:
    with ExitStack() as stack:
        folder = stack.enter_context(_folder())
        log = stack.enter_context((folder / "bench.log").open("w"))
        say(f"making {extent.episodes} episodes to remember")
        hub_home = Home(folder / "hub")
        _live(hub_home, extent.episodes, log)
        loader = stack.enter_context(ProcessPoolExecutor(1, get_context("spawn")))
        return _alternate(extent, folder, hub_home.tokens()["bot"], loader, log, say)


def _alternate(extent: Extent, folder: Path, token: str, loader: ProcessPoolExecutor, log: IO[str],
               say: Say) -> Measured:
    """One engine is up at a time: on two cores even idle ones cost the loaded one a third of its speed."""
    measured, minutes = Measured(), _minutes()
    order = (*KINDS, *reversed(KINDS)) * extent.rounds
    for start, (kind, visits) in enumerate(groupby(order)):
        port = free_port()
        say(f"starting the {kind}")
        with serving(kind, folder / kind, port, log):
            _settle()
            for place, visit in enumerate(("warm-up", *visits)):
                warming = visit == "warm-up"
                say(f"{'warming up' if warming else 'loading'} the {kind}")
                for clients in CLIENTS:
                    requests = _decisions(next(minutes), token) if kind == "hub" else [get(NO_OP_PATH)]
                    whole = b'"degraded":[]' if kind == "hub" and not warming else b""
                    measured.busy_percent.append(psutil.cpu_percent(BUSY_WINDOW_S))
                    load = Load(port, clients, WARM_UP_S if warming else extent.seconds, requests,
                                f"{start}.{place}.{clients}", whole)
                    timings = loader.submit(measure, load).result()
                    if not warming:
                        measured.add(kind, clients, timings)
    return measured


def _settle() -> None:
    """Wait until what an engine still does after its start is over; not for ever, since the report tells CPU use."""
    for _ in range(SETTLE_TRIES):
        if psutil.cpu_percent(1.0) < QUIET_PERCENT:
            return


def _decisions(time_ms: int, token: str) -> Sequence[bytes]:
    """A request in every slot at this time, with room for the id."""
    return [post("/v1/decisions", {**request, "request_id": ID_PLACE.decode()}, token)
            for request in requests_at(time_ms, configuration())]


def _minutes() -> Iterator[int]:
    """The times at which the hub is asked: each load comes one bar later than the one before."""
    choice, market = settle(configuration(), None)
    _, split_ms, stop_ms = replay_range(market, choice.symbols)
    yield from range(split_ms + MINUTE_MS, stop_ms, MINUTE_MS)


def _live(home: Home, episodes: int, log: IO[str]) -> None:
    """In a process of its own: it imports all of training."""
    command = [sys.executable, "-m", "ci.bench.lived_home", "--home", str(home.root), "--episodes", str(episodes)]
    subprocess.run(command, check=True, stdout=log, stderr=log)


@contextmanager
def _folder() -> Iterator[Path]:
    """Away when all went well; else the logs in it say what did not."""
    folder = Path(tempfile.mkdtemp(prefix="hub-bench-"))
    try:
        yield folder
    except BaseException:
        print(f"logs are kept in {folder}", file=sys.stderr)
        raise
    shutil.rmtree(folder)
