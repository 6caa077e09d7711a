"""One websocket connection to Hyperliquid, from its subscriptions to its end.

The SDK's WebsocketManager is not used: it never connects again, prints what it did not expect, ends its thread with
the first exception of a callback or a message that is not JSON, and cannot tell a silent connection from a quiet
market. Used are the SDK's subscriptions, its names for them, and the websocket-client that it brings.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated

import orjson
import websocket
from annotated_types import Gt
from hyperliquid.utils.types import Subscription
from hyperliquid.websocket_manager import subscription_to_identifier

from policies.errors import HubError

PING = orjson.dumps({"method": "ping"}).decode()
TICK_S = 0.2  # the longest that a connection listens without looking up


class ConnectionEnded(HubError):
    """The connection could not be made, was cut, or fell silent; the message says which."""

    code = "connection_ended"


@dataclass(frozen=True)
class ConnectionSettings:
    """The venue closes a connection that was sent nothing for 60 s; a ping makes it say something.

    ping_s: between two pings. silence_s: without any message, pongs included, until the connection counts as dead;
    also how long the venue has to acknowledge a subscription before it is sent again.
    """

    connect_s: Annotated[float, Gt(0)] = 10.0
    ping_s: Annotated[float, Gt(0)] = 15.0
    silence_s: Annotated[float, Gt(0)] = 40.0


class Connection:
    """Open from the constructor to close(). Raises ConnectionEnded; used by one thread, but closed by any."""

    def __init__(self, url: str, subscriptions: Sequence[Subscription], settings: ConnectionSettings,
                 monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._settings, self._monotonic_s = settings, monotonic_s
        try:
            self._socket = websocket.create_connection(url, timeout=settings.connect_s)
        except (websocket.WebSocketException, OSError) as error:
            raise ConnectionEnded(f"cannot connect: {type(error).__name__}: {error!s:.100}") from error
        self._unanswered = {subscription_to_identifier(one): one for one in subscriptions}
        try:
            self._subscribe()
            self._socket.settimeout(min(TICK_S, settings.ping_s, settings.silence_s))
        except (websocket.WebSocketException, OSError) as error:
            self.close()
            raise ConnectionEnded(f"cannot subscribe: {type(error).__name__}: {error!s:.100}") from error
        self._heard_s = self._pinged_s = monotonic_s()

    def acknowledged(self, subscription: Subscription) -> None:
        """The venue answered this subscription."""
        self._unanswered.pop(subscription_to_identifier(subscription), None)

    def receive(self) -> str | bytes | None:
        """The next message, or None if none came within a tick. Pings, and subscribes again, when it is time to."""
        try:
            if self._monotonic_s() - self._pinged_s >= self._settings.ping_s:
                self._pinged_s = self._monotonic_s()
                self._socket.send(PING)
            if self._unanswered and self._monotonic_s() - self._subscribed_s >= self._settings.silence_s:
                self._subscribe()
            message: str | bytes = self._socket.recv()
        except websocket.WebSocketTimeoutException:
            if self._monotonic_s() - self._heard_s > self._settings.silence_s:
                raise ConnectionEnded(f"silent for {self._settings.silence_s:g} s") from None
            return None
        except (websocket.WebSocketException, OSError, UnicodeDecodeError) as error:
            raise ConnectionEnded(f"cut: {type(error).__name__}: {error!s:.100}") from error
        if message == "" and not self._socket.connected:
            raise ConnectionEnded("cut: closed by the venue")
        self._heard_s = self._monotonic_s()
        return message

    def _subscribe(self) -> None:
        self._subscribed_s = self._monotonic_s()
        for subscription in self._unanswered.values():
            self._socket.send(orjson.dumps({"method": "subscribe", "subscription": subscription}).decode())

    def close(self) -> None:
        with suppress(websocket.WebSocketException, OSError):
            self._socket.shutdown()
