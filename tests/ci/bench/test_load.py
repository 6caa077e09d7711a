"""The load generator against a small server of its own: what it sends, what it counts and what it refuses."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ci.bench.load import ID_PLACE, Load, NotMeasured, answer_length, get, measure, post


class Server:
    """Answers every request with the same bytes, in pieces; `seen` holds what came in."""

    def __init__(self, answer: bytes) -> None:
        self.answer, self.port = answer, 0
        self.seen: list[bytes] = []
        self.connections = 0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = answer_length(head) - len(head) if b"Content-Length" in head else 0
                self.seen.append(head + await reader.readexactly(length))
                half = len(self.answer) // 2
                writer.write(self.answer[:half])
                await asyncio.sleep(0)
                writer.write(self.answer[half:])
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def listen(self, ready: threading.Event, ended: asyncio.Event) -> None:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await ended.wait()
        server.close()


@contextmanager
def answering(answer: bytes) -> Iterator[Server]:
    server, ready, loop, ended = Server(answer), threading.Event(), asyncio.new_event_loop(), asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(server.listen(ready, ended)), daemon=True)
    thread.start()
    assert ready.wait(5)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(5)


def answer(status: str, body: bytes) -> bytes:
    return b"HTTP/1.1 %s\r\ncontent-length: %d\r\n\r\n%s" % (status.encode(), len(body), body)


def test_every_request_has_an_id_of_its_own_and_every_answer_is_timed() -> None:
    request = post("/v1/decisions", {"request_id": ID_PLACE.decode()}, "token")
    with answering(answer("200 OK", b'{"degraded":[]}')) as server:
        timings = measure(Load(server.port, 4, 0.1, [request], "a.4", b'"degraded":[]'))
    assert server.connections == 4
    assert len(timings.latencies_ms) == len(server.seen) == len(set(server.seen))
    assert {len(seen) for seen in server.seen} == {len(request)}
    assert all(b"Bearer token" in seen for seen in server.seen)
    assert min(timings.latencies_ms) > 0
    assert timings.partial == 0
    assert timings.per_second == pytest.approx(len(server.seen) / timings.wall_s)


def test_answers_that_are_no_200_are_not_measured() -> None:
    with answering(answer("503 Service Unavailable", b"later")) as server, pytest.raises(NotMeasured, match="later"):
        measure(Load(server.port, 1, 0.02, [get("/")], "a"))


def test_too_many_partial_answers_are_not_measured() -> None:
    with answering(answer("200 OK", b'{"degraded":["redis"]}')) as server, pytest.raises(NotMeasured, match="redis"):
        measure(Load(server.port, 1, 0.02, [get("/")], "a", b'"degraded":[]'))


def test_lost_connection_is_not_measured() -> None:
    with pytest.raises(OSError, match="Connect call failed"):
        measure(Load(1, 1, 0.02, [get("/")], "a"))


def test_length_of_an_answer_is_known_once_its_head_is_there() -> None:
    whole = answer("200 OK", b"{}")
    end = whole.index(b"\r\n\r\n") + 4
    assert [answer_length(whole[:n]) for n in range(end)] == [-1] * end
    assert answer_length(whole[:end]) == answer_length(whole) == len(whole)
    with pytest.raises(NotMeasured):
        answer_length(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
