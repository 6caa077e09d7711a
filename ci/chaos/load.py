"""The load: decisions over HTTP at a steady rate, whatever becomes of the ones before, in a thread of its own.

Every few requests one names the next minute and so moves the replay clock, once the last that did so was answered: the
clock never goes back, and one minute must not overtake another. The others are asked at the time that it shows. A
request is sent when it is due, not when an earlier one was answered: a hub that hangs is seen by all the requests that
a bot would have sent meanwhile.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from feature_repo.features import MINUTE_MS
from policies.errors import InvalidInput

RATE = 40.0  # requests per second
REQUESTS_A_MINUTE = 10  # of the replay clock
LONGEST_ANSWER_S = 20.0
CONNECTIONS = 512
STRATEGIES = ("momentum", "scalping", "breakout")
LLM_VIEW: dict[str, Any] = {"direction": "long", "confidence": 0.7, "size_fraction": 0.05, "leverage": 5.0,
                            "tp_pct": 0.01, "sl_pct": 0.006, "limit_offset_pct": 0.0, "min_conf": 0.5,
                            "strategy_weights": {"momentum": 1.0}}


@dataclass(frozen=True)
class Answered:
    """sent_s, done_s: by time.monotonic(). status: of HTTP; 0 if there was no answer, and then `body` is empty.

    moves: whether it named a new minute.
    """

    sent_s: float
    done_s: float
    symbol: str
    moves: bool
    status: int
    body: dict[str, Any]
    error: str = ""

    @property
    def latency_ms(self) -> float:
        return (self.done_s - self.sent_s) * 1_000

    @property
    def by_head(self) -> bool:
        return self.body.get("role") in ("production", "challenger")

    @property
    def parts(self) -> tuple[str, ...]:
        """What the answer says was degraded."""
        return tuple(entry["part"] for entry in self.body.get("degraded", ()))


class Load:
    """`answers` grows while it runs, in the order of the answers. clock_ms: the last minute that was named."""

    def __init__(self, url: str, token: str, symbols: Sequence[str], start_ms: int) -> None:
        self.clock_ms = start_ms
        self.answers: list[Answered] = []
        self._url, self._token, self._symbols = url, token, tuple(symbols)
        self._jump_ms: int | None = None
        self._may_send, self._ended = threading.Event(), threading.Event()
        self._may_send.set()
        self._under_way = 0
        self._moving = False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._may_send.set()
        self._ended.set()
        self._thread.join(LONGEST_ANSWER_S + 5)

    def jump(self, time_ms: int) -> None:
        """The next request names this time, which must lie ahead: the replay clock never goes back."""
        if time_ms <= self.clock_ms:
            raise InvalidInput("time_ms", f"> {self.clock_ms}, where the load's clock is", time_ms)
        self._jump_ms = time_ms

    def hold(self) -> None:
        """Send nothing until go_on(); `under_way` tells when the last answer is there."""
        self._may_send.clear()

    def go_on(self) -> None:
        self._may_send.set()

    @property
    def under_way(self) -> int:
        return self._under_way

    async def _run(self) -> None:
        limits = httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)
        headers = {"Authorization": f"Bearer {self._token}"}
        async with httpx.AsyncClient(base_url=self._url, headers=headers, timeout=LONGEST_ANSWER_S,
                                     limits=limits) as client:
            tasks: set[asyncio.Task[None]] = set()
            due_s = time.monotonic()
            for number in itertools.count():
                due_s = max(due_s + 1 / RATE, time.monotonic() - 1.0)  # after a pause it does not make up for it
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                if self._ended.is_set():
                    break
                if self._may_send.is_set():
                    task = asyncio.create_task(self._ask(client, number))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
            await asyncio.gather(*tasks)

    async def _ask(self, client: httpx.AsyncClient, number: int) -> None:
        symbol = self._symbols[number % len(self._symbols)]
        body: dict[str, Any] = {
            "request_id": f"chaos-{number}", "symbol": symbol, "strategy": STRATEGIES[number % len(STRATEGIES)],
            "portfolio": {"equity": 10_000.0}, "llm": LLM_VIEW}
        moves = not self._moving and (self._jump_ms is not None or number % REQUESTS_A_MINUTE == 0)
        if moves:
            self._moving = True
            self.clock_ms, self._jump_ms = self._jump_ms or self.clock_ms + MINUTE_MS, None
            body["time_ms"] = self.clock_ms
        self._under_way += 1
        sent_s = time.monotonic()
        status, error = 0, ""
        answer: dict[str, Any] = {}
        try:
            response = await client.post("/v1/decisions", json=body)
            status, answer = response.status_code, response.json()
        except (httpx.HTTPError, ValueError) as problem:
            error = repr(problem)
        done_s = time.monotonic()
        self._under_way -= 1
        self._moving = self._moving and not moves
        self.answers.append(Answered(sent_s, done_s, symbol, moves, status, answer,
                                     error or ("" if status == 200 else str(answer)[:300])))
