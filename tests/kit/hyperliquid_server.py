"""A Hyperliquid on this machine: POST /info and /ws over real sockets, with a clock and faults that a test moves.

It holds final rows in the venue's own wire shape and shows of them what had happened at its now_ms. Nothing happens
by itself: advance() moves the clock and sends, in order of time, what subscribers get until then.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from aiohttp import WSMsgType, web
from hyperliquid_wire import Wire, state_at, states


class HyperliquidServer:
    """Rows by symbol, to be filled before advance(): candles by (symbol, interval), funding, trades, books, quotes.

    Faults: refuse(), garble, hold_answers(), refuse_connections, cut(), cut_after, silent, repeats, reorder.
    """

    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms
        self.candles: dict[tuple[str, str], list[Wire]] = defaultdict(list)
        self.funding: dict[str, list[Wire]] = defaultdict(list)
        self.trades: dict[str, list[Wire]] = defaultdict(list)
        self.books: dict[str, list[Wire]] = defaultdict(list)
        self.quotes: dict[str, list[Wire]] = defaultdict(list)
        self.requests: list[Wire] = []
        self.connections = 0  # ever made
        self.sent = 0  # market messages
        self.funding_page = 500
        self.most_candles = 5_000
        self.refuse_connections = 0  # so many next ones get a 503
        self.garble = 0  # so many next answers are no JSON
        self.cut_after: int | None = None  # so many messages more, then every connection is cut
        self.silent = False  # connections stand, but neither messages nor pongs come
        self.repeats = 1  # each message comes so often
        self.reorder = False  # of two neighbouring messages of one channel, the later comes first
        self._refusals: list[tuple[int, str | None]] = []
        self._sockets: dict[web.WebSocketResponse, tuple[web.Request, set[str]]] = {}
        self._loop = asyncio.new_event_loop()
        self._answers_flow = asyncio.Event()
        self._answers_flow.set()
        threading.Thread(target=self._loop.run_forever, name="hyperliquid-server", daemon=True).start()
        self._runner = self._call(self._serve())
        self.port = int(self._runner.addresses[0][1])
        self.url = f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._answers_flow.set()
        self.cut()
        self._call(self._runner.cleanup())
        self._loop.call_soon_threadsafe(self._loop.stop)

    def advance(self, to_ms: int) -> None:
        """Until to_ms; returns when everything has been written to the sockets."""
        due = self._messages(self.now_ms, to_ms)
        self.now_ms = to_ms
        if self.reorder:
            due = _neighbours_swapped(due)
        self._call(self._send([message for message in due for _ in range(self.repeats)]))

    def refuse(self, count: int, status: int, retry_after: str | None = None) -> None:
        """So many next questions get this status."""
        self._refusals += [(status, retry_after)] * count

    def hold_answers(self, held: bool) -> None:
        self._loop.call_soon_threadsafe(self._answers_flow.clear if held else self._answers_flow.set)

    def cut(self) -> None:
        """End every connection without a word."""
        self._call(self._cut())

    def send_text(self, text: str) -> None:
        """To every connection, as it is."""
        self._call(self._send_all(text))

    def subscribed(self) -> set[str]:
        """channel:coin[:interval] of all open connections."""
        return {one for _, wanted in list(self._sockets.values()) for one in wanted}

    def final_candles(self, symbol: str, interval: str = "1m") -> list[Wire]:
        """Those closed at now_ms."""
        return [row for row in self.candles[symbol, interval] if row["T"] < self.now_ms]

    # What has happened.

    def _messages(self, from_ms: int, to_ms: int) -> list[tuple[str, Wire]]:
        """(subscription, message) of what happens in (from_ms, to_ms], by time."""
        found: list[tuple[int, str, Wire]] = []
        for (symbol, interval), rows in self.candles.items():
            for row in rows:
                if row["T"] >= from_ms and row["t"] <= to_ms and row["n"] > 0:
                    found += [(at_ms, f"candle:{symbol}:{interval}", {"channel": "candle", "data": state})
                              for at_ms, state in states(row)]
        for channel, by_symbol in (("l2Book", self.books), ("bbo", self.quotes), ("trades", self.trades)):
            for symbol, rows in by_symbol.items():
                found += [(row["time"], f"{channel}:{symbol}",
                           {"channel": channel, "data": [row] if channel == "trades" else row}) for row in rows]
        found = sorted((one for one in found if from_ms < one[0] <= to_ms), key=lambda one: one[0])
        out = [(key, message) for _, key, message in found]
        return [*out, ("allMids", {"channel": "allMids", "data": {"mids": self._mids(to_ms)}})]

    def _mids(self, now_ms: int) -> Wire:
        out = {}
        for symbol, rows in self.quotes.items():
            quote = _last(rows, now_ms)
            if quote and all(quote["bbo"]):
                out[symbol] = str(sum(float(side["px"]) for side in quote["bbo"]) / 2)
        return out

    def _answer(self, request: Wire) -> Any:
        kind, coin = request["type"], request.get("coin", "")
        if kind == "candleSnapshot":
            return self._candle_snapshot(**request["req"])
        if kind == "fundingHistory":
            first_ms, last_ms = request["startTime"], min(request.get("endTime", self.now_ms), self.now_ms)
            return [row for row in self.funding[coin] if first_ms <= row["time"] <= last_ms][:self.funding_page]
        if kind == "l2Book":
            return _last(self.books[coin], self.now_ms)
        if kind == "allMids":
            return self._mids(self.now_ms)
        return {"universe": [{"name": name, "szDecimals": 2} for name in sorted({key[0] for key in self.candles})]}

    def _candle_snapshot(self, coin: str, interval: str, startTime: int, endTime: int) -> list[Wire]:
        """The one that contains startTime too; the last as it is now; only the newest there are."""
        begun = [row for row in self.candles[coin, interval] if row["t"] <= self.now_ms][-self.most_candles:]
        return [state_at(row, self.now_ms) for row in begun if row["T"] >= startTime and row["t"] <= endTime]

    # Sockets, in the loop's thread.

    def _call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _serve(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_post("/info", self._on_question)
        app.router.add_get("/ws", self._on_connection)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner

    async def _on_question(self, request: web.Request) -> web.Response:
        question = await request.json()
        self.requests.append(question)
        await self._answers_flow.wait()
        if self._refusals:
            status, retry_after = self._refusals.pop(0)
            headers = {} if retry_after is None else {"Retry-After": retry_after}
            return web.Response(status=status, text="null", headers=headers)
        if self.garble > 0:
            self.garble -= 1
            return web.Response(text="<html>")
        return web.json_response(self._answer(question))

    async def _on_connection(self, request: web.Request) -> web.StreamResponse:
        if self.refuse_connections > 0:
            self.refuse_connections -= 1
            return web.Response(status=503)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_str("Websocket connection established.")
        self._sockets[socket] = (request, set())
        self.connections += 1
        with suppress(ConnectionError):
            async for message in socket:
                if message.type == WSMsgType.TEXT and not self.silent:
                    await self._on_command(socket, json.loads(message.data))
        self._sockets.pop(socket, None)
        return socket

    async def _on_command(self, socket: web.WebSocketResponse, command: Wire) -> None:
        if command["method"] == "ping":
            await socket.send_str(json.dumps({"channel": "pong"}))
            return
        wanted = command["subscription"]
        await socket.send_str(json.dumps({"channel": "subscriptionResponse", "data": command}))
        self._sockets[socket][1].add(":".join(filter(None, map(wanted.get, ("type", "coin", "interval")))))
        coin = wanted.get("coin", "")
        past = [row for row in self.trades[coin] if row["time"] <= self.now_ms][-10:]
        first = {"trades": past, "l2Book": _last(self.books[coin], self.now_ms),
                 "bbo": _last(self.quotes[coin], self.now_ms)}.get(wanted["type"])
        if first:
            await socket.send_str(json.dumps({"channel": wanted["type"], "data": first}))

    async def _send(self, messages: Sequence[tuple[str, Wire]]) -> None:
        for key, message in messages:
            if self.cut_after is not None:
                if self.cut_after <= 0:
                    self.cut_after = None
                    self._abort_all()
                else:
                    self.cut_after -= 1
            text = json.dumps(message)
            for socket, (_, wanted) in list(self._sockets.items()):
                if key in wanted and not self.silent:
                    await _written(socket, text)
                    self.sent += 1

    async def _send_all(self, text: str) -> None:
        for socket in list(self._sockets):
            await _written(socket, text)

    async def _cut(self) -> None:
        self._abort_all()

    def _abort_all(self) -> None:
        for socket, (request, _) in list(self._sockets.items()):
            self._sockets.pop(socket, None)
            if request.transport is not None:
                request.transport.abort()


def _last(rows: Sequence[Wire], now_ms: int) -> Wire | None:
    return max((row for row in rows if row["time"] <= now_ms), key=lambda row: int(row["time"]), default=None)


def _neighbours_swapped(messages: Sequence[tuple[str, Wire]]) -> list[tuple[str, Wire]]:
    out = list(messages)
    places: dict[str, list[int]] = defaultdict(list)
    for place, (key, _) in enumerate(out):
        places[key].append(place)
    for found in places.values():
        for left, right in zip(found[::2], found[1::2], strict=False):
            out[left], out[right] = out[right], out[left]
    return out


async def _written(socket: web.WebSocketResponse, text: str) -> None:
    with suppress(ConnectionError):
        await socket.send_str(text)
