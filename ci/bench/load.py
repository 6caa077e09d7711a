"""The load: a few HTTP/1.1 connections that are kept alive, each sending its next request when it has the last answer.

Runs in a process of its own and does as little as it can, because it shares the machine with what it measures. It is
the same for everything that is compared; only the requests differ.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from policies.errors import HubError

ID_PLACE = b"id-of-this-request.000000000"  # replaced in each request by an id as long
LONGEST_ANSWER_S = 30.0
MOST_PARTIAL = 0.05  # of the answers of a load


class NotMeasured(HubError):
    """The answers were not what is to be measured, so their times say nothing."""

    code = "not_measured"


@dataclass(frozen=True)
class Load:
    """clients connections to 127.0.0.1:port for some seconds.

    requests: whole HTTP requests, sent in turn. name: makes ids unique among loads; at most 18 characters.
    whole: what an answer contains when all parts of the work were done, such as that nothing was degraded.
    """

    port: int
    clients: int
    seconds: float
    requests: Sequence[bytes]
    name: str
    whole: bytes = b""


@dataclass(frozen=True)
class Timings:
    """latencies_ms: of each request, from its first byte sent to the last one received. wall_s: of all of them.

    partial: how many of the answers were not whole. They are timed like the others.
    """

    latencies_ms: list[float]
    wall_s: float
    partial: int = 0

    @property
    def per_second(self) -> float:
        return len(self.latencies_ms) / self.wall_s


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()


def post(path: str, body: dict[str, Any], token: str) -> bytes:
    content = json.dumps(body, separators=(",", ":"))
    return (f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n{content}").encode()


def measure(load: Load) -> Timings:
    """Put the load on and time it. NotMeasured if an answer is no 200, if none comes, or if too few are whole."""
    return asyncio.run(_measured(load))


async def _measured(load: Load) -> Timings:
    loop = asyncio.get_running_loop()
    shared = _Shared(load, time.perf_counter() + load.seconds)
    started = time.perf_counter()
    connections = [await loop.create_connection(lambda: _Connection(shared, loop.create_future()), "127.0.0.1",
                                                load.port) for _ in range(load.clients)]
    try:
        async with asyncio.timeout(load.seconds + LONGEST_ANSWER_S):
            await asyncio.gather(*(connection.ended for _, connection in connections))
    except TimeoutError:
        raise NotMeasured(f"an answer did not come within {LONGEST_ANSWER_S:g} s") from None
    finally:
        for transport, _ in connections:
            transport.close()
    _require_answers(shared)
    return Timings(shared.latencies_ms, time.perf_counter() - started, shared.partial.total())


def _require_answers(shared: _Shared) -> None:
    for found, most in ((shared.refused, 0), (shared.partial, MOST_PARTIAL * len(shared.latencies_ms))):
        if found.total() > most:
            answer, times = found.most_common(1)[0]
            raise NotMeasured(f"{found.total()} of {len(shared.latencies_ms)} answers were not what is to be timed; "
                              f"{times} of them ended so: {answer}")


class _Shared:
    """What the connections of one load have in common. refused, partial: ends of answers, and how often."""

    def __init__(self, load: Load, until: float) -> None:
        self.until, self.whole = until, load.whole
        self.requests = _numbered(load.requests, load.name)
        self.latencies_ms: list[float] = []
        self.refused: Counter[str] = Counter()
        self.partial: Counter[str] = Counter()


class _Connection(asyncio.Protocol):
    def __init__(self, shared: _Shared, ended: asyncio.Future[None]) -> None:
        self._shared, self.ended = shared, ended
        self._received = b""
        self._length = -1  # of the answer under way, head and body; -1 until the head is there

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send()

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._length < 0:
            self._length = answer_length(self._received)
        if 0 <= self._length <= len(self._received):
            now = time.perf_counter()
            self._shared.latencies_ms.append((now - self._sent_at) * 1_000)
            self._judge()
            if now < self._shared.until:
                self._send()
            elif not self.ended.done():
                self.ended.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_exception(NotMeasured(f"the connection was lost: {exc}"))

    def _judge(self) -> None:
        if not self._received.startswith(b"HTTP/1.1 200"):
            self._shared.refused[_end_of(self._received)] += 1
        elif self._shared.whole not in self._received:
            self._shared.partial[_end_of(self._received)] += 1

    def _send(self) -> None:
        self._received, self._length = b"", -1
        request = next(self._shared.requests)
        self._sent_at = time.perf_counter()
        self._transport.write(request)


def _end_of(answer: bytes) -> str:
    return answer.decode(errors="replace")[-300:]


def answer_length(received: bytes) -> int:
    """How long the whole answer will be by its Content-Length; -1 while its head is not complete."""
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return -1
    for line in received[:end].split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return end + 4 + int(value)
    raise NotMeasured(f"an answer without Content-Length: {received[:end]!r}")


def _numbered(requests: Sequence[bytes], name: str) -> Iterator[bytes]:
    for number, request in enumerate(itertools.cycle(requests)):
        request_id = f"{name}.{number:0{len(ID_PLACE) - len(name) - 1}d}"
        yield request.replace(ID_PLACE, request_id.encode())
