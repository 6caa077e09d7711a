"""The Crypto Fear & Greed index, from the public API of alternative.me.

Recorded days of it: `feeds.recorded`. Scores on Reddit, Twitter and Polymarket are pushed by the bot to the hub.
"""

from __future__ import annotations

import httpx
import numpy as np
import orjson
from numpy.typing import NDArray

from feature_repo.features import FEAR_GREED, HOUR_MS
from feature_repo.frames import GroupFrame
from policies.errors import HubError, InvalidInput

DAY_MS = 24 * HOUR_MS
API_URL = "https://api.alternative.me/fng/"
LONGEST_ANSWER = 4 * 2**20  # bytes; the whole history has 0.3 MB


class SentimentUnavailable(HubError):
    """A source of sentiment did not answer in time, or not with what it promises."""

    code = "sentiment_unavailable"


def fear_greed_frame(time_ms: NDArray[np.int64], index: NDArray[np.float64]) -> GroupFrame:
    """Rows of FEAR_GREED. time_ms: (N,), not falling, within the day that a value belongs to. index: (N,), 0..100.

    A value is published at some time of its day, so it counts as known when that day (UTC) is over: the event time of
    today's value lies in the future. Of several values of one day the last one is kept.
    """
    known_ms = (time_ms // DAY_MS + 1) * DAY_MS
    if not (np.diff(known_ms) >= 0).all():
        raise InvalidInput("fear_greed.time_ms", "not falling", "not so")
    fine = (index >= 0) & (index <= 100)
    if not fine.all():
        row = int(np.argmin(fine))
        raise InvalidInput(f"fear_greed[{row}].index", "0..100", float(index[row]))
    last = np.r_[known_ms[1:] != known_ms[:-1], True][:len(known_ms)]
    return GroupFrame(FEAR_GREED, known_ms[last], index[last, None] / 100)


class FearGreedApi:
    """The index from alternative.me. It concerns the market: the rows are the same for every symbol.

    timeout_s: of connecting and of each wait for bytes. Nothing is asked before `refresh`; once a day is enough.
    """

    def __init__(self, url: str = API_URL, timeout_s: float = 5.0) -> None:
        self._url, self._timeout_s = url, timeout_s
        self._frame = GroupFrame.empty(FEAR_GREED)

    def frames(self, symbol: str, start_ms: int, stop_ms: int) -> dict[str, GroupFrame]:
        """A source of frames: by what was read last."""
        return {FEAR_GREED: self._frame.reaching(start_ms, stop_ms)}

    def refresh(self) -> GroupFrame:
        """Read the whole history anew. SentimentUnavailable if that fails; what was read before then stays."""
        try:
            answer = orjson.loads(self._ask())
            days = sorted((int(day["timestamp"]) * 1_000, float(day["value"])) for day in answer["data"])
            self._frame = fear_greed_frame(np.array([time_ms for time_ms, _ in days], np.int64),
                                           np.array([index for _, index in days], np.float64))
        except (KeyError, TypeError, ValueError, OverflowError, InvalidInput) as error:
            raise SentimentUnavailable(f"the Fear & Greed index is not what it used to be: {error!r:.200}") from error
        return self._frame

    def _ask(self) -> bytes:
        body = b""
        try:
            with httpx.stream("GET", self._url, params={"limit": 0}, timeout=self._timeout_s) as answer:
                answer.raise_for_status()
                for part in answer.iter_bytes():
                    body += part
                    if len(body) > LONGEST_ANSWER:
                        raise SentimentUnavailable(f"the Fear & Greed index has more than {LONGEST_ANSWER} bytes")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise SentimentUnavailable(f"the Fear & Greed index: {type(error).__name__}") from error
        return body
